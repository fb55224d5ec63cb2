"""Each adapter by itself: it begins as the base, does what its file says, and drops what it is told to drop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from security.errors import SafelightError
from trainer.adapters.layer import AdaptedLayer, AdapterOptions, BaseLayer, linear_or_convolution
from trainer.adapters.products import balanced_factors
from trainer.adapters.rotations import butterfly_block, largest_block
from trainer.adapters.table import ADAPTERS, TOOLS, listens, make_adapter
from trainer.config.choices import AdapterInit, AdapterName
from trainer.lora_files.building import build_layer
from trainer.lora_files.names import Place

BASES = {
    "linear": lambda: nn.Linear(24, 48),
    "linear without bias": lambda: nn.Linear(24, 16, bias=False),
    "1x1": lambda: nn.Conv2d(24, 16, 1),
    "3x3 with stride": lambda: nn.Conv2d(8, 24, 3, stride=2, padding=1),
}
OPTIONS = AdapterOptions(rank=3, scale=0.7, block_size=8)
KINDS = [name for name in AdapterName if name is not AdapterName.LOCON]  # which is LoRA's layer in other places


def a_base(kind: str) -> BaseLayer:
    torch.manual_seed(3)
    base: Any = BASES[kind]()
    return base.requires_grad_(False)


def layer(
    name: AdapterName, base: BaseLayer, options: AdapterOptions = OPTIONS, *, shaken: bool = True
) -> AdaptedLayer:
    """An adapted layer; shaken, its parameters are far from where they begin."""
    torch.manual_seed(5)
    made = AdaptedLayer(base, make_adapter(name, base, options))
    if shaken:
        for parameter in made.adapter.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return made


def inputs_for(base: BaseLayer) -> Tensor:
    torch.manual_seed(7)
    return torch.randn(2, 5, 24) if isinstance(base, nn.Linear) else torch.randn(2, base.in_channels, 6, 6)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_begins_as_the_base_to_the_last_bit(name: AdapterName, kind: str) -> None:
    base = a_base(kind)
    for init in ADAPTERS[name].inits:
        fresh = layer(name, base, replace(OPTIONS, init=init), shaken=False)
        found, expected = fresh(inputs_for(base)), base(inputs_for(base))
        if init is AdapterInit.ORTHOGONAL:  # its product is zero by orthogonality, up to rounding
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            assert all(parameter.abs().max() > 0.01 for parameter in fresh.adapter.parameters())
        else:
            assert torch.equal(found, expected), init


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", KINDS)
def test_a_layer_does_what_its_delta_says_and_its_file_says_the_same(name: AdapterName, kind: str) -> None:
    """Three ways to the same effect: the layer's forward pass, its own `delta`, and the reader of LoRA files."""
    base = a_base(kind)
    for init in ADAPTERS[name].inits:
        changed = layer(name, base, replace(OPTIONS, init=init))
        delta = changed.delta()
        assert delta.shape == base.weight.shape and delta.dtype is torch.float32
        assert delta.norm() > 0.05 * base.weight.norm()
        inputs = inputs_for(base)
        expected = base(inputs) + linear_or_convolution(base, inputs, delta)
        torch.testing.assert_close(changed(inputs), expected, atol=2e-5, rtol=1e-4)
        tensors = changed.tensors()
        read = build_layer(Place("unet", "x"), tensors, {suffix: suffix for suffix in tensors}, None)
        assert read is not None
        torch.testing.assert_close(read.delta(base.weight).view(delta.shape), delta, atol=2e-6, rtol=1e-5)
        assert ("lora" if read.kind == "locon" else read.kind) == changed.kind


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_of_an_adapter_learns_and_the_base_does_not(name: AdapterName) -> None:
    base = a_base("3x3 with stride")
    changed = layer(name, base)
    changed(inputs_for(base)).square().mean().backward()
    for key, parameter in changed.adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        assert parameter.dtype is torch.float32
    assert base.weight.grad is None and not base.weight.requires_grad


@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_is_that_of_the_changed_weight(name: AdapterName) -> None:
    """Fast ways through a layer (Kronecker products, columns scaled as inputs) must not change what is learned."""
    base = a_base("linear")
    changed = layer(name, base)
    inputs = inputs_for(base)
    changed(inputs).square().mean().backward()
    fast = {key: parameter.grad.clone() for key, parameter in changed.adapter.named_parameters()}
    changed.zero_grad()
    weight = base.weight + changed.learned.delta(base.weight)
    nn.functional.linear(inputs, weight, base.bias).square().mean().backward()
    for key, parameter in changed.adapter.named_parameters():
        if name is AdapterName.DORA and key != "magnitude":
            continue  # DoRA's norms take no gradient, by its paper's section 4.3; tested below
        torch.testing.assert_close(fast[key], parameter.grad, atol=1e-6, rtol=1e-3)


