"""Where the parts of a denoiser are while it trains, and what it remembers: carries a level of thrift out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.choices import BaseFormat, Checkpointing
from trainer.memory.activations import Activations
from trainer.memory.formats import refuse_unknown_to
from trainer.memory.layers import Stored, pieces, store, stored_layers
from trainer.memory.plan import Level
from trainer.memory.visits import Visits


class Keeping:
    """A frozen denoiser on its device, its weights in a format. `elsewhere`: whether there is another memory to use.

    The device is the CPU and `elsewhere` true in tests only: then copies in the same memory stand for a GPU's.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device, form: BaseFormat, *, elsewhere: bool) -> None:
        refuse_unknown_to(device, form)
        self.denoiser, self.device, self.form, self.elsewhere = denoiser, device, form, elsewhere
        self.level = Level()
        self.visits: Visits | None = None
        self.activations: Activations | None = None

    def settle(self, *, away: bool) -> None:
        """Brings the base to its device in its format; with `away` its blocks stay in the machine's memory."""
        if self.form is not BaseFormat.WHOLE:
            store(self.denoiser, self.form, self.device)
        if away and self.elsewhere:
            self._send_blocks_away()
        for tensor in _at_home(self.denoiser):
            tensor.data = tensor.data.to(self.device)

    def apply(self, level: Level) -> None:
        """From now on the denoiser is computed at this level. Blocks that are away stay away."""
        self.level = level
        set_checkpointing(self.denoiser, level.checkpointing)
        if level.offloads_blocks and self.visits is None:
            self._send_blocks_away()
        self.activations = Activations(self.denoiser, self.device) if level.offloads_activations else None

    def saving(self) -> AbstractContextManager[None]:
        """For the forward pass: where what it saves for the backward pass goes."""
        return nullcontext() if self.activations is None else self.activations.away()

    def _send_blocks_away(self) -> None:
        store(self.denoiser, BaseFormat.WHOLE, None)
        self.visits = Visits(self.device)
        self.visits.take(self.denoiser)

    def block_bytes(self) -> int:
        """Bytes of the stored blocks, wherever they are."""
        return sum(piece.nbytes for layer in stored_layers(self.denoiser).values() for piece in pieces(layer))


def set_checkpointing(denoiser: Any, level: Checkpointing) -> None:
    """Which blocks of a diffusers network are computed a second time in the backward pass."""
    if level is Checkpointing.OFF:
        denoiser.disable_gradient_checkpointing()
        return
    denoiser.enable_gradient_checkpointing()
    if level is Checkpointing.ATTENTION:
        for module in denoiser.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = hasattr(module, "transformer_blocks")


def _at_home(denoiser: nn.Module) -> Iterator[Tensor]:
    """All tensors of a network but the pieces of weights that live elsewhere."""
    for module in denoiser.modules():
        yield from module.parameters(recurse=False)
        if not (isinstance(module, Stored) and module.visits is not None):
            yield from module.buffers(recurse=False)
