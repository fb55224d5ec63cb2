"""The description of one base model on disk, and the identity of its content that caches are keyed by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from security.roots import replace_file

FINGERPRINTS_FILE = "fingerprints.json"
"""Name of the file in the cache folder that remembers hashes, so that an unchanged 7 GB model is read once."""
SIDECAR_SUFFIX = ".config.json"
"""`x.config.json` beside `x.safetensors` sets what shapes can't tell, by part: {"unet": {"attention_head_dim": 4}}."""
TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")
VOCABULARY_FILES = ("vocab.json", "merges.txt")
"""Tables of a tokenizer, which a single file with a vocabulary of its own has in folders beside it."""
_CHUNK_BYTES = 1 << 22
_HASHED_SUFFIXES = (".safetensors", ".json", ".txt")


@dataclass(frozen=True)
class ModelFiles:
    """A base model on disk, checked and recognised. `fingerprint` is a hash of its content, `num_bytes` its size.

    `prediction_type` ("epsilon" or "v_prediction") and `zero_terminal_snr` are what the files themselves say.
    """

    name: str
    path: Path
    kind: Literal["folder", "single_file"]
    family: str
    prediction_type: str
    zero_terminal_snr: bool
    num_bytes: int
    fingerprint: str


def model_parts(path: Path) -> list[Path]:
    """The files of a model, in a fixed order: a single file and its settings, or a folder's weights and tables."""
    if path.is_file():
        sidecar = path.with_name(path.stem + SIDECAR_SUFFIX)
        return [path, sidecar] if sidecar.is_file() else [path]
    return sorted(part for part in path.rglob("*") if part.is_file() and part.suffix in _HASHED_SUFFIXES)


def size_in_bytes(path: Path) -> int:
    """Bytes of a model's files."""
    return sum(part.stat().st_size for part in model_parts(path))


def fingerprint(path: Path, cache_dir: Path) -> str:
    """SHA-256 over names and contents of a model's files, 64 hexadecimal digits.

    Hashes are remembered in `cache_dir` by path, size and modification time, so only a changed file is read again.
    """
    memory_path = cache_dir / FINGERPRINTS_FILE
    memory = _read_memory(memory_path)
    known = dict(memory)
    whole = hashlib.sha256()
    for part in model_parts(path):
        # A single file's name is not part of its content: a renamed model keeps its caches.
        relative = part.suffix if path.is_file() else part.relative_to(path).as_posix()
        status = part.stat()
        key = f"{part.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        known[key] = known.get(key) or _sha256(part)
        whole.update(f"{relative}\0{known[key]}\n".encode())
    if known != memory:
        _write_memory(memory_path, known)
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_memory(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: hashes are made again, nothing is lost
        return {}
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}


def _write_memory(path: Path, known: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(known, indent=0).encode())
