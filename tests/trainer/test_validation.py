"""The held-out loss in a run: it leaks nothing, changes nothing, finds and keeps the best step, and survives a resume."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tiny import tiny_sd15
from tests.trainer.test_splitting import blobs, dataset
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, shake, trained
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.config.schema import TrainConfig
from trainer.dataset.splitting import num_held_out
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import BEST_ENDING, RunFolder, RunReader
from trainer.setup import PictureSet
from trainer.step import denoising_losses
from trainer.validation import measure, measured_timesteps, measured_training_pictures, picture_losses
from trainer.workspace import Workspace

WATCHED: dict[str, Any] = {"split": 0.25, "every_n_steps": 1, "num_timesteps": 2, "train_pictures": 2}
TOO_FAST = 0.3
"""A learning rate at which every step after the first makes the LoRA worse."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "set"
    dataset(folder, {f"{number}.png": blobs(number) for number in range(8)})
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def config_of(base: Path, pictures: Path, **sections: Any) -> TrainConfig:
    values = {"validation": WATCHED, "lora": {"dropout": 0.2}} | sections
    values["save"] = {"key_format": "kohya"} | values.get("save", {})
    return make_config(base, pictures, **values)


def validations(seen: list[events.Event]) -> list[events.Validated]:
    return [event for event in seen if isinstance(event, events.Validated)]


def without_times(seen: list[events.Validated]) -> list[dict[str, Any]]:
    return [{key: value for key, value in events.to_json(event).items() if key != "time"} for event in seen]


def test_what_is_held_out_is_not_trained_and_measuring_changes_nothing(base, pictures, tmp_path) -> None:
    """Bit for bit the run that never had those pictures, and never measured anything."""
    first = Workspace.open(tmp_path / "first")
    trained(config_of(base, pictures, save={"keep_last": 1}), first)
    rows = json.loads(only_run(first).manifest_path.read_text(encoding="utf-8"))["datasets"][0]["pictures"]
    out = [row["picture"] for row in rows if row.get("held_out")]
    assert len(rows) == 8 and len(out) == num_held_out(8, 0.25) == 2
    fewer = tmp_path / "fewer"
    shutil.copytree(pictures, fewer)
    for name in out:
        (fewer / name).unlink()
    second = Workspace.open(tmp_path / "second")
    config = config_of(base, fewer, validation={})
    trained(config, second)
    expected, found = final_state(only_run(second)), final_state(only_run(first))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_measuring_leaves_no_trace(base, pictures, workspace) -> None:
    run = prepared(config_of(base, pictures, lora={"dropout": 0.2, "train_text_encoder": True}), workspace)
    shake(run)
    drawn: list[torch.Tensor] = []
    # a layer that draws at random even when it is measured, as some networks' own augmentations do
    run.components.denoiser.register_forward_hook(lambda *_: drawn.append(torch.rand(1)))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    modes = [layer.training for part in run.adapted.values() for layer in part.modules()]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    weights = [parameter.clone() for parameter in run.parameters]
    first, second = measure(run), measure(run)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert first == second and drawn
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert modes == [layer.training for part in run.adapted.values() for layer in part.modules()]
    assert all(torch.equal(one, other) for one, other in zip(weights, run.parameters, strict=True))
    assert all(parameter.grad is None for parameter in run.parameters)
    for parameter in run.parameters:
        parameter.data += 0.05
    assert measure(run) != first


def test_training_and_held_out_pictures_are_measured_in_the_same_way(base, pictures, workspace) -> None:
    run = prepared(config_of(base, pictures, dataset={"flip_augmentation": True, "shuffle_tags": True}), workspace)
    shake(run)
    index = measured_training_pictures(run)[0]
    moved = PictureSet([run.pictures.placed[index]], {(0, False): run.pictures.latents[index, False]})
    assert picture_losses(run, moved, [0]) == picture_losses(run, run.pictures, [index])
    chosen = measured_training_pictures(run)
    assert len(set(chosen)) == 2 and measure(run).trained == picture_losses(run, run.pictures, chosen)


def test_a_loss_is_the_same_however_many_timesteps_are_measured_at_a_time(base, pictures, workspace) -> None:
    watched = {**WATCHED, "num_timesteps": 5}
    found = []
    for batch_size in (1, 2, 5):
        config = config_of(base, pictures, validation=watched, training={"batch_size": batch_size})
        run = prepared(config, workspace)
        shake(run)
        found.append(picture_losses(run, run.held_out, range(2)))
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == pytest.approx(found[0], rel=1e-5)


