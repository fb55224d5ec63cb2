"""What the measurements of a run's loss add up to: the best step, overfitting in plain words, when to end early.

A measurement is the loss of each held-out picture, and of some training pictures, with the same noise every time; so two
measurements are compared picture by picture, which sees differences far below the spread between the pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SURE = 2.0
"""Standard errors that a rise must have before it is told: about one false alarm in forty."""
LEAST_RISE = 0.01
"""Smallest rise, as a share of the loss, that is worth a word, however sure it is."""


@dataclass(frozen=True)
class Measurement:
    """Mean loss of each held-out and each measured training picture after `step` steps, in a fixed order."""

    step: int
    held_out: tuple[float, ...]
    trained: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """The held-out loss: the mean over the pictures."""
        return _mean(self.held_out)

    @property
    def spread(self) -> float:
        """Standard error of that mean: how far it may lie from what other pictures of the kind would give."""
        return _standard_error(self.held_out)

    @property
    def trained_loss(self) -> float | None:
        """The same for the training pictures; None if none are measured."""
        return _mean(self.trained) if self.trained else None

    @property
    def trained_spread(self) -> float:
        """Standard error of that."""
        return _standard_error(self.trained)

    @property
    def is_finite(self) -> bool:
        """Whether all losses are numbers that can be compared."""
        return all(math.isfinite(loss) for loss in (*self.held_out, *self.trained))


@dataclass
class Measurements:
    """All measurements of a run so far. `key` says of what: those of other pictures or another noise don't compare."""

    key: str = ""
    entries: list[Measurement] = field(default_factory=list)

    def add(self, entry: Measurement) -> None:
        """Takes in the next one; a step that is measured again replaces what was measured from there on."""
        self.entries = [one for one in self.entries if one.step < entry.step] + [entry]

    def has(self, step: int) -> bool:
        """Whether that step was measured."""
        return any(one.step == step for one in self.entries)

    def at(self, step: int) -> Measurement | None:
        """The measurement of that step."""
        return next((one for one in self.entries if one.step == step), None)

    @property
    def best(self) -> Measurement | None:
        """The trained step with the lowest held-out loss, the first of equals; step 0 is no LoRA yet."""
        trained = [one for one in self.entries if one.step > 0]
        return min(trained, key=lambda one: (one.loss, one.step)) if trained else None

    def num_without_gain(self, delta: float) -> int:
        """How many measurements in a row, up to the last, did not lower the loss by the share `delta` or more."""
        if not self.entries:
            return 0
        reference, count = self.entries[0].loss, 0
        for entry in self.entries[1:]:
            # delta 0 asks for any gain at all, not for none
            if entry.loss < reference and entry.loss <= reference * (1 - delta):
                reference, count = entry.loss, 0
            else:
                count += 1
        return count

    def early_end(self, patience: int, delta: float) -> str:
        """Why the run should end now, in a sentence; empty while it should not."""
        count = self.num_without_gain(delta)
        if patience == 0 or count < patience:
            return ""
        times = "once" if count == 1 else f"{count} times"
        least = f" by {delta:.3g} of it" if delta else ""
        return (
            f"Ended early: the held-out loss was measured {times} in a row without falling{least} "
            f"(validation.early_stop_patience is {patience})."
        )

    @property
    def notice(self) -> str:
        """What the last measurement says about overfitting, in plain words; empty when it says nothing."""
        best = self.best
        last = self.entries[-1] if self.entries else None
        if best is None or last is None or last.step <= best.step or not _rises(best.held_out, last.held_out):
            return ""
        told = (
            f"Since step {best.step} the loss on held-out pictures rises ({best.loss:.4f} to {last.loss:.4f} at step "
            f"{last.step})"
        )
        falls = best.trained and last.trained and _mean(last.trained) < _mean(best.trained)
        if falls:
            told += (
                f" while that on training pictures still falls ({_mean(best.trained):.4f} to {_mean(last.trained):.4f}): "
                "the LoRA is learning its pictures by heart."
            )
        else:
            told += ": training on makes the LoRA worse for pictures that it has not seen."
        return f"{told} The best so far is the LoRA of step {best.step}."

    def to_text(self) -> str:
        """For a checkpoint; numbers come back exactly."""
        rows = [[one.step, one.held_out, one.trained] for one in self.entries]
        return json.dumps({"key": self.key, "entries": rows})

    @classmethod
    def from_text(cls, text: str, key: str) -> Measurements:
        """What `to_text` gave; without entries where they were measured on something else than `key` says."""
        values = json.loads(text)
        if values["key"] != key:
            return cls(key)
        rows = [Measurement(step, tuple(held_out), tuple(trained)) for step, held_out, trained in values["entries"]]
        return cls(key, rows)


def _rises(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether the mean rose for sure. Compared picture by picture: a paired test, the noise of both being the same."""
    changes = [new - old for old, new in zip(before, now, strict=True)]
    rise = _mean(changes)
    return rise > LEAST_RISE * _mean(before) and rise > SURE * _standard_error(changes)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean, from the sample's own variance; 0 where one value says nothing about it."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
