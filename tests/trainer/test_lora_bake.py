"""A model with LoRAs baked in: loaded by the real loaders it holds base plus change, and is otherwise the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from security.errors import Cancelled, RefusedPath
from security.integrity import check_own_hash
from security.weights import check_safetensors
from tests import tiny
from trainer.families.base import ModelFamily
from trainer.lora_files import bake as baking
from trainer.lora_files.bake import Added, bake
from trainer.lora_files.changes import Unfit
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Decomposed, Difference, Layer, LowRank
from trainer.lora_files.names import Place
from trainer.tasks import TaskControl


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers_for(base: Checkpoint, rank: int = 2, seed: int = 0) -> dict[Place, Layer]:
    """A layer for every linear and convolutional module, DoRA for every third, and one for a norm."""
    layers: dict[Place, Layer] = {}
    for number, place in enumerate(base.modules()):
        shape = base.shape(place)
        assert shape is not None
        down, up = numbers(rank, *shape[1:], seed=seed + number) / 10, numbers(shape[0], rank, seed=seed + number + 1)
        layer = LowRank(down, up.reshape(*up.shape, *[1] * (len(shape) - 2)), 1.0)
        magnitude = base.weight(place).flatten(1).norm(dim=1).reshape(-1, *[1] * (len(shape) - 1)) * 1.1
        layers[place] = Decomposed(layer, magnitude) if number % 3 == 0 else layer
    layers[Place("unet", "conv_norm_out")] = Difference(numbers(32, seed=seed) / 10)
    return layers


def weights_of(path: Path, family: ModelFamily) -> dict[str, Tensor]:
    """All numbers of a model as the product's own loader reads them."""
    components = family.load(tiny.model_files(path, family.name), "cpu", torch.float32)
    return {
        f"{part}.{key}": value
        for part, network in components.modules().items()
        for key, value in network.state_dict().items()
    }


@pytest.fixture(scope="module", params=["folder", "single file"])
def base_path(request: pytest.FixtureRequest, folder: Path) -> Path:
    return folder if request.param == "folder" else tiny.as_single_file(folder)


def test_baked_model_is_base_plus_change(base_path: Path, family: ModelFamily, tmp_path: Path) -> None:
    name = base_path.name
    if base_path.is_file():  # its tokenizers lie beside it
        shutil.copytree(base_path.parent, tmp_path / "new")
        (tmp_path / "new" / name).unlink()
        target = tmp_path / "new" / name
    else:
        target = tmp_path / name
    bias = Place("unet", "conv_out")
    with Checkpoint(base_path) as base:
        one, other = layers_for(base), layers_for(base, seed=500)
        del other[Place("unet", "conv_in")]
        added = [Added("one", one, {bias: numbers(4)}, 0.8), Added("other", other, {}, -0.5)]
        baked = bake(base, added, target)
        expected = {}
        for place in one:
            stored = base.places[place][0]
            weight = stored.of(base.reader(stored.file).tensor(stored.key)).float()
            delta = 0.8 * one[place].delta(weight).reshape(weight.shape)
            if place in other:
                delta = delta - 0.5 * other[place].delta(weight).reshape(weight.shape)
            expected[f"{place.part}.{place.module}.weight"] = weight + delta
    before, after = weights_of(base_path, family), weights_of(target, family)
    expected["unet.conv_out.bias"] = before["unet.conv_out.bias"] + 0.8 * numbers(4)
    assert before.keys() == after.keys() and baked.modules == len(one) and baked.kept > 0.999
    unseen = dict(expected)
    for key, value in after.items():
        wanted = unseen.pop(key, unseen.pop(key.replace(".", ".text_model.", 1), before[key]))
        assert torch.allclose(value, wanted, rtol=1e-6, atol=1e-7), key
    assert not unseen
    metadata = check_safetensors(next(target.rglob("*.safetensors")) if target.is_dir() else target).metadata
    assert json.loads(metadata["safelight_baked"])["loras"] == [
        {"name": "one", "weight": 0.8}, {"name": "other", "weight": -0.5}
    ]  # fmt: skip