def test_each_picture_is_measured_once_however_often_it_is_cut(base, pictures, tmp_path, workspace) -> None:
    prior = tmp_path / "prior"
    dataset(prior, {"p.png": blobs(70)})
    settings = {"random_crops": 3, "more_resolutions": [96], "regularisation": [str(prior)]}
    watched = {**WATCHED, "train_pictures": 100}
    run = prepared(config_of(base, pictures, dataset=settings, validation=watched), workspace)
    chosen = [run.pictures.placed[index] for index in measured_training_pictures(run)]
    assert len(run.pictures.placed) > 7 and len(chosen) == 6
    assert len({one.picture.name for one in chosen}) == 6 and not any(one.is_prior for one in chosen)
    assert len(run.held_out.placed) == 2


def test_the_timesteps_stand_for_equal_shares_of_those_of_training(base, pictures, workspace) -> None:
    run = prepared(config_of(base, pictures, validation={**WATCHED, "num_timesteps": 4}), workspace)
    assert measured_timesteps(run) == [125, 375, 625, 875]


def test_a_held_out_loss_is_the_mean_over_its_timesteps(base, pictures, workspace) -> None:
    """Against the noise that a reader of the documentation would draw."""
    from trainer.randomness import derive_seed
    from trainer.step_inputs import condition

    run = prepared(config_of(base, pictures, lora={}), workspace)
    own = []
    for timestep in (250, 750):
        one, latents = run.held_out.placed[1], run.held_out.latents[1, False]
        generator = torch.Generator().manual_seed(derive_seed(42, "held-out", one.picture.content_hash, timestep))
        noise = torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            conditioning = condition(run, run.held_out, [1], [False], [one.picture.caption])
            own.append(denoising_losses(run, latents, noise, torch.tensor([timestep]), conditioning).item())
    assert measure(run).held_out[1] == pytest.approx(sum(own) / 2, rel=1e-6)


def test_the_best_step_is_kept_as_file_and_checkpoint_and_recommended(base, pictures, workspace) -> None:
    config = config_of(
        base,
        pictures,
        optimizer={"learning_rate": TOO_FAST},
        training={"max_train_steps": 5},
        save={"keep_last": 1, "every_n_steps": 2, "precision": "fp32"},
    )
    seen = trained(config, workspace)
    told = validations(seen)
    assert [event.step for event in told] == [0, 1, 2, 3, 4, 5]
    best = min(told[1:], key=lambda event: event.loss)
    assert best.step < 5, "the run was meant to go astray"
    assert [event.step for event in told if event.best][-1] == best.step
    assert all(event.train_loss is not None and event.spread > 0 and event.train_spread > 0 for event in told)
    folder = only_run(workspace)
    kept = [load_checkpoint(path).step for path in list_checkpoints(folder.checkpoints_dir)]
    assert kept == [best.step, 5]
    state = load_checkpoint(list_checkpoints(folder.checkpoints_dir)[0]).lora
    saved = load_file(folder.path / f"tiny{BEST_ENDING}.safetensors")
    sums = sorted(round(tensor.abs().sum().item(), 3) for key, tensor in saved.items() if not key.endswith("alpha"))
    assert sums == pytest.approx(sorted(round(tensor.abs().sum().item(), 3) for tensor in state.values()), abs=2e-3)

    def metadata(name: str) -> dict[str, str]:
        with safe_open(folder.path / name, "pt") as file:
            return file.metadata()

    told_best, told_last = metadata(f"tiny{BEST_ENDING}.safetensors"), metadata("tiny.safetensors")
    for entries, is_best, step in ((told_best, "True", best.step), (told_last, "False", 5)):
        assert entries["safelight_is_best"] == is_best
        assert entries["safelight_best_step"] == str(best.step)
        assert float(entries["safelight_best_held_out_loss"]) == best.loss
        assert entries["ss_num_validation_images"] == "2"
        assert float(entries["safelight_held_out_loss"]) == told[step].loss
    progress = RunReader(folder).progress()
    assert progress.best is not None and progress.best.step == best.step
    assert {saved.path for saved in progress.recommended} == {"tiny-best.safetensors"}
    assert progress.notice == told[-1].notice


