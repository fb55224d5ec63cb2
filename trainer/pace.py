"""How fast a run steps, what it needs of the memory, what keeps it from being faster, and when it suddenly gets slow.

Imports no torch: the page asks for it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.events import StepDone
from trainer.models.text import gigabytes

WINDOW = 50
"""The last steps that are looked at."""
INPUTS_SHARE, WAITING_SHARE, PROCESSOR_SHARE = 0.25, 0.1, 0.6
"""Shares of a step: from which on preparing inputs counts as the limit; below which a GPU is not kept busy; below which
others have the processors."""
FULL = 0.95
"""Share of the memory from which on it counts as nearly full."""
CLIFF = 2.5
"""Steps that take so many times as long as before have a reason."""
FEWEST, CLIFF_STEPS = 20, 8
"""Steps that show what is usual, and steps in a row that are a cliff rather than a hiccup."""


@dataclass(frozen=True)
class Pace:
    """Pictures per second; bytes in use and in all (0: not known); and in words what limits the run."""

    images_per_second: float
    memory_bytes: int
    memory_total: int
    limit: str


def pace_of(steps: Sequence[StepDone]) -> Pace | None:
    """The pace of a run's last steps; None before there are two."""
    last = list(steps)[-WINDOW:]
    if len(last) < 2 or last[-1].images_seen <= last[0].images_seen:
        return None
    images = (last[-1].images_seen - last[0].images_seen) / (len(last) - 1)
    seconds = statistics.median(step.seconds for step in last[1:])
    if seconds <= 0:
        return None
    return Pace(images / seconds, last[-1].memory_bytes, last[-1].memory_total, what_limits(last[1:]))


def what_limits(steps: Sequence[StepDone]) -> str:
    """What most of a step's time goes into, in words; "" for steps of older versions, which did not tell."""
    if all(step.processor_share == step.wait_seconds == step.input_seconds == 0 for step in steps):
        return ""
    inputs = _share(steps, [step.input_seconds for step in steps])
    waiting = _share(steps, [step.wait_seconds for step in steps])
    processor = statistics.median(step.processor_share for step in steps)
    if inputs > INPUTS_SHARE:
        return f"preparing pictures, noise and captions, {inputs:.0%} of a step"
    if processor == 0:
        if waiting < WAITING_SHARE:
            return "starting operations: the GPU waits for the processor, so a larger batch costs little more time"
        return f"the GPU's speed, {waiting:.0%} of a step"
    if processor < PROCESSOR_SHARE:
        return f"other programs: this one gets {processor:.0%} of the processors that it could use"
    return "the processor's speed"


def _share(steps: Sequence[StepDone], parts: Sequence[float]) -> float:
    return sum(parts) / max(1e-9, sum(step.seconds for step in steps))


@dataclass
class PaceWatch:
    """Notices when steps suddenly take far longer, as when a memory is full and spills into a slower one."""

    usual: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    slow: list[float] = field(default_factory=list)
    told: bool = False
    told_memory: bool = False

    def look(self, done: StepDone, area: float) -> str:
        """A sentence the first time that steps have become slow or the memory is nearly full, else "".

        `area`: pixels of the step's pictures, so that steps on larger pictures are no cliff.
        """
        if not self.told_memory and done.memory_total and done.memory_bytes > FULL * done.memory_total:
            self.told_memory = True
            return (
                f"{gigabytes(done.memory_bytes)} of {gigabytes(done.memory_total)} of memory are in use: when it is full, steps "
                "get many times slower or the run ends. A smaller training.batch_size, or memory.checkpointing, makes room."
            )
        each = done.seconds / max(1.0, area)
        before = statistics.median(self.usual) if len(self.usual) >= FEWEST else None
        if before is None or each < CLIFF * before:
            self.usual.append(each)
            self.slow.clear()
            return ""
        self.slow.append(each)
        if len(self.slow) < CLIFF_STEPS or self.told:
            return ""
        self.told = True
        times = statistics.median(self.slow) / before
        return (
            f"For {CLIFF_STEPS} steps now a step takes {times:.1f} times as long as before ({done.seconds:.2f} s). Another "
            "program has taken the GPU, the processors or the memory, or the machine got too hot."
        )
