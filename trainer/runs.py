"""A run is a folder: config.toml, events.jsonl, samples, checkpoints and the LoRA files. Reading, listing, deleting.

Everything that is shown about a run, live or old, is read from its events.jsonl; nothing else stores its state.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from security.errors import SafelightError
from security.redaction import redact, refuse_secrets
from security.roots import Root
from trainer import events
from trainer.config.files import config_values, dump_config, load_config, parse_config
from trainer.config.schema import TrainConfig
from trainer.events import Event
from trainer.pace import Pace, pace_of
from trainer.run_log import describe
from trainer.workspace import Workspace

LOSS_SMOOTHING = 0.95
BEST_ENDING = "-best"
"""Behind the run's name in the name of the LoRA file with the lowest held-out loss."""


class RunState(StrEnum):
    """Where a run stands. Derived from its events and from whether a process holds its lock, never stored."""

    WAITING = "waiting"
    PREPARING = "preparing"
    TRAINING = "training"
    STOPPING = "stopping"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_active(self) -> bool:
        """A process is working on the run, or will."""
        return self in (RunState.WAITING, RunState.PREPARING, RunState.TRAINING, RunState.STOPPING)


@dataclass(frozen=True)
class LossPoint:
    """Loss over a few neighbouring steps; `step` is the last of them, `smoothed` the moving average there."""

    step: int
    low: float
    high: float
    smoothed: float


@dataclass(frozen=True)
class Progress:
    """All that can be told about a run at one moment. Times in seconds, `eta_seconds` None when unknown."""

    run_id: str
    name: str
    state: RunState
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    total_steps: int = 0
    first_step: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    seconds_per_step: float | None = None
    pace: Pace | None = None
    eta_seconds: float | None = None
    elapsed_seconds: float = 0.0
    images_seen: int = 0
    num_images: int = 0
    steps_per_epoch: float = 0.0
    family: str = ""
    device: str = ""
    message: str = ""
    error_id: str = ""
    created: float = 0.0
    checkpoint_step: int | None = None
    can_resume: bool = False
    samples: tuple[events.SampleSaved, ...] = ()
    loras: tuple[events.LoraSaved, ...] = ()
    validations: tuple[events.Validated, ...] = ()
    resumes: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)
    astray: events.WentAstray | None = None
    sandbox: events.Sandboxed | None = None
    planned: events.Planned | None = None
    measured: events.Measured | None = None
    reason: str = ""

    @property
    def best(self) -> events.Validated | None:
        """The measurement of the trained step with the lowest held-out loss."""
        return next((one for one in reversed(self.validations) if one.best), None)

    @property
    def notice(self) -> str:
        """What the last measurement says about overfitting; empty when it says nothing."""
        return self.validations[-1].notice if self.validations else ""

    @property
    def recommended(self) -> tuple[events.LoraSaved, ...]:
        """The files of the best step: those that are kept as the best, else any that were saved at it."""
        best = self.best
        files = [saved for saved in self.loras if best is not None and saved.step == best.step]
        kept = [saved for saved in files if BEST_ENDING in saved.path.removeprefix(self.name)]
        return tuple(kept or files)


class RunFolder:
    """Paths of one run and its event file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.toml"
        self.events_path = path / "events.jsonl"
        self.manifest_path = path / "dataset.json"
        self.rebuild_path = path / "rebuild.json"
        self.samples_dir = path / "samples"
        self.checkpoints_dir = path / "checkpoints"

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    @classmethod
    def create(cls, workspace: Workspace, config: TrainConfig) -> RunFolder:
        """Makes a new folder named after the run, with a number behind it when the name is taken."""
        text = dump_config(config)
        number = 1
        while True:
            path = workspace.runs_dir / (config.name if number == 1 else f"{config.name}-{number}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
        folder = cls(path)
        Root(path).write_text_atomic(folder.config_path, text)
        folder.append(events.Queued(config.name))
        return folder

    @classmethod
    def find(cls, workspace: Workspace, run_id: str) -> RunFolder:
        """The folder of an existing run. Raises SafelightError when there is none of that name."""
        path = Root(workspace.runs_dir).child(run_id)
        if not (path / "config.toml").is_file():
            known = ", ".join(sorted(entry.name for entry in workspace.runs_dir.iterdir() if entry.is_dir())[:10])
            raise SafelightError(f"There is no run named {run_id!r}. Runs here: {known or 'none yet'}.")
        return cls(path)

    def config(self) -> TrainConfig:
        """The settings that the run was started with."""
        return load_config(self.config_path)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Changes settings, given as `section.field` -> value. Raises ConfigError for values that can't be."""
        values = config_values(self.config())
        for name, value in changes.items():
            section, _, setting = name.partition(".")
            values[section][setting] = value
        Root(self.path).write_text_atomic(self.config_path, dump_config(parse_config(values)))

    def lock(self) -> FileLock:
        """Held by the process that trains; given back by the operating system even after kill -9."""
        return FileLock(self.path / "run.lock", thread_local=False)

    def is_held(self) -> bool:
        """Whether a living process works on this run."""
        lock = self.lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def append(self, event: Event) -> None:
        """Adds one event to the file. A line torn by an earlier crash is closed first.

        What an error or warning says is redacted, because it must reach the user; a token anywhere else raises
        RefusedConfig.
        """
        values = events.to_json(event)
        if "message" in values:
            # a file name that is no UTF-8 is told with its bytes written out
            values["message"] = redact(values["message"].encode("utf-8", "backslashreplace").decode())
        line = json.dumps(values, ensure_ascii=False) + "\n"
        refuse_secrets(line, f"The event {values['event']} of this run")
        with self.events_path.open("ab+", buffering=0) as file:  # what a full disk leaves out is known here
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    line = "\n" + line
            left = line.encode()
            while left:
                left = left[file.write(left) :]


