"""Resizing, merging and extracting against dense linear algebra, over every kind of layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from security.errors import Cancelled
from tests import tiny
from trainer.lora_files.algebra import Factors, RankRule, as_matrix, relative_difference
from trainer.lora_files.changes import Change, Ranks, Unfit, compressed, energy_of, kept_overall, ranks_of
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.extract import extract
from trainer.lora_files.layers import Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank, Rotation
from trainer.lora_files.merge import Ingredient, merge
from trainer.lora_files.names import Place
from trainer.lora_files.resize import resize
from trainer.tasks import TaskControl

LINEAR = Place("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
KERNEL = Place("unet", "mid_block.resnets.0.conv1")
TEXT = Place("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
NORM = Place("unet", "mid_block.resnets.0.norm1")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(out: int, into: int, rank: int, seed: int = 0, alpha: float = 3.0) -> LowRank:
    return LowRank(numbers(rank, into, seed=seed), numbers(out, rank, seed=seed + 1), alpha)


def conv(out: int, into: int, rank: int, seed: int = 0) -> LowRank:
    return LowRank(numbers(rank, into, 3, 3, seed=seed), numbers(out, rank, 1, 1, seed=seed + 1), 2.0)


def some_layers(seed: int = 0, rank: int = 8) -> dict[Place, Layer]:
    return {
        LINEAR: lora(64, 64, rank, seed),
        KERNEL: conv(64, 64, rank, seed + 10),
        TEXT: lora(32, 32, rank, seed + 20),
        NORM: Difference(numbers(64, seed=seed + 30)),
    }


def best(delta: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(as_matrix(delta), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(delta.shape)


# ---- resize ------------------------------------------------------------------------------------------------------------


def test_resized_layers_are_the_best_of_their_rank() -> None:
    layers = some_layers()
    small, reports = resize(layers, Ranks(RankRule(3), RankRule(2)), name="x")
    for place, rank in ((LINEAR, 3), (KERNEL, 2), (TEXT, 3)):
        assert small[place].rank == rank and small[place].delta().shape == layers[place].delta().shape
        assert relative_difference(best(layers[place].delta(), rank), small[place].delta()) < 1e-5
    assert small[NORM] is layers[NORM]
    whole = sum(float(layers[one.place].delta().square().sum()) for one in reports)
    lost = sum(float((layers[one.place].delta() - small[one.place].delta()).square().sum()) for one in reports)
    assert kept_overall(reports) == pytest.approx(1 - lost / whole, abs=1e-5)
    assert [(one.before, one.after) for one in reports] == [(8, 3), (8, 2), (8, 3)]


def test_energy_keeps_what_it_says_with_as_few_as_possible() -> None:
    layers = some_layers()
    small, _ = resize(layers, Ranks(RankRule(8, energy=0.8), RankRule(8, energy=0.8)), name="x")
    for place in (LINEAR, KERNEL, TEXT):
        delta, rank = layers[place].delta(), small[place].rank
        assert rank is not None and 1 < rank < 8

        def kept(rank: int, delta: Tensor = delta) -> float:
            return float(best(delta, rank).square().sum() / delta.square().sum())

        assert kept(rank) >= 0.8 > kept(rank - 1)


def test_convolutions_stay_as_they_are_without_a_rank_of_theirs() -> None:
    layers = some_layers()
    small, reports = resize(layers, Ranks(RankRule(3), None), name="x")
    assert small[KERNEL] is layers[KERNEL] and small[LINEAR].rank == 3
    assert next(one for one in reports if one.place == KERNEL).kept == 1.0


def test_layers_that_are_small_already_stay_to_the_bit() -> None:
    layers = {**some_layers(), LINEAR: lora(64, 64, 2)}
    small, _ = resize(layers, Ranks(RankRule(4), RankRule(4)), name="x")
    assert small[LINEAR] is layers[LINEAR]
    with pytest.raises(
        Unfit, match=r"its highest is 8, 64 was asked for; of its convolutions 8, 32 .*nothing to make smaller"
    ):
        resize(layers, Ranks(RankRule(64), RankRule(32)), name="x")
    with pytest.raises(Unfit, match=r"of its convolutions 8, no rank was asked for these"):
        resize(layers, Ranks(RankRule(8), None), name="x")


def loha() -> Hadamard:
    return Hadamard(numbers(64, 3), numbers(3, 64, seed=1), numbers(64, 3, seed=2), numbers(3, 64, seed=3), 1.5)


def lokr() -> Kronecker:
    return Kronecker(1.0, w1=numbers(4, 4), w2_a=numbers(16, 2, seed=1), w2_b=numbers(2, 16, seed=2))


@pytest.mark.parametrize("layer", [loha(), lokr(), Difference(numbers(64, 64))], ids=["loha", "lokr", "full"])
def test_other_kinds_become_the_nearest_lora(layer: Layer) -> None:
    small, (report,) = resize({LINEAR: layer}, Ranks(RankRule(5), None), name="x")
    assert isinstance(small[LINEAR], LowRank)
    assert relative_difference(best(layer.delta(), 5), small[LINEAR].delta()) < 1e-4
    assert report.before == layer.rank and 0 < report.kept < 1


def test_tucker_convolution_is_resized_by_what_it_stands_for() -> None:
    layer = LowRank(numbers(4, 16, 1, 1), numbers(12, 4, 1, 1, seed=1), 2.0, mid=numbers(4, 4, 3, 3, seed=2))
    small, _ = resize({KERNEL: layer}, Ranks(RankRule(2), RankRule(2)), name="x")
    assert small[KERNEL].delta().shape == (12, 16, 3, 3)
    assert relative_difference(best(layer.delta(), 2), small[KERNEL].delta()) < 1e-5


def test_kinds_that_turn_the_base_need_it(tmp_path: Path) -> None:
    folder = tiny.tiny_sd15(tmp_path / "base")
    dora = Decomposed(lora(64, 64, 4), numbers(64, 1, seed=5).abs() + 1)
    oft = Rotation(numbers(8, 8, 8, seed=6) / 4)
    other = LINEAR._replace(module=LINEAR.module.replace("to_q", "to_k"))
    layers: dict[Place, Layer] = {LINEAR: dora, other: oft}
    with pytest.raises(Unfit, match=r"DORA layers.*Name the base model"):
        resize(layers, Ranks(RankRule(4), None), name="x")
    with Checkpoint(folder) as base:
        small, _ = resize(layers, Ranks(RankRule(4), None), name="x", base=base)
        for place, layer in layers.items():
            assert relative_difference(best(layer.delta(base.weight(place)), 4), small[place].delta()) < 1e-4


def test_spoilt_layers_are_told() -> None:
    layer = lora(64, 64, 8)
    layer.down[0, 0] = float("nan")
    with pytest.raises(Unfit, match="to_q holds NaN"):
        resize({LINEAR: layer}, Ranks(RankRule(2), None), name="x")


def test_resizing_can_be_cancelled() -> None:
    control = TaskControl()
    control.cancel()
    with pytest.raises(Cancelled):
        resize(some_layers(), Ranks(RankRule(2), None), name="x", control=control)


def test_limits_of_zero_are_refused_rather_than_ignored() -> None:
    for limit in ("energy", "ratio"):
        for value in (0.0, -2.0):
            with pytest.raises(Unfit, match=f"(?i){limit}.* is {value:g}"):
                ranks_of(4, None, **{limit: value})
    assert ranks_of(4, None).linear.is_fixed


# ---- merge -------------------------------------------------------------------------------------------------------------


def test_merged_without_a_rank_is_the_exact_sum() -> None:
    one, other = some_layers(), some_layers(seed=50, rank=5)
    del other[TEXT]
    merged, reports = merge([Ingredient("a", one, 0.75), Ingredient("b", other, -1.5)], None)
    assert merged[LINEAR].rank == 13 and merged[TEXT].rank == 8
    for place in (LINEAR, KERNEL, NORM):
        assert relative_difference(0.75 * one[place].delta() - 1.5 * other[place].delta(), merged[place].delta()) < 1e-5
    assert relative_difference(0.75 * one[TEXT].delta(), merged[TEXT].delta()) < 1e-5
    assert all(report.kept == 1.0 for report in reports)


def test_merged_to_a_rank_is_the_best_of_the_sum() -> None:
    one, other = some_layers(), {**some_layers(seed=50), LINEAR: loha()}
    merged, reports = merge([Ingredient("a", one, 1.0), Ingredient("b", other, 0.5)], Ranks(RankRule(4), RankRule(3)))
    for place, rank in ((LINEAR, 4), (KERNEL, 3), (TEXT, 4)):
        total = one[place].delta() + 0.5 * other[place].delta()
        assert merged[place].rank == rank
        assert relative_difference(best(total, rank), merged[place].delta()) < 1e-4
    assert 0 < kept_overall(reports) < 1


def test_exact_sum_has_no_higher_rank_than_the_weight() -> None:
    loras = [Ingredient(str(seed), {LINEAR: lora(12, 20, 8, seed)}, 1.0) for seed in range(4)]
    merged, (report,) = merge(loras, None)
    total = torch.stack([one.layers[LINEAR].delta() for one in loras]).sum(0)
    assert merged[LINEAR].rank == report.after == 12
    assert relative_difference(total, merged[LINEAR].delta()) < 1e-5


def test_absurd_rank_is_measured_without_absurd_memory() -> None:
    """Gram matrices of this rank would have 40 GB; the weight has 64 numbers."""
    factors = Factors(numbers(8, 70_000), numbers(70_000, 8, seed=1))
    assert energy_of(Change((8, 8), factors)) == pytest.approx(float(factors.product().square().sum()), rel=1e-4)
    small, _ = compressed(LINEAR, Change((8, 8), factors), RankRule(8), None)
    assert relative_difference(factors.product(), small.delta()) < 1e-4


def test_opposite_loras_leave_nothing() -> None:
    layers = some_layers()
    for ranks in (None, Ranks(RankRule(4), RankRule(4))):
        with pytest.raises(Unfit, match="cancel each other"):
            merge([Ingredient("a", layers, 0.3), Ingredient("b", layers, -0.3)], ranks)
    merge([Ingredient("a", layers, 1.0), Ingredient("b", layers, -0.999)], None)  # a thousandth is something
    rest = {**layers, NORM: Difference(numbers(64, seed=99))}
    merged, _ = merge([Ingredient("a", layers, 1.0), Ingredient("b", rest, -1.0)], None)
    assert float(merged[LINEAR].delta().abs().max()) < 1e-4 < float(merged[NORM].delta().abs().max())


def test_linear_layer_and_one_by_one_convolution_are_the_same() -> None:
    flat = lora(12, 16, 3)
    pixel = LowRank(numbers(2, 16, 1, 1, seed=7), numbers(12, 2, 1, 1, seed=8), 2.0)
    merged, _ = merge([Ingredient("a", {LINEAR: flat}, 1.0), Ingredient("b", {LINEAR: pixel}, 1.0)], None)
    total = flat.delta() + pixel.delta().flatten(1)
    assert relative_difference(total, merged[LINEAR].delta().flatten(1)) < 1e-5


def test_merges_without_sense_are_refused() -> None:
    layers = some_layers()
    for weight in (0.0, float("nan"), float("inf"), 11.0):
        with pytest.raises(Unfit, match="The weight of a"):
            Ingredient("a", layers, weight)
    with pytest.raises(Unfit, match=r"b has LOHA layers.* Give a rank for the result\.$"):
        merge([Ingredient("a", layers, 1.0), Ingredient("b", {LINEAR: loha()}, 1.0)], None)
    turned = {LINEAR: Rotation(numbers(8, 8, 8) / 4)}
    with pytest.raises(Unfit, match=r"b has OFT layers.* and name the base model"):
        merge([Ingredient("a", layers, 1.0), Ingredient("b", turned, 1.0)], None)
    with pytest.raises(Unfit, match="in different sizes"):
        merge([Ingredient("a", layers, 1.0), Ingredient("b", {LINEAR: lora(32, 64, 4)}, 1.0)], None)
    with pytest.raises(Unfit, match="in different sizes"):
        merge([Ingredient("a", layers, 1.0), Ingredient("b", {NORM: Difference(numbers(32))}, 1.0)], None)


# ---- extract -----------------------------------------------------------------------------------------------------------


def tuned_of(folder: Path, place_key: dict[str, Tensor], target: Path, part: str = "unet") -> Path:
    """A copy of a model with other weights for some tensors of one part."""
    import shutil

    shutil.copytree(folder, target)
    file = next((target / part).glob("*.safetensors"))
    tensors = load_file(file)
    assert place_key.keys() <= tensors.keys()
    save_file({**tensors, **{key: tensors[key] + value for key, value in place_key.items()}}, file, {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[Place, Tensor]]:
    """A base model, one with known changes of rank 3 in four weights, and these changes."""
    with Checkpoint(folder) as base:
        place = LINEAR
        shapes = {one: base.shape(one) for one in (place, KERNEL, TEXT)}
    changes = {}
    for number, (one, shape) in enumerate(shapes.items()):
        assert shape is not None
        flat = numbers(shape[0], 3, seed=number) @ numbers(3, int(torch.tensor(shape[1:]).prod()), seed=number + 9)
        changes[one] = 0.05 * flat.reshape(shape)
    keys = {f"{one.module}.weight": changes[one] for one in (LINEAR, KERNEL)}
    target = tmp_path_factory.mktemp("tuned") / "tuned"
    tuned_of(folder, keys, target)
    file = next((target / "text_encoder").glob("*.safetensors"))
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith(TEXT.module.removeprefix("text_model.") + ".weight"))
    save_file({**tensors, key: tensors[key] + changes[TEXT]}, file, {"format": "pt"})
    return folder, target, changes


def test_extracted_is_what_was_changed_whichever_way_the_models_are_stored(
    models: tuple[Path, Path, dict[Place, Tensor]],
) -> None:
    folder, tuned, changes = models
    for one, other in ((tuned, folder), (tiny.as_single_file(tuned), folder), (tuned, tiny.as_single_file(folder))):
        with Checkpoint(one) as first, Checkpoint(other) as second:
            found = extract(first, second, Ranks(RankRule(3), RankRule(3)))
        assert set(found.layers) == set(changes)
        for place, change in changes.items():
            assert relative_difference(change, found.layers[place].delta().reshape(change.shape)) < 1e-4
        assert found.kept == pytest.approx(1, abs=1e-4) and found.left_out == 0


def test_extraction_tells_what_it_loses(models: tuple[Path, Path, dict[Place, Tensor]]) -> None:
    folder, tuned, changes = models
    with Checkpoint(tuned) as first, Checkpoint(folder) as second:
        found = extract(first, second, Ranks(RankRule(1), None), text_encoders=False)
        assert set(found.layers) == {LINEAR} and found.left_out == 1
        held = best(changes[LINEAR], 1).square().sum()
        whole = changes[LINEAR].square().sum() + changes[KERNEL].square().sum()
        assert found.kept == pytest.approx(float(held / whole), abs=1e-3)
        energetic = extract(first, second, Ranks(RankRule(64, energy=0.999), RankRule(64, energy=0.999)))
        assert {layer.rank for layer in energetic.layers.values()} <= {2, 3}


def test_models_that_do_not_go_together_are_refused(
    models: tuple[Path, Path, dict[Place, Tensor]], tmp_path: Path
) -> None:
    folder, _, _ = models
    other = tiny.BUILDERS["sdxl" if folder.name == "sd15" else "sd15"](tmp_path / "other")
    ranks = Ranks(RankRule(4), None)
    with Checkpoint(folder) as base:
        with Checkpoint(other) as foreign, pytest.raises(Unfit, match="of the family"):
            extract(foreign, base, ranks)
        with pytest.raises(Unfit, match="are equal"):
            extract(base, base, ranks)


def test_same_model_in_half_precision_is_equal(folder: Path, tmp_path: Path) -> None:
    """Rounding is no training: what is stored more coarsely is not taken for a change."""
    import shutil

    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for file in half.glob("*/*.safetensors"):
        save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
    with Checkpoint(half) as first, Checkpoint(folder) as second, pytest.raises(Unfit, match="are equal"):
        extract(first, second, Ranks(RankRule(4), RankRule(4)))
