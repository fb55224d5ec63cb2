"""What each kind of layer adds, against the written-out sums of the papers and of LyCORIS, number by number in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.trainer.lora_tensors import numbers
from trainer.lora_files.layers import Butterfly, Decomposed, Difference, Hadamard, Kronecker, LowRank, Rotation

OUT, IN, RANK = 8, 6, 2
KERNEL = (3, 3)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype is torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def tucker(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Sum over both ranks of core[p, q] * first[p, out] * second[q, in], for every place of the kernel."""
    made = torch.zeros(first.shape[1], second.shape[1], *core.shape[2:], dtype=torch.float64)
    for p, q, o, i in itertools.product(*(range(n) for n in (*core.shape[:2], first.shape[1], second.shape[1]))):
        made[o, i] += core[p, q] * first[p, o] * second[q, i]
    return made


def test_lora_is_alpha_over_rank_times_up_times_down() -> None:
    down, up = numbers(RANK, IN), numbers(OUT, RANK, seed=1)
    layer = LowRank(down, up, alpha=3.0)
    assert (layer.kind, layer.rank, layer.shape) == ("lora", RANK, (OUT, IN))
    expected = sum(1.5 * torch.outer(up[:, r].double(), down[r].double()) for r in range(RANK))
    close(layer.delta(), expected)  # type: ignore[arg-type]


def test_a_convolution_is_the_same_for_each_place_of_its_kernel() -> None:
    down, up = numbers(RANK, IN, *KERNEL), numbers(OUT, RANK, 1, 1, seed=1)
    layer = LowRank(down, up, alpha=2.0)
    expected = torch.zeros(OUT, IN, *KERNEL, dtype=torch.float64)
    for o, i, r in itertools.product(range(OUT), range(IN), range(RANK)):
        expected[o, i] += up[o, r, 0, 0].double() * down[r, i].double()
    assert layer.kind == "locon"
    close(layer.delta(), expected)


def test_a_lora_of_a_linear_layer_fits_a_one_by_one_convolution_and_back() -> None:
    layer = LowRank(numbers(RANK, IN), numbers(OUT, RANK), alpha=2.0)
    weight = numbers(OUT, IN, 1, 1)
    assert torch.equal(layer.delta(weight)[:, :, 0, 0], layer.delta())
    turned = LowRank(numbers(RANK, IN, 1, 1), numbers(OUT, RANK, 1, 1), alpha=2.0)
    assert torch.equal(turned.delta(numbers(OUT, IN)), layer.delta())
    with pytest.raises(ValueError, match=r"\(8, 6\) can't change one of \(6, 8\)"):
        layer.delta(numbers(IN, OUT))


def test_a_tucker_convolution() -> None:
    down, up, mid = numbers(RANK, IN, 1, 1), numbers(OUT, RANK, 1, 1, seed=1), numbers(RANK, RANK, *KERNEL, seed=2)
    layer = LowRank(down, up, alpha=1.0, mid=mid)
    assert layer.kind == "locon" and layer.shape == (OUT, IN, *KERNEL)
    first, second, core = exact(up[:, :, 0, 0].T, down[:, :, 0, 0], mid)
    close(layer.delta(), 0.5 * tucker(core, first, second))


@pytest.mark.parametrize("kernel", [None, KERNEL])
def test_loha_is_a_product_of_two_products_element_by_element(kernel: tuple[int, int] | None) -> None:
    width = IN * (9 if kernel else 1)
    parts = [numbers(OUT, RANK), numbers(RANK, width), numbers(OUT, RANK, seed=3), numbers(RANK, width, seed=4)]
    layer = Hadamard(*parts, alpha=1.0, kernel=kernel)
    a, b, c, d = exact(*parts)
    expected = 0.5 * (a @ b) * (c @ d)
    close(layer.delta(), expected if kernel is None else expected.reshape(OUT, IN, *KERNEL))
    close(layer.delta(numbers(*(layer.shape))), layer.delta().double())


def test_loha_in_tucker_form() -> None:
    cores = [numbers(RANK, RANK, *KERNEL, seed=5), numbers(RANK, RANK, *KERNEL, seed=6)]
    parts = [numbers(RANK, OUT), numbers(RANK, IN), numbers(RANK, OUT, seed=3), numbers(RANK, IN, seed=4)]
    layer = Hadamard(*parts, 1.0, *cores)
    a, b, c, d = exact(*parts)
    first, second = (tucker(core.double(), *pair) for core, pair in zip(cores, ((a, b), (c, d)), strict=True))
    close(layer.delta(), 0.5 * first * second)