def test_without_keep_best_nothing_is_kept_for_it(base, pictures, workspace) -> None:
    config = config_of(base, pictures, validation={**WATCHED, "keep_best": False}, save={"keep_last": 1})
    seen = trained(config, workspace)
    assert [event.step for event in seen if isinstance(event, events.CheckpointSaved)][-1] == 4
    folder = only_run(workspace)
    assert len(list_checkpoints(folder.checkpoints_dir)) == 1
    assert not list(folder.path.glob(f"*{BEST_ENDING}*"))


EARLY: dict[str, Any] = {
    "validation": {**WATCHED, "early_stop_patience": 2},
    "optimizer": {"learning_rate": TOO_FAST},
    "training": {"max_train_steps": 30},
}


def test_the_run_ends_early_with_everything_saved_and_the_reason(base, pictures, workspace) -> None:
    seen = trained(config_of(base, pictures, **EARLY), workspace)
    end = seen[-1]
    assert isinstance(end, events.Finished) and end.stopped and 2 <= end.step < 30
    assert "validation.early_stop_patience is 2" in end.reason
    folder = only_run(workspace)
    assert load_checkpoint(list_checkpoints(folder.checkpoints_dir)[-1]).step == end.step
    assert (folder.path / "tiny.safetensors").is_file()
    progress = RunReader(folder).progress()
    assert progress.reason == end.reason and progress.state.value == "stopped"


def test_a_resumed_run_measures_decides_and_ends_like_one_that_was_never_stopped(base, pictures, tmp_path) -> None:
    config = config_of(
        base, pictures, **{**EARLY, "optimizer": {"learning_rate": 0.05}, "training": {"max_train_steps": 4}}
    )
    whole = Workspace.open(tmp_path / "whole")
    reference = trained(config, whole)
    halves = Workspace.open(tmp_path / "halves")
    folder = RunFolder.create(halves, config)
    control = Control()
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 2:
            control.stop.set()
        seen.append(event)
        folder.append(event)

    train(config, find_inputs(config, halves), folder, halves, emit, control)
    again = trained(config, halves, folder)
    assert without_times(validations(seen) + validations(again)) == without_times(validations(reference))
    assert losses(seen) + losses(again) == losses(reference)
    first, second = seen_end(reference), seen_end(again)
    assert (first.step, first.stopped, first.reason) == (second.step, second.stopped, second.reason)
    expected = load_file(only_run(whole).path / "tiny-best.safetensors")
    found = load_file(folder.path / "tiny-best.safetensors")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def seen_end(seen: list[events.Event]) -> events.Finished:
    assert isinstance(seen[-1], events.Finished)
    return seen[-1]


def test_new_pictures_on_resume_leave_the_sides_as_they_were(base, pictures, tmp_path, workspace) -> None:
    own = tmp_path / "own"
    shutil.copytree(pictures, own)
    quiet = {"split": 0.25, "num_timesteps": 1, "train_pictures": 0, "keep_best": False}
    config = config_of(base, own, validation=quiet, training={"max_train_steps": 1})
    trained(config, workspace)
    folder = only_run(workspace)

    def held_out() -> set[str]:
        rows = json.loads(folder.manifest_path.read_text(encoding="utf-8"))["datasets"][0]["pictures"]
        return {row["picture"] for row in rows if row.get("held_out")}

    before = held_out()
    for number in range(20, 23):
        blobs(number).save(own / f"{number}.png")
    ImageOps.mirror(Image.open(own / min(before))).save(own / "twin.png")
    longer = config.model_copy(update={"training": config.training.model_copy(update={"max_train_steps": 2})})
    trained(longer, workspace, folder)
    assert held_out() == before | {"twin.png"}


def test_a_held_out_folder_with_twins_of_training_pictures_is_warned_about(base, pictures, tmp_path, workspace) -> None:
    folder = tmp_path / "held"
    dataset(folder, {"new.png": blobs(99), "mirrored.png": ImageOps.mirror(blobs(3))})
    seen = trained(
        config_of(
            base,
            pictures,
            validation={"folder": str(folder), "num_timesteps": 1, "keep_best": False},
            training={"max_train_steps": 1},
        ),
        workspace,
    )
    told = [event.message for event in seen if isinstance(event, events.Warned) and "held-out" in event.message]
    assert len(told) == 1 and told[0].startswith("1 of the held-out pictures") and "mirrored.png" in told[0]
    assert len(validations(seen)) == 2
