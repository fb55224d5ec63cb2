"""Reads and checks the header of a .safetensors file without loading it; recognises and refuses everything else.

The format: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format). The rules are the library's own and those that it leaves out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from security.configs import parse_json
from security.errors import RefusedConfig, RefusedFile
from security.policy import (
    MAX_HEADER_BYTES,
    MAX_TENSOR_DIMENSIONS,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    MAX_WEIGHT_METADATA_BYTES,
    PICKLE_SUFFIXES,
)
from security.sniff import PICKLED, SNIFF_BYTES, Kind, open_regular, sniff, sniff_file

FINITE_CHUNK_BYTES = 1 << 22
"""How much `check_finite` holds at a time."""
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element of every dtype of safetensors 0.8."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its dtype as safetensors writes it ("F16"), its shape, its bytes in the file and where they start.

    `start` counts from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    start: int


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """What a safetensors file says it holds: tensors by name in the order of the header, and free text about them."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def check_safetensors(path: Path) -> WeightsHeader:
    """Reads the header of a safetensors file and checks it against the file. Takes milliseconds, whatever the size.

    Raises RefusedFile that names the file, what is wrong and, for other formats, what it is instead.
    """
    file_name = path.name
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        text = _read_header(file, size, file_name)
    header = _parse_header(text, file_name)
    metadata = _checked_metadata(header.pop("__metadata__", {}), file_name)
    if not header:
        raise RefusedFile(f"{file_name} holds no tensors. Download or export it again.")
    if len(header) > MAX_TENSORS:
        raise RefusedFile(f"{file_name} lists {len(header)} tensors; no model has over {MAX_TENSORS}.")
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], span = _checked_tensor(name, entry, file_name)
        spans.append(span)
    end = _checked_spans(spans, file_name)
    expected = 8 + len(text) + end
    if size != expected:
        state = "cut off: download it again" if size < expected else "followed by bytes that belong to no tensor"
        raise RefusedFile(f"{file_name} has {size} bytes, its header describes {expected}. It is {state}.")
    return WeightsHeader(tensors, metadata)


