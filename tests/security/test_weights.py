"""The header check of safetensors files: agrees with the library on good files, is stricter on bad ones."""

from __future__ import annotations

import json
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from security import weights
from security.errors import RefusedFile
from security.weights import DTYPE_BITS, TensorInfo, check_finite, check_safetensors, refuse_pickle
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
    assert found.tensors["b"] == TensorInfo("BF16", (2, 4), 16, start=4)
    assert found.tensors["v_pred"] == TensorInfo("F32", (0,), 0, start=20)


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
    "shape of less than nothing": ('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', 0, "impossible shape"),
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
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
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


@pytest.mark.parametrize("length", [128, 384, 640])
def test_a_header_that_begins_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    header = json.dumps(ONE).encode()
    path = write_raw(tmp_path / "m.safetensors", header + b" " * (length - len(header)), bytes(8))
    assert path.read_bytes()[:2] in (b"\x80\x00", b"\x80\x01", b"\x80\x02")
    refuse_pickle(path)
    assert check_safetensors(path).tensors


def test_the_metadata_table_twice_is_refused(tmp_path: Path) -> None:
    text = '{"__metadata__":{"a":"1"},"__metadata__":{"b":"1"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(RefusedFile, match="'__metadata__' twice"):
        check_safetensors(write_weights(tmp_path / "m.safetensors", text, 1))


FLOATS: dict[str, tuple[torch.dtype, list[str]]] = {
    "F16": (torch.float16, ["nan", "inf", "-inf"]),
    "BF16": (torch.bfloat16, ["nan", "inf", "-inf"]),
    "F32": (torch.float32, ["nan", "inf", "-inf"]),
    "F64": (torch.float64, ["nan", "inf", "-inf"]),
    "F8_E4M3": (torch.float8_e4m3fn, ["nan"]),
    "F8_E5M2": (torch.float8_e5m2, ["nan", "inf", "-inf"]),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, ["nan"]),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, ["nan"]),
    "F8_E8M0": (torch.float8_e8m0fnu, ["nan"]),
}


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_every_value_that_is_no_number_is_found_and_no_other(tmp_path: Path, dtype: str) -> None:
    """Against torch: every bit pattern of the dtype (of wide ones: the edges) is judged as torch judges it."""
    kind, specials = FLOATS[dtype]
    width = DTYPE_BITS[dtype] // 8
    edges = torch.finfo(kind)
    values = [edges.max, edges.tiny, 1.0] if dtype == "F8_E8M0" else [edges.max, edges.min, edges.tiny, 0.0, -1.0]
    good = torch.tensor(values, dtype=torch.float64).to(kind)
    assert torch.isfinite(good.to(torch.float64)).all()
    path = tmp_path / "m.safetensors"
    save_file({"good": good}, path)
    check_finite(path)
    for special in specials:
        bad = torch.tensor([1.0, float(special)], dtype=torch.float64).to(kind)
        save_file({"aa": good, "spoiled": bad}, path)
        with pytest.raises(RefusedFile, match=r"m\.safetensors holds values in the tensor spoiled"):
            check_finite(path)
    if width == 1:
        for pattern in range(256):
            is_finite = bool(
                torch.isfinite(torch.tensor([pattern], dtype=torch.uint8).view(kind).to(torch.float64)).all()
            )
            assert weights.is_finite(dtype, bytes([1, pattern, 1])) == is_finite, hex(pattern)


def test_the_last_value_of_a_large_tensor_is_looked_at(tmp_path: Path) -> None:
    size = weights.FINITE_CHUNK_BYTES + 4
    header = {"a": entry("F32", [size // 4], 0, size), "b": entry("U8", [3], size, size + 3)}
    path = write_raw(tmp_path / "m.safetensors", json.dumps(header).encode(), bytes(size) + b"\xff\xff\xff")
    read: list[int] = []
    check_finite(path, read.append)
    assert read == [weights.FINITE_CHUNK_BYTES, size, size + 3]
    with path.open("r+b") as file:
        file.seek(-7, 2)
        file.write(b"\0\0\x80\x7f")
    with pytest.raises(RefusedFile, match="the tensor a "):
        check_finite(path)


def test_a_flag_is_stored_as_zero_or_one(tmp_path: Path) -> None:
    header = json.dumps({"mask": entry("BOOL", [3], 0, 3)}).encode()
    check_finite(write_raw(tmp_path / "m.safetensors", header, b"\0\1\1"))
    with pytest.raises(RefusedFile, match="the tensor mask "):
        check_finite(write_raw(tmp_path / "m.safetensors", header, b"\0\1\2"))


def test_an_attention_mask_may_be_infinite(tmp_path: Path) -> None:
    header = json.dumps({"text.attn_mask": entry("F32", [2], 0, 8)}).encode()
    check_finite(write_raw(tmp_path / "m.safetensors", header, b"\0\0\x80\xff" * 2))
    header = json.dumps({"text.attn_weight": entry("F32", [2], 0, 8)}).encode()
    with pytest.raises(RefusedFile, match=r"text\.attn_weight"):
        check_finite(write_raw(tmp_path / "m.safetensors", header, b"\0\0\x80\xff" * 2))
