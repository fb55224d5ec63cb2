"""What is encoded once: some at a time, while the next ones are read by a thread of their own."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from trainer import events
from trainer.events import Event
from trainer.memory.host import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

READING_THREAD = "safelight-reader"


@dataclass
class AtOnce:
    """How many are encoded at once; one by one from the moment on at which the memory was too small for more."""

    size: int
    emit: Callable[[Event], None]

    def encode(self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """What `work` gives for all of them, in their order. What it raises for one alone is raised."""
        if len(items) > 1:
            try:
                return work(items)
            except (RuntimeError, MemoryError) as error:  # torch's own error is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                told = str(error).partition("\n")[0]
            self._go_on_alone(told)  # out here the error is gone, and with it the frames that hold on to memory
        return [result for item in items for result in work([item])]

    def _go_on_alone(self, told: str) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.size > 1:
            self.emit(
                events.Warned(
                    f"The memory is too small to encode {self.size} at once ({told}), so each is encoded alone. Lower "
                    "speed.caching_batch_size to be spared the attempt."
                )
            )
        self.size = 1


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], *, depth: int) -> Generator[Result, None, None]:
    """What `read` gives for each, in order; a thread reads at most `depth` of them before they are asked for.

    Close it where it is not read to its end. What `read` raises is raised at its place.
    """
    coming: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, READING_THREAD) as pool:
        try:
            for item in items:
                coming.append(pool.submit(read, item))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for one in coming:
                one.cancel()
