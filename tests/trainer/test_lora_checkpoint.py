"""Base models read weight by weight: a folder and a single file give the same weights under the same names; and files
written tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from security.errors import Cancelled, RefusedFile, RefusedPath
from security.integrity import check_own_hash, sha256_of
from security.weights import check_safetensors
from tests import tiny
from trainer.families.base import ModelFamily
from trainer.lora_files import streaming
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.names import Place
from trainer.lora_files.streaming import WeightsReader, copy_weights, write_weights


@pytest.fixture(scope="module")
def single_file(folder: Path) -> Path:
    return tiny.as_single_file(folder)


def test_both_forms_have_every_weight_of_the_networks(folder: Path, single_file: Path, family: ModelFamily) -> None:
    """The networks themselves say which modules there are and what is in them; nothing is missing, nothing is more."""
    components = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)
    expected = {}
    for part, network in components.modules().items():
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and part != "vae":
                full = name if part == "unet" or name == "text_projection" else f"text_model.{name}"
                expected[Place(part, full.replace("text_model.text_model.", "text_model."))] = module.weight
    for path in (folder, single_file):
        with Checkpoint(path) as checkpoint:
            assert set(checkpoint.modules()) == set(expected), path
            for place in checkpoint.modules():
                assert checkpoint.shape(place) == tuple(expected[place].shape)
                assert torch.equal(checkpoint.weight(place), expected[place]), place


def test_sd15_file_without_text_model_in_its_names(tmp_path: Path) -> None:
    folder = tiny.tiny_sd15(tmp_path / "model")
    with Checkpoint(tiny.as_single_file(folder, text_model_prefix=False)) as plain, Checkpoint(folder) as checkpoint:
        assert list(plain.modules()) == list(checkpoint.modules())


def test_other_files_are_no_checkpoint(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_conv_in.lora_down.weight": torch.zeros(2)}, lora)
    with pytest.raises(Exception, match="a LoRA, not a base model"):
        Checkpoint(lora)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}.")
    with pytest.raises(RefusedFile, match="can run code"):
        Checkpoint(tmp_path / "model.ckpt")


# ---- writing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.tensor(0.7),
        "half": torch.randn(3, 4).half(),
        "wide": torch.randn(2, 2).bfloat16(),
        "eight": torch.randn(4).to(torch.float8_e4m3fn),
        "empty": torch.tensor([]),
        "flags": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "source.safetensors", metadata={"format": "pt", "old": "x"})
    return tmp_path / "source.safetensors"


def test_copy_has_the_same_tensors_and_a_hash_that_fits(source: Path, tmp_path: Path) -> None:
    told = []
    written = copy_weights(
        source, tmp_path / "new.safetensors", {"title": "é\n"}, progress=lambda *now: told.append(now)
    )
    before, after = load_file(source), load_file(written.path)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value.float(), after[key].float()), key
    metadata = check_safetensors(written.path).metadata
    assert metadata["title"] == "é\n" and "old" not in metadata
    assert check_own_hash(written.path) and metadata["sshs_model_hash"] == written.tensors_sha256
    assert written.sha256 == sha256_of(written.path) and written.num_bytes == written.path.stat().st_size
    assert told[-1][0] == told[-1][1]
    with safe_open(written.path, "pt") as file:  # the library's own reader takes it too
        assert set(file.keys()) == set(before)


def test_reader_gives_tensors_as_they_are_stored(source: Path) -> None:
    expected = load_file(source)
    with WeightsReader(source) as reader:
        for key in ("a", "b", "half", "wide", "eight", "empty"):
            assert reader.tensor(key).dtype == expected[key].dtype
            assert torch.equal(reader.tensor(key).float(), expected[key].float())
        with pytest.raises(RefusedFile, match="flags as BOOL"):
            reader.tensor("flags")


def test_no_file_is_replaced_unless_asked(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(RefusedPath, match="there already"):
        copy_weights(source, target, {})
    assert target.read_bytes() == b"mine"
    copy_weights(source, target, {}, replace=True)
    assert load_file(target).keys() == load_file(source).keys()


def test_name_that_was_taken_meanwhile_is_not_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.safetensors"
    with WeightsReader(source) as reader, pytest.raises(RefusedPath, match="there already"):

        def data_of(key: str) -> Iterable[bytes]:
            target.write_bytes(b"mine")
            return reader.chunks(key)

        write_weights(target, reader.header.tensors, {}, data_of)
    assert target.read_bytes() == b"mine" and sorted(tmp_path.iterdir()) == [source, target]


def test_nothing_is_left_of_a_file_that_was_given_up(source: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        copy_weights(source, tmp_path / "new.safetensors", {}, progress=stop)
    assert list(tmp_path.iterdir()) == [source]


def test_file_that_shrinks_meanwhile_ends_in_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 8)
    with WeightsReader(source) as reader, pytest.raises(RefusedFile, match="became shorter"):

        def data_of(key: str) -> Iterable[bytes]:
            with source.open("r+b") as file:
                file.truncate(source.stat().st_size - 40)
            return reader.chunks(key)

        write_weights(tmp_path / "new.safetensors", reader.header.tensors, {}, data_of)
    assert list(tmp_path.iterdir()) == [source]
