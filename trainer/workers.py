"""Several processes that train one LoRA together: who takes which pictures, and how what they found becomes one step.

They share the pictures of every step, so their number changes how long a run takes and not what it learns. A run of one
process has a `Workers` too, which does nothing and costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as together
from torch import Tensor, nn

from security.errors import SafelightError
from trainer.dataset.batches import Sample

if TYPE_CHECKING:
    from trainer.jobs import Control


class LostWorkers(Exception):
    """Another worker of this run is gone: nothing can be done together any more."""


class Share(NamedTuple):
    """What one worker does of a micro-batch. `number` of the micro-batch in its step; `part`: 0 for the first or whole.

    `counts`: False where it only keeps the others company, which a sharded base asks for; then its loss counts nothing.
    """

    number: int
    part: int
    samples: list[Sample]
    counts: bool = True


@dataclass(frozen=True)
class Asked:
    """What the user asked for, as all workers know it."""

    ends: bool
    sample: bool
    save: bool


@dataclass(frozen=True)
class Workers:
    """This process among those of its run. `rank` of `count` in all, `local_rank` of `local_count` on this machine.

    `sharded`: every worker holds a part of the base only, so all of them have to compute whatever one computes.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this one writes what the run leaves behind."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this one speaks for its machine."""
        return self.local_rank == 0

    @property
    def draws(self) -> bool:
        """Whether this one takes part in drawing samples."""
        return self.is_first or self.sharded

    def label(self, device: str) -> str:
        """The devices in words."""
        return device if self.count == 1 else f"{self.count} x {device}"

    def device(self, device: torch.device) -> torch.device:
        """Where this one computes. Raises SafelightError where there are too few GPUs for the workers of this machine."""
        if self.local_count == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise SafelightError(
                f"training.device is {device} and training.num_processes is {self.local_count}, but several processes "
                "can't share one device. Set training.device to auto, or training.num_processes to 1."
            )
        if (there := torch.cuda.device_count()) < self.local_count:
            raise SafelightError(
                f"training.num_processes is {self.local_count}, but torch sees {there} NVIDIA "
                f"GPU{'' if there == 1 else 's'} here. Set it to {there}, or training.device to cpu."
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    # ---- pictures ----

    def share(self, batches: Sequence[list[Sample]]) -> list[Share]:
        """This worker's part of a step: whole micro-batches in turn where there are enough for all, else a part of each.

        Every picture of the step is with exactly one worker.
        """
        if self.count == 1:
            return [Share(number, 0, batch) for number, batch in enumerate(batches)]
        if len(batches) >= self.count and not self.sharded:
            return [Share(number, 0, batch) for number, batch in enumerate(batches) if number % self.count == self.rank]
        shares = []
        for number, batch in enumerate(batches):
            part = (self.rank + number) % self.count  # so that short batches don't always leave the same one idle
            first, end = (len(batch) * one // self.count for one in (part, part + 1))
            if first < end:
                shares.append(Share(number, part, batch[first:end]))
            elif self.sharded:
                shares.append(Share(number, part, batch[:1], counts=False))
        return shares

    def is_mine(self, text: str) -> bool:
        """Whether this worker makes the thing of that name for all workers of its machine."""
        return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % self.local_count == (
            self.local_rank
        )

    def turn(self, number: int) -> range:
        """Which of `number` things, each of which takes as long, this worker computes; all where the base is sharded."""
        return range(number) if self.sharded else range(self.rank, number, self.count)

    # ---- what they tell each other ----

    def reduce(self, parameters: Sequence[nn.Parameter], total: Tensor) -> Tensor:
        """Makes each gradient the sum of all workers' gradients; returns the sum of their `total`, a loss (scalar).

        One message for everything. A parameter that no worker has a gradient for keeps none.
        """
        if self.count == 1:
            return total
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in learning]
        flat = torch.zeros(sum(sizes) + len(learning) + 1, dtype=torch.float32, device=total.device)
        pieces = flat.split([*sizes, len(learning), 1])
        for place, (parameter, piece) in enumerate(zip(learning, pieces, strict=False)):
            if parameter.grad is not None:
                piece.copy_(parameter.grad.reshape(-1))
                pieces[-2][place] = 1.0
        pieces[-1][0] = total
        self._add_up(flat)
        has_gradient = pieces[-2].tolist()
        for parameter, piece, present in zip(learning, pieces, has_gradient, strict=False):
            if not present:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(piece.view_as(parameter.grad))
        return pieces[-1][0]

    def agree(self, control: Control) -> Asked:
        """What the user asked any worker for since the last time; `control` then knows of an end that others heard of."""
        own = [control.stop.is_set(), control.pause.is_set(), taken(control.sample_now), taken(control.save_now)]
        if self.count == 1:
            return Asked(own[0] or own[1], own[2], own[3])
        flags = torch.tensor(own, dtype=torch.int32)
        self._add_up(flags)
        stop, pause, sample, save = flags.bool().tolist()
        for asked, event in ((stop, control.stop), (pause, control.pause)):
            if asked:
                event.set()
        return Asked(stop or pause, sample, save)

    def any_of(self, text: bool) -> bool:
        """Whether it is true for a worker: of those that draw, which are all or one."""
        if self.count == 1 or not self.sharded:
            return text
        flag = torch.tensor([text], dtype=torch.int32)
        self._add_up(flag)
        return bool(flag.item())

    def gathered(self, values: Mapping[int, float], number: int) -> tuple[float, ...]:
        """All of `number` values, of which every worker has computed those of its `turn`."""
        if self.count == 1 or self.sharded:
            return tuple(values[place] for place in range(number))
        every = torch.zeros(number, dtype=torch.float64)
        for place, value in values.items():
            every[place] = value
        self._add_up(every)
        return tuple(every.tolist())

    def told(self, data: bytes) -> bytes:
        """What the first worker says, the same bytes for all."""
        if self.count == 1:
            return data
        size = torch.tensor([len(data) if self.is_first else 0], dtype=torch.int64)
        self._add_up(size)
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.is_first and data else None
        received = torch.empty(int(size), dtype=torch.uint8) if sent is None else sent
        if received.numel():
            with losing():
                together.broadcast(received, src=0)
        return bytes(received.numpy().tobytes())

    def differing(self, values: Mapping[str, str]) -> list[str]:
        """Names of values that are not the same for all workers; the same answer for all."""
        if self.count == 1:
            return []
        first: dict[str, str] = json.loads(self.told(json.dumps(dict(values)).encode()))
        flags = torch.tensor([first[name] != values.get(name) for name in first], dtype=torch.int32)
        self._add_up(flags)
        return [name for name, differs in zip(first, flags.tolist(), strict=True) if differs]

    def wait_for_all(self) -> None:
        """Returns once every worker has come here."""
        if self.count > 1:
            self._add_up(torch.zeros(1))

    @contextlib.contextmanager
    def first_here_before_others(self) -> Iterator[None]:
        """For work whose result is kept in a file: the first worker of each machine does it, then the others find it."""
        if not self.is_first_here:
            self.wait_for_all()
        yield
        if self.is_first_here:
            self.wait_for_all()

    def _add_up(self, tensor: Tensor) -> None:
        """Makes it the sum over all workers."""
        with losing():
            together.all_reduce(tensor)


ALONE = Workers()
"""The one process of a run that needs no others."""


def taken(request: threading.Event) -> bool:
    """Whether the user asked for something since the last look; asking once gives it once."""
    asked = request.is_set()
    request.clear()
    return asked


@contextlib.contextmanager
def losing() -> Iterator[None]:
    """Tells a message that could not be exchanged from other faults."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorkers(str(error)) from error
