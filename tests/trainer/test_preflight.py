"""The check of a run before it starts: what it finds, what it estimates, and how a run is judged by it afterwards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from security.errors import Cancelled, SafelightError
from tests.tiny import tiny_dataset, tiny_lora, tiny_sd15
from tests.trainer.test_training import make_config, prepared
from trainer import events
from trainer.config.choices import AdapterName
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control, Jobs
from trainer.preflight.check_run import Preflight, preflight, report_values
from trainer.preflight.checks import Level
from trainer.preflight.dry_run import probe_prediction
from trainer.preflight.estimates import (
    FIRST_BAND,
    LARGEST_BAND,
    SMALLEST_BAND,
    Estimate,
    judged,
    keep_estimate,
    kept_estimate,
    num_due,
    seconds_for_area,
    time_band,
)
from trainer.runs import RunFolder, RunState
from trainer.setup import prepare
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "set", 4)


def texts(result: Preflight, level: Level) -> list[str]:
    return [f"{one.check}: {one.text}" for one in result.findings if one.level is level]


def quick(workspace: Workspace, config: TrainConfig) -> Preflight:
    return preflight(workspace, config, dry_run=False)


# ---- what is found without a model --------------------------------------------------------------------------------------


def test_a_sound_run_has_no_fault(base: Path, pictures: Path, workspace: Workspace) -> None:
    config = make_config(base, pictures, optimizer={"learning_rate": 1e-4}, training={"max_train_steps": 40})
    result = quick(workspace, config)
    assert not result.faults and result.estimate is None
    assert {one.check for one in result.findings if one.level is Level.GOOD} >= {
        "base model",
        "learning rate",
        "length",
    }


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("dataset", {"folder": "nowhere"}, "There is no dataset named 'nowhere'"),
        ("model", {"base": "nothing"}, "nothing"),
        ("validation", {"folder": "nobody"}, "There is no dataset named 'nobody'"),
    ],
)
def test_what_is_missing_is_a_fault(
    base: Path, pictures: Path, workspace: Workspace, section: str, values: dict[str, Any], words: str
) -> None:
    result = quick(workspace, make_config(base, pictures, **{section: values}))
    assert any(words in text for text in texts(result, Level.FAULT)), result.findings
    assert "can't succeed" in result.sentence


def test_a_dataset_without_pictures_is_a_fault(base: Path, tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "empty").mkdir()
    result = preflight(workspace, make_config(base, tmp_path / "empty"))
    assert any("empty has no usable pictures" in text for text in texts(result, Level.FAULT))
    assert result.estimate is None


def test_a_damaged_picture_a_small_one_and_one_without_caption_are_told(
    base: Path, pictures: Path, workspace: Workspace
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40), "red").save(pictures / "small.png")
    told = texts(quick(workspace, make_config(base, pictures)), Level.WARNING)
    assert any("broken.png is left out" in text for text in told)
    assert any("1 pictures are smaller than the size" in text and "small.png" in text for text in told)
    assert any("1 pictures have no caption file" in text for text in told)


def test_a_word_of_ones_own_that_no_caption_holds_is_a_fault_without_a_dry_run(
    base: Path, pictures: Path, workspace: Workspace
) -> None:
    config = make_config(base, pictures, embedding={"word": "sks7"})
    with pytest.raises(SafelightError) as refused:
        prepared(config, workspace)
    result = quick(workspace, config)
    assert [(one.text, one.setting) for one in result.faults] == [(str(refused.value), "embedding.word")]
    assert "embedding.word is sks7, but no caption holds it" in str(refused.value)
    caption = next(iter(sorted(pictures.glob("*.txt"))))
    caption.write_text("a square, SKS7", encoding="utf-8")
    assert not quick(workspace, config).faults


def test_a_word_that_only_held_out_captions_hold_is_none_that_is_learned(
    base: Path, pictures: Path, tmp_path: Path, workspace: Workspace
) -> None:
    held = tiny_dataset(tmp_path / "held", 1, seed=5)
    for caption in held.glob("*.txt"):
        caption.write_text("sks7", encoding="utf-8")
    config = make_config(base, pictures, embedding={"word": "sks7"}, validation={"folder": str(held)})
    assert any("no caption holds it" in text for text in texts(quick(workspace, config), Level.FAULT))


@pytest.mark.parametrize("kind", [name for name in AdapterName if name is not AdapterName.LOCON])
def test_a_lora_of_another_kind_to_go_on_from_is_a_fault_without_a_dry_run(
    kind: AdapterName, base: Path, pictures: Path, tmp_path: Path, workspace: Workspace
) -> None:
    given: dict[str, Any] = {"adapter": kind.value, "rank": 4, "alpha": 3.0, "block_size": 16}
    path = tiny_lora(base, tmp_path / "given.safetensors", **given)
    own = make_config(base, pictures, lora={**given, "continue_from": str(path)})
    assert not quick(workspace, own).faults
    other = "lora" if kind is not AdapterName.LORA else "dora"
    config = make_config(base, pictures, lora={**given, "adapter": other, "continue_from": str(path)})
    told = f"names given.safetensors, which holds {kind.value} layers, and lora.adapter trains {other}"
    assert [one.setting for one in quick(workspace, config).faults if told in one.text] == ["lora.continue_from"]
    seen: list[events.Event] = []
    folder = RunFolder.create(workspace, config)
    with pytest.raises(SafelightError, match=told):
        prepare(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    assert not any(isinstance(event, events.Preparing) for event in seen)  # at once, before anything is loaded


def test_a_lora_to_go_on_from_that_is_gone_is_a_fault_without_a_dry_run(
    base: Path, pictures: Path, tmp_path: Path, workspace: Workspace
) -> None:
    config = make_config(base, pictures, lora={"continue_from": str(tmp_path / "gone.safetensors")})
    assert any("lora.continue_from is" in text for text in texts(quick(workspace, config), Level.FAULT))


def test_near_duplicates_are_told_by_name(base: Path, pictures: Path, workspace: Workspace) -> None:
    Image.open(pictures / "000.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "again.png")
    told = texts(quick(workspace, make_config(base, pictures)), Level.WARNING)
    assert any(text.startswith("near-duplicates") and "000.png" in text and "again.png" in text for text in told)


@pytest.mark.parametrize(("rate", "words"), [(5.0, "pictures may break"), (1e-9, "little will be learned")])
def test_a_learning_rate_out_of_its_band_is_told(
    base: Path, pictures: Path, workspace: Workspace, rate: float, words: str
) -> None:
    result = quick(workspace, make_config(base, pictures, optimizer={"learning_rate": rate}))
    (finding,) = [one for one in result.findings if one.check == "learning rate"]
    assert (finding.level, finding.setting) == (Level.WARNING, "optimizer.learning_rate")
    assert words in finding.text and f"{rate:g}" in finding.text


def test_a_setting_that_does_nothing_is_told(base: Path, pictures: Path, workspace: Workspace) -> None:
    config = make_config(base, pictures, dataset={"aspect_buckets": False, "max_aspect_ratio": 3.0})
    (note,) = [one for one in quick(workspace, config).findings if one.level is Level.NOTE]
    assert note.setting == "dataset.max_aspect_ratio"


@pytest.mark.parametrize(
    ("steps", "level", "times"),
    [
        (1, Level.WARNING, "less than once"),
        (2, Level.WARNING, "about once"),
        (4, Level.WARNING, "about 2 times"),
        (40, Level.GOOD, "about 20 times"),
        (5000, Level.WARNING, "about 2500 times"),
    ],
)
def test_the_number_of_steps_is_judged_by_looks_at_each_picture(
    base: Path, pictures: Path, workspace: Workspace, steps: int, level: Level, times: str
) -> None:
    config = make_config(base, pictures, training={"max_train_steps": steps})
    (finding,) = [one for one in quick(workspace, config).findings if one.check == "length"]
    assert finding.level is level and f" is seen {times}." in finding.text


# ---- the dry run ---------------------------------------------------------------------------------------------------------


def test_the_dry_run_estimates_and_the_run_is_judged_by_it(base: Path, pictures: Path, workspace: Workspace) -> None:
    config = make_config(
        base,
        pictures,
        training={"max_train_steps": 6},
        save={"every_n_steps": 3, "keep_last": 1},
        sample={"prompts": ["a red circle"], "width": 64, "height": 64, "num_inference_steps": 2},
    )
    before = set(workspace.runs_dir.iterdir())
    result = preflight(workspace, config)
    estimate = result.estimate
    assert estimate is not None and not result.faults, result.findings
    (planned,) = [one.text for one in result.findings if one.check == "memory plan"]
    assert "GB, nothing is computed twice" in planned
    assert set(workspace.runs_dir.iterdir()) == before, "a check is no run"
    assert not list(workspace.checks_dir.glob("dry-*")), "what the dry run wrote is gone"
    assert (estimate.steps, estimate.images, estimate.epochs) == (6, 4, 3.0)
    assert estimate.seconds == pytest.approx(sum(estimate.time_parts.values()))
    assert estimate.time_parts["steps"] > 0 and estimate.time_parts["samples"] > 0 and estimate.band == FIRST_BAND
    assert estimate.memory_parts["base model"] > estimate.memory_parts["what is trained"] > 0
    assert estimate.memory_parts["the optimizer's state"] >= 2 * estimate.memory_parts["what is trained"]

    jobs = Jobs(workspace)
    run = jobs.submit(config)
    assert jobs.wait(120)
    progress = jobs.progress(run)
    assert progress.state is RunState.FINISHED, progress.message
    assert progress.planned == dataclasses.replace(estimate.planned(), time=progress.planned.time)  # type: ignore[union-attr]
    assert progress.measured is not None and progress.measured.memory_bytes > 0
    # Two LoRA files and one checkpoint are most of it; config, events and samples are the rest.
    assert 0.7 < progress.measured.disk_bytes / estimate.disk_bytes < 1.5
    other = jobs.submit(make_config(base, pictures, training={"max_train_steps": 1}))
    assert jobs.wait(120)
    unchecked = jobs.progress(other).planned
    assert unchecked is not None and run in unchecked.source, "other settings were never checked, but this run is alike"


def test_every_batch_of_an_epoch_is_in_the_estimate(base: Path, pictures: Path, workspace: Workspace) -> None:
    wide = Image.new("RGB", (192, 96), "white")
    wide.save(pictures / "wide.png")
    config = make_config(base, pictures, dataset={"resolution": 96}, training={"max_train_steps": 4})
    told: list[str] = []
    result = preflight(workspace, config, tell=lambda done, total, text: told.append(text))
    assert result.estimate is not None, result.findings
    assert "Trying a step on the largest pictures" in told and "Encoding pictures" in told


def test_a_check_can_be_cancelled_and_leaves_nothing(base: Path, pictures: Path, workspace: Workspace) -> None:
    def tell(done: int, total: int, text: str) -> None:
        if text == "Encoding pictures":
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        preflight(workspace, make_config(base, pictures), tell=tell)
    assert not list(workspace.checks_dir.glob("dry-*"))


def test_a_run_that_fails_in_its_first_step_is_a_fault(base: Path, pictures: Path, workspace: Workspace) -> None:
    config = make_config(base, pictures, training={"device": "cuda:7"})
    result = preflight(workspace, config)
    assert any("training.device is cuda:7" in text for text in texts(result, Level.FAULT))
    assert result.estimate is None


def test_the_base_shows_what_it_predicts(workspace: Workspace) -> None:
    demo = {"model": {"base": "demo"}, "dataset": {"folder": "ink", "resolution": 64}}
    assert probe_prediction(prepared(parse_config(demo), workspace)) == "v_prediction"
    wrong = parse_config({**demo, "model": {"base": "demo", "prediction_type": "epsilon"}})
    warned = [one for one in preflight(workspace, wrong).findings if one.check == "prediction type"]
    assert [one.level for one in warned] == [Level.WARNING] and "Set model.prediction_type" in warned[0].text


def test_a_base_that_answers_with_the_noise_is_told_from_one_that_does_not(
    base: Path, pictures: Path, workspace: Workspace
) -> None:
    run = prepared(make_config(base, pictures), workspace)
    denoiser = run.components.denoiser.requires_grad_(True)
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    conditioning = run.prompts.encode([run.pictures.placed[0].picture.caption])
    last = torch.tensor([999])
    for _ in range(150):
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        loss = (run.family.predict(denoiser, noise, last, conditioning) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss) < 0.1:
            break
    assert probe_prediction(run) == "epsilon"


# ---- the numbers -----------------------------------------------------------------------------------------------------------


def test_the_band_follows_what_earlier_runs_needed() -> None:
    assert time_band([]) == time_band([(10, 12), (10, 9)]) == FIRST_BAND
    assert time_band([(10, 10)] * 5) == SMALLEST_BAND
    assert time_band([(10, 12), (10, 10 / 1.2), (10, 12)]) == pytest.approx(1.2**2 - 1)
    assert time_band([(10, 100)] * 3) == LARGEST_BAND
    assert time_band([(0, 5), (5, 0), (0, 0)]) == FIRST_BAND
    # only the newest count
    assert time_band([(10, 10)] * 20 + [(10, 100)] * 20) == SMALLEST_BAND


def test_seconds_of_a_size_lie_on_the_line_and_never_below_zero() -> None:
    assert seconds_for_area([(100, 2.0)], 400) == 2.0
    assert seconds_for_area([(100, 1.0), (200, 3.0)], 150) == pytest.approx(2.0)
    assert seconds_for_area([(200, 3.0), (100, 1.0)], 250) == pytest.approx(4.0)
    assert seconds_for_area([(100, 3.0), (200, 2.0)], 100) == 2.0, "noise makes no size faster than a larger one"
    assert seconds_for_area([(100, 1.0), (200, 9.0)], 50) == 0.0


@pytest.mark.parametrize(("steps", "every", "times"), [(10, 0, 2), (10, 5, 3), (10, 3, 5), (1, 1, 2), (10, 10, 2)])
def test_what_comes_every_so_many_steps_is_counted_as_the_loop_does_it(steps: int, every: int, times: int) -> None:
    inside = [step for step in range(1, steps) if every and step % every == 0]
    assert num_due(steps, every, first=True, last=True) == times == len(inside) + 2


def an_estimate(**changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "steps": 10,
        "images": 4,
        "epochs": 5.0,
        "seconds": 100.0,
        "band": 0.25,
        "memory_bytes": 1_000_000_000,
        "memory_total": 8_000_000_000,
        "disk_bytes": 5_000_000,
        "disk_free": 10**12,
        "source": "a dry run with these settings",
        "time_parts": {"steps": 100.0},
    }
    return Estimate(**{**values, **changes})


def test_an_estimate_is_kept_by_its_settings_and_not_by_the_name(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    config = TrainConfig()
    assert kept_estimate(workspace, config) is None
    keep_estimate(workspace, config, an_estimate())
    assert kept_estimate(workspace, config.model_copy(update={"name": "other"})) == an_estimate()
    assert kept_estimate(workspace, parse_config({"training": {"seed": 7}})) is None
    (path,) = workspace.checks_dir.glob("*.json")
    path.write_text("{}")
    assert kept_estimate(workspace, config) is None
    path.write_text("broken")
    assert kept_estimate(workspace, config) is None


def test_a_plan_is_judged_in_words() -> None:
    low, high = an_estimate().seconds_range
    assert (low, high) == (80.0, 125.0) and math.isclose(low * high, 100.0**2)
    planned = an_estimate().planned()
    inside = judged(planned, 110, events.Measured(1_100_000_000, 6_000_000))
    assert inside == (
        "planned 2 min ±25%, took 2 min (+10%, inside the band); memory planned 1.0 GB, was 1.1 GB; "
        "disk planned 5.0 MB, was 6.0 MB"
    )
    assert "outside the band" in judged(planned, 130, events.Measured(0, 0))


def test_a_report_is_plain_values(base: Path, pictures: Path, workspace: Workspace) -> None:
    values = report_values(quick(workspace, make_config(base, pictures)))
    assert values["ok"] is True and values["estimate"] is None
    assert {"check", "level", "text", "setting"} == set(values["findings"][0])


def test_a_run_that_was_never_checked_is_planned_by_one_that_was_like_it(
    base: Path, pictures: Path, workspace: Workspace
) -> None:
    jobs = Jobs(workspace)
    first = jobs.submit(make_config(base, pictures, training={"max_train_steps": 4}))
    assert jobs.wait(120)
    longer = make_config(base, pictures, training={"max_train_steps": 400})
    before = jobs.progress(first)
    planned = jobs.planned(longer)
    assert planned is not None and first in planned.source and before.seconds_per_step is not None
    assert planned.seconds == pytest.approx(400 * before.seconds_per_step, rel=0.5)
    assert planned.memory_bytes == before.measured.memory_bytes  # type: ignore[union-attr]
    assert jobs.planned(make_config(base, pictures, training={"batch_size": 1})) is None, "another batch, another time"
    RunFolder.find(workspace, first).config_path.write_text("broken = [", encoding="utf-8")
    assert jobs.planned(longer) is None, "what can't be read any more is passed over"
