"""Writes safetensors files byte by byte, the right ones and every kind of wrong one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    """A file of the given header bytes and data; `length` replaces the true length of the header."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def write_weights(path: Path, header: dict[str, Any] | str, num_bytes: int) -> Path:
    """A file whose header is given as values or as JSON text, with `num_bytes` zeros as data."""
    text = header if isinstance(header, str) else json.dumps(header)
    return write_raw(path, text.encode(), bytes(num_bytes))


def write_one_tensor(path: Path) -> Path:
    """A correct file with the tensor "weight": (2, 3), F16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_weights(path, {"weight": entry("F16", [2, 3], 0, 12)}, 12)
