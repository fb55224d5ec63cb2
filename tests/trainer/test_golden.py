"""Golden losses: one number for each option, so that a change of mathematics is seen and has to be explained.

Where a number changes on purpose, write it down here with the reason in the commit's message; where it does not, the
change was no refactoring. `PRINT_GOLDEN=1` prints what is found. The plain ones are older than the options beside
them: the options came without moving them by a bit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_dataset, tiny_sd15, tiny_sdxl
from tests.trainer.test_training import make_config, prepared
from trainer.config.schema import LossConfig, NoiseConfig
from trainer.dataset.settings import mask_path
from trainer.setup import Run
from trainer.step import train_step, window_losses
from trainer.workspace import Workspace

TOLERANCE = 2e-5
"""Processors differ in the last digits of fp32; every option moves its loss by more."""
# A large epsilon makes Adam's step follow the gradient's size, so that rounding stays rounding.
OPTIMIZER = {"learning_rate": 0.1, "epsilon": 1e-2}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "epsilon": (tiny_sd15, {}),
    "velocity": (tiny_sdxl, {"prediction_type": "v_prediction", "ztsnr": True}),
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], float, float]] = {
    # name: settings of [loss], settings of [noise], loss of the epsilon model and of the velocity model
    "plain": ({}, {}, 1.148512, 0.403781),
    "L1": ({"type": "l1"}, {}, 0.850326, 0.467524),
    "Huber, constant": ({"type": "huber", "huber_schedule": "constant"}, {}, 0.152755, 0.078069),
    "Huber, SNR": ({"type": "huber"}, {}, 0.325505, 0.191380),
    "Huber, exponential": ({"type": "huber", "huber_schedule": "exponential"}, {}, 0.395499, 0.231495),
    "smooth L1": ({"type": "smooth_l1", "huber_delta": 0.3}, {}, 1.153715, 0.499365),
    "min-SNR": ({"min_snr_gamma": 5.0}, {}, 1.071743, 0.171843),
    "debiased": ({"debiased_estimation": True}, {}, 3.489685, 0.147611),
    "offset": ({}, {"offset": 0.1}, 1.162720, 0.412956),
    "offset of random strength": ({}, {"offset": 0.3, "offset_random_strength": True}, 1.200331, 0.423264),
    "adaptive offset": ({}, {"adaptive_offset": 0.2}, 1.148897, 0.404029),
    "pyramid": ({}, {"pyramid_iterations": 6}, 1.176000, 0.422448),
    "strong pyramid": ({}, {"pyramid_iterations": 10, "pyramid_discount": 0.8}, 1.190044, 0.421822),
    "input perturbation": ({}, {"input_perturbation": 0.1}, 1.147877, 0.404385),
    "sigmoid": ({}, {"timestep_law": "sigmoid"}, 1.143612, 0.536626),
    "logit-normal": (
        {},
        {"timestep_law": "logit_normal", "timestep_mean": -1.0, "timestep_scale": 0.5},
        1.145294,
        0.800216,
    ),
    "late timesteps": ({}, {"min_timestep": 700}, 1.141154, 0.124551),
    "early timesteps": ({}, {"max_timestep": 300}, 1.150936, 0.932865),
}
DATA: dict[str, tuple[dict[str, Any], float]] = {
    # name: settings of other sections, loss of the third step of the epsilon model after two that learned
    "plain": ({}, 1.148185),
    "shuffled": ({"dataset": {"shuffle_tags": True}}, 1.148353),
    "tags dropped": ({"dataset": {"tag_dropout_rate": 0.5}}, 1.160769),
    "separator": ({"dataset": {"shuffle_tags": True, "keep_tokens_separator": "simple"}}, 1.148456),
    "prefix and suffix": ({"dataset": {"caption_prefix": "a photo of", "caption_suffix": ", best"}}, 1.148956),
    "wildcards": ({"dataset": {"wildcards": True, "caption_suffix": "{on|under} {paper|wood}"}}, 1.147043),
    "more sizes": ({"dataset": {"more_resolutions": [96]}}, 1.102943),
    "crops": ({"dataset": {"random_crops": 3, "aspect_buckets": False}}, 1.062605),
    "masks": ({"dataset": {"folder": "MASKED"}}, 1.197798),
    "weight norms": ({"training": {"max_weight_norm": 1e-3}}, 1.161285),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("golden")
    masked = tiny_dataset(folder / "masked", 6, size=(150, 110))
    for picture in sorted(masked.glob("*.png")):
        path = mask_path(masked, picture.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.new("L", (150, 110))
        mask.paste(255, (30, 20, 90, 80))
        mask.save(path)
    models = {name: build(folder / name, **options) for name, (build, options) in MODELS.items()}
    return {"PLAIN": tiny_dataset(folder / "plain", 6, size=(150, 110)), "MASKED": masked, **models}


@pytest.fixture(scope="module")
def runs(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    spaces = tmp_path_factory.mktemp("spaces")
    return {
        name: prepared(make_config(places[name], places["PLAIN"]), Workspace.open(spaces / name)) for name in MODELS
    }


def agrees(name: str, found: float, golden: float) -> None:
    if os.environ.get("PRINT_GOLDEN"):
        print(f"GOLDEN {name}: {found:.6f}")
        return
    assert found == pytest.approx(golden, rel=TOLERANCE), name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_loss_of_each_option(option: str, model: str, runs: dict[str, Run]) -> None:
    loss, noise, *golden = OPTIONS[option]
    run = runs[model]
    sections = {"loss": LossConfig.model_validate(loss), "noise": NoiseConfig.model_validate(noise)}
    run.config = run.config.model_copy(update=sections)
    with torch.no_grad():
        found = float(window_losses(run, [sample for number in range(3) for sample in run.plan.batch(number)]).mean())
    agrees(f"{option} {model}", found, golden[list(MODELS).index(model)])


@pytest.mark.parametrize("option", DATA)
def test_the_third_loss_of_each_option(option: str, places: dict[str, Path], tmp_path: Path) -> None:
    sections, golden = DATA[option]
    dataset = {**sections.get("dataset", {})}
    dataset["folder"] = str(places[dataset.get("folder", "PLAIN")])
    config = make_config(places["epsilon"], places["PLAIN"], **{**sections, "dataset": dataset, "optimizer": OPTIMIZER})
    run = prepared(config, Workspace.open(tmp_path / "space"))
    agrees(option, [train_step(run).loss for _ in range(3)][-1], golden)


def test_every_option_has_a_number_of_its_own() -> None:
    for model in range(2):
        numbers = [row[2 + model] for row in OPTIONS.values()]
        assert len({round(number / TOLERANCE / 2) for number in numbers}) == len(numbers)
    assert len({round(number / TOLERANCE / 2) for _, number in DATA.values()}) == len(DATA)
