"""LoRA, LoCon and DoRA: a weight is changed by the product of two thin matrices.

LoRA: Hu et al. 2021, arXiv:2106.09685; on convolutions that is LoCon, as in LyCORIS (Yeh et al. 2024, arXiv:2309.14859).
DoRA: Liu et al. 2024, arXiv:2402.09353. Its magnitudes are those of the weight's columns, as in the paper: one for each
input. ComfyUI reads magnitudes per output as well, but divides them by the norm of the untrained weight, and A1111 reads
them along the wrong axis; magnitudes per input mean the same everywhere but in peft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from trainer.adapters.fused import can_fuse, lora_linear
from trainer.adapters.inits import start_low_rank
from trainer.adapters.layer import (
    AdapterOptions,
    BaseLayer,
    along_channels,
    exact,
    expect_shapes,
    linear_or_convolution,
)


class LoraAdapter(nn.Module):
    """Adds scale * up @ down. `down` is (rank, in, ...), `up` (out, rank, ...); rank dropout leaves ranks out.

    With the PiSSA start the base keeps its weight and the adapter subtracts what it began with (`begun`), which is the
    same network as a base without its main directions and an adapter that holds them, but exact in every format.

    `fused`: on a linear layer, base and product are computed as one operation where that gives the same numbers.
    """

    kind = "lora"
    fused = True

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        self.down, self.up = _pair(base, options.rank)
        self.scale = options.scale
        self.dropout = nn.Dropout(options.dropout)
        self.rank_dropout = options.rank_dropout
        begun = start_low_rank(self.down, self.up, base.weight.detach(), options)
        self.register_buffer("begun_down", begun[0] if begun else None)
        self.register_buffer("begun_up", begun[1] if begun else None)

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The base's output plus the product's."""
        if self.fused and self._is_plain and can_fuse(base, inputs):
            return lora_linear(cast("nn.Linear", base), inputs, self.down.weight, self.up.weight, self.scale)
        result = base(inputs)
        return (result + self.branch(inputs)).to(result.dtype)

    @property
    def _is_plain(self) -> bool:
        """Whether nothing is dropped, and nothing taken off again."""
        return self.begun_down is None and not (self.training and (self.dropout.p > 0 or self.rank_dropout > 0))

    def branch(self, inputs: Tensor) -> Tensor:
        """What the product adds to the output, in the matrices' format."""
        inputs = inputs.to(self.down.weight.dtype)
        hidden = self.down(self.dropout(inputs))
        if self.training and self.rank_dropout > 0:
            hidden = hidden * _kept_ranks(hidden, self.down, self.rank_dropout)
        if self.begun_down is None:
            return self.up(hidden) * self.scale
        before = linear_or_convolution(self.down, inputs, self.begun_down)
        before = linear_or_convolution(self.up, before, self.begun_up)
        return (self.up(hidden) - before) * self.scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """Up (out, r) and down (r, in * height * width) of the whole change, without the scale.

        With a PiSSA start up @ down - begun_up @ begun_down is written as (up - begun_up) @ down + begun_up @ (down -
        begun_down): its parts are as small as what was learned, so storing them in 16 bits loses no more of it than usual.
        """
        up, down = self.up.weight.flatten(1), self.down.weight.flatten(1)
        if self.begun_down is None:
            return up, down
        begun_up, begun_down = self.begun_up.flatten(1), self.begun_down.flatten(1)
        return torch.cat([up - begun_up, begun_up], dim=1), torch.cat([down, down - begun_down])

    def delta(self, weight: Tensor) -> Tensor:
        """scale * up @ down, less what it began with."""
        up, down = self.factors()
        return (up @ down).view(weight.shape) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        """Both matrices and alpha; with a PiSSA start they have twice the rank."""
        up, down = self.factors()
        rank = len(down)
        return {
            "lora_down.weight": down.view(rank, *self.down.weight.shape[1:]),
            "lora_up.weight": up.view(-1, rank, *self.up.weight.shape[2:]),
            "alpha": torch.tensor(self.scale * rank, dtype=torch.float32),
        }

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a product of at most this rank: what is missing begins as in a new one, and adds nothing."""
        rank = len(tensors["lora_down.weight"])
        if rank > len(self.down.weight):
            raise ValueError(f"it has rank {rank}, and this run trains rank {len(self.down.weight)}")
        shapes = {
            "lora_down.weight": (rank, *self.down.weight.shape[1:]),
            "lora_up.weight": (len(self.up.weight), rank, *self.up.weight.shape[2:]),
        }
        expect_shapes(tensors, shapes)
        self.up.weight.zero_()
        self.down.weight[:rank] = tensors["lora_down.weight"]
        self.up.weight[:, :rank] = tensors["lora_up.weight"] * (float(tensors["alpha"]) / rank / self.scale)

    def output_side(self) -> Sequence[nn.Parameter]:
        """The up matrix: Hayou et al. 2024, arXiv:2402.12354."""
        return [self.up.weight]


class DoraAdapter(nn.Module):
    """A LoRA whose changed weight has its columns scaled to lengths that are learned: m * (W + D) / ||W + D||.

    A column scaled is an input scaled, so the layer costs little more than a LoRA. The norms take no gradient (section
    4.3 of the paper).
    """

    kind = "dora"

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        self.product = LoraAdapter(base, options)
        with torch.no_grad():
            self.magnitude = nn.Parameter(self._norms(base.weight))

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The changed layer's output on inputs that are scaled to the learned lengths."""
        with torch.no_grad():
            norms = self._norms(base.weight)
        scaled = inputs * along_channels(self.magnitude / norms, base).to(inputs.dtype)
        result = base(scaled)
        return (result + self.product.branch(scaled)).to(result.dtype)

    def _norms(self, weight: Tensor) -> Tensor:
        """Lengths (in,) of the columns of W + D, by ||W||^2 + 2 W.D + ||D||^2: D itself is never built."""
        with exact(weight):
            base, scale = weight.flatten(1).float(), self.product.scale
            up, down = (factor.to(base.device) for factor in self.product.factors())
            squares = base.square().sum(dim=0)
            squares = squares + 2 * scale * ((up.T @ base) * down).sum(dim=0)
            squares = squares + scale**2 * (((up.T @ up) @ down) * down).sum(dim=0)
            per_input = squares.view(weight.shape[1], -1).sum(dim=1)
            return per_input.clamp(min=torch.finfo(torch.float32).eps ** 2).sqrt()

    def delta(self, weight: Tensor) -> Tensor:
        """m * (W + D) / ||W + D|| - W, written out."""
        changed = weight.float() + self.product.delta(weight)
        axes = [axis for axis in range(changed.ndim) if axis != 1]
        norms = changed.square().sum(dim=axes, keepdim=True).sqrt()
        return (
            changed * (self._shaped(self.magnitude) / norms.clamp(min=torch.finfo(torch.float32).eps)) - weight.float()
        )

    def tensors(self) -> dict[str, Tensor]:
        """The LoRA's tensors and `dora_scale` (1, in, ...)."""
        return {**self.product.tensors(), "dora_scale": self._shaped(self.magnitude)}

    def _shaped(self, magnitude: Tensor) -> Tensor:
        return magnitude.view(1, -1, *[1] * (self.product.down.weight.ndim - 2))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a DoRA with magnitudes per input."""
        own = {suffix: tensor for suffix, tensor in tensors.items() if suffix != "dora_scale"}
        if "dora_scale" not in tensors or tensors["dora_scale"].shape != self._shaped(self.magnitude).shape:
            raise ValueError("its DoRA magnitudes are missing or not one per input, which this run trains")
        self.product.take(own)
        self.magnitude.copy_(tensors["dora_scale"].flatten())

    def output_side(self) -> Sequence[nn.Parameter]:
        """The up matrix."""
        return self.product.output_side()


def _pair(base: BaseLayer, rank: int) -> tuple[BaseLayer, BaseLayer]:
    """An empty down and up layer for a base: a convolution's down has its size and stride, its up is 1x1."""
    if isinstance(base, nn.Linear):
        return nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    assert isinstance(base.padding, tuple), "padding by name has no place in a diffusers U-Net"
    down = nn.Conv2d(
        base.in_channels, rank, base.kernel_size, base.stride, base.padding, base.dilation, base.groups, bias=False
    )
    return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)


def _kept_ranks(hidden: Tensor, down: BaseLayer, share: float) -> Tensor:
    """A factor per picture and rank: 0 for a share of them, else what keeps the mean as it was."""
    channel = hidden.ndim - 1 if isinstance(down, nn.Linear) else 1
    shape = [1] * hidden.ndim
    shape[0], shape[channel] = len(hidden), hidden.shape[channel]
    kept = torch.rand(shape, device=hidden.device) >= share
    return kept.to(hidden.dtype) / (1.0 - share)
