"""Weights that live in the machine's memory and come to the GPU for the moment that they are needed.

They are copied one way only: nothing changes a frozen weight, so there is nothing to bring back. While one layer
computes, the next ones are on their way. Which ones these are is learned from the steps before, so that forward,
backward and recomputed passes are all followed without knowing the network.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from trainer.memory.formats import Pieces
from trainer.memory.layers import Stored, pieces, stored_layers

AHEAD_BYTES = 64 * 2**20
"""How much is on its way or waiting ahead of the layer that computes: a few milliseconds of a fast bus."""


class Visits:
    """The stored layers of a network as guests of a device: each comes when it is asked for, and is soon forgotten.

    `pinned`: keep them in memory that the GPU can read by itself. On a device without streams every copy is waited for.
    """

    def __init__(self, device: torch.device, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.device, self.ahead_bytes = device, ahead_bytes
        self.here: dict[Stored, tuple[Pieces, torch.cuda.Event | None]] = {}
        self.copied = 0
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: tuple[Stored | None, Stored | None] = (None, None)
        self._next: dict[tuple[Stored | None, Stored | None], Stored] = {}

    def take(self, denoiser: nn.Module) -> None:
        """Moves the stored weights of a network into the machine's memory and has them come from there."""
        for layer in stored_layers(denoiser).values():
            for name, piece in zip(("codes", "factors"), pieces(layer), strict=False):
                home = piece.detach().to("cpu", copy=piece.device == self.device)
                setattr(layer, name, home.pin_memory() if self._side is not None else home)
            layer.visits = self  # type: ignore[assignment]

    def bring(self, layer: Stored) -> Pieces:
        """The pieces of a layer's weight on the device; what comes next is sent for, what is behind is forgotten."""
        self._next[self._last] = layer
        self._last = (self._last[1], layer)
        wanted = dict.fromkeys((layer, *self._expected()))
        for other in [one for one in self.here if one not in wanted]:
            del self.here[other]
        for one in wanted:
            if one not in self.here:
                self.here[one] = self._sent_for(one)
        found, arrival = self.here[layer]
        if arrival is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrival)
            for piece in found:
                piece.record_stream(stream)  # or its memory would be given away while it is still computed with
        return found

    def _expected(self) -> Iterator[Stored]:
        """The layers that came after this one the last time, as many as may be ahead."""
        pair, room = self._last, self.ahead_bytes
        while (following := self._next.get(pair)) is not None:
            room -= sum(piece.nbytes for piece in pieces(following))
            if room < 0 or following is self._last[1]:
                return
            yield following
            pair = (pair[1], following)

    def _sent_for(self, layer: Stored) -> tuple[Pieces, torch.cuda.Event | None]:
        self.copied += 1
        if self._side is None:
            return tuple(piece.to(self.device, copy=True) for piece in pieces(layer)), None
        with torch.cuda.stream(self._side):
            found = tuple(piece.to(self.device, non_blocking=True) for piece in pieces(layer))
            return found, self._side.record_event()

    def forget(self) -> None:
        """Gives back what is on the device now; the layers come again when they are asked for."""
        self.here.clear()
        self._last = (None, None)
