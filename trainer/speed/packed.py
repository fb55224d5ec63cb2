"""Frozen layers whose weights lie in memory as the CPU's kernels want them.

oneDNN computes convolutions and matrix products on weights in an order of its own. torch brings a weight into that order
at every call, and for layers with many weights and few pixels that takes longer than the layer itself. A frozen weight
never changes, so it is brought into that order once: for the answer, and transposed for the gradient of the input.

The weights then take twice their memory. The plain weight is built again from the ordered one whenever it is asked for,
exactly.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

FEWEST_WEIGHTS = 200_000
"""Layers with fewer gain nothing: reordering them is as quick as asking whether it was done."""
_DTYPES = (torch.float32, torch.bfloat16)
_ORDERED = ((1, 1), (3, 3))
"""Kernels that are taken; with stride 1 and an even padding their gradient is a convolution too."""


class _Ordered(nn.Module):
    """What both kinds of packed layers have in common. `dtype`: the weight's format; `ordered`, `ordered_back`: the weight as
    the kernels want it, made when it is first used."""

    dtype: torch.dtype
    ordered: Tensor | None
    ordered_back: Tensor | None

    def _take_over(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.register_parameter("bias", layer.bias)
        self._parameters["weight"] = layer.weight
        self.dtype = layer.weight.dtype
        self.ordered = self.ordered_back = None
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The plain weight: of a linear layer (out, in), of a convolution (out, in, height, width)."""
        if self.ordered is None:
            return cast("Tensor", self._parameters["weight"])
        return self.ordered.to_dense(self.dtype)

    @property
    def num_packed(self) -> int:
        """Weights that are no parameter any more, because they were ordered."""
        return 0 if self.ordered is None else self.ordered.numel()

    def forward(self, inputs: Tensor) -> Tensor:
        """The answer in the weight's format: of a linear layer (..., out), of a convolution (B, out, h, w)."""
        inputs = inputs.to(self.dtype)
        if torch.is_grad_enabled() and inputs.requires_grad:
            return cast("Tensor", _PackedLayer.apply(inputs, self))
        return self.answer(inputs)

    def answer(self, inputs: Tensor) -> Tensor:
        """The output, which no gradient flows through."""
        if self.ordered is None:
            self.ordered = self._reordered(self.weight, inputs)
            del self._parameters["weight"]
        return self._product(inputs, self.ordered, cast("Tensor | None", self.bias))

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of the inputs from that of the output."""
        if self.ordered_back is None:
            self.ordered_back = self._reordered(self._transposed(), gradient)
        return self._product(gradient, self.ordered_back, None)

    def _reordered(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """A copy in the order that is best for inputs of such a size; right for all."""
        raise NotImplementedError

    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _transposed(self) -> Tensor:
        """The plain weight of the layer that makes the inputs' gradient of the output's."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class PackedLinear(_Ordered, nn.Linear):  # type: ignore[misc]
    """A frozen linear layer with ordered weights. Takes over the tensors of `layer`, which must not be used any more."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._take_over(layer)

    def _reordered(self, weight: Tensor, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // inputs.shape[-1]
        result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        return result

    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return result

    def _transposed(self) -> Tensor:
        return self.weight.t().contiguous()


class PackedConv2d(_Ordered, nn.Conv2d):  # type: ignore[misc]
    """A frozen convolution with ordered weights. Takes over the tensors of `layer`, which must not be used any more."""

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.padding_mode, self.transposed, self.output_padding = "zeros", False, layer.output_padding
        self._take_over(layer)

    def _reordered(self, weight: Tensor, inputs: Tensor) -> Tensor:
        result: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[attr-defined]
            weight.detach().to_mkldnn(), list(self.padding), [1, 1], [1, 1], 1, list(inputs.shape)
        )
        return result

    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs, weight, bias, list(self.padding), [1, 1], [1, 1], 1, "none", [], ""
        )
        return result

    def _transposed(self) -> Tensor:
        return self.weight.flip(2, 3).transpose(0, 1).contiguous()


Packed = PackedLinear | PackedConv2d


class _PackedLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Packed) -> Tensor:
        ctx.layer = layer
        return layer.answer(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.layer.input_gradient(gradient), None


def can_pack() -> bool:
    """Whether this build of torch has oneDNN's kernels and the functions that order weights for them."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and all(
            hasattr(torch.ops.mkldnn, name)
            for name in ("_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight")
        )
    )


def packable(module: nn.Module, fewest: int = FEWEST_WEIGHTS) -> bool:
    """Whether a layer is frozen, of a kind that can be packed, and has at least so many weights."""
    if type(module) not in (nn.Linear, nn.Conv2d):
        return False
    weight = cast("Tensor", module.weight)
    if weight.requires_grad or weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        return False
    if weight.numel() < fewest or isinstance(module, nn.Linear):
        return weight.numel() >= fewest
    assert isinstance(module, nn.Conv2d)
    even = all(pad == (size - 1) // 2 for pad, size in zip(module.padding, module.kernel_size, strict=False))
    return (
        module.kernel_size in _ORDERED
        and even
        and (module.stride, module.dilation, module.groups, module.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    )


def packable_bytes(part: nn.Module) -> int:
    """Bytes that packing a network takes in addition."""
    return sum(cast("Tensor", one.weight).nbytes for one in part.modules() if packable(one))


def pack(part: nn.Module, *, everything: bool = False) -> int:
    """Replaces the layers of a network that gain by it, or all that can be; returns how many. It computes as before."""
    fewest = 1 if everything else FEWEST_WEIGHTS
    found = {name: module for name, module in part.named_modules() if packable(module, fewest)}
    for name, module in found.items():
        packed = PackedLinear(module) if isinstance(module, nn.Linear) else PackedConv2d(cast("nn.Conv2d", module))
        part.set_submodule(name, packed)
    return len(found)
