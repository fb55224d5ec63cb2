"""Reads and writes .safetensors files tensor by tensor, so that a checkpoint of 7 GB needs the memory of one tensor.

A new file appears under its name whole or not at all, and never in the place of one that is there unless that is asked for.
The hash of the tensors' bytes, which training tools keep in the header, is worked out on the way and filled in at the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from security.errors import RefusedFile, SafelightError
from security.integrity import OWN_HASH_ENTRIES, sha256_of
from security.roots import refuse_full_disk
from security.sniff import open_regular
from security.weights import TensorInfo, WeightsHeader, check_safetensors
from trainer.lora_files.placing import file_beside

CHUNK_BYTES = 1 << 22
ALIGNMENT = 8
"""Headers are filled up with spaces to a multiple of this many bytes, as the library does it."""
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The formats of weights that are computed with; tensors of other formats are only copied."""
STALE_ENTRIES = ("sshs_legacy_hash",)
"""Hashes of old tools over a fixed stretch of the file, which another header moves: nobody can tell them anew."""

Progress = Callable[[int, int], None]
"""Told the bytes that are done and all of them. It may raise Cancelled, which leaves nothing behind."""


class WeightsReader:
    """An open .safetensors file whose header was checked. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Raises RefusedFile for anything that is no sound .safetensors file."""
        self.path = path
        self.header: WeightsHeader = check_safetensors(path)
        self._file: BinaryIO = open_regular(path)
        data = sum(tensor.num_bytes for tensor in self.header.tensors.values())
        self._start = os.fstat(self._file.fileno()).st_size - data

    def __enter__(self) -> WeightsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def chunks(self, key: str) -> Iterable[bytes]:
        """The bytes of a tensor, a few megabytes at a time."""
        info = self.header.tensors[key]
        self._file.seek(self._start + info.start)
        left = info.num_bytes
        while left:
            data = self._file.read(min(left, CHUNK_BYTES))
            if not data:
                raise RefusedFile(f"{self.path.name} became shorter while it was read. Copy or download it again.")
            left -= len(data)
            yield data

    def tensor(self, key: str) -> Tensor:
        """A tensor in the file's own number format. Raises RefusedFile for formats that nothing is computed in."""
        info = self.header.tensors[key]
        if info.dtype not in DTYPES:
            raise RefusedFile(
                f"{self.path.name} stores {key} as {info.dtype}, a packed format. Use the fp16, bf16 or fp32 version."
            )
        data = bytearray().join(self.chunks(key))
        if not data:
            return torch.zeros(info.shape, dtype=DTYPES[info.dtype])
        return torch.frombuffer(data, dtype=DTYPES[info.dtype]).reshape(info.shape)


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor on the CPU, in its own format."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Written:
    """A file that was written: `tensors_sha256` is of everything behind the header, `sha256` of the whole file."""

    path: Path
    num_bytes: int
    tensors_sha256: str
    sha256: str


def write_weights(
    target: Path,
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    data_of: Callable[[str], Iterable[bytes]],
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes a .safetensors file with these tensors (formats and shapes; `start` is worked out anew) and their bytes.

    The metadata gets the hash of the tensors. Bytes are read back from the disk and compared. Raises SafelightError when
    the disk is too full or gives back other bytes, and RefusedPath for a name that is taken, unless `replace`.
    """
    # As many signs as the hash has, so that the header keeps its length. Nothing else in it can be equal.
    placeholder = secrets.token_hex(32)
    kept = {key: value for key, value in metadata.items() if key not in STALE_ENTRIES}
    entries = kept | dict(zip(OWN_HASH_ENTRIES, (f"0x{placeholder}", placeholder), strict=True))
    header = _header(tensors, entries)
    total = sum(info.num_bytes for info in tensors.values())
    with file_beside(target, replace=replace) as temporary:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(len(header).to_bytes(ALIGNMENT, "little") + header)
            digest = _write_data(file, tensors, data_of, progress, total)
            file.seek(ALIGNMENT)
            file.write(header.replace(placeholder.encode(), digest.encode()))
            file.flush()
            os.fsync(file.fileno())
        if sha256_of(temporary, ALIGNMENT + len(header)) != digest:
            raise SafelightError(
                f"The disk gave back other bytes than were written to {target.name}. Use another disk."
            )
        written = Written(target, ALIGNMENT + len(header) + total, digest, sha256_of(temporary))
    return written


def _write_data(
    file: BinaryIO,
    tensors: Mapping[str, TensorInfo],
    data_of: Callable[[str], Iterable[bytes]],
    progress: Progress | None,
    total: int,
) -> str:
    digest = hashlib.sha256()
    done = 0
    for key, info in tensors.items():
        written = 0
        for data in data_of(key):
            file.write(data)
            digest.update(data)
            written += len(data)
            if progress is not None:
                progress(done + written, total)
        assert written == info.num_bytes, f"{key} has {written} bytes instead of {info.num_bytes}"
        done += written
    return digest.hexdigest()


def _header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    values: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for key, info in tensors.items():
        offsets = [start, start + info.num_bytes]
        values[key] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
        start += info.num_bytes
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def copy_weights(
    source: Path,
    target: Path,
    metadata: Mapping[str, str],
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes the tensors of a checked file once more, byte by byte as they are, with other metadata.

    Raises as `write_weights`, and RefusedFile for a source that is no sound .safetensors file.
    """
    refuse_full_disk(target.parent, [source])
    # The source is closed before the new file gets its name: Windows replaces no file that is open for reading.
    with file_beside(target, replace=replace) as beside, WeightsReader(source) as reader:
        tensors = dict(sorted(reader.header.tensors.items(), key=lambda item: item[1].start))
        written = write_weights(beside, tensors, metadata, reader.chunks, progress=progress)
    return dataclasses.replace(written, path=target)