def test_folder_keeps_all_that_a_model_needs(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / "notes.md").write_text("mine")
    half = {key: value.half() for key, value in load_file(next((source / "unet").glob("*.safetensors"))).items()}
    save_file(half, source / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    with Checkpoint(source) as base:
        layers = {place: layer for place, layer in layers_for(base).items() if place.part == "unet"}
        bake(base, [Added("x", layers, {}, 1.0)], tmp_path / "new")
    parts = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    new = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert new == parts - {Path("notes.md")}
    for part in ("vae", "text_encoder"):
        file = next((source / part).glob("*.safetensors"))
        assert load_file(file).keys() == load_file(tmp_path / "new" / file.relative_to(source)).keys()
    whole, coarse = (
        load_file(tmp_path / "new" / "unet" / f"diffusion_pytorch_model{kind}.safetensors") for kind in ("", ".fp16")
    )
    for key, value in whole.items():
        assert torch.allclose(value, coarse[key].float(), atol=2e-2, rtol=1e-2), key
    assert check_own_hash(tmp_path / "new" / "unet" / "diffusion_pytorch_model.safetensors")


def test_rounding_is_told(folder: Path, tmp_path: Path) -> None:
    """A change far below the steps of bf16 is mostly lost, and the result says so."""
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    file = next((source / "unet").glob("*.safetensors"))
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file, {"format": "pt"})
    place = Place("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    layer = LowRank(numbers(2, 64), numbers(64, 2, seed=1), 2.0)
    with Checkpoint(source) as base:
        strong = bake(base, [Added("x", {place: layer}, {}, 1.0)], tmp_path / "strong")
        weak = bake(base, [Added("x", {place: layer}, {}, 1e-5)], tmp_path / "weak")
    assert strong.kept > 0.999 and weak.kept < 0.8


def bad_bakes(base: Checkpoint) -> list[tuple[list[Added], str]]:
    place = Place("unet", "conv_in")
    good = layers_for(base)
    strange = Place("unet", "down_blocks.9.resnets.0.conv1")
    huge = {place: LowRank(torch.full((1, 4, 3, 3), 1e30), torch.full((32, 1, 1, 1), 1e30), 1.0)}
    wrong: dict[Place, Layer] = {place: LowRank(numbers(1, 5, 3, 3), numbers(32, 1, 1, 1), 1.0)}
    return [
        ([Added("x", {strange: good[place]}, {}, 1.0)], r"1 of 1 layers of x have no place in .*down_blocks\.9"),
        ([Added("x", good, {strange: numbers(4)}, 1.0)], "1 of 1 biases of x have no place"),
        ([Added("x", huge, {}, 1.0)], "the LoRAs are too strong"),
        ([Added("x", wrong, {}, 1.0)], "x does not fit the model: conv_in"),
        ([Added("x", {}, {}, 1.0)], "change nothing"),
    ]


def test_bad_bakes_end_in_words_and_leave_nothing(base_path: Path, tmp_path: Path) -> None:
    with Checkpoint(base_path) as base:
        for added, words in bad_bakes(base):
            with pytest.raises(Unfit, match=words):
                bake(base, added, tmp_path / "new")
        good = [Added("x", layers_for(base), {}, 1.0)]
        (tmp_path / "there").mkdir()
        with pytest.raises(RefusedPath, match="there already"):
            bake(base, good, tmp_path / "there")
        control = TaskControl()
        control.cancel()
        with pytest.raises(Cancelled):
            bake(base, good, tmp_path / "new", control=control)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_model_that_reads_back_wrong_is_deleted(
    base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back something else than was written is found out."""

    class Liar(Checkpoint):
        def weight(self, module: Place) -> Tensor:
            return super().weight(module) + 0.01

    with Checkpoint(base_path) as base:
        monkeypatch.setattr(baking, "Checkpoint", Liar)
        with pytest.raises(Exception, match="reads back as something else"):
            bake(base, [Added("x", layers_for(base), {}, 1.0)], tmp_path / "new.safetensors")
    assert not list(tmp_path.iterdir())