@dataclass
class RunReader:
    """Follows one run's event file; every call to `refresh` reads only what was added since."""

    folder: RunFolder
    offset: int = 0
    lines: list[str] = field(default_factory=list)
    history: RunHistory = field(default_factory=lambda: RunHistory())
    guard: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> None:
        """Reads new events. An incomplete last line is left for the next call."""
        with self.guard, self.folder.events_path.open("rb") as file:
            file.seek(self.offset)
            added = file.read()
            complete = added.rfind(b"\n") + 1
            self.offset += complete
            for event in _parse_lines(added[:complete]):
                self.history.apply(event)
                if text := describe(event, self.history.total_steps):
                    self.lines.append(text)

    def progress(self, *, held: bool | None = None, waiting: bool = False) -> Progress:
        """The run as of now. `held`: whether a process trains it, found out from the lock when not given."""
        self.refresh()
        with self.guard:
            state = self._state(held, waiting)
            return self.history.progress(self.folder, state)

    def _state(self, held: bool | None, waiting: bool) -> RunState:
        if waiting:
            return RunState.WAITING
        last = self.history.last
        if held or (held is None and not isinstance(last, events.TERMINAL) and self.folder.is_held()):
            if isinstance(self.history.last_control, events.Stopping):
                return RunState.STOPPING
            return RunState.TRAINING if self.history.training else RunState.PREPARING
        match last:
            case events.Finished(stopped=stopped):
                return RunState.STOPPED if stopped else RunState.FINISHED
            case events.Paused():
                return RunState.PAUSED
            case events.Failed():
                return RunState.FAILED
            case _:
                return RunState.INTERRUPTED


