"""The linear algebra of the LoRA tools against the dense matrices that it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.lora_files.algebra import (
    Factors,
    RankRule,
    as_matrix,
    compress,
    decompose_matrix,
    decompose_product,
    expand_tucker,
    kept_rank,
    relative_difference,
    weighted_sum,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(out: int, rank: int, into: int, seed: int = 0) -> Factors:
    return Factors(numbers(out, rank, seed=seed), numbers(rank, into, seed=seed + 1))


def falling(out: int, into: int, power: float) -> Tensor:
    """A matrix whose singular values fall as 1 / n^power, as those of trained changes do."""
    side = min(out, into)
    left, right = torch.linalg.qr(numbers(out, side))[0], torch.linalg.qr(numbers(into, side, seed=1))[0]
    return (left * torch.arange(1, side + 1).float().pow(-power)) @ right.T


@pytest.mark.parametrize(("out", "rank", "into"), [(40, 6, 30), (8, 12, 50), (50, 12, 8)])
def test_svd_of_a_product_is_that_of_the_dense_matrix(out: int, rank: int, into: int) -> None:
    factors = product(out, rank, into)
    found = decompose_product(factors)
    dense = torch.linalg.svdvals(factors.product())
    assert torch.allclose(found.values, dense[: len(found.values)], rtol=1e-4, atol=1e-4)
    assert found.energy == pytest.approx(float(factors.product().square().sum()), rel=1e-5)
    rebuilt = (found.left * found.values) @ found.right
    assert relative_difference(factors.product(), rebuilt) < 1e-5


@pytest.mark.parametrize("dense", [False, True], ids=["thin", "dense"])
def test_compressed_is_the_best_of_its_rank_and_tells_what_it_keeps(dense: bool) -> None:
    factors = product(48, 20, 36)
    matrix = factors.product()
    found, kept = compress(matrix if dense else factors, RankRule(5))
    left, values, right = torch.linalg.svd(matrix)
    best = (left[:, :5] * values[:5]) @ right[:5]
    assert found.rank == 5 and relative_difference(best, found.product()) < 1e-5
    lost = (matrix - found.product()).square().sum() / matrix.square().sum()
    assert kept == pytest.approx(1 - float(lost), abs=1e-5)


def test_both_factors_carry_the_same_norm() -> None:
    found, _ = compress(product(48, 20, 36), RankRule(5))
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1), rtol=1e-4)


def test_few_values_of_a_large_matrix_are_those_of_its_whole_svd() -> None:
    """Slowly falling values are the hard case for subspace iteration; here the 25th is 1.02 times the 26th."""
    matrix = falling(600, 500, 0.5)
    found = decompose_matrix(matrix, 24)
    whole = torch.linalg.svdvals(matrix)[:24]
    assert float(found.values.square().sum() / whole.square().sum()) == pytest.approx(1, abs=2e-5)
    assert torch.allclose(found.values[:16], whole[:16], rtol=1e-3)
    assert torch.allclose(found.left.T @ found.left, torch.eye(24), atol=1e-4)
    assert found.energy == pytest.approx(float(matrix.square().sum()), rel=1e-5)
    again = decompose_matrix(matrix, 24)
    assert torch.equal(found.left, again.left)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RankRule(3), 3),
        (RankRule(9), 4),
        (RankRule(9, energy=0.8), 2),
        (RankRule(1, energy=0.8), 1),
        (RankRule(9, energy=1.0), 4),
        (RankRule(9, ratio=3.0), 2),
        (RankRule(9, ratio=100.0), 4),
        (RankRule(2, ratio=100.0), 2),
    ],
)
def test_rules_keep_so_many_values(rule: RankRule, expected: int) -> None:
    values = torch.tensor([3.0, 2.0, 0.5, 0.1, 0.0, 0.0])  # shares of energy: 0.678, 0.979, 0.998, 1
    assert kept_rank(values, float(values.square().sum()), rule) == expected


def test_energy_counts_the_values_that_were_not_worked_out() -> None:
    """Of three values with 90% of the energy, no share over 90% can be reached: all of them are kept."""
    values = torch.tensor([3.0, 2.0, 1.0])
    energy = float(values.square().sum()) / 0.9
    assert kept_rank(values, energy, RankRule(3, energy=0.95)) == 3
    assert kept_rank(values, energy, RankRule(3, energy=0.85)) == 3
    assert kept_rank(values, energy, RankRule(3, energy=0.8)) == 2


def test_a_change_of_zeros_stays_one() -> None:
    found, kept = compress(Factors(torch.zeros(6, 2), numbers(2, 5)), RankRule(4))
    assert kept == 1.0 and not found.product().any() and torch.isfinite(found.up).all()
    found, kept = compress(torch.zeros(6, 5), RankRule(4))
    assert kept == 1.0 and not found.product().any()


@pytest.mark.parametrize(
    "arguments", [{"rank": 0}, {"rank": 4, "energy": 1.5}, {"rank": 4, "energy": -0.1}, {"rank": 4, "ratio": 1.0},
                  {"rank": 4, "energy": 0.9, "ratio": 2.0}, {"rank": 4, "energy": math.nan}]
)  # fmt: skip
def test_rules_without_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RankRule(**arguments)  # type: ignore[arg-type]


def test_sum_of_products_is_exact() -> None:
    one, other = product(20, 3, 15), product(20, 5, 15, seed=7)
    both = weighted_sum([(0.75, one), (-1.5, other)])
    assert both.rank == 8
    dense = 0.75 * one.product() - 1.5 * other.product()
    assert relative_difference(dense, both.product()) < 1e-6


def test_convolutions_are_matrices_of_their_kernels() -> None:
    """What a conv LoRA adds is one convolution after the other; as one weight it is up @ down over the kernel."""
    down, up, picture = numbers(4, 6, 3, 3), numbers(10, 4, 1, 1, seed=1), numbers(2, 6, 8, 8, seed=2)
    weight = (as_matrix(up) @ as_matrix(down)).reshape(10, 6, 3, 3)
    two = functional.conv2d(functional.conv2d(picture, down, padding=1), up)
    assert torch.allclose(functional.conv2d(picture, weight, padding=1), two, atol=1e-3)


def test_tucker_form_is_three_convolutions() -> None:
    down, middle, up = numbers(4, 6, 1, 1), numbers(5, 4, 3, 3, seed=1), numbers(10, 5, 1, 1, seed=2)
    picture = numbers(2, 6, 8, 8, seed=3)
    three = functional.conv2d(functional.conv2d(functional.conv2d(picture, down), middle, padding=1), up)
    expanded = expand_tucker(middle, down)
    assert expanded.shape == (5, 6, 3, 3)
    two = functional.conv2d(functional.conv2d(picture, expanded, padding=1), up)
    assert relative_difference(three, two) < 1e-5
