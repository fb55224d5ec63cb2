"""What a run will need, and what it then needed: steps, time, memory and disk, kept so that the estimate can be judged.

Imports no torch: the page and the queue ask for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from security.configs import read_json
from security.errors import SafelightError
from security.roots import Root
from trainer import events
from trainer.config.files import config_values
from trainer.config.schema import TrainConfig
from trainer.models.text import gigabytes
from trainer.words import duration
from trainer.workspace import Workspace

FIRST_BAND = 0.3
"""Half width of the time's band, as a share, while no run has shown how good the estimates are here."""
SMALLEST_BAND = 0.1
LARGEST_BAND = 1.0
RUNS_NEEDED = 3
RUNS_JUDGED = 20
"""The newest runs that the band is made of."""
MAX_KEPT_BYTES = 1_000_000
ALIKE = (
    *("model.base", "model.precision", "dataset.resolution", "dataset.more_resolutions"),
    *(
        "training.batch_size",
        "training.gradient_accumulation_steps",
        "memory.base_format",
        "memory.checkpointing",
        "memory.offload",
    ),
    *(
        "training.num_processes",
        "training.device",
        "lora.adapter",
        "lora.targets",
        "lora.train_text_encoder",
        "optimizer.name",
    ),
)
"""Settings that say how long a step takes and how much memory it needs."""


class EarlierRun(Protocol):
    """What is looked at of an earlier run; trainer.runs.Progress is one."""

    @property
    def seconds_per_step(self) -> float | None: ...
    @property
    def elapsed_seconds(self) -> float: ...
    @property
    def step(self) -> int: ...
    @property
    def measured(self) -> events.Measured | None: ...


@dataclass(frozen=True)
class Estimate:
    """What a run will need. Seconds and bytes; `band`: half the width of the time's error band, as a share of it.

    The `*_parts` say what each is made of. `memory_total` and `disk_free` are what there is (0: not known). `source` says
    in words where the numbers come from.
    """

    steps: int
    images: int
    epochs: float
    seconds: float
    band: float
    memory_bytes: int
    memory_total: int
    disk_bytes: int
    disk_free: int
    source: str
    time_parts: Mapping[str, float] = field(default_factory=dict)
    memory_parts: Mapping[str, int] = field(default_factory=dict)
    disk_parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds_range(self) -> tuple[float, float]:
        """Shortest and longest time, by the band."""
        return self.seconds / (1 + self.band), self.seconds * (1 + self.band)

    def planned(self) -> events.Planned:
        """The event that a run keeps it by."""
        return events.Planned(self.seconds, self.band, self.memory_bytes, self.disk_bytes, self.source)


def estimate_digest(config: TrainConfig) -> str:
    """Names a check by the settings that it was made with; the run's name has no part in what it needs."""
    values = {key: value for key, value in config_values(config).items() if key != "name"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def keep_estimate(workspace: Workspace, config: TrainConfig, estimate: Estimate) -> None:
    """Remembers an estimate for a run that is started with the same settings."""
    folder = workspace.checks_dir
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(estimate), indent=1)
    Root(folder).write_text_atomic(folder / f"{estimate_digest(config)}.json", text)


def kept_estimate(workspace: Workspace, config: TrainConfig) -> Estimate | None:
    """The estimate of a check with these very settings, or None."""
    path = workspace.checks_dir / f"{estimate_digest(config)}.json"
    if not path.is_file():
        return None
    try:
        return Estimate(**read_json(path, max_bytes=MAX_KEPT_BYTES))
    except (SafelightError, TypeError):
        return None  # of an older version, or damaged: a check makes it anew


def is_alike(config: TrainConfig, other: TrainConfig) -> bool:
    """Whether steps of two runs take about as long and as much memory."""
    return all(_part_of(config, name) == _part_of(other, name) for name in ALIKE)


def _part_of(config: TrainConfig, name: str) -> object:
    section, _, field_name = name.partition(".")
    return getattr(getattr(config, section), field_name)


def plan_by_earlier(steps: int, name: str, before: EarlierRun, band: float) -> events.Planned | None:
    """What a run of `steps` will need by one that was like it, called `name`; None if that one says too little.

    What did not come with the steps (loading, mostly) is taken as it was.
    """
    if before.seconds_per_step is None or before.measured is None or not before.step:
        return None
    besides = max(0.0, before.elapsed_seconds - before.seconds_per_step * before.step)
    seconds = besides + before.seconds_per_step * steps
    return events.Planned(seconds, band, before.measured.memory_bytes, 0, f"the run {name}, which was like it")


def time_band(past: Iterable[tuple[float, float]]) -> float:
    """Half width of the band from (planned, needed) seconds of earlier runs, the newest first: twice their mean deviation.

    Deviations are taken as ratios, so that half and double the time count alike.
    """
    ratios = [math.log(needed / planned) for planned, needed in past if planned > 0 and needed > 0][:RUNS_JUDGED]
    if len(ratios) < RUNS_NEEDED:
        return FIRST_BAND
    spread = math.sqrt(sum(ratio**2 for ratio in ratios) / len(ratios))
    return min(LARGEST_BAND, max(SMALLEST_BAND, math.exp(2 * spread) - 1))


def seconds_for_area(measured: Iterable[tuple[float, float]], area: float) -> float:
    """Seconds of a step on pictures of `area` pixels from (area, seconds) of some, on the line through the outermost two."""
    points = sorted(measured)
    (low, first), (high, last) = points[0], points[-1]
    if high == low:
        return first
    slope = max(0.0, (last - first) / (high - low))  # noise must not make large pictures faster than small ones
    return max(0.0, last + slope * (area - high))


def num_due(steps: int, every: int, *, first: bool, last: bool) -> int:
    """How often something happens that comes every so many steps, and at the start and the end besides."""
    between = (steps - 1) // every if every > 0 else 0
    return between + first + last


def judged(planned: events.Planned, needed_seconds: float, measured: events.Measured) -> str:
    """A plan beside what happened, in a sentence."""
    share = needed_seconds / planned.seconds - 1 if planned.seconds else 0.0
    inside = planned.seconds / (1 + planned.band) <= needed_seconds <= planned.seconds * (1 + planned.band)
    text = (
        f"planned {duration(planned.seconds)} ±{planned.band:.0%}, took {duration(needed_seconds)} ({share:+.0%}, "
        f"{'inside' if inside else 'outside'} the band)"
    )
    if planned.memory_bytes:
        text += f"; memory planned {gigabytes(planned.memory_bytes)}, was {gigabytes(measured.memory_bytes)}"
    if planned.disk_bytes:
        text += f"; disk planned {gigabytes(planned.disk_bytes)}, was {gigabytes(measured.disk_bytes)}"
    return text
