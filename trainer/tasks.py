"""Long work that the page starts: importing, tagging, checking. One thread per lane, a queue, progress, cancel, reports.

Nothing here belongs to a viewer: pages come and go, the work goes on and its report stays until it is dismissed.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from security.errors import Cancelled, SafelightError
from security.roots import disk_is_full

logger = logging.getLogger("safelight.tasks")

THREAD_NAME = "safelight-task"
MAX_KEPT = 30
"""Ended tasks whose reports are kept; the oldest go first."""
MAX_SKIPPED = 20_000
MAX_WAITING = 200
"""Tasks that may wait for their turn. Each holds what it was asked for; nobody means to start more."""
RATE_SECONDS = 30.0
"""The time left is judged from the pace of this long."""


class TaskState(StrEnum):
    """Where a task stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        """Running, or waiting for its turn."""
        return self in (TaskState.WAITING, TaskState.RUNNING)


@dataclass(frozen=True)
class TaskView:
    """All that can be told about a task at one moment. `total` 0: not known. Times in seconds since the epoch.

    `text`: what it does now. `message`: its result or its error. `skipped`: (name, reason) of what was left out.
    """

    id: str
    kind: str
    title: str
    dataset: str
    state: TaskState
    done: int
    total: int
    text: str
    eta_seconds: float | None
    message: str
    skipped: tuple[tuple[str, str], ...]
    started: float
    ended: float

    @property
    def percent(self) -> int:
        """How much is done, 0 to 100; 0 while the total is not known."""
        return min(100, 100 * self.done // self.total) if self.total else 0


class TaskControl:
    """What a task's work is handed: where to report to, and whether it should end. Safe from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._cancel = threading.Event()
        self._done = self._total = 0
        self._text = ""
        self._skipped: list[tuple[str, str]] = []
        self._pace: deque[tuple[float, int]] = deque()

    def progress(self, done: int, total: int, text: str = "") -> None:
        """`done` of `total` things are over; `text` says what is done now."""
        now = time.monotonic()
        with self._guard:
            if done < self._done or total != self._total:
                self._pace.clear()  # another phase, with another pace
            self._done, self._total, self._text = done, total, text
            self._pace.append((now, done))
            while now - self._pace[0][0] > RATE_SECONDS and len(self._pace) > 2:
                self._pace.popleft()

    def skip(self, name: str, reason: str) -> None:
        """Tells that something was left out, and why."""
        with self._guard:
            if len(self._skipped) < MAX_SKIPPED:
                self._skipped.append((name, reason))

    def cancelled(self) -> bool:
        """Whether the user asked it to end. The work then finishes what it is at and returns what it has done."""
        return self._cancel.is_set()

    def raise_if_cancelled(self) -> None:
        """Raises Cancelled if the user asked it to end."""
        if self._cancel.is_set():
            raise Cancelled("Cancelled.")

    def cancel(self) -> None:
        """Asks the work to end."""
        self._cancel.set()

    def _now(self) -> tuple[int, int, str, float | None, tuple[tuple[str, str], ...]]:
        with self._guard:
            return self._done, self._total, self._text, self._eta(), tuple(self._skipped)

    def _eta(self) -> float | None:
        if len(self._pace) < 2 or not self._total:
            return None
        (began, first), (last_time, last) = self._pace[0], self._pace[-1]
        if last <= first or last_time - began < 1:
            return None
        left = (self._total - last) * (last_time - began) / (last - first)
        return max(0.0, left - (time.monotonic() - last_time))


Work = Callable[[TaskControl], str]


class _Task:
    """One task, seen and changed under the guard of `Tasks`."""

    def __init__(self, kind: str, title: str, dataset: str, work: Work) -> None:
        self.id = secrets.token_hex(6)
        self.kind, self.title, self.dataset, self.work = kind, title, dataset, work
        self.control = TaskControl()
        self.state = TaskState.WAITING
        self.message = ""
        self.started = time.time()
        self.ended = 0.0

    def view(self) -> TaskView:
        done, total, text, eta, skipped = self.control._now()
        eta = eta if self.state is TaskState.RUNNING else None
        return TaskView(
            id=self.id, kind=self.kind, title=self.title, dataset=self.dataset, state=self.state, done=done,
            total=total, text=text, eta_seconds=eta, message=self.message, skipped=skipped, started=self.started,
            ended=self.ended,
        )  # fmt: skip


class Tasks:
    """The tasks of one program: lanes work beside each other, tasks of one lane one after the other."""

    def __init__(self, logs_dir: Path | None = None) -> None:
        """`logs_dir`: where the log is that messages name."""
        self._log_name = f"{logs_dir.name}/safelight.log" if logs_dir is not None else "the log"
        self._guard = threading.Condition(threading.RLock())
        self._tasks: dict[str, _Task] = {}
        self._queues: dict[str, deque[_Task]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closing = False

    def start(self, kind: str, title: str, dataset: str, work: Work, lane: str = "disk") -> str:
        """Puts work in the queue of its lane and returns its id. `work` gets a TaskControl and returns its report.

        Lanes: "disk" for what reads and writes files, "compute" for what keeps the processor or the GPU busy.
        """
        with self._guard:
            if self._closing:
                raise SafelightError("Safelight is shutting down; start it again first.")
            if sum(len(queue) for queue in self._queues.values()) >= MAX_WAITING:
                raise SafelightError(f"{MAX_WAITING} tasks wait for their turn already. Wait for some, or cancel them.")
            task = _Task(kind, title, dataset, work)
            self._tasks[task.id] = task
            self._queues.setdefault(lane, deque()).append(task)
            if lane not in self._threads:
                self._threads[lane] = threading.Thread(
                    target=self._work, args=(lane,), name=f"{THREAD_NAME}-{lane}", daemon=True
                )
                self._threads[lane].start()
            return task.id

    def all(self) -> list[TaskView]:
        """Every task that is known, newest first."""
        with self._guard:
            return [task.view() for task in reversed(self._tasks.values())]

    def get(self, task_id: str) -> TaskView:
        """One task. Raises SafelightError if it is not known (any more)."""
        return self._find(task_id).view()

    def current(self) -> TaskView | None:
        """The running task that started first, for the status strip; else one that waits; else None."""
        views = [view for view in reversed(self.all()) if view.state.is_active]
        return next((view for view in views if view.state is TaskState.RUNNING), views[0] if views else None)

    def busy_with(self, dataset: str) -> list[TaskView]:
        """Tasks that run or wait and belong to a dataset."""
        return [view for view in self.all() if view.dataset == dataset and view.state.is_active]

    def cancel(self, task_id: str) -> None:
        """Takes a waiting task out of the queue; asks a running one to end, which keeps what it has done."""
        with self._guard:
            task = self._find(task_id)
            task.control.cancel()
            if task.state is TaskState.WAITING:
                for queue in self._queues.values():
                    if task in queue:
                        queue.remove(task)
                self._end(task, TaskState.CANCELLED, "Cancelled before it began.")

    def dismiss(self, task_id: str) -> None:
        """Forgets the report of an ended task. Raises SafelightError while it runs."""
        with self._guard:
            if self._find(task_id).state.is_active:
                raise SafelightError("This is still going on. Cancel it first.")
            del self._tasks[task_id]

    def shutdown(self, timeout_seconds: float = 5.0) -> bool:
        """Cancels everything and waits. Returns whether all work ended in time."""
        with self._guard:
            self._closing = True
            for task in list(self._tasks.values()):
                if task.state.is_active:
                    self.cancel(task.id)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until nothing runs or waits. Returns False when the time is up first."""
        with self._guard:
            return self._guard.wait_for(lambda: not self._threads, timeout_seconds)

    def _find(self, task_id: str) -> _Task:
        with self._guard:
            if task_id not in self._tasks:
                raise SafelightError("This task is not known any more. Reload the page.")
            return self._tasks[task_id]

    def _work(self, lane: str) -> None:
        while True:
            with self._guard:
                queue = self._queues[lane]
                if not queue:
                    del self._threads[lane]
                    self._guard.notify_all()
                    return
                task = queue.popleft()
                task.state, task.started = TaskState.RUNNING, time.time()
            self._run(task)

    def _run(self, task: _Task) -> None:
        state = TaskState.DONE
        try:
            message = task.work(task.control)
            state = TaskState.CANCELLED if task.control.cancelled() else TaskState.DONE
        except Cancelled as error:
            state, message = TaskState.CANCELLED, str(error)
        except SafelightError as error:
            state, message = TaskState.FAILED, str(error)
        except Exception as error:  # the thread's last line: report, whatever it was
            error_id = secrets.token_hex(3).upper()
            logger.exception("task %s (%s) failed (id %s)", task.id, task.kind, error_id)
            state, message = TaskState.FAILED, self._unforeseen(error, error_id)
        self._end(task, state, message)

    def _unforeseen(self, error: Exception, error_id: str) -> str:
        if isinstance(error, OSError) and disk_is_full(error):
            return "The disk is full. Make room and start this again; what was done before is kept."
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return "There was not enough memory. Try a smaller batch, or close other programs."
        return f"Something unforeseen went wrong ({type(error).__name__}, id {error_id}). {self._log_name} has the details."

    def _end(self, task: _Task, state: TaskState, message: str) -> None:
        with self._guard:
            task.state, task.message, task.ended = state, message, time.time()
            task.work = _nothing  # lets go of what it held
            ended = [one for one in self._tasks.values() if not one.state.is_active]
            for old in sorted(ended, key=lambda one: one.ended)[:-MAX_KEPT]:
                del self._tasks[old.id]
            self._guard.notify_all()


def _nothing(_control: TaskControl) -> str:
    return ""