@pytest.mark.parametrize("factored", ["neither", "w1", "w2", "both"])
def test_lokr_is_a_kronecker_product_and_scaled_only_where_factored(factored: str) -> None:
    w1_a, w1_b, w2_a, w2_b = numbers(2, RANK), numbers(RANK, 3), numbers(4, RANK, seed=3), numbers(RANK, 2, seed=4)
    first, second = numbers(2, 3), numbers(4, 2, seed=7)
    parts: dict[str, Tensor] = {}
    parts |= {"w1_a": w1_a, "w1_b": w1_b} if factored in ("w1", "both") else {"w1": first}
    parts |= {"w2_a": w2_a, "w2_b": w2_b} if factored in ("w2", "both") else {"w2": second}
    layer = Kronecker(alpha_stored=5.0, **parts)
    a = (w1_a.double() @ w1_b.double()) if "w1_a" in parts else first.double()
    b = (w2_a.double() @ w2_b.double()) if "w2_a" in parts else second.double()
    scale = 1.0 if factored == "neither" else 5.0 / RANK
    expected = torch.zeros(8, 6, dtype=torch.float64)
    for o1, i1, o2, i2 in itertools.product(range(2), range(3), range(4), range(2)):
        expected[o1 * 4 + o2, i1 * 2 + i2] = scale * a[o1, i1] * b[o2, i2]
    close(layer.delta(), expected)
    assert layer.alpha == (None if factored == "neither" else 5.0)
    assert layer.shape == (8, 6)


@pytest.mark.parametrize("form", ["whole", "factored", "tucker"])
def test_lokr_of_a_convolution(form: str) -> None:
    """The factored one has its kernel in the columns; readers reshape the product, which comes to the same."""
    first = numbers(2, 3)
    whole, core = numbers(4, 2, *KERNEL, seed=2), numbers(RANK, RANK, *KERNEL, seed=5)
    if form == "whole":
        layer, second, scale = Kronecker(5.0, w1=first, w2=whole), whole.double(), 1.0
    elif form == "factored":
        w2_a, w2_b = numbers(4, RANK), numbers(RANK, 2 * 9, seed=8)
        layer = Kronecker(5.0, w1=first, w2_a=w2_a, w2_b=w2_b, kernel=KERNEL)
        second, scale = (w2_a.double() @ w2_b.double()).reshape(4, 2, *KERNEL), 2.5
    else:
        w2_a, w2_b = numbers(RANK, 4), numbers(RANK, 2, seed=8)
        layer = Kronecker(5.0, w1=first, w2_a=w2_a, w2_b=w2_b, t2=core)
        second, scale = tucker(core.double(), w2_a.double(), w2_b.double()), 2.5
    expected = torch.zeros(8, 6, *KERNEL, dtype=torch.float64)
    for o1, i1, o2, i2 in itertools.product(range(2), range(3), range(4), range(2)):
        expected[o1 * 4 + o2, i1 * 2 + i2] = scale * first[o1, i1].double() * second[o2, i2]
    close(layer.delta(), expected)


def cayley(block: Tensor, limit: float = math.inf, length: float = 0.0) -> Tensor:
    """(1 + Q)(1 - Q)^-1 by the inverse itself; `length` is that of all Q together."""
    skew = block.double() - block.double().T
    skew = skew * min(1.0, limit / length) if length else skew
    one = torch.eye(len(block), dtype=torch.float64)
    return (one + skew) @ torch.linalg.inv(one - skew)


@pytest.mark.parametrize("shape", [(OUT, IN), (OUT, IN, *KERNEL)])
def test_oft_turns_blocks_of_outputs(shape: tuple[int, ...]) -> None:
    blocks, weight = numbers(2, 4, 4), numbers(*shape, seed=9)
    expected = torch.zeros(shape, dtype=torch.float64)
    for k, m, n in itertools.product(range(2), range(4), range(4)):
        expected[k * 4 + m] += cayley(blocks[k])[n, m] * weight[k * 4 + n].double()
    close(Rotation(blocks).delta(weight), expected - weight.double())
    scales = numbers(OUT, *[1] * (len(shape) - 1), seed=2)
    close(Rotation(blocks, rescale=scales).delta(weight), scales.double() * expected - weight.double())


