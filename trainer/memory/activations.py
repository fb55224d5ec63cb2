"""What a step remembers for its backward pass, kept in the machine's memory until it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_BYTES = 2**18
"""Smaller tensors stay where they are: asking for them would take longer than what they weigh."""


@dataclass(frozen=True)
class _Away:
    """A tensor's numbers in the machine's memory, and when they have all arrived there."""

    numbers: Tensor
    arrival: torch.cuda.Event | None


class Activations:
    """Sends what autograd saves on a device to the machine's memory, and fetches it back. `sent`: bytes so far.

    On a GPU both ways are copies of pinned memory, beside the computing on the way out.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, smallest_bytes: int = SMALLEST_BYTES) -> None:
        self.device, self.smallest_bytes, self.sent = device, smallest_bytes, 0
        self._network = network
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Everything that is saved inside goes away; weights, which are there anyhow, stay."""
        stays = {tensor.untyped_storage().data_ptr() for tensor in self._own_tensors()}

        def pack(tensor: Tensor) -> Any:
            at_home = tensor.untyped_storage().data_ptr() in stays
            if at_home or tensor.nbytes < self.smallest_bytes or tensor.device.type != self.device.type:
                return tensor
            return self._send(tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, self._fetch):
            yield

    def _own_tensors(self) -> Iterator[Tensor]:
        yield from self._network.parameters()
        yield from self._network.buffers()

    def _send(self, tensor: Tensor) -> _Away:
        self.sent += tensor.nbytes
        numbers = torch.empty_like(tensor, device="cpu", pin_memory=self._side is not None)  # in the same order
        if self._side is None:
            return _Away(numbers.copy_(tensor), None)
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            numbers.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._side)  # or its memory would be given away before it is copied
            return _Away(numbers, self._side.record_event())

    def _fetch(self, held: Any) -> Tensor:
        if not isinstance(held, _Away):
            return held  # type: ignore[no-any-return]
        if held.arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(held.arrival)
        return held.numbers.to(self.device, non_blocking=True, copy=True)
