"""The queue and the one running job, on a thread of this process. Closing a page touches none of it.

The only writer of run folders; readers (page, command line) follow each run's event file.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from security.environment import offline_environment
from security.errors import SafelightError
from security.roots import Root, disk_is_full
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.event_file import EventFile
from trainer.events import Event
from trainer.inputs import Inputs, confine_run, find_inputs
from trainer.machines import ONE_MACHINE, Machines
from trainer.memory.host import is_out_of_memory
from trainer.preflight.estimates import is_alike, kept_estimate, plan_by_earlier, time_band
from trainer.runs import LossPoint, Progress, RunFolder, RunReader, RunState
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.jobs")

TRAINER_THREAD = "safelight-trainer"
"""Name of the thread that trains. Each run has one of its own, because the sandbox cannot be lifted from a thread."""
QUEUE_THREAD = "safelight-queue"
"""Name of the thread that starts one run after the other."""
EARLIER_RUNS = 20
"""The newest runs in which one like the next is looked for."""


@dataclass(frozen=True)
class Control:
    """What the user asks of a running job; the loop looks at it after every step."""

    stop: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    sample_now: threading.Event = field(default_factory=threading.Event)
    save_now: threading.Event = field(default_factory=threading.Event)

    @property
    def ends(self) -> bool:
        """Whether the run has been asked to end."""
        return self.stop.is_set() or self.pause.is_set()


Trainer = Callable[[TrainConfig, Inputs, RunFolder, Workspace, Callable[[Event], None], Control], None]


def load_trainer(workspace: Workspace) -> Trainer:
    """The function that trains. Imports torch and its company, which takes seconds."""
    offline_environment()  # before the libraries that read it are imported
    workspace.compiled_cache_dir.mkdir(parents=True, exist_ok=True)
    # torch wants this folder when it is imported; its own choice is a guessable name in the shared temporary folder.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(workspace.compiled_cache_dir)
    from trainer.loop import train

    trainer: Trainer = train
    return trainer


class Jobs:
    """Runs of one workspace: start, stop, pause, go on, watch."""

    def __init__(self, workspace: Workspace, machines: Machines = ONE_MACHINE) -> None:
        self.workspace = workspace
        self.machines = machines
        self._guard = threading.RLock()
        self._queue: deque[str] = deque()
        self._active: str | None = None
        self._control = Control()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._readers: dict[str, RunReader] = {}

    @property
    def active_run_id(self) -> str | None:
        """The run that this process trains now."""
        return self._active

    @property
    def waiting(self) -> tuple[str, ...]:
        """Runs in the queue, next one first."""
        return tuple(self._queue)

    def submit(self, config: TrainConfig) -> str:
        """Creates a run and starts it, or queues it behind the active one. Returns its id."""
        folder = RunFolder.create(self.workspace, config)
        self._enqueue(folder.run_id)
        return folder.run_id

    def resume(self, run_id: str, changes: Mapping[str, Any] | None = None) -> None:
        """Lets a paused, stopped, failed or interrupted run go on from its last good checkpoint, with `changes` of its
        settings (`section.field` -> value); a finished one too if it has more steps now.

        Raises SafelightError when it is active, finished, or held by another process, or when the changes can't be.
        """
        progress = self.progress(run_id)
        if progress.state.is_active:
            raise SafelightError(f"Run {run_id} is {progress.state.value} already.")
        folder = RunFolder.find(self.workspace, run_id)
        if not progress.can_resume:
            steps = (changes or {}).get("training.max_train_steps", folder.config().training.max_train_steps)
            if steps <= progress.step:
                raise SafelightError(
                    f"Run {run_id} is finished. Give it more training.max_train_steps than {progress.step} to go on, or "
                    "start a new run with these settings."
                )
        if changes:
            folder.change(changes)
        self._enqueue(run_id)

    def _enqueue(self, run_id: str) -> None:
        with self._guard:
            if self._closing:
                raise SafelightError("Safelight is shutting down; start it again first.")
            self._queue.append(run_id)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=QUEUE_THREAD, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Asks the active run to finish its step, save the LoRA and end. Raises SafelightError when nothing runs."""
        self._end(pause=False)

    def pause(self) -> None:
        """Asks the active run to finish its step, write a checkpoint and give its memory back."""
        self._end(pause=True)

    def _end(self, *, pause: bool) -> None:
        with self._guard:
            folder = self._active_folder()
            chosen = self._control.pause if pause else self._control.stop
            if not self._control.ends:
                folder.append(events.Stopping(pause))
            chosen.set()

    def sample_now(self) -> None:
        """Asks the active run to draw its samples after this step."""
        if not self._active_folder().config().sample.prompts:
            raise SafelightError("This run has no sample prompts, so there is nothing to draw.")
        self._control.sample_now.set()

    def save_now(self) -> None:
        """Asks the active run to write a checkpoint and a LoRA file after this step."""
        self._active_folder()
        self._control.save_now.set()

    def _active_folder(self) -> RunFolder:
        if self._active is None:
            raise SafelightError("Nothing is training.")
        return RunFolder.find(self.workspace, self._active)

    def cancel(self, run_id: str) -> None:
        """Takes a waiting run out of the queue and removes its folder if it never trained."""
        with self._guard:
            if run_id not in self._queue:
                raise SafelightError(f"Run {run_id} is not waiting.")
            self._queue.remove(run_id)
            if self.progress(run_id).step == 0:
                self._remove(run_id)

    def delete(self, run_id: str) -> None:
        """Removes a run's folder with everything in it. Raises SafelightError while the run is active."""
        with self._guard:
            state = self.progress(run_id).state
            if state.is_active:
                raise SafelightError(f"Run {run_id} is {state.value}. Stop it before deleting it.")
            self._remove(run_id)

    def _remove(self, run_id: str) -> None:
        folder = RunFolder.find(self.workspace, run_id)
        self._readers.pop(run_id, None)
        Root(self.workspace.runs_dir).remove_tree(folder.path)

    def runs(self) -> list[Progress]:
        """Every run of the workspace, newest first."""
        ids = [
            path.parent.name
            for path in self.workspace.runs_dir.glob("*/config.toml")
            if not path.parent.is_symlink() and path.with_name("events.jsonl").is_file()
        ]
        return sorted((self.progress(run_id) for run_id in ids), key=lambda run: run.created, reverse=True)

    def progress(self, run_id: str) -> Progress:
        """The run as of now. Raises SafelightError when there is none of that name."""
        reader = self._reader(run_id)
        with self._guard:  # both at once: between the queue and the thread a run would look interrupted
            held, waiting = True if run_id == self._active else None, run_id in self._queue
        return reader.progress(held=held, waiting=waiting)

    def current(self) -> Progress | None:
        """The active run, else the newest one, else None."""
        if self._active is not None:
            return self.progress(self._active)
        runs = self.runs()
        return next((run for run in runs if run.state.is_active), runs[0] if runs else None)

    def loss_curve(self, run_id: str, max_points: int = 400) -> list[LossPoint]:
        """The run's losses, thinned."""
        reader = self._reader(run_id)
        reader.refresh()
        with reader.guard:
            return reader.history.loss_curve(max_points)

    def lines(self, run_id: str, since: int = 0) -> list[tuple[int, str]]:
        """Log lines from number `since` on, each with its number."""
        reader = self._reader(run_id)
        reader.refresh()
        with reader.guard:
            return list(enumerate(reader.lines[since:], start=since))

    def _reader(self, run_id: str) -> RunReader:
        folder = RunFolder.find(self.workspace, run_id)
        with self._guard:
            if run_id not in self._readers:
                self._readers[run_id] = RunReader(folder)
            return self._readers[run_id]

    def shutdown(self, timeout_seconds: float = 20.0) -> bool:
        """Stops the active run, leaves waiting ones as they are, and waits. Returns whether the run ended in time."""
        with self._guard:
            self._closing = True
            self._queue.clear()
            if self._active is not None:
                self._end(pause=False)
            thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
            return not thread.is_alive()
        return True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until nothing is left to do. Returns False when the time is up first."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
            return not thread.is_alive()
        return True

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._queue:
                    self._active, self._thread = None, None
                    return
                run_id = self._queue.popleft()
                self._active, self._control = run_id, Control()
            folder = RunFolder.find(self.workspace, run_id)
            try:
                with folder.lock().acquire(timeout=0):
                    self._run_on_its_own_thread(folder, self._control)
            except Timeout:
                folder.append(
                    events.Warned("Another Safelight process is training this run, so it was not started twice.")
                )
            finally:
                with self._guard:
                    self._active = None

    def planned(self, config: TrainConfig) -> events.Planned | None:
        """What a run is expected to need: by a check of these settings, else by the newest run that was like it."""
        estimate = kept_estimate(self.workspace, config)
        if estimate is not None:
            return estimate.planned()
        try:
            runs = self.runs()
        except (SafelightError, OSError):  # one that is deleted just now; the plan is not worth a run
            return None
        for run in runs[:EARLIER_RUNS]:
            if run.measured is not None and self._was_alike(config, run.run_id):
                steps = config.training.max_train_steps
                return plan_by_earlier(steps, run.run_id, run, time_band(judged_runs(runs)))
        return None

    def _was_alike(self, config: TrainConfig, run_id: str) -> bool:
        try:
            return is_alike(config, RunFolder.find(self.workspace, run_id).config())
        except SafelightError:  # deleted just now, or of a version whose settings can't be read any more
            return False

    def _run_on_its_own_thread(self, folder: RunFolder, control: Control) -> None:
        thread = threading.Thread(target=self._run, args=(folder, control), name=TRAINER_THREAD, daemon=True)
        thread.start()
        thread.join()
        importlib.invalidate_caches()  # folders of code that it was not allowed to list would stay empty for all

    def _run(self, folder: RunFolder, control: Control, load: Callable[[Workspace], Trainer] = load_trainer) -> None:
        step = 0
        file = EventFile(folder)

        def emit(event: Event) -> None:
            nonlocal step
            step = event.step if isinstance(event, events.StepDone | events.Resumed) else step
            file.append(event)

        emit(events.Preparing("Starting"))  # at once: until then a run that goes on would look as it did when it ended
        try:
            config = folder.config()
            inputs = find_inputs(config, self.workspace)
            planned = None if folder.checkpoints_dir.exists() else self.planned(config)
            if config.training.num_processes * self.machines.count > 1:
                self._run_together(config, folder, planned, emit, control)
                return
            # Imported before the sandbox shuts: it is our own and the installed code, it looks for its settings in many
            # places when it is imported, and nothing of the model or the pictures has been opened yet.
            train = load(self.workspace)
            sandboxed = confine_run(inputs, folder, self.workspace)
            emit(sandboxed)
            if planned is not None:
                emit(planned)
            if not sandboxed.active:
                emit(events.Warned(f"This run is not in a sandbox. {sandboxed.detail}"))
            train(config, inputs, folder, self.workspace, emit, control)
        except SafelightError as error:
            emit(events.Failed(str(error), step, getattr(error, "error_id", "")))
        except Exception as error:  # the job thread's last line: report, whatever it was
            error_id = secrets.token_hex(3).upper()
            logger.exception("run %s failed (id %s)", folder.run_id, error_id)
            emit(events.Failed(error_message(error, self.workspace.logs_dir), step, error_id))
        finally:
            file.close()

    def _run_together(
        self,
        config: TrainConfig,
        folder: RunFolder,
        planned: events.Planned | None,
        emit: Callable[[Event], None],
        control: Control,
    ) -> None:
        from trainer.crew import train_together

        if planned is not None:
            emit(planned)
        train_together(config, folder, self.workspace, emit, control, self.machines)


def judged_runs(runs: Iterable[Progress]) -> list[tuple[float, float]]:
    """(planned, needed) seconds of the runs that came to their end."""
    return [
        (run.planned.seconds, run.elapsed_seconds)
        for run in runs
        if run.planned is not None and run.measured is not None and run.state is RunState.FINISHED
    ]


def error_message(error: Exception, logs_dir: Path) -> str:
    """What to tell the user about an error that no one foresaw."""
    if isinstance(error, OSError) and disk_is_full(error):
        return "The disk is full. Make room, then press Continue: the run goes on from its last checkpoint."
    if isinstance(error, FileNotFoundError):
        return (
            f"{Path(str(error.filename)).name} is gone while the run needs it. If a disk was taken off or a folder was moved, "
            "put it back, then press Continue: the run goes on from its last checkpoint."
        )
    if is_out_of_memory(error):
        return (
            "The device ran out of memory. Lower dataset.resolution or training.batch_size, or keep the base smaller with "
            "memory.base_format, then start again."
        )
    return (
        f"Something unforeseen went wrong ({type(error).__name__}). The details are in {logs_dir.name}/safelight.log."
    )
