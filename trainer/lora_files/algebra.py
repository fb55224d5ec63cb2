"""Linear algebra of weight changes: products of thin matrices, their exact SVD, the best product of a given rank.

A change of a weight (out, in, ...) is looked at as a matrix (out, in * kernel), as kohya's and LyCORIS' files do. That the
truncated SVD is the best approximation of its rank: Eckart and Young 1936, "The approximation of one matrix by another of
lower rank". Thin products are never multiplied out: their SVD comes from two QR decompositions (Golub and Van Loan,
"Matrix Computations", section 5.5). Everything here is computed in fp32 or better; nothing touches a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 16
"""How many more directions than wanted subspace iteration follows: what lies just below the cut mixes into them."""
MAX_ITERATIONS = 24
ENERGY_TOLERANCE = 1e-7
"""Subspace iteration ends once a round finds no larger share of the squared norm than this."""
EXACT_BELOW = 384
"""Matrices with a side up to this are decomposed whole: it takes milliseconds."""
SEED = 0x5AFE


@dataclass(frozen=True)
class Factors:
    """A matrix as a product: `up` (out, r) @ `down` (r, in). Any scale is worked in."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return int(self.down.shape[0])

    @property
    def is_thin(self) -> bool:
        """Whether the bottleneck is narrower than the matrix itself."""
        return self.rank < min(self.up.shape[0], self.down.shape[1])

    def product(self) -> Tensor:
        """The matrix (out, in)."""
        return self.up @ self.down


@dataclass(frozen=True)
class Decomposition:
    """`left` (out, k) with orthonormal columns, `values` (k,) falling, `right` (k, in) with orthonormal rows.

    `energy`: the squared Frobenius norm of the whole matrix, of which the values may hold a part only.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float


@dataclass(frozen=True)
class RankRule:
    """How many singular values are kept: at most `rank`, and no more than `energy` or `ratio` ask for.

    `energy`: the smallest rank that keeps this share of the squared norm (0 to 1; 0: no such limit). `ratio`: values
    below the largest one divided by this are dropped (over 1; 0: no such limit).
    """

    rank: int
    energy: float = 0.0
    ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"The rank is {self.rank}. Give at least 1.")
        if not 0 <= self.energy <= 1:
            raise ValueError(f"The energy to keep is {self.energy:g}. Give a share over 0 up to 1, such as 0.95.")
        if self.ratio and not self.ratio > 1:
            raise ValueError(f"The ratio is {self.ratio:g}. Give a number over 1, such as 10.")
        if self.energy and self.ratio:
            raise ValueError("Give the energy to keep or the ratio of singular values, not both.")

    @property
    def is_fixed(self) -> bool:
        """Whether the rank does not depend on the values."""
        return not (self.energy or self.ratio)


def as_matrix(weight: Tensor) -> Tensor:
    """A weight (out, in, ...) as a matrix (out, in * kernel) in fp32."""
    return weight.detach().float().flatten(1)


def decompose_product(factors: Factors) -> Decomposition:
    """The exact SVD of a thin product, with k = its rank (or a side of the matrix, if that is shorter)."""
    up_q, up_r = torch.linalg.qr(factors.up.double())
    down_q, down_r = torch.linalg.qr(factors.down.double().T)
    left, values, right = torch.linalg.svd(up_r @ down_r.T, full_matrices=False)
    energy = float(values.square().sum())
    return Decomposition((up_q @ left).float(), values.float(), (right @ down_q.T).float(), energy)


def decompose_matrix(matrix: Tensor, num_values: int | None = None) -> Decomposition:
    """The SVD of a matrix (out, in), or its largest `num_values` values, which is many times faster for few of them.

    Few values come from subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4), which goes
    on until it finds nothing more; it starts from a seed of its own, so the same matrix gives the same numbers.
    """
    matrix = matrix.float()
    energy = float(matrix.double().square().sum())
    smaller = min(matrix.shape)
    if num_values is None or smaller <= EXACT_BELOW or num_values + OVERSAMPLING > smaller // 3:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = smaller if num_values is None else min(num_values, smaller)
        return Decomposition(left[:, :kept], values[:kept], right[:kept], energy)
    return _largest(matrix, num_values, energy)


def _largest(matrix: Tensor, num_values: int, energy: float) -> Decomposition:
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(matrix.shape[1], num_values + OVERSAMPLING, generator=generator)
    basis = torch.linalg.qr(matrix @ start.to(matrix.device))[0]
    found = 0.0
    for _ in range(MAX_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
        core = basis.T @ matrix
        held = float(torch.linalg.svdvals(core)[:num_values].double().square().sum())
        if held - found <= ENERGY_TOLERANCE * energy:
            break
        found = held
    inner, values, right = torch.linalg.svd(core, full_matrices=False)
    return Decomposition((basis @ inner)[:, :num_values], values[:num_values], right[:num_values], energy)


def kept_rank(values: Tensor, energy: float, rule: RankRule) -> int:
    """How many of the falling singular values a rule keeps: at least 1, and never such that are nothing but rounding.

    `energy`: the squared norm of the whole matrix.
    """
    squares = values.double().square()
    rank = min(rule.rank, len(values))
    if rule.energy:
        reached = torch.cumsum(squares, 0) >= rule.energy * energy * (1 - 1e-9)
        enough = int(reached.nonzero()[0]) + 1 if bool(reached.any()) else len(values)
        rank = min(rank, enough)
    if rule.ratio:
        rank = min(rank, int((values >= values[0] / rule.ratio).sum()))
    sound = int((values > values[0] * torch.finfo(torch.float32).eps * 4).sum())
    return max(1, min(rank, sound))


def truncated(decomposition: Decomposition, rank: int) -> tuple[Factors, float]:
    """The best product of that rank, the values' roots in both factors, and the share of the squared norm that it keeps.

    A matrix of zeros is kept whole.
    """
    root = decomposition.values[:rank].sqrt()
    factors = Factors(decomposition.left[:, :rank] * root, root[:, None] * decomposition.right[:rank])
    if decomposition.energy == 0:
        return factors, 1.0
    held = float(decomposition.values[:rank].double().square().sum())
    return factors, min(1.0, held / decomposition.energy)


def compress(change: Factors | Tensor, rule: RankRule) -> tuple[Factors, float]:
    """The product of the rank that a rule asks for which is nearest to a change, and the share of energy it keeps."""
    # The rule can only ask for fewer values than its rank, so no more of them are worked out of a dense matrix.
    found = decompose_product(change) if isinstance(change, Factors) else decompose_matrix(change, rule.rank)
    return truncated(found, kept_rank(found.values, found.energy, rule))


def weighted_sum(changes: Sequence[tuple[float, Factors]]) -> Factors:
    """The sum of products as one product, without any loss: its rank is the sum of theirs."""
    ups = [weight * factors.up for weight, factors in changes]
    return Factors(torch.cat(ups, dim=1), torch.cat([factors.down for _, factors in changes]))


def expand_tucker(middle: Tensor, down: Tensor) -> Tensor:
    """`down` of a convolution in CP form: middle (r, r2, kh, kw) over down (r2, in, 1, 1) as one (r, in, kh, kw).

    LyCORIS' form (Yeh et al. 2023, arXiv:2309.14859, section 3.2): a 1x1 convolution, then one with the kernel.
    """
    return torch.einsum("rskl,si->rikl", middle.float(), down.float().flatten(1))


def relative_difference(one: Tensor, other: Tensor) -> float:
    """The norm of the difference of two tensors as a share of the first one's norm; 0 if both are zero."""
    norm = float(one.double().norm())
    difference = float((one.double() - other.double()).norm())
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))
