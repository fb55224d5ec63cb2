"""A full disk, and folders that vanish, while a run works: plain words, nothing lost, and the same LoRA in the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, make_config, only_run, trained
from trainer import events, room
from trainer.checkpoints import list_checkpoints
from trainer.config.schema import TrainConfig
from trainer.event_file import RESERVED_NAME, EventFile
from trainer.inputs import find_inputs
from trainer.jobs import Control, Jobs, error_message
from trainer.loop import train
from trainer.runs import RunFolder, RunReader, RunState
from trainer.workspace import Workspace

resource = pytest.importorskip("resource", reason="limits of POSIX systems stand in for a full disk")

TINY_FILES = 3000
"""Bytes: no checkpoint, LoRA or picture is as small."""
AT_ONCE = {"background_saving": False}
"""Where a test counts the checkpoints that were written before the disk was full."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("room") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("room") / "set", 4)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def full() -> Iterator[Callable[[bool], None]]:
    """Makes the system refuse to write files beyond a small size, and takes them again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (TINY_FILES if on else before[0], before[1]))

    yield switch
    switch(False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(room, "PATIENCE_ON_STOP_SECONDS", 0.2)


@pytest.fixture(scope="module")
def expected(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    workspace = Workspace.open(tmp_path_factory.mktemp("room") / "whole")
    trained(settings(base, pictures), workspace)
    return final_state(only_run(workspace))


def settings(base: Path, pictures: Path, **sections: Any) -> TrainConfig:
    training = {"max_train_steps": 6, "batch_size": 2, "device": "cpu"}
    return make_config(base, pictures, training=training, save={"every_n_steps": 1, "key_format": "kohya"}, **sections)


def watched(
    config: TrainConfig, workspace: Workspace, watch: Callable[[events.Event], None], control: Control | None = None
) -> list[events.Event]:
    """Trains; `watch` sees every event. What a real run writes of them is left out: the limit would stop that too."""
    folder = RunFolder.create(workspace, config)
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        watch(event)

    train(config, find_inputs(config, workspace), folder, workspace, emit, control or Control())
    return seen


def warnings(seen: list[events.Event]) -> list[str]:
    return [event.message for event in seen if isinstance(event, events.Warned)]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_disk_that_is_full_for_a_while_costs_no_step(base, pictures, workspace, full, expected) -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step in (2, 4):
            full(event.step == 2)

    seen = watched(settings(base, pictures, speed=AT_ONCE), workspace, watch)
    told = warnings(seen)
    assert [text for text in told if "The disk is full" in text and "step 2" in text and "make room" in text]
    assert [event.step for event in seen if isinstance(event, events.CheckpointSaved)] == [1, 4, 5, 6]
    assert isinstance(seen[-1], events.Finished) and not seen[-1].stopped
    folder = only_run(workspace)
    assert same(final_state(folder), expected)
    assert not [path for path in folder.path.rglob("*") if "partial" in path.name]


def test_the_end_of_a_run_waits_for_room(base, pictures, workspace, full, expected, quick) -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 6:
            full(True)
        if isinstance(event, events.Warned) and "waits" in event.message:
            threading.Timer(0.3, full, [False]).start()

    seen = watched(settings(base, pictures), workspace, watch)
    assert sum("The run waits: make room" in text for text in warnings(seen)) == 1
    assert isinstance(seen[-1], events.Finished) and (only_run(workspace).path / "tiny.safetensors").is_file()
    assert same(final_state(only_run(workspace)), expected)


def test_a_run_that_may_not_wait_says_where_it_goes_on_from(base, pictures, workspace, full, expected, quick) -> None:
    control = Control()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 3:
            full(True)
            control.stop.set()

    with pytest.raises(room.DiskFull, match=r"The disk is full .* up to step 3 .* Make room and continue"):
        watched(settings(base, pictures, speed=AT_ONCE), workspace, watch, control)
    full(False)
    folder = only_run(workspace)
    assert [path.name for path in list_checkpoints(folder.checkpoints_dir)] == ["step-00000001", "step-00000002"]
    again = trained(settings(base, pictures), workspace, folder)
    assert [event.step for event in again if isinstance(event, events.Resumed)] == [2]
    assert same(final_state(folder), expected)


def test_without_room_for_the_cache_a_run_trains_all_the_same(base, pictures, workspace, full, expected) -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.Preparing):
            full(event.phase == "Encoding captions")

    seen = watched(settings(base, pictures), workspace, watch)
    assert any("kept in memory only" in text for text in warnings(seen))
    assert len(list(workspace.text_cache_dir.rglob("*.safetensors"))) == 1  # the first was written before
    assert same(final_state(only_run(workspace)), expected)


def test_samples_that_find_no_room_are_told(base, pictures, workspace, full, expected) -> None:
    sample = {"prompts": ["a", "b"], "every_n_steps": 3, "width": 64, "height": 64, "num_inference_steps": 1}

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            full(event.step == 3)

    seen = watched(settings(base, pictures, sample=sample), workspace, watch)
    assert any("step-00000003-00.png could not be written" in text for text in warnings(seen))
    assert [event.step for event in seen if isinstance(event, events.SampleSaved)] == [0, 0, 6, 6]
    assert same(final_state(only_run(workspace)), expected)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_bad_news_gets_through_on_a_full_disk_and_no_event_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2_000_000) as disk:
        folder = RunFolder.create(Workspace.open(disk), TrainConfig())
        file = EventFile(folder)
        for event in (events.Preparing("x"), events.Started(100, 0, 12, 3.0, "sd15", "CPU, fp32", 1000)):
            file.append(event)
        filler = disk / "filler"
        with pytest.raises(OSError, match="space"), filler.open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        for number in range(1, 101):
            file.append(events.StepDone(number, 0.5, 1e-4, 0.5, number, 0.1))
        reader = RunReader(folder)
        assert reader.progress(held=True).step < 100  # they wait
        file.append(events.Failed("The disk is full.", 100))
        progress = reader.progress()
        assert (progress.state, progress.message, progress.step) == (RunState.FAILED, "The disk is full.", 100)
        assert [done.step for done in reader.history.steps] == list(range(1, 101))
        filler.unlink()
        file.close()
        assert not (folder.path / RESERVED_NAME).exists()


def test_a_run_on_a_full_disk_ends_in_words_and_goes_on_when_there_is_room(base, pictures, tmp_path, quick) -> None:
    with small_disk(tmp_path / "disk", 12_000_000) as disk:
        jobs = Jobs(Workspace.open(disk))
        run_id = jobs.submit(settings(base, pictures))
        filler = disk / "filler"
        deadline = time.monotonic() + 60
        while not (jobs.workspace.runs_dir / run_id / "checkpoints").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OSError, match="space"), filler.open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        while not any("The disk is full" in text for text in jobs.progress(run_id).warnings):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        filler.unlink()
        assert jobs.wait(60)
        progress = jobs.progress(run_id)
        assert progress.state is RunState.FINISHED and progress.step == 6
        assert jobs.shutdown(10)


# --- what vanishes ---


def test_pictures_and_base_may_go_once_a_run_trains(base, pictures, tmp_path, workspace, expected) -> None:
    places = [shutil.copytree(base, tmp_path / "base"), shutil.copytree(pictures, tmp_path / "set")]
    config = settings(*places)
    control = Control()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 2:
            for place in places:
                place.rename(place.with_name(f"{place.name}-away"))
            control.pause.set()

    seen = watched(config, workspace, watch, control)
    assert isinstance(seen[-1], events.Paused)
    folder = only_run(workspace)
    for place in places:
        with pytest.raises(SafelightError, match=r"no (model|dataset)|nothing|not exist|There is no"):
            find_inputs(config, workspace)
        place.with_name(f"{place.name}-away").rename(place)
    trained(config, workspace, folder)
    assert same(final_state(folder), expected)


def test_a_picture_that_goes_while_the_run_is_prepared_is_named(base, pictures, tmp_path, workspace) -> None:
    place = shutil.copytree(pictures, tmp_path / "set")

    def watch(event: events.Event) -> None:
        if isinstance(event, events.Preparing) and event.phase == "Loading the base model":
            (place / "002.png").unlink()

    with pytest.raises(SafelightError, match=r"002\.png"):
        watched(settings(base, place), workspace, watch)


def test_a_run_folder_that_is_gone_is_told_in_words(base, pictures, workspace) -> None:
    jobs = Jobs(workspace)
    run_id = jobs.submit(settings(base, pictures))
    folder = workspace.runs_dir / run_id
    while not (folder / "checkpoints").is_dir():
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)
    assert jobs.wait(60)  # it ends, whatever it finds
    gone = FileNotFoundError(2, "No such file", str(folder / "x.safetensors"))
    assert error_message(gone, workspace.logs_dir).startswith("x.safetensors is gone")


def test_events_are_json_whatever_was_cut(tmp_path: Path, full) -> None:
    folder = RunFolder.create(Workspace.open(tmp_path), TrainConfig())
    file = EventFile(folder)
    full(True)
    for number in range(1, 60):
        file.append(events.StepDone(number, 0.5, 1e-4, 0.5, number, 0.1))
    assert folder.events_path.stat().st_size == TINY_FILES  # cut in the middle of a line
    full(False)
    file.close()
    reader = RunReader(folder)
    reader.refresh()
    assert [done.step for done in reader.history.steps] == list(range(1, 60))
    assert json.loads(folder.events_path.read_bytes().splitlines()[-1])["step"] == 59
    assert folder.events_path.stat().st_size > TINY_FILES
