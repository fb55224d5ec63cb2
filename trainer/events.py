"""What a run tells the world: one frozen dataclass per kind of event, and their JSON form.

The page, the command line and the log are all readers of this one stream.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events. `time`: seconds since the epoch, set when the event is made."""

    time: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class Queued(Event):
    """The run folder exists and waits for its turn."""

    name: str


@dataclass(frozen=True)
class Preparing(Event):
    """What is being done before the first step. `done` of `total`; total 0 when it can't be counted."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Sandboxed(Event):
    """Whether the run's thread can reach its own files only; `detail` says so in a sentence."""

    active: bool
    detail: str


@dataclass(frozen=True)
class Started(Event):
    """Training begins (or goes on, `first_step` > 0). Sizes in bytes."""

    total_steps: int
    first_step: int
    num_images: int
    steps_per_epoch: float
    family: str
    device: str
    trainable_parameters: int


@dataclass(frozen=True)
class Resumed(Event):
    """The run goes on from the checkpoint of `step`; later steps recorded before are void.

    `changed`: settings that are others than before, as {"section.field": "old -> new"}.
    """

    step: int
    changed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer step. `gradient_norm` is measured before clipping, None where fp16's loss scaler skipped the step;
    `images_seen` counts from the start of the run.

    Of its `seconds`, `input_seconds` went into preparing inputs and `wait_seconds` into waiting for a GPU's numbers.
    `processor_share`: the part that this program had of the processors that it could use, 0 on a GPU. `memory_bytes` in use
    of `memory_total`, of the GPU or of the machine. All 0 in runs of older versions.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    images_seen: int
    seconds: float
    input_seconds: float = 0.0
    wait_seconds: float = 0.0
    processor_share: float = 0.0
    memory_bytes: int = 0
    memory_total: int = 0


@dataclass(frozen=True)
class Validated(Event):
    """Held-out loss after `step` steps; step 0 is the base without the LoRA.

    `train_loss` is that of some training pictures measured in the same way (None: not measured). `spread` and
    `train_spread` are their standard errors. `best`: the lowest held-out loss so far; `notice` tells of overfitting.
    """

    step: int
    loss: float
    spread: float = 0.0
    train_loss: float | None = None
    train_spread: float = 0.0
    best: bool = False
    notice: str = ""


@dataclass(frozen=True)
class SampleSaved(Event):
    """One sample picture. `path` is relative to the run folder."""

    step: int
    index: int
    prompt: str
    seed: int
    path: str


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint that the run can go on from. `path` is relative to the run folder."""

    step: int
    path: str


@dataclass(frozen=True)
class LoraSaved(Event):
    """An exported LoRA file. `path` is relative to the run folder; `key_format` is kohya or diffusers, or embedding for a
    file with the vectors of a trained word alone.

    `sha256` is that of the whole file in hexadecimal digits; "" in runs of older versions. `loads_in`: by program, "" where
    the file loads whole, else the sentence why not; empty in runs of older versions.
    """

    step: int
    path: str
    key_format: str
    num_bytes: int
    sha256: str = ""
    loads_in: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraRemoved(Event):
    """An exported file of an earlier step was deleted, because only the newest ones are kept."""

    step: int
    path: str


@dataclass(frozen=True)
class WentAstray(Event):
    """Loss or gradient after `step` steps is no number any more; the run ends after this.

    `pictures`: what the step looked at. `module`: the first part of the model with unusable numbers, "" if none stands
    out. `setting` and `value`: the change to go on with, "" where none would help. `back_to`: the step that continuing
    starts from, None: from the beginning.
    """

    step: int
    pictures: list[str]
    module: str
    cause: str
    setting: str = ""
    value: float | str = ""
    back_to: int | None = None


@dataclass(frozen=True)
class Planned(Event):
    """What the run was estimated to need before it began, to be judged by `Measured`. Seconds, bytes (0: not known).

    `band`: half the width of the time's error band as a share; `source` says where the numbers come from.
    """

    seconds: float
    band: float
    memory_bytes: int
    disk_bytes: int
    source: str


@dataclass(frozen=True)
class MemoryPlanned(Event):
    """How a run will do with the memory that there is: `level` in words, bytes at the most by what they are for.

    `total`: bytes that the device has to give, 0 where it does not say.
    """

    level: str
    parts: dict[str, int]
    total: int

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        most = f" of {self.total / 1e9:.1f}" if self.total else ""
        return f"about {sum(self.parts.values()) / 1e9:.1f}{most} GB, {self.level}"


@dataclass(frozen=True)
class Measured(Event):
    """What the run needed: the most memory in use at once and the files that it wrote, in bytes (0: not known)."""

    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know; the run goes on."""

    message: str


@dataclass(frozen=True)
class Stopping(Event):
    """The user asked for an end; the run finishes its step and saves. `pause`: it means to go on later."""

    pause: bool


@dataclass(frozen=True)
class Paused(Event):
    """The run saved a checkpoint and gave its memory back; it can go on from `step`."""

    step: int


@dataclass(frozen=True)
class Finished(Event):
    """The run is over. `stopped`: ended early with everything saved, by the user or by itself; then `reason` says why."""

    step: int
    stopped: bool
    reason: str = ""


@dataclass(frozen=True)
class Failed(Event):
    """The run broke. `message` is for the user; `error_id` finds the details in the log."""

    message: str
    step: int
    error_id: str = ""


EVENTS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        Queued,
        Preparing,
        Sandboxed,
        Started,
        Resumed,
        StepDone,
        Validated,
        SampleSaved,
        CheckpointSaved,
        LoraSaved,
        LoraRemoved,
        WentAstray,
        Planned,
        MemoryPlanned,
        Measured,
        Warned,
        Stopping,
        Paused,
        Finished,
        Failed,
    )
}
TERMINAL = (Paused, Finished, Failed)


def to_json(event: Event) -> dict[str, Any]:
    """The event as plain values with its name under `event`."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}


def from_json(values: dict[str, Any]) -> Event:
    """The reverse of `to_json`. Raises KeyError for an unknown event, TypeError for wrong fields."""
    fields = dict(values)
    return EVENTS[fields.pop("event")](**fields)
