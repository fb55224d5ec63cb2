"""Frozen layers whose weight is kept small or elsewhere, and is whole only for the moment that it is multiplied.

The whole weight is made in the forward pass and again in the backward pass: autograd keeps nothing of it. Everything
that looks at a layer's `weight`, as some adapters do, is given it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trainer.config.choices import BaseFormat
from trainer.memory.formats import FORMATS, Pieces

if TYPE_CHECKING:
    from trainer.memory.visits import Visits


class StoredLinear(nn.Linear):
    """A frozen linear layer with a stored weight. It is an nn.Linear so that everything takes it for one."""

    def __init__(self, layer: nn.Linear, form: BaseFormat, device: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        _store(self, layer, form, device)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole weight (out, in) in the run's number format, made anew at each look."""
        return unpacked(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """As of the layer that it was, with the weight as it is stored."""
        return cast("Tensor", _Linear.apply(inputs.to(self.dtype), self))


class StoredConv2d(nn.Conv2d):
    """The same of a convolution."""

    def __init__(self, layer: nn.Conv2d, form: BaseFormat, device: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        for name in (*nn.Conv2d.__constants__, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(layer, name))
        _store(self, layer, form, device)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole weight (out, in, height, width) in the run's number format, made anew at each look."""
        return unpacked(self)

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """As of the layer that it was, with the weight as it is stored."""
        return cast("Tensor", _Convolution.apply(inputs.to(self.dtype), self))


Stored = StoredLinear | StoredConv2d


def _store(self: Any, layer: nn.Linear | nn.Conv2d, form: BaseFormat, device: torch.device | None) -> None:
    weight = layer.weight.detach().to(device or layer.weight.device)
    self.form, self.shape, self.dtype = form, weight.shape, weight.dtype
    for name, piece in zip(("codes", "factors"), (*FORMATS[form].pack(weight), None), strict=False):
        self.register_buffer(name, piece)
    self.bias = layer.bias
    self.visits = None
    self.train(layer.training)


def pieces(layer: Stored) -> Pieces:
    """What is kept of a layer's weight, where it is kept."""
    kept: Any = layer
    return (kept.codes,) if getattr(kept, "factors", None) is None else (kept.codes, kept.factors)


def unpacked(layer: Stored) -> Tensor:
    """A layer's whole weight on the device that computes."""
    visits: Visits | None = layer.visits  # type: ignore[assignment]
    found = pieces(layer) if visits is None else visits.bring(layer)
    kept: Any = layer
    return FORMATS[kept.form].unpack(found, kept.shape, kept.dtype)


def weight_shape(base: nn.Linear | nn.Conv2d) -> torch.Size:
    """The shape of a layer's weight, without making a stored one whole."""
    return cast("torch.Size", base.shape) if isinstance(base, Stored) else base.weight.shape


class _Linear(torch.autograd.Function):
    """inputs @ W.T + b, for which nothing is saved: the gradient needs the weight alone, which is made again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: StoredLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(inputs, unpacked(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None
        return gradient @ unpacked(ctx.layer), None


class _Convolution(torch.autograd.Function):
    """The same of a convolution."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: StoredConv2d) -> Tensor:
        ctx.layer, ctx.inputs_shape = layer, inputs.shape
        return layer._conv_forward(inputs, unpacked(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None
        layer = ctx.layer
        found = nn.grad.conv2d_input(
            ctx.inputs_shape,
            unpacked(layer),
            gradient,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        return found, None


def frozen_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The frozen linear layers and convolutions of a network's blocks, by name; adapters' own are none of them.

    What stands before and after the blocks is small and touches every number of the picture: it stays whole.
    """
    for name, module in denoiser.named_modules():
        inside = "block" in name.split(".")[0] and ".adapter." not in f".{name}"
        if inside and isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def store(denoiser: nn.Module, form: BaseFormat, device: torch.device | None) -> None:
    """Replaces the layers of a network's blocks that are not stored yet by ones that are, one after the other.

    They are made small on `device` and stay there; None leaves each where it is.
    """
    for name, layer in list(frozen_layers(denoiser)):
        if not isinstance(layer, Stored):
            made = (
                StoredLinear(layer, form, device) if isinstance(layer, nn.Linear) else StoredConv2d(layer, form, device)
            )
            denoiser.set_submodule(name, made)


def stored_layers(denoiser: nn.Module) -> dict[str, Stored]:
    """The layers of a network that are stored, by name."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, Stored)}
