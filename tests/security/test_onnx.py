"""ONNX models: pinned bytes, one file, nothing that points elsewhere."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from security import onnx
from security.errors import RefusedFile
from security.onnx import check_onnx, check_onnx_bytes

# Two branches with a constant each, and an initializer; written by onnx 1.23, whose checker accepts it.
REAL = base64.b64decode(
    "CA4SDnNhZmVsaWdodC10ZXN0OoMCCrwBCgFjEgF5IgJJZipXCgtlbHNlX2JyYW5jaDJFCiwSAWsiCENvbnN0YW50Kh0KBXZhbHVl"
    "KhEIAhABQgFjSggAAIA/AACAP6ABBBIEdGhlbmIPCgFrEgoKCAgBEgQKAggCoAEFKlcKC3RoZW5fYnJhbmNoMkUKLBIBayIIQ29u"
    "c3RhbnQqHQoFdmFsdWUqEQgCEAFCAWNKCAAAgD8AAIA/oAEEEgR0aGVuYg8KAWsSCgoICAESBAoCCAKgAQUKDgoBeQoBdxIBeiID"
    "QWRkEgFnKhEIAhABQgF3SggAAAAAAACAP1oLCgFjEgYKBAgJEgBiDwoBehIKCggIARIECgIIAkICEBw="
)


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def model(*graph: bytes, more: bytes = b"") -> bytes:
    return number(1, 10) + message(7, *graph) + message(8, number(2, 21)) + more


def tensor(field: int, *parts: bytes) -> bytes:
    return message(field, number(1, 2), number(2, 1), message(9, bytes(8)), message(8, b"w"), *parts)


LOCATION = message(13, message(1, b"location"), message(2, b"../../secret"))
ELSEWHERE = LOCATION + number(14, 1)

GOOD: dict[str, bytes] = {
    "as onnx writes it": REAL,
    "an initializer": model(tensor(5)),
    "a location of 0": model(tensor(5, number(14, 0))),
    "an empty graph": model(),
    "an unpacked float": model(tensor(5, varint(4 << 3 | 5) + bytes(4))),
}

BAD: dict[str, bytes] = {
    "initializer": model(tensor(5, ELSEWHERE)),
    "a location without data": model(tensor(5, number(14, 1))),
    "an unknown location": model(tensor(5, number(14, 7))),
    "a location that is set twice": model(tensor(5, number(14, 1), number(14, 0))),
    "a location as 4 bytes": model(tensor(5, varint(14 << 3 | 5) + bytes([1, 0, 0, 0]))),
    "a location as 4 zero bytes": model(tensor(5, varint(14 << 3 | 5) + bytes(4))),
    "data without a location": model(tensor(5, LOCATION)),
    "a second graph": model(more=message(7, tensor(5, ELSEWHERE))),
    "sparse values": model(message(15, tensor(1, ELSEWHERE))),
    "sparse indices": model(message(15, tensor(2, ELSEWHERE))),
    "a node's constant": model(message(1, message(5, tensor(5, ELSEWHERE)))),
    "a node's list of tensors": model(message(1, message(5, tensor(10, ELSEWHERE)))),
    "a node's sparse tensor": model(message(1, message(5, message(22, tensor(1, ELSEWHERE))))),
    "a node's sparse tensors": model(message(1, message(5, message(23, tensor(1, ELSEWHERE))))),
    "a branch": model(message(1, message(5, message(6, tensor(5, ELSEWHERE))))),
    "one of several branches": model(message(1, message(5, message(11, tensor(5, ELSEWHERE))))),
    "a function": model(more=message(25, message(7, message(5, tensor(5, ELSEWHERE))))),
    "a function's default": model(more=message(25, message(11, tensor(5, ELSEWHERE)))),
    "training": model(more=message(20, message(1, tensor(5, ELSEWHERE)))),
    "training's algorithm": model(more=message(20, message(2, tensor(5, ELSEWHERE)))),
    "an unknown field of the model": model(more=message(99, tensor(5))),
    "an unknown field of a tensor": model(tensor(5, message(17, b"x"))),
    "a graph that is a number": number(1, 10) + number(7, 3),
    "no graph": number(1, 10),
    "no version": message(7, tensor(5)),
    "empty": b"",
    "a text": b"hello, this is no model",
    "a pickle": b"\x80\x02}q\x00.",
    "cut off": REAL[:-5],
    "a length past the end": number(1, 10) + varint(7 << 3 | 2) + varint(1000) + b"x",
    "a number without end": number(1, 10) + b"\xff" * 11,
    "a group": model(more=varint(30 << 3 | 3) + varint(30 << 3 | 4)),
    "field 0": model(more=b"\x00\x00"),
}
"""Models that point to other files from every place where a tensor can stand, and what is no model."""


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = message(1, message(5, message(6, graph)))
    return model(graph)


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_single_files_are_taken(data: bytes) -> None:
    check_onnx_bytes(data, "tagger.onnx")


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_models_that_need_other_files_and_other_things_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedFile, match=r"^tagger\.onnx "):
        check_onnx_bytes(data, "tagger.onnx")


def test_external_data_is_named_as_such() -> None:
    with pytest.raises(RefusedFile, match="external data"):
        check_onnx_bytes(BAD["a branch"], "tagger.onnx")


def test_nesting_has_an_end() -> None:
    check_onnx_bytes(nested(5), "tagger.onnx")
    with pytest.raises(RefusedFile, match="nests over"):
        check_onnx_bytes(nested(30), "tagger.onnx")


def test_any_cut_of_a_real_model_gives_an_answer() -> None:
    for end in range(len(REAL)):
        try:
            check_onnx_bytes(REAL[:end], "tagger.onnx")
        except RefusedFile:
            continue


def test_a_pinned_file_is_returned_as_it_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "tagger.onnx"
    path.write_bytes(REAL)
    assert check_onnx(path, hashlib.sha256(REAL).hexdigest()) == REAL


FAULTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "another file": (lambda path: "0" * 64, "not the file that was pinned"),
    "no pin": (lambda path: "", "no pinned SHA-256"),
    "a pin in capitals": (lambda path: hashlib.sha256(REAL).hexdigest().upper(), "no pinned SHA-256"),
}


@pytest.mark.parametrize(("pin", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_only_pinned_bytes_are_taken(tmp_path: Path, pin: Callable[[Path], str], words: str) -> None:
    path = tmp_path / "tagger.onnx"
    path.write_bytes(REAL)
    with pytest.raises(RefusedFile, match=words):
        check_onnx(path, pin(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_links_pipes_and_giants_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tagger.onnx"
    path.write_bytes(REAL)
    pin = hashlib.sha256(REAL).hexdigest()
    (tmp_path / "link.onnx").symlink_to(path)
    with pytest.raises(RefusedFile, match="not a link"):
        check_onnx(tmp_path / "link.onnx", pin)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(RefusedFile, match="not a regular file"):
        check_onnx(tmp_path / "pipe.onnx", pin)
    monkeypatch.setattr(onnx, "MAX_ONNX_BYTES", len(REAL) - 1)
    with pytest.raises(RefusedFile, match="are allowed"):
        check_onnx(path, pin)
