"""LoHa and LoKr: a weight is changed by a product that has more rank than its parts.

LoHa: FedPara's Hadamard product, Hyeon-Woo et al. 2021, arXiv:2108.06098. LoKr: a Kronecker product. Both as LyCORIS has
them (Yeh et al. 2024, arXiv:2309.14859): its names, shapes, starts and scale, so that every tool which reads them reads
ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.adapters.layer import (
    AdapterOptions,
    BaseLayer,
    exact,
    expect_shapes,
    linear_or_convolution,
)


class LohaAdapter(nn.Module):
    """Adds scale * (w1_a @ w1_b) * (w2_a @ w2_b), element by element: rank r parts give up to rank r squared."""

    kind = "loha"

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        num_out, num_in = len(base.weight), base.weight[0].numel()
        self.hada_w1_a = nn.Parameter(torch.empty(num_out, options.rank).normal_(std=0.1))
        self.hada_w1_b = nn.Parameter(torch.empty(options.rank, num_in).normal_(std=1.0))
        self.hada_w2_a = nn.Parameter(torch.zeros(num_out, options.rank))
        self.hada_w2_b = nn.Parameter(torch.empty(options.rank, num_in).normal_(std=1.0))
        self.scale = options.scale
        self.dropout = nn.Dropout(options.dropout)
        self.rank_dropout = options.rank_dropout

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The base's output plus the product's."""
        result = base(inputs)
        with exact(inputs):
            weight = self.delta(base.weight)
            if self.training and self.rank_dropout > 0:
                weight = weight * _kept_rows(weight, self.rank_dropout)
        added = linear_or_convolution(base, self.dropout(inputs.to(weight.dtype)), weight)
        return (result + added).to(result.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """The product with its scale."""
        product = (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        return product.view(weight.shape) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        """The four matrices and alpha."""
        rank = len(self.hada_w1_b)
        return {**_named(self), "alpha": torch.tensor(self.scale * rank, dtype=torch.float32)}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a LoHa of the same rank."""
        expect_shapes(tensors, {name: tensor.shape for name, tensor in _named(self).items()})
        ratio = float(tensors["alpha"]) / len(self.hada_w1_b) / self.scale
        _fill(self, tensors)
        self.hada_w2_a.mul_(ratio)

    def output_side(self) -> Sequence[nn.Parameter]:
        """None: LoRA+ speaks of two matrices."""
        return []


class LokrAdapter(nn.Module):
    """Adds scale * kron(w1, w2): w1 is small and whole, w2 a product of rank r, or whole where that is no saving.

    With both whole there is no rank to divide by, and the scale is 1, as in LyCORIS and in every reader.
    """

    kind = "lokr"

    def __init__(self, base: BaseLayer, options: AdapterOptions) -> None:
        super().__init__()
        num_out, num_in, *kernel = base.weight.shape
        self.kernel = kernel
        (out_1, out_2), (in_1, in_2) = (balanced_factors(size, options.lokr_factor) for size in (num_out, num_in))
        self.lokr_w1 = nn.Parameter(torch.empty(out_1, in_1))
        nn.init.kaiming_uniform_(self.lokr_w1, a=math.sqrt(5))
        self.whole = options.rank >= max(out_2, in_2) / 2
        if self.whole:
            self.lokr_w2 = nn.Parameter(torch.zeros(out_2, in_2, *kernel))
        else:
            self.lokr_w2_a = nn.Parameter(torch.empty(out_2, options.rank))
            self.lokr_w2_b = nn.Parameter(torch.zeros(options.rank, in_2 * math.prod(kernel)))
            nn.init.kaiming_uniform_(self.lokr_w2_a, a=math.sqrt(5))
        self.rank = options.rank
        self.scale = 1.0 if self.whole else options.scale
        self.dropout = nn.Dropout(options.dropout)
        self.rank_dropout = options.rank_dropout

    def outputs(self, base: BaseLayer, inputs: Tensor) -> Tensor:
        """The base's output plus the product's; a linear layer never builds the product."""
        result = base(inputs)
        inputs = self.dropout(inputs.to(self.lokr_w1.dtype))
        dropped = self.training and self.rank_dropout > 0
        if isinstance(base, nn.Linear) and not dropped:
            return (result + self._linear(inputs) * self.scale).to(result.dtype)
        with exact(inputs):
            weight = self.delta(base.weight)
            if dropped:
                weight = weight * _kept_rows(weight, self.rank_dropout)
        return (result + linear_or_convolution(base, inputs, weight)).to(result.dtype)

    def _linear(self, inputs: Tensor) -> Tensor:
        """kron(w1, w2) @ x for x (..., in) as w1 @ X @ w2.T with X (..., in_1, in_2)."""
        grid = inputs.unflatten(-1, (self.lokr_w1.shape[1], -1))
        if self.whole:
            grid = nn.functional.linear(grid, self.lokr_w2)
        else:
            grid = nn.functional.linear(nn.functional.linear(grid, self.lokr_w2_b), self.lokr_w2_a)
        return (self.lokr_w1 @ grid).flatten(-2)

    def delta(self, weight: Tensor) -> Tensor:
        """The product with its scale."""
        small = self.lokr_w1.view(*self.lokr_w1.shape, *[1] * len(self.kernel))
        return torch.kron(small, self._large()).view(weight.shape) * self.scale

    def _large(self) -> Tensor:
        """w2 as (out_2, in_2, ...)."""
        if self.whole:
            return self.lokr_w2
        return (self.lokr_w2_a @ self.lokr_w2_b).view(len(self.lokr_w2_a), -1, *self.kernel)

    def tensors(self) -> dict[str, Tensor]:
        """w1, w2 or its two factors, and alpha."""
        return {**_named(self), "alpha": torch.tensor(self.scale * self.rank, dtype=torch.float32)}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a LoKr of the same shapes."""
        expect_shapes(tensors, {name: tensor.shape for name, tensor in _named(self).items()})
        ratio = 1.0 if self.whole else float(tensors["alpha"]) / self.rank / self.scale
        _fill(self, tensors)
        self.lokr_w1.mul_(ratio)

    def output_side(self) -> Sequence[nn.Parameter]:
        """None: LoRA+ speaks of two matrices."""
        return []


def balanced_factors(size: int, factor: int) -> tuple[int, int]:
    """Two whole numbers with the product `size`, the smaller first.

    `factor` itself is one of them where it divides `size`; else the smaller is the largest that is not above `factor`.
    -1 takes the two that are nearest to the root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    smaller = max(number for number in range(1, limit + 1) if size % number == 0)
    return smaller, size // smaller


def _named(adapter: nn.Module) -> dict[str, Tensor]:
    return dict(adapter.named_parameters(recurse=False))


def _fill(adapter: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in _named(adapter).items():
        parameter.copy_(tensors[name])


def _kept_rows(weight: Tensor, share: float) -> Tensor:
    """A factor per output: 0 for a share of them, else what keeps the mean as it was."""
    kept = torch.rand(len(weight), *[1] * (weight.ndim - 1), device=weight.device) >= share
    return kept.to(weight.dtype) / (1.0 - share)