def refuse_pickle(path: Path) -> None:
    """Raises RefusedFile if the file's ending or first bytes say that it may hold a pickle, which can run code."""
    content = sniff_file(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        meaning = f"a {path.suffix} file"
    elif content.kind in PICKLED:
        meaning = content.words
    else:
        return
    raise RefusedFile(
        f"{path.name} is {meaning}, a format that can run code when opened. Get the .safetensors version of the model, or "
        "have a PyTorch checkpoint converted in a sandbox (on the Models tab, or `python launch.py convert FILE`)."
    )


_MASKS = ("attn_mask", "causal_mask")
"""Ends of the names of attention masks, which are minus infinity above the diagonal, as OpenCLIP writes them."""


def check_finite(path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Reads all numbers of a checked safetensors file; one NaN or infinity in a model spoils every loss.

    A boolean must be stored as 0 or 1. Reads at most FINITE_CHUNK_BYTES at a time, at about the speed of the disk, so
    do it once for each content. `progress` is told the bytes read so far. Raises RefusedFile that names the first bad
    tensor, and as `check_safetensors`.
    """
    header = check_safetensors(path)
    done = 0
    with open_regular(path) as file:
        file.seek(os.fstat(file.fileno()).st_size - sum(tensor.num_bytes for tensor in header.tensors.values()))
        for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].start):
            for size in _chunk_sizes(tensor.num_bytes):
                data = file.read(size)
                if len(data) != size:
                    raise RefusedFile(f"{path.name} became shorter while it was read. Copy or download it again.")
                if not (is_finite(tensor.dtype, data) or name.endswith(_MASKS)):
                    raise RefusedFile(
                        f"{path.name} holds values in the tensor {name} that are no numbers (NaN, infinity or a broken "
                        "flag). Training with it would fail. Download it again, or take another model."
                    )
                done += size
                if progress is not None:
                    progress(done)


def is_finite(dtype: str, data: bytes) -> bool:
    """Whether `data`, whole values of a dtype of DTYPE_BITS, holds neither NaN nor infinity, and flags of 0 and 1 only."""
    is_sound = _SOUND.get(dtype)
    return is_sound is None or is_sound(data)


def _chunk_sizes(num_bytes: int) -> Iterator[int]:
    """Sizes of the pieces that a tensor is read in."""
    for start in range(0, num_bytes, FINITE_CHUNK_BYTES):
        yield min(FINITE_CHUNK_BYTES, num_bytes - start)


def _exponents_below_all_ones(dtype: str, mask: int) -> Callable[[bytes], bool]:
    """A test of floats whose exponent bits, all set, mean NaN or infinity. Far faster than asking each for isfinite."""

    def is_sound(data: bytes) -> bool:
        values = np.frombuffer(data, dtype)
        return bool((np.bitwise_and(values, mask) != mask).all())

    return is_sound


def _has_none_of(*bad: int) -> Callable[[bytes], bool]:
    """A test of one-byte values."""

    def is_sound(data: bytes) -> bool:
        return not any(bytes([value]) in data for value in bad)

    return is_sound


_SOUND: dict[str, Callable[[bytes], bool]] = {
    "F16": _exponents_below_all_ones("<u2", 0x7C00),
    "BF16": _exponents_below_all_ones("<u2", 0x7F80),
    "F32": _exponents_below_all_ones("<u4", 0x7F80_0000),
    "F64": _exponents_below_all_ones("<u8", 0x7FF0_0000_0000_0000),
    "C64": _exponents_below_all_ones("<u4", 0x7F80_0000),
    "F8_E4M3": _has_none_of(0x7F, 0xFF),
    "F8_E5M2": _has_none_of(*range(0x7C, 0x80), *range(0xFC, 0x100)),
    "F8_E4M3FNUZ": _has_none_of(0x80),
    "F8_E5M2FNUZ": _has_none_of(0x80),
    "F8_E8M0": _has_none_of(0xFF),
    "BOOL": lambda data: not data.translate(None, b"\0\1"),
}
"""Whether the bytes of one dtype hold only finite numbers. Whole numbers and the 4- and 6-bit floats always do.

The 8-bit floats: OCP Microscaling Formats 1.0, section 5.3, and arXiv 2206.02915 for the FNUZ kinds.
"""


def _read_header(file: BinaryIO, size: int, name: str) -> bytes:
    """The JSON bytes of the header."""
    start = file.read(SNIFF_BYTES)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES or start[8:9] != b"{":
        content = sniff(start)
        if content.kind not in (Kind.UNKNOWN, Kind.SAFETENSORS):
            raise RefusedFile(f"{name} is {content.words}. Only .safetensors files can be used.")
        if size == 0:
            raise RefusedFile(f"{name} is empty. Download it again.")
        if size >= 8 and MAX_HEADER_BYTES < length <= size - 8:
            raise RefusedFile(f"{name} has a header of {length} bytes; {MAX_HEADER_BYTES} are allowed.")
        if size > 8 and start[8:9] == b"{" and size - 8 < length <= MAX_HEADER_BYTES:
            raise RefusedFile(f"{name} is cut off inside its header. Download it again.")
        raise RefusedFile(f"{name} is not a safetensors file, whatever its ending says.")
    # Files of 2022, the first Stable Diffusion models among them, have headers whose length is no multiple of 8.
    # The tensors in them load all the same, so alignment is not required.
    file.seek(8)
    return file.read(length)


def _parse_header(text: bytes, name: str) -> dict[str, Any]:
    try:
        return parse_json(text.decode(), f"The header of {name}")
    except UnicodeDecodeError:
        raise RefusedFile(f"The header of {name} is not UTF-8 text. Download or export it again.") from None
    except RefusedConfig as error:
        raise RefusedFile(str(error)) from None


def _checked_metadata(metadata: object, name: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RefusedFile(f"The metadata of {name} is not a table of texts. Export it again.")
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_WEIGHT_METADATA_BYTES:
        raise RefusedFile(f"The metadata of {name} has over {MAX_WEIGHT_METADATA_BYTES} characters. Export it again.")
    return metadata


def _checked_tensor(key: str, entry: object, name: str) -> tuple[TensorInfo, tuple[int, int]]:
    """One tensor's facts and the first and last byte offset of its data."""
    if not key or not key.isprintable() or len(key.encode("utf-8", "surrogatepass")) > MAX_TENSOR_NAME_BYTES:
        shown = key[:80].encode("ascii", "backslashreplace").decode()
        raise RefusedFile(f"{name} has the tensor name {shown!r}: empty, too long or with control characters.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise RefusedFile(f"{name} describes the tensor {key} in an unknown way. Export it again.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise RefusedFile(f"{name} has the tensor {key} of the unknown type {str(dtype)[:40]!r}.")
    if not _are_sizes(shape) or len(shape) > MAX_TENSOR_DIMENSIONS:
        raise RefusedFile(f"{name} has the tensor {key} with the impossible shape {str(shape)[:80]}.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RefusedFile(f"{name} has the tensor {key} with impossible offsets {str(offsets)[:80]}.")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    num_bytes = offsets[1] - offsets[0]
    if bits != num_bytes * 8:
        raise RefusedFile(f"{name} gives {num_bytes} bytes to the tensor {key}; {dtype} {shape} needs {bits / 8:g}.")
    return TensorInfo(dtype, tuple(shape), num_bytes, offsets[0]), (offsets[0], offsets[1])


def _are_sizes(values: object) -> bool:
    """True for a list of whole numbers from 0 to 2^53. A bool is an int in Python, and 1.0 is none in JSON."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= 2**53 for value in values)


def _checked_spans(spans: list[tuple[int, int]], name: str) -> int:
    """Where the data ends, in bytes after the header, once every span starts where the one before ends."""
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            fault = "overlap" if start < end else "leave a gap"
            raise RefusedFile(f"The tensors of {name} {fault} at byte {min(start, end)}. Download or export it again.")
        end = stop
    return end
