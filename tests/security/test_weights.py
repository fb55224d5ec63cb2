"""The header check of safetensors files: agrees with the library on good files, is stricter on bad ones."""

from __future__ import annotations

import json
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from security.errors import RefusedFile
from security.weights import DTYPE_BITS, TensorInfo, check_safetensors, refuse_pickle
from tests.security.weight_files import entry, write_one_tensor, write_raw, write_weights

ONE = {"a": entry("F32", [2], 0, 8)}


def test_reads_tensors_and_metadata_without_loading(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt", "ss_note": "ü"},
        "b": entry("BF16", [2, 4], 4, 20),
        "a": entry("F32", [], 0, 4),
        "v_pred": entry("F32", [0], 20, 20),
    }
    found = check_safetensors(write_weights(tmp_path / "m.safetensors", header, 20))
    assert found.metadata == {"format": "pt", "ss_note": "ü"}
    assert list(found.tensors) == ["b", "a", "v_pred"]
    assert found.tensors["b"] == TensorInfo("BF16", (2, 4), 16)
    assert found.tensors["v_pred"] == TensorInfo("F32", (0,), 0)


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_of_the_library_is_known_with_its_size(tmp_path: Path, dtype: str) -> None:
    path = write_weights(tmp_path / "m.safetensors", {"a": entry(dtype, [8], 0, DTYPE_BITS[dtype])}, DTYPE_BITS[dtype])
    with safe_open(path, "np") as library:
        assert list(library.keys()) == ["a"]
    assert check_safetensors(path).tensors["a"].num_bytes == DTYPE_BITS[dtype]


def test_a_header_of_2022_without_padding_is_accepted(tmp_path: Path) -> None:
    header = json.dumps(ONE).encode()
    header += b" " * ((3 - len(header)) % 8)
    assert len(header) % 8 == 3
    assert check_safetensors(write_raw(tmp_path / "m.safetensors", header, bytes(8))).tensors


