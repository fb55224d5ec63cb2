"""Checks an ONNX model before anything opens it: the bytes that were pinned, and nothing that lies in other files.

ONNX tensors may point to any file by its path ("external data"), and libraries have followed such paths out of the
model's folder again and again. Single-file models do not need it, so it is refused wherever it can stand.
The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, in protobuf's encoding.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from security.errors import RefusedFile
from security.policy import MAX_ONNX_BYTES

_MAX_DEPTH = 40
"""Messages within messages; graphs within graphs (loops, branches) of real models stay under twenty."""

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""Protobuf's ways to write a field. Groups (3 and 4) were given up in 2008."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of TensorProto. A location other than 0 means that the numbers are elsewhere."""

MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "training", 25: "function", 26: "leaf"},
    "graph": {
        1: "node", 5: "tensor", 11: "leaf", 12: "leaf", 13: "leaf", 14: "leaf", 15: "sparse", 16: "leaf",
    },
    "node": {5: "attribute", 9: "leaf", 10: "leaf"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "leaf", 15: "leaf", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph", 3: "leaf", 4: "leaf"},
    "function": {7: "node", 9: "leaf", 11: "attribute", 12: "leaf", 14: "leaf"},
    "tensor": {3: "leaf", 16: "leaf"},
}  # fmt: skip
"""Which fields of a message hold messages, and of which kind. A leaf holds no tensor, whatever is in it."""
SCALARS: dict[str, frozenset[int]] = {
    "model": frozenset({1, 2, 3, 4, 5, 6}),
    "graph": frozenset({2, 10}),
    "node": frozenset({1, 2, 3, 4, 6, 7, 8}),
    "attribute": frozenset({1, 2, 3, 4, 7, 8, 9, 13, 20, 21}),
    "sparse": frozenset({3}),
    "training": frozenset(),
    "function": frozenset({1, 4, 5, 6, 8, 10, 13}),
    "tensor": frozenset({1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}),
}
"""The other fields, numbers and texts. A field that is in neither table is unknown here and may be anything."""


def check_onnx(path: Path, sha256: str) -> bytes:
    """Reads an ONNX model and returns its bytes, which are to be loaded in place of the path.

    `sha256`: 64 hexadecimal digits that the program, not the download, brings. Raises RefusedFile for a file that is not
    exactly this one, too large, not ONNX, or that takes tensors from other files.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise RefusedFile(f"{path.name} has no pinned SHA-256 (64 small hexadecimal digits), so it is not opened.")
    data = read_onnx(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RefusedFile(
            f"{path.name} is not the file that was pinned: its SHA-256 is {found[:16]}…, not {sha256[:16]}…. "
            "Delete it and download it again."
        )
    check_onnx_bytes(data, path.name)
    return data


def check_onnx_bytes(data: bytes, name: str) -> None:
    """Walks the whole model. Raises RefusedFile that names it as `name`, for all that `check_onnx` refuses in bytes."""
    view = memoryview(data)
    top = {number for number, _, _ in _fields(view, name)}
    if not {1, 7} <= top:
        raise RefusedFile(f"{name} is not an ONNX model: it has no version or no graph.")
    todo: list[tuple[str, memoryview, int]] = [("model", view, 0)]
    while todo:
        kind, message, depth = todo.pop()
        if depth > _MAX_DEPTH:
            raise RefusedFile(f"{name} nests over {_MAX_DEPTH} messages in each other, which no ONNX model does.")
        for number, way, value in _fields(message, name):
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                raise RefusedFile(
                    f"{name} takes tensors from other files (external data). Use a model that is one single file."
                )
            below = MESSAGES[kind].get(number)
            if below is None and number not in SCALARS[kind]:
                raise RefusedFile(f"{name} has the unknown field {number} in a {kind}, so it cannot be checked.")
            if below is not None and below != "leaf":
                if way != _LENGTH or not isinstance(value, memoryview):
                    raise RefusedFile(f"{name} is not an ONNX model: a {below} is written as a number.")
                todo.append((below, value, depth + 1))


def read_onnx(path: Path) -> bytes:
    """The file's bytes, once it is known to be a regular file of a bearable size. Raises RefusedFile for any other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be opened: {error.strerror}. It must be a file, not a link.") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RefusedFile(f"{path.name} is not a regular file.")
        if status.st_size > MAX_ONNX_BYTES:
            raise RefusedFile(f"{path.name} has {status.st_size} bytes; {MAX_ONNX_BYTES} are allowed.")
        return file.read(MAX_ONNX_BYTES)


def _fields(message: memoryview, name: str) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, way and value of every field of a message, in its order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at, name)
        number, way = key >> 3, key & 7
        value: int | memoryview
        if way == _VARINT:
            value, at = _varint(message, at, name)
        elif way in (_EIGHT_BYTES, _FOUR_BYTES, _LENGTH):
            size = 8 if way == _EIGHT_BYTES else 4
            if way == _LENGTH:
                size, at = _varint(message, at, name)
            value = message[at : at + size]
            if len(value) != size:
                raise RefusedFile(f"{name} is not an ONNX model, or is cut off.")
            at += size
        else:
            raise RefusedFile(f"{name} is not an ONNX model.")
        if number == 0:
            raise RefusedFile(f"{name} is not an ONNX model.")
        yield number, way, value


def _varint(message: memoryview, at: int, name: str) -> tuple[int, int]:
    """A number of up to 64 bits at `at`, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise RefusedFile(f"{name} is not an ONNX model, or is cut off.")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise RefusedFile(f"{name} is not an ONNX model.")
