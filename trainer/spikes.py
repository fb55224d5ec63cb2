"""Losses out of the ordinary: single steps far above the others, and a run that has gone astray. Plain numbers, no torch.

What is ordinary is told by the median of the last steps: diffusion losses differ tenfold from one timestep to the next,
so an average or a standard deviation would follow the spikes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

KEPT = 100
"""Losses that are remembered."""
FEWEST = 20
"""With fewer of them nothing is called out of the ordinary."""
RECENT = 50
ASTRAY_FACTOR = 4.0
"""A mean of RECENT losses so many times the lowest one of the run is no chance; with batches of one, 2 to 3 still are."""
GRADIENT_FACTOR = 1000.0
"""A gradient so many times as long as usual comes from weights that are about to fail; 400 times came and went by itself."""


@dataclass
class LossWatch:
    """The losses of the last steps, and the lowest mean of RECENT of them; `spikes` counts those out of the ordinary.

    `norms`: the lengths of the last steps' gradients before clipping, of steps that had one.
    """

    recent: list[float] = field(default_factory=list)
    lowest_mean: float = math.inf
    spikes: int = 0
    norms: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, memory: dict[str, Any]) -> LossWatch:
        """The watch that a run remembers."""
        return cls(**memory["losses"]) if "losses" in memory else cls()

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "recent": self.recent,
            "lowest_mean": self.lowest_mean,
            "spikes": self.spikes,
            "norms": self.norms,
        }

    def is_spike(self, loss: float, factor: float) -> bool:
        """Whether a step's loss is over `factor` times the median of those before; never with a factor of 0."""
        return factor > 0 and len(self.recent) >= FEWEST and loss > factor * median(self.recent)

    def add(self, loss: float, norm: float | None = None, *, spike: bool) -> None:
        """Takes in the loss of the next step, and the length of its gradient."""
        self.recent = [*self.recent, loss][-KEPT:]
        self.norms = [*self.norms, *([] if norm is None else [norm])][-KEPT:]
        self.spikes += spike
        if len(self.recent) >= FEWEST:
            self.lowest_mean = min(self.lowest_mean, self._mean())

    @property
    def astray(self) -> bool:
        """Whether the losses, or the last step's gradient, have risen far above what they were."""
        too_long = len(self.norms) >= FEWEST and not self.norms[-1] <= GRADIENT_FACTOR * median(self.norms)
        return too_long or (len(self.recent) >= FEWEST and not self._mean() <= ASTRAY_FACTOR * self.lowest_mean)

    def _mean(self) -> float:
        last = self.recent[-RECENT:]
        return sum(last) / len(last)


def median(values: Sequence[float]) -> float:
    """The middle one, the higher of two."""
    return sorted(values)[len(values) // 2]


def worth_telling(count: int) -> bool:
    """Whether spike number `count` gets a sentence of its own: the first three, then every tenth power of ten."""
    return count <= 3 or count in (10, 100, 1000, 10_000)