def test_a_turned_weight_keeps_its_length() -> None:
    weight = numbers(OUT, IN)
    for layer in (Rotation(numbers(2, 4, 4, seed=3)), Butterfly(numbers(2, 2, 4, 4, seed=3))):
        turned = weight + layer.delta(weight)
        torch.testing.assert_close(turned.T @ turned, weight.T @ weight, rtol=1e-4, atol=1e-5)
        assert (turned - weight).abs().max() > 0.1


@pytest.mark.parametrize("constraint", [0.01, 10.0])
def test_a_limit_holds_the_rotations_back_as_a_share_of_the_outputs(constraint: float) -> None:
    blocks, weight = numbers(2, 4, 4), numbers(OUT, IN, seed=9)
    length = float((blocks - blocks.transpose(1, 2)).double().norm())
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for k in range(2):
        turn = cayley(blocks[k], constraint * OUT, length)
        expected[k * 4 : k * 4 + 4] = turn.T @ weight[k * 4 : k * 4 + 4].double()
    close(Rotation(blocks, constraint).delta(weight), expected - weight.double())


@pytest.mark.parametrize("shape", [(OUT, IN), (OUT, IN, *KERNEL)])
def test_boft_turns_rows_ever_further_apart(shape: tuple[int, ...]) -> None:
    """Stage i gathers, of every 2k rows (k = 2^i * size / 2), row j and row j + k side by side, and turns them in blocks."""
    blocks, weight = numbers(2, 2, 4, 4), numbers(*shape, seed=9)
    rows = weight.double()
    for stage in range(2):
        k = 2**stage * 2
        order = [start + half * k + j for start in range(0, OUT, 2 * k) for j in range(k) for half in range(2)]
        turned = torch.zeros_like(rows)
        for b, i, j in itertools.product(range(2), range(4), range(4)):
            turned[order[b * 4 + i]] += cayley(blocks[stage, b])[i, j] * rows[order[b * 4 + j]]
        rows = turned
    close(Butterfly(blocks).delta(weight), rows - weight.double())
    scales = numbers(OUT, *[1] * (len(shape) - 1), seed=2)
    close(Butterfly(blocks, rescale=scales).delta(weight), scales.double() * rows - weight.double())


@pytest.mark.parametrize("shape", [(OUT, IN), (OUT, IN, *KERNEL), (OUT, OUT)])
@pytest.mark.parametrize("side", ["out", "in"])
def test_dora_gives_rows_or_columns_their_lengths(shape: tuple[int, ...], side: str) -> None:
    down, up, weight = numbers(RANK, *shape[1:]), numbers(OUT, RANK, seed=1), numbers(*shape, seed=9)
    inner = LowRank(down, up, alpha=3.0)
    count = shape[0] if side == "out" else shape[1]
    magnitude = numbers(count, seed=4).abs() + 1
    changed = weight.double() + inner.delta().double()
    expected = torch.zeros_like(changed)
    for number in range(count):
        part = changed[number] if side == "out" else changed[:, number]
        scaled = part * magnitude[number].double() / part.pow(2).sum().sqrt()
        if side == "out":
            expected[number] = scaled
        else:
            expected[:, number] = scaled
    ones = [1] * (len(shape) - 2)
    stored = magnitude.reshape(count, 1, *ones) if side == "out" else magnitude.reshape(1, count, *ones)
    layer = Decomposed(inner, stored)
    assert layer.on_output_axis(weight) is (side == "out")
    close(layer.delta(weight), expected - weight.double())


def test_differences_are_what_they_are() -> None:
    diff = numbers(OUT, IN).half()
    assert torch.equal(Difference(diff).delta(), diff.float())
    assert Difference(diff).kind == "full" and Difference(numbers(OUT)).kind == "norm"


def test_layers_that_change_the_weight_itself_need_it() -> None:
    for layer in (Rotation(numbers(2, 4, 4)), Butterfly(numbers(2, 2, 4, 4))):
        assert layer.needs_weight and layer.shape is None
        with pytest.raises(ValueError, match="without the base model"):
            layer.delta()
        with pytest.raises(ValueError, match="for 8 outputs"):
            layer.delta(numbers(6, 6))
    dora = Decomposed(LowRank(numbers(RANK, IN), numbers(OUT, RANK), 1.0), numbers(7, 1))
    with pytest.raises(ValueError, match="fits no weight"):
        dora.delta(numbers(OUT, IN))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_computed_in_fp32_whatever_the_file_stores(dtype: torch.dtype) -> None:
    down, up = numbers(RANK, IN).to(dtype), numbers(OUT, RANK, seed=1).to(dtype)
    close(LowRank(down, up, alpha=2.0).delta(), up.double() @ down.double())
