"""OFT and BOFT: a layer's outputs are rotated, which keeps the angles between its neurons.

OFT: Qiu et al. 2023, arXiv:2306.07280, one rotation in blocks. BOFT: Liu et al. 2023, arXiv:2311.06243, several of them
with the outputs shuffled between them like a butterfly. The paper and peft rotate a layer's inputs; LyCORIS rotates its
outputs, and its `oft_blocks` are what ComfyUI, Forge and A1111 read. Ours are those: the same blocks, the same order, and
no constraint (an alpha of 0 in the file), so that a file gives exactly the trained network. The bias is not rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from security.errors import SafelightError
from trainer.adapters.layer import AdapterOptions, BaseLayer, along_channels, exact, expect_shapes

Rotate = Callable[[Tensor], Tensor]


class OftAdapter(nn.Module):
    """Rotates blocks of outputs. `oft_blocks`: (blocks, size, size); the skew part of each makes its rotation."""

    kind = "oft"

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        num_out = len(base.weight)
        size = largest_block(num_out, options.block_size)
        self.oft_blocks = nn.Parameter(torch.zeros(num_out // size, size, size))
        self.rank_dropout = options.rank_dropout

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The base's output, its blocks rotated about the bias."""
        result = base(inputs)
        with exact(inputs):
            turns = _turns(self.oft_blocks) * _kept_blocks(self, self.oft_blocks)
        return _rotated(base, result, lambda rows: _turned(rows, turns.mT))

    def delta(self, weight: Tensor) -> Tensor:
        """(R - 1) W. The files' readers take the transpose of each block's rotation, so this does as well."""
        rows = weight.float().flatten(1)
        return (_turned(rows, _turns(self.oft_blocks).mT) - rows).view(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The blocks, and an alpha of 0: no constraint."""
        return {"oft_blocks": self.oft_blocks, "alpha": torch.zeros(())}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from rotations with the same blocks."""
        _take_blocks(self.oft_blocks, tensors)

    def output_side(self) -> Sequence[nn.Parameter]:
        """None: LoRA+ speaks of two matrices."""
        return []


class BoftAdapter(nn.Module):
    """Rotates outputs several times in blocks, shuffled in between. `oft_blocks`: (times, blocks, size, size)."""

    kind = "boft"

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        num_out = len(base.weight)
        size = butterfly_block(num_out, options.block_size)
        count = num_out // size  # a power of two, so that its logarithm is a whole number
        self.oft_blocks = nn.Parameter(torch.zeros(count.bit_length(), count, size, size))
        self.rank_dropout = options.rank_dropout

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The base's output, rotated about the bias."""
        result = base(inputs)
        with exact(inputs):
            turns = _turns(self.oft_blocks) * _kept_blocks(self, self.oft_blocks)
        return _rotated(base, result, lambda rows: _butterfly(rows, turns))

    def delta(self, weight: Tensor) -> Tensor:
        """(R_m ... R_1 - 1) W."""
        rows = weight.float().flatten(1)
        return (_butterfly(rows, _turns(self.oft_blocks)) - rows).view(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The blocks, and an alpha of 0: no constraint."""
        return {"oft_blocks": self.oft_blocks, "alpha": torch.zeros(())}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from rotations with the same blocks."""
        _take_blocks(self.oft_blocks, tensors)

    def output_side(self) -> Sequence[nn.Parameter]:
        """None: LoRA+ speaks of two matrices."""
        return []


def largest_block(num_out: int, wanted: int) -> int:
    """The largest block size up to `wanted` that divides the outputs. Raises SafelightError where it would be 1."""
    size = max(number for number in range(1, min(wanted, num_out) + 1) if num_out % number == 0)
    if size == 1:
        raise SafelightError(
            f"A layer with {num_out} outputs can't be cut into blocks of 2 to {wanted}. Leave it out with "
            "lora.exclude_patterns, or set lora.block_size higher."
        )
    return size


def butterfly_block(num_out: int, wanted: int) -> int:
    """The largest even block size up to `wanted` that leaves a power of two of blocks. Raises SafelightError for none."""
    sizes = [num_out >> times for times in range(num_out.bit_length()) if num_out % (1 << times) == 0]
    even = [size for size in sizes if size % 2 == 0]
    fitting = [size for size in even if size <= wanted]
    if not fitting:
        smallest = f"at least {min(even)}" if even else "another adapter's"
        raise SafelightError(
            f"BOFT can't cut a layer with {num_out} outputs into blocks of {wanted}: their number has to be a power of two "
            f"and their size even. Set lora.block_size to {smallest}, or leave the layer out with lora.exclude_patterns."
        )
    return max(fitting)


def _turns(blocks: Tensor) -> Tensor:
    """R - 1 of the rotations R = (1 + Q)(1 - Q)^-1 with Q = A - A^T (Cayley), by blocks A; exactly zero at A = 0."""
    skew = blocks - blocks.mT
    identity = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    # R - 1 = 2 Q (1 - Q)^-1, and the two commute. Without the 1, small turns keep all of their digits.
    turns: Tensor = torch.linalg.solve(identity - skew, 2 * skew)
    return turns


def _turned(rows: Tensor, turns: Tensor) -> Tensor:
    """Rows (out, n), each block of them multiplied by 1 + turns (blocks, size, size)."""
    grid = rows.unflatten(0, (turns.shape[0], -1))
    return (grid + turns @ grid).flatten(0, 1)


def _butterfly(rows: Tensor, turns: Tensor) -> Tensor:
    """Rows (out, n) turned by turns (times, blocks, size, size), with ever wider neighbours brought together in between."""
    half = turns.shape[-1] // 2
    for number, turn in enumerate(turns):
        width = 2**number * half
        gathered = rows.unflatten(0, (-1, 2, width)).transpose(1, 2).flatten(0, 2)
        rows = _turned(gathered, turn).unflatten(0, (-1, width, 2)).transpose(1, 2).flatten(0, 2)
    return rows


def _rotated(base: BaseLayer, result: Tensor, rotate: Rotate) -> Tensor:
    """A layer's output with its channels rotated, the bias left in place."""
    channel = result.ndim - 1 if isinstance(base, nn.Linear) else 1
    bare = result if base.bias is None else result - along_channels(base.bias, base)
    rows = bare.float().movedim(channel, 0).flatten(1)
    change = rotate(rows) - rows
    others = [length for axis, length in enumerate(result.shape) if axis != channel]
    return (result + change.view(-1, *others).movedim(0, channel)).to(result.dtype)


def _kept_blocks(adapter: nn.Module, blocks: Tensor) -> Tensor | float:
    """0 for a share of the blocks, which then don't turn, else 1."""
    share: float = adapter.rank_dropout  # type: ignore[assignment]
    if not adapter.training or share == 0:
        return 1.0
    return (torch.rand(*blocks.shape[:-2], 1, 1, device=blocks.device) >= share).to(blocks.dtype)


def _take_blocks(blocks: nn.Parameter, tensors: Mapping[str, Tensor]) -> None:
    expect_shapes(tensors, {"oft_blocks": blocks.shape})
    if float(tensors.get("alpha", torch.zeros(()))) > 0:
        raise ValueError("its rotations are constrained, which this run does not train")
    blocks.copy_(tensors["oft_blocks"])