def test_dora_treats_its_norms_as_constants() -> None:
    base = a_base("linear")
    changed = layer(AdapterName.DORA, base)
    adapter: Any = changed.adapter
    inputs = inputs_for(base)
    changed(inputs).square().mean().backward()
    product = adapter.product
    found = product.up.weight.grad.clone()
    changed.zero_grad()
    whole = base.weight + product.delta(base.weight)
    norms = whole.detach().norm(dim=0, keepdim=True)
    assert norms.shape == (1, 24)  # one for each input: the columns of the paper
    nn.functional.linear(inputs, whole * adapter.magnitude / norms, base.bias).square().mean().backward()
    torch.testing.assert_close(found, product.up.weight.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_bases_keep_their_format_and_the_adapter_its_own(name: AdapterName) -> None:
    base = a_base("linear").to(torch.bfloat16)
    changed = layer(name, base)
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with context:
            found = changed(inputs_for(base).to(torch.bfloat16))
        assert found.dtype is torch.bfloat16
        exact = nn.functional.linear(inputs_for(base), base.weight.float() + changed.delta(), base.bias.float())
        assert (found.float() - exact).norm() < 0.02 * exact.norm()
    assert all(parameter.dtype is torch.float32 for parameter in changed.adapter.parameters())


def test_pissa_holds_the_main_directions_and_its_file_twice_the_rank() -> None:
    """Against an exact SVD; the file is for the base as it is, so it takes away what the adapter began with."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(40, 24))[0], torch.linalg.qr(torch.randn(24, 24))[0]
    base = nn.Linear(24, 40).requires_grad_(False)
    base.weight.copy_(left @ torch.diag(2.0 ** -torch.arange(24.0)) @ right.T)
    fresh = layer(AdapterName.LORA, base, replace(OPTIONS, init=AdapterInit.PISSA), shaken=False)
    adapter: Any = fresh.adapter
    begun = adapter.up.weight @ adapter.down.weight * OPTIONS.scale
    u, s, v = torch.linalg.svd(base.weight)
    torch.testing.assert_close(begun, u[:, :3] @ torch.diag(s[:3]) @ v[:3], atol=1e-5, rtol=1e-4)
    assert torch.equal(fresh.delta(), torch.zeros(40, 24))
    assert fresh.tensors()["lora_down.weight"].shape == (6, 24)
    assert float(fresh.tensors()["alpha"]) / 6 == pytest.approx(OPTIONS.scale)


def test_a_little_that_a_pissa_start_has_learned_survives_16_bits() -> None:
    """Large parts that cancel out would leave nothing of it."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40).requires_grad_(False)
    learned = layer(AdapterName.LORA, base, replace(OPTIONS, rank=16, init=AdapterInit.PISSA), shaken=False)
    adapter: Any = learned.adapter
    up, down = adapter.up.weight.double(), adapter.down.weight.double()
    for parameter in adapter.parameters():
        parameter.data += 1e-4 * torch.randn_like(parameter)
    trained = (adapter.up.weight.double() @ adapter.down.weight.double() - up @ down) * OPTIONS.scale
    stored = {suffix: tensor.half() for suffix, tensor in learned.tensors().items()}
    product = stored["lora_up.weight"].double() @ stored["lora_down.weight"].double()
    found = product * float(stored["alpha"]) / len(stored["lora_down.weight"])
    assert (found - trained).norm() < 2e-3 * trained.norm()
    torch.testing.assert_close(learned.delta().double(), trained, atol=1e-9, rtol=1e-3)


def test_a_pissa_start_has_no_more_directions_than_its_weight() -> None:
    base = nn.Linear(4, 2).requires_grad_(False)
    fresh = layer(AdapterName.LORA, base, AdapterOptions(rank=6, scale=1.0, init=AdapterInit.PISSA), shaken=False)
    adapter: Any = fresh.adapter
    torch.testing.assert_close(adapter.up.weight @ adapter.down.weight, base.weight, atol=1e-5, rtol=1e-4)
    assert torch.equal(fresh(torch.ones(1, 4)), base(torch.ones(1, 4)))


def test_a_gaussian_start_has_the_papers_spread() -> None:
    base = nn.Linear(2000, 4).requires_grad_(False)
    fresh: Any = layer(
        AdapterName.LORA, base, AdapterOptions(rank=8, scale=1.0, init=AdapterInit.GAUSSIAN), shaken=False
    ).adapter
    assert float(fresh.down.weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    assert not fresh.up.weight.any()


@pytest.mark.parametrize(
    ("size", "factor", "expected"), [(1280, -1, (32, 40)), (1280, 8, (8, 160)), (320, 12, (10, 32))]
)
def test_kronecker_factors(size: int, factor: int, expected: tuple[int, int]) -> None:
    assert balanced_factors(size, factor) == expected


@pytest.mark.parametrize("size", [1, 7, 127, 250, 360, 512, 640, 1024])
@pytest.mark.parametrize("factor", [-1, 1, 2, 4, 8, 16, 64])
def test_kronecker_factors_are_lycoris_own(size: int, factor: int) -> None:
    """A file's shapes tell a reader everything, but other trainers go on from a file only in their own shapes."""
    smaller, larger = balanced_factors(size, factor)
    assert smaller * larger == size and smaller <= larger
    divisors = [number for number in range(1, size + 1) if size % number == 0 and number * number <= size]
    if factor > 0 and size % factor == 0:
        assert factor in (smaller, larger)
    else:
        assert smaller == max(one for one in divisors if factor < 0 or one <= factor)


def test_lokr_is_whole_where_factors_are_no_saving() -> None:
    base = a_base("linear")  # 48 x 24: 6 x 8 and 4 x 6
    small = layer(AdapterName.LOKR, base).tensors()
    assert {suffix: tuple(one.shape) for suffix, one in small.items()} == {
        "lokr_w1": (6, 4),
        "lokr_w2_a": (8, 3),
        "lokr_w2_b": (3, 6),
        "alpha": (),
    }
    whole = layer(AdapterName.LOKR, base, replace(OPTIONS, rank=4))
    assert whole.tensors()["lokr_w2"].shape == (8, 6)
    tensors = whole.tensors()
    # No rank, no scale: 0.7 counts for nothing here.
    torch.testing.assert_close(whole.delta(), torch.kron(tensors["lokr_w1"], tensors["lokr_w2"]))


def test_blocks_fit_the_layer() -> None:
    assert (largest_block(320, 32), largest_block(320, 48), largest_block(4, 32)) == (32, 40, 4)
    assert (butterfly_block(320, 32), butterfly_block(1280, 32), butterfly_block(64, 8)) == (20, 20, 8)
    with pytest.raises(SafelightError, match=r"7 outputs can't be cut into blocks of 2 to 4.*exclude_patterns"):
        largest_block(7, 4)
    with pytest.raises(SafelightError, match=r"320 outputs into blocks of 8.*block_size to at least 10"):
        butterfly_block(320, 8)
    with pytest.raises(SafelightError, match="another adapter's"):
        butterfly_block(7, 8)


@pytest.mark.parametrize("name", [AdapterName.OFT, AdapterName.BOFT])
def test_rotations_keep_lengths_and_angles_and_leave_the_bias(name: AdapterName) -> None:
    base = a_base("linear")
    changed = layer(name, base)
    turned = base.weight + changed.delta()
    torch.testing.assert_close(turned.T @ turned, base.weight.T @ base.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(changed(torch.zeros(1, 24)), base.bias[None])
    mixed = (changed.delta().abs().sum(dim=1) > 1e-4).sum()
    assert mixed == 48


def test_butterflies_reach_every_output_and_blocks_do_not() -> None:
    """One changed input row of the weight reaches 8 outputs through a block of 8, and all of them through a butterfly."""
    base = nn.Linear(64, 64, bias=False).requires_grad_(False)
    base.weight.copy_(torch.eye(64))
    reach = {}
    for name in (AdapterName.OFT, AdapterName.BOFT):
        turned = base.weight + layer(name, base).delta()
        reach[name] = int((turned[:, 0].abs() > 1e-6).sum())
    assert reach == {AdapterName.OFT: 8, AdapterName.BOFT: 64}


# --- dropouts ---

DROPOUTS = {
    "dropout": [name for name in KINDS if listens(name, "dropout")],
    "rank_dropout": KINDS,
}


@pytest.mark.parametrize(
    ("setting", "name"), [(setting, name) for setting, names in DROPOUTS.items() for name in names]
)
def test_dropouts_are_random_in_training_only_and_right_on_average(setting: str, name: AdapterName) -> None:
    base = a_base("linear")
    changed = layer(name, base, replace(OPTIONS, **{setting: 0.4}))
    inputs = inputs_for(base)
    torch.manual_seed(1)
    first, second = changed(inputs), changed(inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(changed(inputs), first)  # a function of the step's seed
    changed.eval()
    whole = changed(inputs)
    assert torch.equal(whole, changed(inputs))
    changed.train()
    if name in (AdapterName.OFT, AdapterName.BOFT):
        return  # blocks that don't turn can't be made up for by others
    with torch.no_grad():
        mean = torch.stack([changed(inputs) for _ in range(3000)]).mean(dim=0)
    effect = (whole - base(inputs)).norm()
    assert (mean - whole).norm() < 0.1 * effect


@pytest.mark.parametrize("name", [AdapterName.OFT, AdapterName.BOFT])
def test_dropped_blocks_stay_as_the_base(name: AdapterName) -> None:
    base = a_base("linear")
    changed = layer(name, base, replace(OPTIONS, rank_dropout=0.99))
    torch.manual_seed(0)
    share = torch.stack([changed(inputs_for(base)) == base(inputs_for(base)) for _ in range(20)]).float().mean()
    assert share > 0.9


def test_whole_layers_are_left_out_in_their_share() -> None:
    base = a_base("linear")
    changed = layer(AdapterName.LORA, base)
    changed.module_dropout = 0.3
    inputs = inputs_for(base)
    bare = base(inputs)
    torch.manual_seed(0)
    left_out = [torch.equal(changed(inputs), bare) for _ in range(2000)]
    assert sum(left_out) / 2000 == pytest.approx(0.3, abs=0.03)
    changed.eval()
    assert not any(torch.equal(changed(inputs), bare) for _ in range(50))


# --- going on from tensors, and the table ---


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", KINDS)
def test_a_layer_goes_on_from_anothers_tensors(name: AdapterName, kind: str) -> None:
    base = a_base(kind)
    source = layer(name, base, replace(OPTIONS, scale=1.9))
    target = layer(name, base, OPTIONS)
    target.take(source.tensors())
    torch.testing.assert_close(target.delta(), source.delta(), atol=1e-6, rtol=1e-5)


def test_a_higher_rank_goes_on_from_a_lower_one_and_not_the_other_way() -> None:
    base = a_base("3x3 with stride")
    source, target = layer(AdapterName.LORA, base), layer(AdapterName.LORA, base, replace(OPTIONS, rank=5))
    target.take(source.tensors())
    torch.testing.assert_close(target.delta(), source.delta())
    adapter: Any = target.adapter
    assert adapter.down.weight[3:].any() and not adapter.up.weight[:, 3:].any()  # the new ranks can learn
    with pytest.raises(ValueError, match="it has rank 5, and this run trains rank 3"):
        source.take(target.tensors())


@pytest.mark.parametrize("name", KINDS)
def test_tensors_of_another_shape_are_refused_in_words(name: AdapterName) -> None:
    base, other = a_base("linear"), nn.Linear(12, 8).requires_grad_(False)
    with pytest.raises(ValueError, match=r"and this run trains|this run trains"):
        layer(name, base).take(layer(name, other).tensors())


def test_a_constrained_rotation_is_refused() -> None:
    base = a_base("linear")
    tensors = {**layer(AdapterName.OFT, base).tensors(), "alpha": torch.tensor(0.1)}
    with pytest.raises(ValueError, match="constrained"):
        layer(AdapterName.OFT, base).take(tensors)


@pytest.mark.parametrize("name", AdapterName)
def test_the_table_is_whole(name: AdapterName) -> None:
    row = ADAPTERS[name]
    assert row.title and row.help and row.cost.endswith(".")
    assert AdapterInit.DEFAULT in row.inits
    assert {tool for tool, _ in row.not_read_by} | row.loads_in == set(TOOLS)
    assert "comfyui" in row.loads_in
    made = make_adapter(name, a_base("linear"), OPTIONS)
    assert bool(made.output_side()) is listens(name, "lora_plus_ratio")
    assert math.isfinite(float(made.tensors()["alpha"]))
