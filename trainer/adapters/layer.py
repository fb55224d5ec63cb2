"""A frozen layer with an adapter on it: what every kind of adapter has in common.

The layers are our own rather than a library's, for one reason: the file that a run writes must give exactly the network
that was trained. The field's tools (ComfyUI, A1111, Forge) read LyCORIS's files; peft rotates a layer's inputs where
those rotate its outputs, takes DoRA's norms along the other axis, and has no rank or module dropout for LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from trainer.config.choices import AdapterInit

BaseLayer = nn.Linear | nn.Conv2d
"""What an adapter can be put on. A weight is (out, in) or (out, in, height, width)."""


@dataclass(frozen=True)
class AdapterOptions:
    """One layer's settings. `scale` is what the adapter's product is multiplied by: alpha / rank, or alpha / sqrt(rank)."""

    rank: int
    scale: float
    dropout: float = 0.0
    rank_dropout: float = 0.0
    init: AdapterInit = AdapterInit.DEFAULT
    lokr_factor: int = -1
    block_size: int = 4


class Adapter(Protocol):
    """The part of a layer that learns. Its parameters are fp32; at the start it changes nothing."""

    kind: str
    """Its name in LoRA files' terms: lora, dora, loha, lokr, oft or boft."""

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """What the changed layer says to `inputs`, in the base's own format."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """What it adds to the base's weight, fp32 in the weight's shape; without dropout."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, fp32, under the suffixes of kohya's and LyCORIS's files."""
        ...

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from another layer's `tensors()`. Raises ValueError, in words, for ones that don't fit."""
        ...

    def output_side(self) -> Sequence[nn.Parameter]:
        """The parameters that LoRA+ trains faster; empty where the method says nothing."""
        ...


class AdaptedLayer(nn.Module):
    """A frozen linear layer or convolution with its adapter, in the place of the layer itself."""

    def __init__(self, base: BaseLayer, adapter: Adapter, *, module_dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.adapter = cast("nn.Module", adapter)
        self.module_dropout = module_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """The changed layer's output; in training it is the base's alone in a share `module_dropout` of the calls."""
        if self.training and self.module_dropout > 0 and float(torch.rand(())) < self.module_dropout:
            return cast("Tensor", self.base(inputs))
        return self.learned.outputs(self.base, inputs)

    @property
    def learned(self) -> Adapter:
        """The adapter, as what it can do."""
        return cast("Adapter", self.adapter)

    @property
    def kind(self) -> str:
        """lora, dora, loha, lokr, oft or boft."""
        return self.learned.kind

    def delta(self) -> Tensor:
        """What the adapter adds to the base's weight now, fp32 in the weight's shape."""
        with torch.no_grad():
            return self.learned.delta(self.base.weight)

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors, fp32, under the suffixes of kohya's and LyCORIS's files."""
        return {suffix: tensor.detach() for suffix, tensor in self.learned.tensors().items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from another layer's `tensors()`. Raises ValueError, in words, for ones that don't fit."""
        with torch.no_grad():
            self.learned.take(tensors)

    def output_side(self) -> Sequence[nn.Parameter]:
        """The parameters that LoRA+ trains faster; empty where the method says nothing."""
        return self.learned.output_side()

    @property
    def weight(self) -> Tensor:
        """The base's weight: diffusers' blocks ask layers for its format."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias


def adapted_layers(part: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers of a network that have an adapter, by the name of the layer that each one changes."""
    return {name: module for name, module in part.named_modules() if isinstance(module, AdaptedLayer)}


def linear_or_convolution(base: BaseLayer, inputs: Tensor, weight: Tensor) -> Tensor:
    """`inputs` through the base's own operation with another weight of its shape, and without bias."""
    if isinstance(base, nn.Linear):
        return nn.functional.linear(inputs, weight)
    return nn.functional.conv2d(inputs, weight, None, base.stride, base.padding, base.dilation, base.groups)


def along_channels(values: Tensor, base: BaseLayer) -> Tensor:
    """Values per channel (C,) as they multiply with the base's inputs or outputs: (C,) or (C, 1, 1)."""
    return values if isinstance(base, nn.Linear) else values[:, None, None]


def exact(like: Tensor) -> torch.autocast:
    """No autocast on a tensor's device: what is built of weights is built in fp32, also where a step has 16 bits."""
    return torch.autocast(like.device.type, enabled=False)


def expect_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError when tensors are missing, left over, or of another shape than expected."""
    found = {suffix: tuple(tensor.shape) for suffix, tensor in tensors.items() if suffix != "alpha"}
    wanted = {suffix: tuple(shape) for suffix, shape in expected.items()}
    if found != wanted:
        raise ValueError(f"it holds {_described(found)}, and this run trains {_described(wanted)}")


def _described(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
