"""The inputs of the next step, made by a thread while this one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from trainer.dataset.batches import Sample
from trainer.step_inputs import StepInputs, make_inputs

if TYPE_CHECKING:
    from trainer.setup import Run

Key = tuple[int, tuple[Sample, ...]]
"""(steps done before, samples)."""
INPUTS_THREAD = "safelight-inputs"


class Ahead:
    """Inputs by step and samples, made one step ahead. As a context it leaves no thread behind."""

    def __init__(self, make: Callable[[int, tuple[Sample, ...]], StepInputs]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, INPUTS_THREAD)
        self._made: dict[Key, Future[StepInputs]] = {}

    def take(self, step: int, samples: Iterable[Sample]) -> StepInputs:
        """The inputs, waited for or made now; what went wrong in the thread is raised here."""
        key = (step, tuple(samples))
        made = self._made.pop(key, None)
        return self._make(*key) if made is None else made.result()

    def order(self, step: int, shares: Iterable[Iterable[Sample]]) -> None:
        """Begins to make the inputs of a step, and forgets those of other steps, such as of one that was gone back from."""
        wanted: list[Key] = [(step, tuple(samples)) for samples in shares]
        self._made = {key: made for key, made in self._made.items() if key in wanted}
        for key in wanted:
            if key not in self._made:
                self._made[key] = self._thread.submit(self._make, *key)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def inputs_ahead(run: Run) -> Ahead:
    """For a run. On a GPU the inputs lie in memory that it reads by itself, so that copying them holds up nobody."""
    pinned = run.device.type == "cuda"

    def make(step: int, samples: tuple[Sample, ...]) -> StepInputs:
        inputs = make_inputs(run, step, samples)
        return inputs.mapped(Tensor.pin_memory) if pinned else inputs

    return Ahead(make)
