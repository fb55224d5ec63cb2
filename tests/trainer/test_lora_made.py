"""The tools from files to files: what they write is read back, says what it is, and never replaces anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from security.errors import Cancelled, RefusedFile, RefusedPath, SafelightError
from security.integrity import check_own_hash
from security.weights import check_safetensors
from tests import tiny
from trainer.config.choices import SavePrecision
from trainer.lora_files.algebra import RankRule, relative_difference
from trainer.lora_files.changes import Ranks, Unfit
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Decomposed, Hadamard, Kronecker, Layer, LowRank
from trainer.lora_files.names import Place
from trainer.lora_files.operations import (
    Models,
    Weighted,
    bake_loras,
    convert_lora,
    extract_lora,
    merge_loras,
    resize_lora,
)
from trainer.lora_files.reading import read_lora
from trainer.lora_files.results import Form, percent
from trainer.lora_files.writing import write_lora
from trainer.tasks import TaskControl

LINEAR = Place("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
KERNEL = Place("unet", "mid_block.resnets.0.conv1")
TEXT = Place("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
RANKS = Ranks(RankRule(2), RankRule(2))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 10


def layers(rank: int, seed: int = 0) -> dict[Place, Layer]:
    return {
        LINEAR: LowRank(numbers(rank, 64, seed=seed), numbers(64, rank, seed=seed + 1), 3.0),
        KERNEL: LowRank(numbers(rank, 64, 3, 3, seed=seed + 2), numbers(64, rank, 1, 1, seed=seed + 3), 2.0),
        TEXT: LowRank(numbers(rank, 32, seed=seed + 4), numbers(32, rank, seed=seed + 5), 1.0),
    }


def write(
    path: Path,
    own: dict[Place, Layer],
    *,
    family: str = "sd15",
    words: str = "",
    precision: SavePrecision = SavePrecision.FP32,
    **more: dict[str, dict[str, Tensor]],
) -> Weighted:
    metadata = {"ss_base_model_version": "sd_v1" if family == "sd15" else "sdxl_base_v1-0", "ss_network_dim": "9"}
    metadata |= {"modelspec.trigger_phrase": words} if words else {}
    file = LoraFile(family, own, metadata, **more)  # type: ignore[arg-type]
    write_lora(file, path, FileFormat.KOHYA, precision=precision)
    return Weighted(path, path.stem)


@pytest.fixture
def one(tmp_path: Path) -> Weighted:
    return write(tmp_path / "one.safetensors", layers(6), words="mira, red hair")


@pytest.fixture
def other(tmp_path: Path) -> Weighted:
    return write(tmp_path / "other.safetensors", layers(4, seed=50), words="ink style, mira")


def test_resized_file(one: Weighted, tmp_path: Path) -> None:
    control = TaskControl()
    outcome = resize_lora(one, tmp_path / "small.safetensors", RANKS, Form(), control=control)
    file = read_lora(outcome.path)
    assert {layer.rank for layer in file.layers.values()} == {2}
    assert file.metadata["ss_network_dim"] == "2" and file.metadata["ss_network_alpha"] == "2"
    assert json.loads(file.metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert json.loads(file.metadata["safelight_resized"])["from"] == "one"
    assert file.metadata["modelspec.trigger_phrase"] == "mira, red hair" and check_own_hash(outcome.path)
    lost = sum(
        float((read_lora(one.path).layers[p].delta() - file.layers[p].delta()).square().sum()) for p in file.layers
    )
    whole = sum(float(layer.delta().square().sum()) for layer in read_lora(one.path).layers.values())
    assert outcome.kept == pytest.approx(1 - lost / whole, abs=1e-4)
    assert percent(outcome.kept) in outcome.sentence and "rank 2" in outcome.sentence
    rows = outcome.rows()
    assert [row["kept"] for row in rows] == sorted(row["kept"] for row in rows) and rows[0]["before"] == 6
    assert control._now()[:2] == (3, 3)


def test_ranks_that_differ_are_called_dynamic(one: Weighted, tmp_path: Path) -> None:
    rule = RankRule(6, energy=0.7)
    file = read_lora(resize_lora(one, tmp_path / "x.safetensors", Ranks(rule, RankRule(1)), Form()).path)
    linear = {file.layers[LINEAR].rank, file.layers[TEXT].rank}
    assert file.metadata["ss_network_dim"] == ("Dynamic" if len(linear) > 1 else str(linear.pop()))


def test_precision_stays_unless_another_is_asked_for(tmp_path: Path) -> None:
    half = write(tmp_path / "half.safetensors", layers(4), precision=SavePrecision.BF16)
    for wanted, expected in ((None, torch.bfloat16), (SavePrecision.FP32, torch.float32)):
        path = tmp_path / f"{wanted}.safetensors"
        resize_lora(half, path, RANKS, Form(precision=wanted))
        assert {value.dtype for key, value in load_file(path).items() if ".alpha" not in key} == {expected}


def test_merged_file(one: Weighted, other: Weighted, tmp_path: Path) -> None:
    sources = [Weighted(one.path, "one", 0.5), Weighted(other.path, "other", -1.0)]
    outcome = merge_loras(sources, tmp_path / "both.safetensors", None, Form())
    file, a, b = (read_lora(path).layers for path in (outcome.path, one.path, other.path))
    for place in a:
        assert file[place].rank == 10
        assert relative_difference(0.5 * a[place].delta() - b[place].delta(), file[place].delta()) < 1e-5
    metadata = check_safetensors(outcome.path).metadata
    assert metadata["modelspec.trigger_phrase"] == "mira, red hair, ink style"
    assert metadata["modelspec.merged_from"] == "one, other" and metadata["modelspec.title"] == "both"
    assert json.loads(metadata["safelight_merged"])["loras"][1] == {"name": "other", "weight": -1.0}
    assert metadata["ss_network_dim"] == "10" and outcome.kept == 1
    assert outcome.sentence.startswith("both is 0.5 x one - 1 x other: ")
    small = merge_loras(sources, tmp_path / "small.safetensors", RANKS, Form())
    assert {layer.rank for layer in read_lora(small.path).layers.values()} == {2} and small.kept < 1


def test_biases_and_words_come_along(tmp_path: Path) -> None:
    emb = {"clip_l": numbers(2, 32)}
    one = write(tmp_path / "a.safetensors", layers(2), biases={LINEAR: torch.ones(64)}, embeddings={"mira": emb})  # type: ignore[arg-type]
    other = write(tmp_path / "b.safetensors", layers(2, seed=9), biases={LINEAR: torch.ones(64)})  # type: ignore[arg-type]
    both = [Weighted(one.path, "a", 0.5), Weighted(other.path, "b", 2.0)]
    file = read_lora(merge_loras(both, tmp_path / "c.safetensors", None, Form()).path)
    assert torch.equal(file.biases[LINEAR], torch.full((64,), 2.5)) and torch.equal(
        file.embeddings["mira"]["clip_l"], emb["clip_l"]
    )
    with pytest.raises(Unfit, match="both have the trained word mira"):
        merge_loras([one, one], tmp_path / "d.safetensors", None, Form())


def test_loras_that_do_not_go_together(one: Weighted, tmp_path: Path) -> None:
    foreign = write(tmp_path / "xl.safetensors", layers(2), family="sdxl")
    with pytest.raises(Unfit, match=r"one is for Stable Diffusion 1\.x, xl for Stable Diffusion XL"):
        merge_loras([one, foreign], tmp_path / "x.safetensors", None, Form())
    with pytest.raises(SafelightError, match="1 LoRAs are named"):
        merge_loras([one], tmp_path / "x.safetensors", None, Form())
    folder = tiny.tiny_sd15(tmp_path / "base")
    for work in (
        lambda: bake_loras(folder, [foreign], tmp_path / "baked"),
        lambda: resize_lora(foreign, tmp_path / "x.safetensors", RANKS, Form(), base=folder),
    ):
        with pytest.raises(Unfit, match="model of the same family"):
            work()
    assert not (tmp_path / "x.safetensors").exists() and not (tmp_path / "baked").exists()


def test_nothing_is_replaced_and_nothing_is_left(one: Weighted, other: Weighted, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    before = sorted(tmp_path.iterdir())
    for work in (
        lambda form: resize_lora(one, taken, RANKS, form),
        lambda form: merge_loras([one, other], taken, None, form),
        lambda form: convert_lora(one, taken, Form(precision=SavePrecision.FP16, replace=form.replace)),
    ):
        with pytest.raises(RefusedPath, match="there already"):
            work(Form())
        assert taken.read_bytes() == b"mine" and sorted(tmp_path.iterdir()) == before
    control = TaskControl()
    control.cancel()
    with pytest.raises(Cancelled):
        merge_loras([one, other], tmp_path / "new.safetensors", RANKS, Form(), control=control)
    assert sorted(tmp_path.iterdir()) == before
    resize_lora(one, taken, RANKS, Form(replace=True))
    assert read_lora(taken).layers.keys() == layers(2).keys()


def test_bad_files_end_in_words(tmp_path: Path, one: Weighted) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x02}q\x00.")
    for path in (bad, tmp_path / "none.safetensors"):
        with pytest.raises(SafelightError):
            resize_lora(Weighted(path, "bad"), tmp_path / "x.safetensors", RANKS, Form())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(one.path.read_bytes()[:-10])
    with pytest.raises(RefusedFile, match="cut off"):
        merge_loras([one, Weighted(cut, "cut")], tmp_path / "x.safetensors", None, Form())


def test_converted_to_diffusers_and_back(one: Weighted, tmp_path: Path) -> None:
    there = convert_lora(one, tmp_path / "d.safetensors", Form(FileFormat.DIFFUSERS)).path
    assert any(key.endswith("lora_A.weight") for key in load_file(there))
    back = convert_lora(Weighted(there, "d"), tmp_path / "k.safetensors", Form(FileFormat.KOHYA)).path
    before, after = read_lora(one.path).layers, read_lora(back).layers
    for place, layer in before.items():
        assert relative_difference(layer.delta(), after[place].delta()) < 1e-6
    with pytest.raises(SafelightError, match="nothing to convert"):
        convert_lora(one, tmp_path / "x.safetensors", Form(FileFormat.KOHYA))


def test_other_kinds_are_made_loras_for_programs_that_read_nothing_else(tmp_path: Path) -> None:
    loha = Hadamard(numbers(64, 2), numbers(2, 64, seed=1), numbers(64, 2, seed=2), numbers(2, 64, seed=3), 1.0)
    mixed = write(tmp_path / "loha.safetensors", {**layers(8), LINEAR: loha})
    with pytest.raises(SafelightError, match=r"is loha\..*Turn other kinds into LoRA of rank.*--as-lora"):
        convert_lora(mixed, tmp_path / "d.safetensors", Form(FileFormat.DIFFUSERS))
    ranks = Ranks(RankRule(4), RankRule(4))
    outcome = convert_lora(mixed, tmp_path / "d.safetensors", Form(FileFormat.DIFFUSERS), as_lora=ranks)
    file = read_lora(outcome.path)
    assert file.layers[KERNEL].rank == 8  # LoRA layers stay as they are; a LoHa of rank 2 has at most rank 4
    assert relative_difference(loha.delta(), file.layers[LINEAR].delta()) < 1e-4


def test_resize_tells_what_became_lora_and_what_grew(tmp_path: Path) -> None:
    lokr = Kronecker(1.0, w1=numbers(8, 8), w2=numbers(8, 8, seed=1))
    source = write(tmp_path / "lokr.safetensors", {LINEAR: lokr})
    outcome = resize_lora(source, tmp_path / "x.safetensors", Ranks(RankRule(16), None), Form())
    assert "Of other kinds became LoRA: 1 layers." in outcome.sentence
    assert "The result is larger than lokr" in outcome.notes[0] and "take a lower one" in outcome.notes[0]
    plain = write(tmp_path / "plain.safetensors", layers(16))
    outcome = resize_lora(plain, tmp_path / "y.safetensors", RANKS, Form())
    assert "Of other kinds" not in outcome.sentence and not outcome.notes


def test_words_are_left_out_where_no_name_is_for_them(tmp_path: Path) -> None:
    """As training does, which writes them into files of their own."""
    emb = {"clip_l": numbers(2, 32)}
    source = write(tmp_path / "a.safetensors", layers(6), embeddings={"mira": emb})  # type: ignore[arg-type]
    other = write(tmp_path / "b.safetensors", layers(4, seed=9))
    form = Form(FileFormat.DIFFUSERS)
    for outcome in (
        convert_lora(source, tmp_path / "c.safetensors", form),
        resize_lora(source, tmp_path / "d.safetensors", RANKS, form),
        merge_loras([source, other], tmp_path / "e.safetensors", None, form),
    ):
        assert any("trained words: mira" in note and "file of its own" in note for note in outcome.notes)
        assert not read_lora(outcome.path).embeddings
    assert not convert_lora(source, tmp_path / "f.safetensors", Form(precision=SavePrecision.FP16)).notes
    bias = write(tmp_path / "g.safetensors", layers(2), biases={LINEAR: torch.ones(64)})  # type: ignore[arg-type]
    with pytest.raises(SafelightError, match=r"differences of biases.*Keep kohya's"):
        convert_lora(bias, tmp_path / "h.safetensors", form)


def test_weights_have_one_rule_everywhere(one: Weighted) -> None:
    for weight in (0.0, 1e9, float("nan")):
        with pytest.raises(Unfit, match="Give a number from -10 to 10 other than 0"):
            Weighted(one.path, "one", weight)


def test_dora_becomes_a_lora_with_its_base(tmp_path: Path) -> None:
    folder = tiny.tiny_sd15(tmp_path / "base")
    with Checkpoint(folder) as base:
        weight = base.weight(LINEAR)
    inner = layers(3)[LINEAR]
    assert isinstance(inner, LowRank)
    dora = Decomposed(inner, weight.norm(dim=1, keepdim=True) * 1.2)
    source = write(tmp_path / "dora.safetensors", {LINEAR: dora})
    with pytest.raises(Unfit, match="Name the base model"):
        resize_lora(source, tmp_path / "x.safetensors", RANKS, Form())
    wide = Ranks(RankRule(64), None)
    file = read_lora(resize_lora(source, tmp_path / "x.safetensors", wide, Form(), base=folder).path)
    assert relative_difference(dora.delta(weight), file.layers[LINEAR].delta()) < 1e-4


@pytest.mark.parametrize("name", sorted(tiny.BUILDERS))
def test_what_is_baked_in_is_extracted_again(name: str, tmp_path: Path) -> None:
    """The whole way round: a LoRA into a model, and out of the two models."""
    folder = tiny.BUILDERS[name](tmp_path / "base")
    source = write(tmp_path / "lora.safetensors", layers(3), family=name)
    base = tiny.as_single_file(folder)
    baked = bake_loras(base, [Weighted(source.path, "lora", 0.8)], tmp_path / "baked.safetensors")
    assert "3 modules changed" in baked.sentence and not baked.notes
    outcome = extract_lora(
        Models(baked.path, folder),
        tmp_path / "again.safetensors",
        Ranks(RankRule(3), RankRule(3)),
        Form(precision=SavePrecision.FP32),
    )
    file = read_lora(outcome.path, name)
    assert file.layers.keys() == layers(3).keys()
    for place, layer in layers(3).items():
        assert relative_difference(0.8 * layer.delta(), file.layers[place].delta()) < 1e-3
    recipe = json.loads(file.metadata["safelight_extracted"])
    assert (recipe["tuned"], recipe["base"]) == ("baked", "base") and outcome.kept > 0.9999
    left = extract_lora(
        Models(baked.path, folder, text_encoders=False), tmp_path / "few.safetensors", Ranks(RankRule(3), None), Form()
    )
    assert len(read_lora(left.path, name).layers) == 1 and "1 convolutions differ too" in " ".join(left.notes)


def test_shares_are_never_rounded_up_to_all() -> None:
    assert [percent(one) for one in (1.0, 0.99994, 0.9987, 0.5, 0.0)] == ["100%", "99.99%", "99.87%", "50.0%", "0.0%"]