def _parse_lines(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            yield events.from_json(json.loads(line))
        except json.JSONDecodeError:
            continue  # torn by a crash in the middle of a write; the run went on after it


class RunHistory:
    """What the events of one run add up to."""

    def __init__(self) -> None:
        self.last: Event | None = None
        self.last_control: Event | None = None
        self.started: events.Started | None = None
        self.preparing: events.Preparing | None = None
        self.training = False
        self.name = ""
        self.created = 0.0
        self.session_began = 0.0
        self.elapsed_before = 0.0
        self.steps: list[events.StepDone] = []
        self.smoothed: list[float] = []
        self.samples: list[events.SampleSaved] = []
        self.loras: list[events.LoraSaved] = []
        self.validations: list[events.Validated] = []
        self.checkpoint_step: int | None = None
        self.resumes: list[int] = []
        self.warnings: list[str] = []
        self.changes: dict[str, str] = {}
        self.astray: events.WentAstray | None = None
        self.sandbox: events.Sandboxed | None = None
        self.planned: events.Planned | None = None
        self.measured: events.Measured | None = None

    @property
    def total_steps(self) -> int:
        return self.started.total_steps if self.started else 0

    def apply(self, event: Event) -> None:
        """Takes in the next event."""
        self._apply_session(event)
        match event:
            case events.StepDone():
                previous = self.smoothed[-1] if self.smoothed else event.loss
                self.steps.append(event)
                self.smoothed.append(LOSS_SMOOTHING * previous + (1 - LOSS_SMOOTHING) * event.loss)
            case events.SampleSaved():
                again = [one for one in self.samples if (one.step, one.index) != (event.step, event.index)]
                self.samples = [*again, event]
            case events.LoraSaved():
                self.loras = [saved for saved in self.loras if saved.path != event.path] + [event]
            case events.Validated():
                before = [one for one in self.validations if one.step < event.step]
                self.validations = [*before, event]  # a step may be measured again after a change of the settings
            case events.LoraRemoved():
                self.loras = [saved for saved in self.loras if saved.path != event.path]
            case events.CheckpointSaved():
                self.checkpoint_step = event.step
            case events.WentAstray():
                self.astray = event
            case events.Planned():
                self.planned = event
            case events.Measured():
                self.measured = event
            case events.Warned():
                if event.message not in self.warnings:  # a run that goes on meets the same pictures again
                    self.warnings.append(event.message)
        self.last = event

    def _apply_session(self, event: Event) -> None:
        match event:
            case events.Queued():
                self.name, self.created = event.name, event.time
            case events.Preparing():
                if self.training or self.session_began == 0.0 or isinstance(self.last, events.TERMINAL):
                    self._begin_session(event)
                self.preparing = event
            case events.Sandboxed():
                self.sandbox = event
            case events.Started():
                if not isinstance(self.last, events.Resumed):  # without a checkpoint a run begins again
                    self._cut_back(event.first_step)
                self.started, self.training, self.astray = event, True, None
            case events.Resumed():
                self._cut_back(event.step)
                self.resumes.append(event.step)
                self.changes = event.changed
            case events.Stopping():
                self.last_control = event

    def _begin_session(self, event: Event) -> None:
        if self.last is not None and self.session_began:
            self.elapsed_before += self.last.time - self.session_began
        self.session_began, self.training, self.last_control = event.time, False, None

    def _cut_back(self, step: int) -> None:
        """Forgets what was recorded after the checkpoint that the run goes on from."""
        keep = sum(done.step <= step for done in self.steps)
        del self.steps[keep:], self.smoothed[keep:]
        self.samples = [sample for sample in self.samples if sample.step <= step]
        self.validations = [validation for validation in self.validations if validation.step <= step]

    def progress(self, folder: RunFolder, state: RunState) -> Progress:
        """The sum as one value."""
        done = self.steps[-1] if self.steps else None
        seconds = _seconds_per_step(self.steps)
        total, step = self.total_steps, done.step if done else (self.resumes[-1] if self.resumes else 0)
        failed = self.last if isinstance(self.last, events.Failed) else None
        working = state in (RunState.TRAINING, RunState.STOPPING)
        return Progress(
            run_id=folder.run_id,
            name=self.name or folder.run_id,
            state=state,
            phase=self.preparing.phase if self.preparing and state is RunState.PREPARING else "",
            phase_done=self.preparing.done if self.preparing else 0,
            phase_total=self.preparing.total if self.preparing else 0,
            step=step,
            total_steps=total,
            first_step=self.started.first_step if self.started else 0,
            loss=self.smoothed[-1] if self.smoothed else None,
            learning_rate=done.learning_rate if done else None,
            gradient_norm=done.gradient_norm if done else None,
            seconds_per_step=seconds,
            pace=pace_of(self.steps),
            eta_seconds=seconds * (total - step) if working and seconds is not None else None,
            elapsed_seconds=self.elapsed_before
            + (self.last.time - self.session_began if self.last and self.session_began else 0.0),
            images_seen=done.images_seen if done else 0,
            num_images=self.started.num_images if self.started else 0,
            steps_per_epoch=self.started.steps_per_epoch if self.started else 0.0,
            family=self.started.family if self.started else "",
            device=self.started.device if self.started else "",
            message=failed.message if failed else "",
            error_id=failed.error_id if failed else "",
            created=self.created,
            checkpoint_step=self.checkpoint_step,
            can_resume=not state.is_active and state is not RunState.FINISHED,
            samples=tuple(self.samples),
            loras=tuple(self.loras),
            validations=tuple(self.validations),
            resumes=tuple(self.resumes),
            warnings=tuple(self.warnings),
            changes=self.changes,
            astray=self.astray,
            sandbox=self.sandbox,
            planned=self.planned,
            measured=self.measured,
            reason=self.last.reason if isinstance(self.last, events.Finished) else "",
        )

    def loss_curve(self, max_points: int = 400) -> list[LossPoint]:
        """The losses thinned to at most `max_points` points that keep every extreme."""
        size = max(1, -(-len(self.steps) // max_points))
        points = []
        for begin in range(0, len(self.steps), size):
            group = self.steps[begin : begin + size]
            losses = [done.loss for done in group]
            points.append(LossPoint(group[-1].step, min(losses), max(losses), self.smoothed[begin + len(group) - 1]))
        return points


def _seconds_per_step(steps: list[events.StepDone], window: int = 200) -> float | None:
    """Wall clock per step over the last steps, drawing samples and saving included; None before the third step."""
    recent = steps[-window:]
    for index in range(len(recent) - 1, 0, -1):
        if recent[index].step != recent[index - 1].step + 1 or recent[index].time - recent[index - 1].time > 3600:
            recent = recent[index:]  # the run was interrupted in between
            break
    if len(recent) < 3:
        return recent[-1].seconds if recent else None
    return (recent[-1].time - recent[0].time) / (len(recent) - 1)