BAD_HEADERS: dict[str, tuple[dict[str, Any] | str, int, str]] = {
    "no tensors": ({}, 0, "no tensors"),
    "metadata only": ({"__metadata__": {"a": "b"}}, 0, "no tensors"),
    "unknown dtype": ({"a": entry("F8_E9", [8], 0, 8)}, 8, "unknown type"),
    "dtype is a list": ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, 8, "unknown type"),
    "shape and bytes differ": ({"a": entry("F32", [3], 0, 8)}, 8, "needs 12"),
    "more bytes than the shape": ({"a": entry("F32", [1], 0, 8)}, 8, "needs 4"),
    "half a byte": ({"a": entry("F4", [3], 0, 1)}, 1, "needs 1.5"),
    "negative shape": ({"a": entry("F32", [-2], 0, 8)}, 8, "impossible shape"),
    "shape of floats": ('{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', 8, "impossible shape"),
    "shape of bools": ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', 4, "impossible shape"),
    "nine dimensions": ({"a": entry("F32", [1] * 9, 0, 4)}, 4, "impossible shape"),
    "astronomic shape": ({"a": entry("F32", [2**60, 0], 0, 0)}, 0, "impossible shape"),
    "end before start": ({"a": entry("F32", [2], 8, 0)}, 8, "impossible offsets"),
    "three offsets": ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}}', 8, "impossible offsets"),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlap at byte 4"),
    "same bytes twice": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, 8, "overlap"),
    "hole": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, 20, "gap at byte 8"),
    "hole at the start": ({"a": entry("F32", [2], 4, 12)}, 12, "gap at byte 0"),
    "cut off": (ONE, 7, "cut off"),
    "bytes after the end": (ONE, 9, "belong to no tensor"),
    "unknown field": ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"code":"x"}}', 8, "unknown way"),
    "entry is a list": ('{"a":[1]}', 0, "unknown way"),
    "metadata with a number": ({"__metadata__": {"a": 1}, **ONE}, 8, "table of texts"),
    "metadata is a text": ({"__metadata__": "x", **ONE}, 8, "table of texts"),
    "metadata too large": ({"__metadata__": {"a": "x" * 9_000_000}, **ONE}, 8, "metadata"),
    "tensor twice": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],'
                     '"data_offsets":[0,1]}}', 1, "'a' twice"),
    "metadata twice": ('{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1,
                       "'k' twice"),
    "control character in a name": ({"a\x1b[31m": entry("U8", [1], 0, 1)}, 1, "tensor name"),
    "newline in a name": ({"a\nb": entry("U8", [1], 0, 1)}, 1, "tensor name"),
    "empty name": ({"": entry("U8", [1], 0, 1)}, 1, "tensor name"),
    "long name": ({"a" * 513: entry("U8", [1], 0, 1)}, 1, "tensor name"),
    "NaN": ('{"a":NaN}', 0, "NaN"),
    "list": ("[]", 0, "not a safetensors file"),
    "text after the JSON": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} x', 1, "not valid JSON"),
    "white space in front": (" " + json.dumps(ONE), 8, "not a safetensors file"),
    "deep nesting": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 0, "nested"),
    "20001 tensors": ({f"t{number}": entry("U8", [0], 0, 0) for number in range(20_001)}, 0, "20001 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_refuses_a_bad_header_and_says_why(tmp_path: Path, case: str) -> None:
    header, num_bytes, reason = BAD_HEADERS[case]
    path = write_weights(tmp_path / "some.safetensors", header, num_bytes)
    with pytest.raises(RefusedFile, match=reason) as refusal:
        check_safetensors(path)
    assert "some.safetensors" in str(refusal.value)
    assert len(str(refusal.value)) < 800


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "seven bytes": (b"1234567", "not a safetensors file"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2) + bytes(99), "Python pickle"),
    "zip": (b"PK\x03\x04" + bytes(99), "PyTorch checkpoint"),
    "gguf": (b"GGUF" + bytes(99), "GGUF"),
    "web page": (b"<!DOCTYPE html><html>please log in</html>", "web page"),
    "web page after spaces": (b"\n\n  <html>" + bytes(99), "web page"),
    "json": (b'{"error": "not found", "message": "no"}', "JSON"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "never downloaded"),
    "program": (b"\x7fELF" + bytes(99), "a program"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture"),
    "header cut off": ((200).to_bytes(8, "little") + b'{"a":', "cut off inside its header"),
    "header not UTF-8": ((8).to_bytes(8, "little") + b'{"\xff\xfe":1}', "not UTF-8"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_names_what_a_wrong_file_is(tmp_path: Path, case: str) -> None:
    data, reason = OTHER_FILES[case]
    path = tmp_path / "some.safetensors"
    path.write_bytes(data)
    with pytest.raises(RefusedFile, match=reason):
        check_safetensors(path)


def test_refuses_a_huge_header_before_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    with path.open("wb") as file:
        file.write((17 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(18 * 2**20)
    with pytest.raises(RefusedFile, match="header of 17825792 bytes"):
        check_safetensors(path)


def test_refuses_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match="not a regular file"):
        check_safetensors(tmp_path)
    with pytest.raises(RefusedFile, match="cannot be read"):
        check_safetensors(tmp_path / "missing.safetensors")


def test_a_header_of_a_large_model_takes_milliseconds(tmp_path: Path) -> None:
    header = {f"unet.blocks.{n}.attention.to_q.weight": entry("F16", [8], 16 * n, 16 * n + 16) for n in range(2500)}
    path = write_weights(tmp_path / "m.safetensors", header, 16 * 2500)
    times = []
    for _ in range(5):
        start = time.process_time()
        check_safetensors(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def test_refuse_pickle_goes_by_ending_and_by_content(tmp_path: Path) -> None:
    for name in ("model.ckpt", "MODEL.PT", "a.pth", "a.bin", "a.pkl"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(RefusedFile, match=r"Get the \.safetensors version"):
            refuse_pickle(tmp_path / name)
    disguised = tmp_path / "model.safetensors"
    with zipfile.ZipFile(disguised, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(1))
    with pytest.raises(RefusedFile, match="PyTorch checkpoint"):
        refuse_pickle(disguised)
    disguised.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(RefusedFile, match="Python pickle"):
        refuse_pickle(disguised)
    refuse_pickle(write_one_tensor(tmp_path / "good.safetensors"))
