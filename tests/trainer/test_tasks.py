"""Long work of the page: lanes, progress, time left, cancel, reports, and an end in any case."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.errors import Cancelled, SafelightError
from trainer.tasks import MAX_KEPT, TaskControl, Tasks, TaskState


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tasks]:
    made = Tasks(tmp_path / "logs")
    yield made
    assert made.shutdown()


def held(control: TaskControl) -> str:
    """Work that goes on until it is cancelled."""
    while not control.cancelled():
        time.sleep(0.001)
    return "kept what was done"


def wait_for(tasks: Tasks, task_id: str, state: TaskState) -> None:
    end = time.monotonic() + 10
    while tasks.get(task_id).state is not state:
        assert time.monotonic() < end, tasks.get(task_id)
        time.sleep(0.001)


def test_a_task_tells_what_it_did_and_what_it_left_out(tasks: Tasks) -> None:
    def work(control: TaskControl) -> str:
        control.progress(3, 4, "c.png")
        control.skip("a.gif", "no picture")
        return "3 pictures added."

    view = tasks.get(tasks.start("import", "Import into hats", "hats", work))
    assert (view.kind, view.title, view.dataset) == ("import", "Import into hats", "hats")
    assert tasks.wait(10)
    view = tasks.get(view.id)
    assert (view.state, view.message, view.skipped) == (
        TaskState.DONE,
        "3 pictures added.",
        (("a.gif", "no picture"),),
    )
    assert (view.done, view.total, view.percent, view.text) == (3, 4, 75, "c.png")
    assert view.ended >= view.started > time.time() - 60
    assert tasks.all() == [view]
    tasks.dismiss(view.id)
    assert tasks.all() == []
    with pytest.raises(SafelightError, match="not known"):
        tasks.get(view.id)


def test_tasks_of_one_lane_wait_and_lanes_work_beside_each_other(tasks: Tasks) -> None:
    first = tasks.start("tag", "1", "a", held, lane="compute")
    second = tasks.start("tag", "2", "a", held, lane="compute")
    disk = tasks.start("import", "3", "b", lambda control: "done")
    wait_for(tasks, disk, TaskState.DONE)
    wait_for(tasks, first, TaskState.RUNNING)
    assert tasks.get(second).state is TaskState.WAITING
    assert [view.id for view in tasks.all()] == [disk, second, first]
    current = tasks.current()
    assert current is not None and current.id == first
    assert [view.id for view in tasks.busy_with("a")] == [second, first] and not tasks.busy_with("b")
    with pytest.raises(SafelightError, match="going on"):
        tasks.dismiss(first)
    tasks.cancel(first)
    wait_for(tasks, second, TaskState.RUNNING)
    assert (tasks.get(first).state, tasks.get(first).message) == (TaskState.CANCELLED, "kept what was done")
    assert not tasks.wait(0.01)


def test_a_waiting_task_is_cancelled_before_it_begins(tasks: Tasks) -> None:
    began = threading.Event()

    def never(control: TaskControl) -> str:
        began.set()
        return ""

    first = tasks.start("tag", "1", "a", held)
    second = tasks.start("tag", "2", "a", never)
    tasks.cancel(second)
    assert tasks.get(second).state is TaskState.CANCELLED
    tasks.cancel(first)
    assert tasks.wait(10) and not began.is_set()


def test_errors_are_told(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    def refused(control: TaskControl) -> str:
        raise SafelightError("hats is embedded.")

    def unforeseen(control: TaskControl) -> str:
        raise KeyError("secret detail")

    def full(control: TaskControl) -> str:
        raise OSError(28, "No space left on device")

    def ended(control: TaskControl) -> str:
        control.cancel()
        control.raise_if_cancelled()
        raise Cancelled("unreachable")

    with caplog.at_level(logging.CRITICAL, "safelight.tasks"):
        ids = [tasks.start("x", "x", "x", work) for work in (refused, unforeseen, full, ended, lambda control: "well")]
        assert tasks.wait(10)
    views = [tasks.get(task_id) for task_id in ids]
    states = [TaskState.FAILED] * 3 + [TaskState.CANCELLED, TaskState.DONE]
    assert [view.state for view in views] == states
    assert views[0].message == "hats is embedded."
    assert "KeyError" in views[1].message and "logs/safelight.log" in views[1].message
    assert "secret" not in views[1].message
    assert "disk is full" in views[2].message


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    control = TaskControl()
    control.progress(0, 100)
    assert control._now()[3] is None
    for done in range(10, 60, 10):
        now += 5
        control.progress(done, 100)
    assert control._now()[3] == pytest.approx(25)
    now += 5
    assert control._now()[3] == pytest.approx(20)  # it runs down between two reports
    control.progress(0, 7, "another phase")
    assert control._now()[3] is None
    now += 5
    control.progress(1, 7)
    assert control._now()[3] == pytest.approx(30)  # by the pace of this phase alone


def test_reports_are_kept_but_not_without_end(tasks: Tasks) -> None:
    ids = [tasks.start("x", str(number), "x", lambda control: "well") for number in range(MAX_KEPT + 5)]
    assert tasks.wait(10)
    assert [view.id for view in tasks.all()] == ids[:4:-1]


def test_shutdown_cancels_and_takes_nothing_new(tasks: Tasks) -> None:
    running, waiting = (tasks.start("x", "x", "x", held) for _ in range(2))
    wait_for(tasks, running, TaskState.RUNNING)
    assert tasks.shutdown(10)
    assert {tasks.get(one).state for one in (running, waiting)} == {TaskState.CANCELLED}
    with pytest.raises(SafelightError, match="shutting down"):
        tasks.start("x", "x", "x", held)
