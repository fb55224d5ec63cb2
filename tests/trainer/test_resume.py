"""Going on: what changed is listed, what can't change is refused with the way out, and what was owed is done first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, make_config, only_run, trained
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.config.changes import FIXED_SECTIONS, FREE, flat_settings
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("resume")
    return {
        "base": tiny_sd15(folder / "base"),
        "same": shutil.copytree(folder / "base", folder / "moved"),
        "other": tiny_sd15(folder / "other", seed=1),
        "v": tiny_sd15(folder / "v", prediction_type="v_prediction"),
        "set": tiny_dataset(folder / "set", 4),
    }


@pytest.fixture(scope="module")
def half(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a run that was trained for two steps of four."""
    workspace = Workspace.open(tmp_path_factory.mktemp("half") / "space")
    trained(make_config(places["base"], places["set"], training={"max_train_steps": 2}), workspace)
    return workspace


def gone_on(config: TrainConfig, half: Workspace) -> tuple[Run, list[str]]:
    """The run prepared to go on with other settings, and what is said about it."""
    seen: list[events.Event] = []
    folder = only_run(half)
    run = prepare(config, find_inputs(config, half), folder, half, seen.append, Control())
    return run, [event.message for event in seen if isinstance(event, events.Warned)]


def settings(places: dict[str, Path], base: str = "base", **sections: Any) -> TrainConfig:
    merged = {"training": {"max_train_steps": 4, **sections.pop("training", {})}, **sections}
    return make_config(places[base], places["set"], **merged)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lora": {"rank": 8}}, r"lora\.rank 4, and its settings say 8 now.*mid-run: set it back"),
        ({"lora": {"alpha": 4.0}}, r"lora\.alpha 2\.0, and its settings say 4\.0 now"),
        ({"lora": {"targets": "attention"}}, r"lora\.targets .* say attention now"),
        ({"lora": {"train_text_encoder": True}}, r"lora\.train_text_encoder off, and its settings say on now"),
        ({"lora": {"adapter": "dora"}}, r"lora\.adapter lora, and its settings say dora"),
        ({"model": {"prediction_type": "v_prediction"}}, r"model\.prediction_type epsilon, and it is v_prediction now"),
        ({"training": {"max_train_steps": 1}}, r"max_train_steps now at 1\. Set it to 2 to end here, or higher"),
        ({"base": "other"}, r"the base base, and model\.base names other weights now \(other\)"),
        ({"base": "v"}, r"the base base, and model\.base names other weights now"),
    ],
)
def test_what_can_not_change_is_refused_with_the_way_out(sections: dict, words: str, places, half) -> None:
    with pytest.raises(SafelightError, match=words) as caught:
        gone_on(settings(places, **sections), half)
    assert "trained to step 2" in str(caught.value)


def test_a_base_that_was_moved_is_the_same_base(places, half) -> None:
    run, _ = gone_on(settings(places, "same"), half)
    assert run.step == 2 and set(run.changed) == {"model.base", "training.max_train_steps"}


def test_what_may_change_is_listed(places, half) -> None:
    changed = {"optimizer": {"learning_rate": 1e-4}, "training": {"seed": 7}, "lora": {"dropout": 0.5}}
    run, warned = gone_on(settings(places, **changed, dataset={"shuffle_tags": True}), half)
    assert run.changed == {
        "dataset.shuffle_tags": "off -> on",
        "lora.dropout": "0.0 -> 0.5",
        "optimizer.learning_rate": "0.01 -> 0.0001",
        "training.max_train_steps": "2 -> 4",
        "training.seed": "42 -> 7",
    }
    assert not any("bit for bit" in text for text in warned)


def test_another_optimizer_begins_without_a_memory_and_says_so(places, half) -> None:
    run, warned = gone_on(settings(places, optimizer={"name": "radam"}), half)
    assert run.step == 2 and not run.optimizer.state
    assert any("was adamw and is radam now" in text for text in warned)


def test_another_machine_is_told(places, half) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        _, warned = gone_on(settings(places), half)
    finally:
        torch.set_num_threads(threads)
    (told,) = [text for text in warned if "bit for bit" in text]
    assert told.endswith(f"others: the threads ({threads} then, {threads + 1} now).")


def test_a_run_that_was_stopped_first_does_what_was_due_at_its_step(places, tmp_path) -> None:
    config = settings(
        places,
        sample={"prompts": ["a"], "every_n_steps": 2, "width": 64, "height": 64, "num_inference_steps": 1},
        save={"every_n_steps": 2, "keep_last_loras": 1, "key_format": "kohya"},
    )
    whole, cut = Workspace.open(tmp_path / "whole"), Workspace.open(tmp_path / "cut")
    trained(config, whole)
    folder, control = RunFolder.create(cut, config), Control()
    watched: list[events.Event] = []

    class Folder(RunFolder):
        def append(self, event: events.Event) -> None:
            super().append(event)
            watched.append(event)
            if isinstance(event, events.StepDone) and event.step == 2:
                control.stop.set()

    trained(config, cut, Folder(folder.path), control)
    assert not any(isinstance(event, events.SampleSaved) and event.step == 2 for event in watched)
    watched.clear()
    control.stop.clear()
    trained(config, cut, folder)
    for name in ("samples", "checkpoints"):
        shown = [sorted(path.name for path in (only_run(space).path / name).iterdir()) for space in (whole, cut)]
        assert shown[0] == shown[1]
    files = [sorted(path.name for path in only_run(space).path.glob("*.safetensors")) for space in (whole, cut)]
    assert files[0] == files[1] == ["tiny-step000002.safetensors", "tiny.safetensors"]
    expected, found = final_state(only_run(whole)), final_state(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_old_lora_files_go_and_others_stay(places, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    save = {"every_n_steps": 1, "keep_last_loras": 2}
    config = settings(places, training={"max_train_steps": 5}, save=save)
    folder = RunFolder.create(workspace, config)
    (folder.path / "tiny-step000001.safetensors.txt").write_bytes(b"mine")
    seen = trained(config, workspace, folder)
    assert sorted(path.name for path in folder.path.glob("*.safetensors")) == [
        *("tiny-step000003.safetensors", "tiny-step000003_diffusers.safetensors"),
        *("tiny-step000004.safetensors", "tiny-step000004_diffusers.safetensors"),
        *("tiny.safetensors", "tiny_diffusers.safetensors"),
    ]
    assert (folder.path / "tiny-step000001.safetensors.txt").is_file()
    gone = [event.path for event in seen if isinstance(event, events.LoraRemoved)]
    assert len(gone) == 4 and all("step00000" in path for path in gone)


def test_the_lists_of_what_may_change_name_settings_that_exist() -> None:
    known = flat_settings(TrainConfig())
    assert set(known) >= FREE and all(name.partition(".")[0] in FIXED_SECTIONS for name in FREE)


def test_what_a_run_remembers_is_kept(places, half) -> None:
    run, _ = gone_on(settings(places), half)
    checkpoint = load_checkpoint(list_checkpoints(only_run(half).checkpoints_dir)[-1])
    assert run.started_at == checkpoint.memory["started_at"] and "started_at" not in run.memory
    assert run.memory["losses"] == checkpoint.memory["losses"] and len(run.memory["losses"]["recent"]) == 2
