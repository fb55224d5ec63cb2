"""Where the two matrices of a LoRA begin. All but PiSSA change nothing at first because their product is zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.adapters.layer import AdapterOptions, BaseLayer, exact
from trainer.config.choices import AdapterInit

_SPARE_DIRECTIONS = 8
_POWER_ITERATIONS = 8
"""Of the randomised SVD (Halko et al. 2011, arXiv:0909.4061): with these it finds main directions to 1e-4 or better."""

Begun = tuple[Tensor, Tensor]


def start_low_rank(down: BaseLayer, up: BaseLayer, weight: Tensor, options: AdapterOptions) -> Begun | None:
    """Fills `down` and `up` in place from the global random state. Returns what the adapter has to subtract, if anything.

    `weight` is the base's, (out, in, ...).
    """
    with torch.no_grad(), exact(down.weight):
        return _STARTS[options.init](down.weight, up.weight, weight, options)


def _default(down: nn.Parameter, up: nn.Parameter, weight: Tensor, options: AdapterOptions) -> None:
    """Down as PyTorch starts linear layers, up at zero: as in peft and kohya's trainer."""
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    up.zero_()


def _gaussian(down: nn.Parameter, up: nn.Parameter, weight: Tensor, options: AdapterOptions) -> None:
    """Down from N(0, 1 / rank), up at zero: as in Hu et al. 2021, section 4.1, and diffusers' scripts."""
    nn.init.normal_(down, std=1 / options.rank)
    up.zero_()


def _orthogonal(down: nn.Parameter, up: nn.Parameter, weight: Tensor, options: AdapterOptions) -> None:
    """Both full, down in one half of an orthogonal basis of the ranks and up in the other, so that up @ down is zero."""
    basis = torch.linalg.qr(torch.randn(options.rank, options.rank))[0]
    half = (options.rank + 1) // 2
    rows = basis[:, :half] @ torch.randn(half, down.flatten(1).shape[1])
    columns = torch.randn(len(up), options.rank - half) @ basis[:, half:].T
    down.copy_((rows / 10).view(down.shape))
    up.copy_((columns / 10).view(up.shape))


def _pissa(down: nn.Parameter, up: nn.Parameter, weight: Tensor, options: AdapterOptions) -> Begun:
    """The weight's main directions, Meng et al. 2024, arXiv:2404.02948: W = U S V, up = U sqrt(S), down = sqrt(S) V."""
    matrix = weight.flatten(1).float().cpu()
    wanted = min(options.rank + _SPARE_DIRECTIONS, *matrix.shape)
    left, strengths, right = torch.svd_lowrank(matrix, q=wanted, niter=_POWER_ITERATIONS)
    roots = (strengths[: options.rank] / options.scale).sqrt()
    found = len(roots)  # fewer than the rank where the weight itself has fewer directions
    down.zero_()
    up.zero_()
    down.flatten(1)[:found] = roots[:, None] * right[:, :found].T
    up.flatten(1)[:, :found] = left[:, :found] * roots
    return down.detach().clone(), up.detach().clone()


_STARTS: dict[AdapterInit, Callable[[nn.Parameter, nn.Parameter, Tensor, AdapterOptions], Begun | None]] = {
    AdapterInit.DEFAULT: _default,
    AdapterInit.GAUSSIAN: _gaussian,
    AdapterInit.ORTHOGONAL: _orthogonal,
    AdapterInit.PISSA: _pissa,
}
