"""Samples are what diffusers' own pipelines draw from the same weights, and drawing them changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image

from tests import tiny
from trainer import sampling
from trainer.config.schema import LoraTargets, ModelConfig, SampleConfig
from trainer.families import FAMILIES
from trainer.families.base import Components, ModelFamily

SETTINGS = SampleConfig(
    prompts=("a red circle", "a blue frame"),
    negative_prompt="yellow",
    num_inference_steps=4,
    guidance_scale=5.0,
    width=96,
    height=64,
    seed=11,
)
SCHEDULES = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal snr": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
}


def load(family: ModelFamily, folder: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> Components:
    return family.load(tiny.model_files(folder, family.name, **facts), "cpu", dtype)


def encoded(
    family: ModelFamily, components: Components, settings: SampleConfig = SETTINGS, clip_skip: int = 1
) -> sampling.SamplePrompts:
    with sampling.evaluation(components.text_encoders), torch.no_grad():
        rows = [
            family.encode_prompts(components, [text], clip_skip=clip_skip, max_token_length=75)
            for text in (*settings.prompts, settings.negative_prompt)
        ]
    return sampling.SamplePrompts(tuple(rows[:-1]), rows[-1])


def draw(
    family: ModelFamily, components: Components, settings: SampleConfig = SETTINGS, index: int = 0, clip_skip: int = 1
) -> Image.Image:
    prompts = encoded(family, components, settings, clip_skip)
    schedule = family.schedule(components, ModelConfig())
    (image,) = sampling.draw(family, components, schedule, settings, prompts, indices=[index])
    return image


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sample_is_the_picture_that_diffusers_draws(
    family: ModelFamily, folder: Path, name: str, guidance_scale: float
) -> None:
    components = load(family, folder, **SCHEDULES[name])
    settings = SETTINGS.model_copy(update={"guidance_scale": guidance_scale})
    schedule = family.schedule(components, ModelConfig())
    ours = draw(family, components, settings, index=1)
    pipeline = family.build_pipeline(components, schedule)
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline(
        prompt=settings.prompts[1],
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=sampling.GUIDANCE_RESCALE if schedule.zero_terminal_snr else 0.0,
        generator=torch.Generator("cpu").manual_seed(settings.seed + 1),
    ).images[0]
    assert ours.size == (96, 64) and np.asarray(ours).std() > 1
    assert difference(ours, reference) <= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_use_the_noise_levels_of_training_from_the_last_one_on(
    family: ModelFamily, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = load(family, folder, **SCHEDULES[name])
    schedule = family.schedule(components, ModelConfig())
    seen: list[int] = []
    predict = type(family).predict

    def watch(self: ModelFamily, denoiser: Any, latents: Any, timesteps: torch.Tensor, conditioning: Any) -> Any:
        seen.append(int(timesteps[0]))
        return predict(self, denoiser, latents, timesteps, conditioning)

    monkeypatch.setattr(type(family), "predict", watch)
    draw(family, components)
    assert seen == [999, 749, 499, 249]
    scheduler = family.build_pipeline(components, schedule).scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-5, atol=1e-6)
    assert scheduler.config.prediction_type == SCHEDULES[name]["prediction_type"]


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_pictures_of_one_batch_are_those_that_are_drawn_alone(
    family: ModelFamily, folder: Path, guidance_scale: float
) -> None:
    components = load(family, folder)
    settings = SETTINGS.model_copy(update={"prompts": (*SETTINGS.prompts, "a cat"), "guidance_scale": guidance_scale})
    schedule = family.schedule(components, ModelConfig())
    prompts = encoded(family, components, settings)
    together = sampling.draw(family, components, schedule, settings, prompts, indices=range(3))
    for index, picture in enumerate(together):
        assert difference(picture, draw(family, components, settings, index=index)) <= 1
    assert difference(together[0], together[2]) > 5


def test_small_pictures_are_drawn_together_and_large_ones_alone() -> None:
    settings = SETTINGS.model_copy(update={"prompts": ("x",) * 20, "width": 64, "height": 64})
    assert sampling.drawn_together(settings) == [range(16), range(16, 20)]
    large = settings.model_copy(update={"width": 512})
    assert sampling.drawn_together(large)[:2] == [range(2), range(2, 4)]
    larger = large.model_copy(update={"height": 512})
    assert [len(one) for one in sampling.drawn_together(larger)] == [1] * 20
    assert sampling.drawn_together(settings.model_copy(update={"prompts": ()})) == []


def test_every_schedule_gives_its_own_picture(family: ModelFamily, folder: Path) -> None:
    pictures = [draw(family, load(family, folder, **facts)) for facts in SCHEDULES.values()]
    assert difference(pictures[0], pictures[1]) > 5 and difference(pictures[1], pictures[2]) > 2


def test_the_seed_alone_decides_the_noise(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    torch.manual_seed(1)
    first = draw(family, components)
    torch.manual_seed(2)
    assert difference(first, draw(family, components)) == 0
    assert difference(first, draw(family, components, index=1)) > 5
    # Prompt i has seed + i, so the second sample is the first of the next seed with that prompt.
    other = SETTINGS.model_copy(update={"seed": SETTINGS.seed + 1, "prompts": SETTINGS.prompts[1:]})
    assert difference(draw(family, components, index=1), draw(family, components, other)) == 0


def test_drawing_leaves_no_trace(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    targets = family.lora_targets(LoraTargets.ATTENTION)
    lora = LoraConfig(r=2, lora_alpha=2, lora_dropout=0.5, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(lora, components.denoiser)
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=2, lora_dropout=0.5, target_modules=family.text_encoder_targets()),
        components.text_encoders[0],
    )
    still = draw(family, components)
    components.denoiser.train()
    components.denoiser.mid_block.eval()
    components.text_encoders[0].train()
    modes = {name: [layer.training for layer in part.modules()] for name, part in components.modules().items()}
    state = torch.get_rng_state()
    assert difference(draw(family, components), still) == 0, "dropout must be off while drawing"
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == {name: [layer.training for layer in part.modules()] for name, part in components.modules().items()}
    assert all(parameter.grad is None for part in components.modules().values() for parameter in part.parameters())


def test_random_numbers_drawn_on_the_way_do_not_show(
    family: ModelFamily, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = load(family, folder)
    predict = family.predict

    def greedy(*arguments: Any) -> Any:
        torch.rand(3)
        return predict(*arguments)

    monkeypatch.setattr(type(family), "predict", lambda self, *arguments: greedy(*arguments))
    state = torch.get_rng_state()
    draw(family, components)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_lora_the_prompt_and_the_negative_prompt_show(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    plain = draw(family, components)
    assert difference(plain, draw(family, components, SETTINGS.model_copy(update={"negative_prompt": "square"}))) > 0
    assert difference(plain, draw(family, components, SETTINGS.model_copy(update={"prompts": ("green",)}))) > 0
    inject_adapter_in_model(
        LoraConfig(
            r=2, lora_alpha=2, target_modules=family.lora_targets(LoraTargets.ATTENTION), init_lora_weights=False
        ),
        components.denoiser,
    )
    assert difference(plain, draw(family, components)) > 0


def test_clip_skip_shows_where_the_family_has_it(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    changed = difference(draw(family, components), draw(family, components, clip_skip=2)) > 0
    assert changed is FAMILIES[family.name].has_clip_skip


def test_samples_of_a_bf16_base_are_nearly_those_of_fp32(family: ModelFamily, folder: Path) -> None:
    settings = SETTINGS.model_copy(update={"guidance_scale": 1.0})
    half = draw(family, load(family, folder, torch.bfloat16), settings)
    full = draw(family, load(family, folder), settings)
    assert np.abs(np.asarray(half, dtype=int) - np.asarray(full, dtype=int)).mean() < 4


def test_text_encoders_are_not_needed_once_the_prompts_are_encoded(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    expected = draw(family, components)
    prompts = encoded(family, components)
    components.text_encoders = [None] * len(components.text_encoders)
    schedule = family.schedule(components, ModelConfig())
    (image,) = sampling.draw(family, components, schedule, SETTINGS, prompts, indices=[0])
    assert difference(image, expected) == 0


def test_drawing_ends_when_it_is_interrupted(family: ModelFamily, folder: Path) -> None:
    components = load(family, folder)
    prompts = encoded(family, components)
    schedule = family.schedule(components, ModelConfig())
    asked: list[int] = []

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) == 3

    assert sampling.draw(family, components, schedule, SETTINGS, prompts, indices=[0], interrupted=interrupted) == []
    assert len(asked) == 3
