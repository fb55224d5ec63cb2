"""How a frozen weight is kept while it is not being computed with: whole, in 8 bits or in 4.

fp8: Micikevicius et al. 2022, arXiv:2209.05433 (E4M3). nf4: Dettmers et al. 2023, arXiv:2305.14314, by bitsandbytes'
kernels. All computing is in the run's own format: a small weight is unpacked just before it is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.config.choices import BaseFormat

NF4_BLOCK = 64
"""Neighbouring numbers that share a factor: what the paper and its tools take."""
_LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max

Pieces = tuple[Tensor, ...]
"""What is kept of a weight: the small numbers, and the factors that make them large again."""


@dataclass(frozen=True)
class Format:
    """`pack` makes pieces of a weight (out, ...), `unpack` a weight of that shape and number format of its pieces.

    `bits`: of one number, its share of the factors left out.
    """

    pack: Callable[[Tensor], Pieces]
    unpack: Callable[[Pieces, torch.Size, torch.dtype], Tensor]
    bits: float


def _keep(weight: Tensor) -> Pieces:
    return (weight,)


def _kept(pieces: Pieces, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return pieces[0]


def _pack_fp8(weight: Tensor) -> Pieces:
    rows, scales = _by_output(weight, _LARGEST_FP8)
    return (rows / scales).to(torch.float8_e4m3fn), scales


def _pack_int8(weight: Tensor) -> Pieces:
    rows, scales = _by_output(weight, 127.0)
    return (rows / scales).round().to(torch.int8), scales


def _by_output(weight: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """The weight in fp32 as (out, rest), and a factor (out, 1) for each output, so that its largest number fits."""
    rows = weight.detach().float().flatten(1)
    return rows, (rows.abs().amax(dim=1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)


def _unpack_by_output(pieces: Pieces, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    codes, scales = pieces
    return (codes.to(dtype) * scales.to(dtype)).view(shape)


def _pack_nf4(weight: Tensor) -> Pieces:
    """In fp32 whatever the run's format is, so that the same base gives the same pieces."""
    from bitsandbytes import functional

    if weight.device.type == "cpu":  # bitsandbytes would compile this for every shape anew, which takes a minute
        return _pack_nf4_here(weight.detach().float().flatten())
    codes, state = functional.quantize_4bit(
        weight.detach().float().contiguous(), blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False
    )
    return codes, state.absmax


def _pack_nf4_here(numbers: Tensor) -> Pieces:
    """The same by plain operations: for each number the nearest of the 16 levels, two in a byte, the first one high."""
    from bitsandbytes import functional

    levels = functional.get_4bit_type("nf4", device="cpu")
    rows = torch.nn.functional.pad(numbers, (0, -len(numbers) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    factors = rows.abs().amax(dim=1)
    scaled = rows / factors.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    nearest = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).flatten()
    codes = (nearest[::2] << 4) | nearest[1::2]
    return codes[: (len(numbers) + 1) // 2].unsqueeze(1), factors


def _unpack_nf4(pieces: Pieces, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    codes, factors = pieces
    number = shape.numel()
    # Blocks know of no shape. On the CPU rows that are no whole blocks would get others' factors, and odd ones be compiled.
    flat = [number // NF4_BLOCK, NF4_BLOCK] if number % NF4_BLOCK == 0 else [number]
    unpacked = torch.ops.bitsandbytes.dequantize_4bit(codes, factors, NF4_BLOCK, "nf4", flat, dtype)
    return cast("Tensor", unpacked).view(shape)


FORMATS: dict[BaseFormat, Format] = {
    BaseFormat.WHOLE: Format(_keep, _kept, math.nan),
    BaseFormat.FP8: Format(_pack_fp8, _unpack_by_output, 8),
    BaseFormat.INT8: Format(_pack_int8, _unpack_by_output, 8),
    BaseFormat.NF4: Format(_pack_nf4, _unpack_nf4, 4 + 32 / NF4_BLOCK),
}


def refuse_unknown_to(device: torch.device, form: BaseFormat) -> None:
    """Raises SafelightError for a format that a device can't unpack."""
    if device.type == "mps" and form in (BaseFormat.FP8, BaseFormat.NF4):
        raise SafelightError(
            f"memory.base_format is {form.value}, which Apple's GPUs can't read. Set it to int8 or whole, or "
            "training.device to cpu."
        )
