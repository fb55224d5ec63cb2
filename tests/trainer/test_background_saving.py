"""Checkpoints are written beside the training: the same bytes, told when they are on the disk, and nothing is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, make_config, only_run, prepared, trained
from trainer import events, room
from trainer.checkpoints import list_checkpoints, load_checkpoint, snapshot
from trainer.config.schema import TrainConfig
from trainer.guards import guarded_step
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import save, train
from trainer.memory.fitting import load_of
from trainer.memory.plan import LEVELS, needs
from trainer.resume import capture
from trainer.runs import RunFolder
from trainer.saving import SAVING_THREAD, save_state, settle, settle_if_written
from trainer.step import Diverged, train_step
from trainer.workspace import Workspace

SLOW_SECONDS = 0.15
"""Of every flush to the slow disk; a checkpoint makes six of them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("saving") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("saving") / "set", 4)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def settings(base: Path, pictures: Path, **sections: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "training": {"max_train_steps": 8, "batch_size": 2, "device": "cpu"},
        "save": {"every_n_steps": 3, "key_format": "kohya", "keep_last": 9},
    }
    return make_config(base, pictures, **{**defaults, **sections})


def watched(config: TrainConfig, workspace: Workspace, watch: Callable[[events.Event], None]) -> list[events.Event]:
    """Trains; `watch` sees every event, of which nothing is written."""
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        watch(event)

    folder = RunFolder.create(workspace, config)
    train(config, find_inputs(config, workspace), folder, workspace, emit, Control())
    return seen


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk whose flushes take long in the thread that writes checkpoints, as long as the event is set."""
    slow = threading.Event()
    flush = os.fsync

    def slowly(descriptor: int) -> None:
        if slow.is_set() and threading.current_thread().name.startswith(SAVING_THREAD):
            time.sleep(SLOW_SECONDS)
        flush(descriptor)

    slow.set()
    monkeypatch.setattr(os, "fsync", slowly)
    yield slow
    slow.clear()


def contents(folder: RunFolder) -> dict[str, dict[str, bytes]]:
    """All tensors of every checkpoint; state.json besides tells when the run began."""
    names = ("lora.safetensors", "optimizer.safetensors")
    return {
        path.name: {name: (path / name).read_bytes() for name in names}
        for path in list_checkpoints(folder.checkpoints_dir)
    }


def test_checkpoints_are_the_same_bytes_with_and_without(base, pictures, tmp_path) -> None:
    found = {}
    for background in (True, False):
        workspace = Workspace.open(tmp_path / str(background))
        seen = trained(settings(base, pictures, speed={"background_saving": background}), workspace)
        assert [one.step for one in seen if isinstance(one, events.CheckpointSaved)] == [3, 6, 8]
        found[background] = contents(only_run(workspace))
    assert len(found[True]) == 3 and found[True] == found[False]


def test_what_was_captured_does_not_change_with_the_steps_that_follow(base, pictures, workspace) -> None:
    run = prepared(settings(base, pictures), workspace)
    train_step(run)
    captured, before = snapshot(capture(run)), snapshot(capture(run))
    kept = {name: tensor.clone() for name, tensor in (captured.lora | captured.tensors).items()}
    for _ in range(2):
        train_step(run)
    assert captured.state == before.state
    assert all(torch.equal((captured.lora | captured.tensors)[name], value) for name, value in kept.items())
    later = snapshot(capture(run))
    assert not all(torch.equal(captured.lora[name], later.lora[name]) for name in later.lora)


def test_a_slow_disk_does_not_hold_the_steps(base, pictures, workspace, slow_disk) -> None:
    """The next steps are done before the checkpoint is; it is told after them, and only when it is on the disk."""
    folder = []

    def watch(event: events.Event) -> None:
        if isinstance(event, events.Started):
            folder.append(only_run(workspace))
        if isinstance(event, events.CheckpointSaved):
            path = folder[0].path / event.path
            assert load_checkpoint(path).step == event.step
            assert threading.current_thread() is threading.main_thread()

    seen = watched(settings(base, pictures), workspace, watch)
    order = [
        (type(one).__name__, one.step) for one in seen if isinstance(one, events.StepDone | events.CheckpointSaved)
    ]
    assert order.index(("CheckpointSaved", 3)) > order.index(("StepDone", 4))
    assert [step for name, step in order if name == "CheckpointSaved"] == [3, 6, 8]  # one after the other, in order
    assert isinstance(seen[-1], events.Finished)
    names = [type(one).__name__ for one in seen]
    assert len(names) - 1 - names[::-1].index("CheckpointSaved") < names.index("Finished")
    assert not [one for one in threading.enumerate() if one.name.startswith(SAVING_THREAD)]


def test_switched_off_the_steps_wait(base, pictures, workspace, slow_disk) -> None:
    seen = watched(settings(base, pictures, speed={"background_saving": False}), workspace, lambda event: None)
    order = [
        (type(one).__name__, one.step) for one in seen if isinstance(one, events.StepDone | events.CheckpointSaved)
    ]
    assert order.index(("CheckpointSaved", 3)) == order.index(("StepDone", 3)) + 1


def test_the_next_checkpoint_waits_for_the_one_before(base, pictures, workspace, slow_disk) -> None:
    run = prepared(settings(base, pictures), workspace)
    seen: list[events.Event] = []
    for _ in range(3):
        train_step(run)
        save_state(run, seen.append, beside=True)
        settle_if_written(run, seen.append)
    assert [one.step for one in seen] == [1, 2] and run.writing is not None  # type: ignore[attr-defined]
    threads = [one for one in threading.enumerate() if one.name.startswith(SAVING_THREAD)]
    assert len(threads) == 1
    settle(run, seen.append)
    assert [one.step for one in seen] == [1, 2, 3] and run.writing is None  # type: ignore[attr-defined]
    assert len(list_checkpoints(run.folder.checkpoints_dir)) == 3


def test_a_full_disk_is_told_when_it_shows_and_the_next_checkpoint_is_written(base, pictures, workspace) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = prepared(settings(base, pictures), workspace)
    seen: list[events.Event] = []
    train_step(run)
    save_state(run, seen.append, beside=True)
    settle(run, seen.append)
    saved_at = run.saved_at
    train_step(run)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        save_state(run, seen.append, beside=True)
        assert run.saved_at > saved_at
        settle(run, seen.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert run.saved_at == saved_at  # the next rescue is due as if there had been none
    assert isinstance(seen[-1], events.Warned) and "the checkpoint of step 2 could not be written" in seen[-1].message
    train_step(run)
    save_state(run, seen.append, beside=True)
    settle(run, seen.append)
    assert [path.name for path in list_checkpoints(run.folder.checkpoints_dir)] == ["step-00000001", "step-00000003"]
    assert not list(run.folder.checkpoints_dir.glob("*.partial"))


def test_another_fault_of_the_writing_ends_the_run_as_it_would_without(base, pictures, workspace, monkeypatch) -> None:
    flush = os.fsync

    def broken(descriptor: int) -> None:
        if threading.current_thread().name.startswith(SAVING_THREAD):
            raise OSError(5, "Input/output error")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        watched(settings(base, pictures), workspace, lambda event: None)
    assert not list_checkpoints(only_run(workspace).checkpoints_dir)


def test_a_fault_of_a_step_leaves_the_checkpoint_that_was_on_its_way(base, pictures, workspace, slow_disk) -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 4:
            raise ZeroDivisionError("the run breaks here")

    told: list[events.Event] = []
    with pytest.raises(ZeroDivisionError):
        watched(settings(base, pictures), workspace, lambda event: (told.append(event), watch(event)))  # type: ignore[arg-type]
    assert [one.step for one in told if isinstance(one, events.CheckpointSaved)] == [3]
    folder = only_run(workspace)
    assert [path.name for path in list_checkpoints(folder.checkpoints_dir)] == ["step-00000003"]
    slow_disk.clear()
    resumed = trained(settings(base, pictures), workspace, folder)
    assert [one.step for one in resumed if isinstance(one, events.Resumed)] == [3]
    whole = Workspace.open(workspace.path.parent / "whole")
    trained(settings(base, pictures), whole)
    expected = final_state(only_run(whole))
    assert all(torch.equal(value, expected[name]) for name, value in final_state(folder).items())


def test_pause_and_stop_write_at_once(base, pictures, tmp_path, slow_disk) -> None:
    for ending in ("pause", "stop"):
        workspace, control = Workspace.open(tmp_path / ending), Control()
        config = settings(base, pictures)
        folder = RunFolder.create(workspace, config)
        seen: list[events.Event] = []

        def emit(event: events.Event, seen: Any = seen, control: Any = control, ending: str = ending) -> None:
            seen.append(event)
            if isinstance(event, events.StepDone) and event.step == 4:
                getattr(control, ending).set()

        train(config, find_inputs(config, workspace), folder, workspace, emit, control)
        steps = [one.step for one in seen if isinstance(one, events.CheckpointSaved)]
        assert steps == [3, 4]
        assert isinstance(seen[-1], events.Paused if ending == "pause" else events.Finished)
        assert [load_checkpoint(path).step for path in list_checkpoints(folder.checkpoints_dir)] == [3, 4]


def test_a_run_that_went_astray_knows_the_checkpoint_that_was_on_its_way(base, pictures, workspace, slow_disk) -> None:
    config = settings(base, pictures, save={"every_n_steps": 0, "rescue_minutes": 0.0, "keep_last": 9})
    run = prepared(config, workspace)
    seen: list[events.Event] = []
    rescue = partial(save, run, seen.append)
    for _ in range(2):
        guarded_step(run, seen.append, rescue=rescue)
    save_state(run, seen.append, beside=True)
    good = {name: tensor.clone() for name, tensor in capture(run).lora.items()}
    run.parameters[0].data.fill_(float("nan"))
    with pytest.raises(Diverged, match="back at step 2, its last good checkpoint"):
        guarded_step(run, seen.append, rescue=rescue)
    assert all(torch.equal(value, good[name]) for name, value in capture(run).lora.items())


def test_the_plan_counts_the_copy_where_it_lies_in_the_same_memory(base, pictures, workspace) -> None:
    run = prepared(settings(base, pictures), workspace)
    parts = needs(load_of(run), LEVELS[0])
    trained_bytes = sum(parameter.nbytes for parameter in run.parameters)
    assert parts["the checkpoint being saved"] == trained_bytes + parts["the optimizer's state"]
    other = prepared(settings(base, pictures, speed={"background_saving": False}), workspace)
    assert "the checkpoint being saved" not in needs(load_of(other), LEVELS[0])


def test_the_end_of_a_run_waits_for_room_after_a_checkpoint_that_found_none(
    base, pictures, workspace, monkeypatch
) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(room, "LOOK_EVERY_SECONDS", 0.05)

    def full(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if on else limit[0], limit[1]))

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 6:
            full(True)
        if isinstance(event, events.Warned) and "waits" in event.message:
            threading.Timer(0.3, full, [False]).start()

    try:
        seen = watched(settings(base, pictures), workspace, watch)
    finally:
        full(False)
    told = [one.message for one in seen if isinstance(one, events.Warned) and "full" in one.message]
    assert len(told) == 2 and "what was due at step 6" in told[0] and "The run waits" in told[1]
    assert {one.step for one in seen if isinstance(one, events.CheckpointSaved)} == {3, 8}
