"""A step whose numbers are still on their way: read after the next one was begun, so that nobody waits for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

Moment = tuple[float, float]
"""Seconds by the clock, and of processor time of this program."""


def now() -> Moment:
    """This moment."""
    return time.perf_counter(), time.process_time()


@dataclass
class Unread:
    """A step that was computed or launched; its number, the pictures seen with it, and the loss (scalar) on the device."""

    step: int
    images_seen: int = 0
    num_samples: int = 0
    learning_rate: float = 0.0
    began: Moment = field(default_factory=now)
    input_seconds: float = 0.0
    waited: float = 0.0
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    _numbers: Tensor | None = None
    _there: torch.cuda.Event | None = None

    def launched(self, norm: Tensor) -> None:
        """Sends loss and norm on their way to the host, ahead of everything that is launched later."""
        numbers = torch.stack((self.loss.float(), norm.float()))
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(2, pin_memory=True).copy_(numbers, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()
        else:
            self._numbers = numbers

    def read(self) -> tuple[float, float]:
        """Loss and norm, waited for if need be."""
        assert self._numbers is not None, "launched before it is read"
        if self._there is not None:
            waiting = time.perf_counter()
            self._there.synchronize()
            self.waited = time.perf_counter() - waiting
        loss, norm = self._numbers.tolist()
        return loss, norm


@dataclass
class Clock:
    """Shares the time out among steps that overlap: what one is told to have taken, no other is."""

    last: Moment = (0.0, 0.0)

    def since(self, began: Moment) -> Moment:
        """Seconds and processor seconds since a step began, or since the one before it was read if that is later."""
        begin, self.last = max(began, self.last), now()
        return self.last[0] - begin[0], self.last[1] - begin[1]
