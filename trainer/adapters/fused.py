"""A LoRA on a linear layer as one operation: base(x) + scale * up(down(x)), with its own backward pass.

The modules' way writes the base's output, the product and their sum one after the other, and changes number formats in
between. Here the product is added into the base's output, and its gradient into that of the base's input. In 16 bits the
sum is rounded once instead of three times; in fp32 the numbers are the same but for the order of sums.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.speed.packed import PackedLinear

Base = nn.Linear | PackedLinear
"""Layers whose weight is at hand in the format of the step."""


def can_fuse(base: nn.Module, inputs: Tensor) -> bool:
    """Whether a layer and the step's number format are such that `lora_linear` computes what the modules do."""
    if type(base) not in (nn.Linear, PackedLinear):
        return False
    dtype = _format(cast("Base", base))
    kind = inputs.device.type
    return (
        torch.get_autocast_dtype(kind) == dtype
        if torch.is_autocast_enabled(kind)
        else inputs.dtype == dtype == torch.float32
    )


def lora_linear(base: Base, inputs: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """(..., in) -> (..., out) in the base's format. `down` is (rank, in), `up` (out, rank), both fp32."""
    return cast("Tensor", _LoraLinear.apply(inputs.to(_format(base)), down, up, scale, base))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down: Tensor, up: Tensor, scale: float, base: Base) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            narrow_down, narrow_up = down.to(inputs.dtype), up.to(inputs.dtype)
            result = (
                base.answer(inputs)
                if isinstance(base, PackedLinear)
                else nn.functional.linear(inputs, base.weight, base.bias)
            )
            hidden = inputs.reshape(-1, inputs.shape[-1]) @ narrow_down.t()
            result.view(-1, result.shape[-1]).addmm_(hidden, narrow_up.t(), alpha=scale)
        ctx.save_for_backward(inputs, hidden, narrow_down, narrow_up)
        ctx.scale, ctx.base = scale, base
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:  # type: ignore[override]
        inputs, hidden, down, up = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            rows = gradient.reshape(-1, gradient.shape[-1])
            scaled = (rows @ up).mul_(ctx.scale)
            down_gradient = scaled.t() @ inputs.reshape(-1, inputs.shape[-1])
            up_gradient = (rows.t() @ hidden).mul_(ctx.scale)
            input_gradient = None
            if ctx.needs_input_grad[0]:
                base = ctx.base
                input_gradient = base.input_gradient(rows) if isinstance(base, PackedLinear) else rows @ base.weight
                input_gradient = input_gradient.addmm_(scaled, down).view(inputs.shape)
        return input_gradient, down_gradient.float(), up_gradient.float(), None, None


def _format(base: Base) -> torch.dtype:
    return base.dtype if isinstance(base, PackedLinear) else base.weight.dtype
