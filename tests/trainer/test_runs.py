"""What is shown of a run is what its event file says, whoever wrote it and however it ended."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from security.errors import SafelightError
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.jobs import Jobs
from trainer.runs import RunFolder, RunReader, RunState, describe
from trainer.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def step(number: int, loss: float = 1.0) -> events.StepDone:
    return events.StepDone(number, loss, 1e-4, 0.5, number * 4, 0.1)


STARTED = events.Started(100, 0, 12, 3.0, "sd15", "CPU, fp32", 1000)
EXAMPLES: list[events.Event] = [
    events.Queued("x"),
    events.Preparing("Encoding pictures", 0, 12),
    events.Sandboxed(True, "On: a run can read its model."),
    STARTED,
    events.Resumed(5, {"training.seed": "42 -> 7"}),
    events.LoraRemoved(5, "x-step000005.safetensors"),
    events.WentAstray(
        5, ["a.png"], "unet.conv_in", "The first unusable numbers ...", "optimizer.learning_rate", 3e-5, 4
    ),
    step(1),
    events.Validated(0, 0.5),
    events.SampleSaved(1, 0, "a cat", 1, "samples/a.png"),
    events.CheckpointSaved(5, "checkpoints/step-00000005"),
    events.LoraSaved(5, "x.safetensors", "kohya", 1000),
    events.MemoryPlanned("nothing computed twice", {"base": 1000}, 24_000_000_000),
    events.Planned(60.0, 0.2, 1000, 2000, "a dry run"),
    events.Measured(900, 2100),
    events.Warned("careful"),
    events.Stopping(False),
    events.Paused(3),
    events.Finished(100, False),
    events.Failed("broken", 3, "ABC"),
]


def test_every_event_is_an_example() -> None:
    assert {type(event).__name__ for event in EXAMPLES} == set(events.EVENTS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_events_survive_json_and_have_a_log_line(event: events.Event) -> None:
    assert events.from_json(json.loads(json.dumps(events.to_json(event)))) == event
    assert len(describe(event, 100)) > 10
    assert dataclasses.is_dataclass(event)


def test_names_that_are_taken_get_a_number(workspace: Workspace) -> None:
    names = [RunFolder.create(workspace, TrainConfig(name="mira")).run_id for _ in range(3)]
    assert names == ["mira", "mira-2", "mira-3"]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (events.Finished(100, False), RunState.FINISHED),
        (events.Finished(40, True), RunState.STOPPED),
        (events.Paused(40), RunState.PAUSED),
        (events.Failed("no", 40), RunState.FAILED),
        (step(40), RunState.INTERRUPTED),
    ],
)
def test_the_state_is_derived(workspace: Workspace, last: events.Event, state: RunState) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    for event in (events.Preparing("x"), STARTED, step(39), last):
        folder.append(event)
    progress = RunReader(folder).progress()
    assert progress.state is state
    assert progress.can_resume == (state is not RunState.FINISHED)


def test_a_run_that_another_process_holds_is_running_until_that_process_dies(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    for event in (events.Preparing("x"), STARTED, step(3)):
        folder.append(event)
    code = (
        "import sys, time; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder.path / "run.lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    reader = RunReader(folder)
    assert reader.progress().state is RunState.TRAINING
    with pytest.raises(SafelightError, match="training already"):
        Jobs(workspace).resume(folder.run_id)
    with pytest.raises(SafelightError, match="Stop it before"):
        Jobs(workspace).delete(folder.run_id)
    holder.kill()
    holder.wait()
    assert reader.progress().state is RunState.INTERRUPTED


def test_going_on_forgets_what_came_after_the_checkpoint(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    for event in (events.Preparing("x"), STARTED, *(step(number, 2.0) for number in range(1, 9))):
        folder.append(event)
    folder.append(events.Validated(8, 0.3))
    for event in (events.Preparing("x"), events.Resumed(5), STARTED, step(6, 1.0)):
        folder.append(event)
    reader = RunReader(folder)
    progress = reader.progress(held=True)
    assert (progress.step, progress.resumes, progress.validations) == (6, (5,), ())
    assert [done.step for done in reader.history.steps] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    for event in (events.Preparing("x"), STARTED, events.Validated(0, 0.5), step(1), step(2)):
        folder.append(event)
    for event in (events.Preparing("x"), STARTED, events.Validated(0, 0.5), step(1)):
        folder.append(event)
    reader = RunReader(folder)
    progress = reader.progress(held=True)
    assert [done.step for done in reader.history.steps] == [1]
    assert [one.step for one in progress.validations] == [0]


def test_a_torn_line_is_passed_over(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    folder.append(STARTED)
    with folder.events_path.open("ab") as file:
        file.write(b'{"event": "StepDone", "st')
    reader = RunReader(folder)
    assert reader.progress(held=True).step == 0
    folder.append(step(1))
    assert reader.progress(held=True).step == 1


def test_each_reader_has_its_own_place_in_the_log(workspace: Workspace) -> None:
    jobs = Jobs(workspace)
    folder = RunFolder.create(workspace, TrainConfig())
    folder.append(STARTED)
    first = jobs.lines(folder.run_id)
    folder.append(events.Warned("more"))
    assert [number for number, _ in jobs.lines(folder.run_id, since=len(first))] == [len(first)]
    assert len(jobs.lines(folder.run_id)) == len(first) + 1


def test_the_loss_curve_is_thinned_and_keeps_extremes(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    folder.append(STARTED)
    for number in range(1, 1001):
        folder.append(step(number, 9.0 if number == 617 else 1.0))
    jobs = Jobs(workspace)
    points = jobs.loss_curve(folder.run_id, 100)
    assert len(points) == 100 and points[-1].step == 1000
    assert max(point.high for point in points) == 9.0


def test_following_a_long_run_reads_only_what_is_new(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    folder.append(STARTED)
    for number in range(1, 3001):
        folder.append(step(number))
    reader = RunReader(folder)
    reader.refresh()
    offset = reader.offset
    folder.append(step(3001))
    reader.refresh()
    assert 0 < reader.offset - offset < 300
    assert reader.offset == folder.events_path.stat().st_size


def test_eta_is_the_pace_of_late_steps_times_what_is_left(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, TrainConfig())
    folder.append(STARTED)
    now = time.time()
    for number in range(1, 11):
        folder.append(dataclasses.replace(step(number), time=now + 2.0 * number))
    progress = RunReader(folder).progress(held=True)
    assert progress.seconds_per_step == pytest.approx(2.0)
    assert progress.eta_seconds == pytest.approx(180.0)


def test_unknown_runs_are_refused_with_the_known_ones(workspace: Workspace) -> None:
    RunFolder.create(workspace, TrainConfig(name="mira"))
    jobs = Jobs(workspace)
    with pytest.raises(SafelightError, match="mira"):
        jobs.progress("mirra")
    with pytest.raises(SafelightError):
        jobs.delete("../models")
    assert workspace.models_dir.is_dir()


def test_deleting_removes_the_folder_and_nothing_else(workspace: Workspace) -> None:
    jobs = Jobs(workspace)
    folder = RunFolder.create(workspace, TrainConfig(name="a"))
    other = RunFolder.create(workspace, TrainConfig(name="b"))
    jobs.delete(folder.run_id)
    assert not folder.path.exists() and other.path.exists()
    assert [run.run_id for run in jobs.runs()] == ["b"]
