"""The description of one base model on disk, where models lie, and the identity of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from security.roots import replace_file
from security.weights import check_finite

FINGERPRINTS_FILE = "fingerprints.json"
"""Name of the file in the cache folder that remembers hashes, so that an unchanged 7 GB model is read once."""
SIDECAR_SUFFIX = ".config.json"
"""`x.config.json` beside `x.safetensors` sets what shapes can't tell, by part: {"unet": {"attention_head_dim": 4}}."""
TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")
VOCABULARY_FILES = ("vocab.json", "merges.txt")
"""Tables of a tokenizer, which a single file with a vocabulary of its own has in folders beside it."""
WEIGHT_SUFFIX = ".safetensors"
SHOWN_SUFFIXES = (WEIGHT_SUFFIX, ".ckpt", ".pt", ".pth", ".gguf")
"""Files that look like a model to a person; those that can't be used are shown with the reason."""
_CHUNK_BYTES = 1 << 22
_HASHED_SUFFIXES = (WEIGHT_SUFFIX, ".json", ".txt")


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


def library_entries(models_dir: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of what lies in the library's folder: diffusers folders, files, folders with one file."""
    seen: set[str] = set()
    for path in sorted(models_dir.iterdir() if models_dir.is_dir() else (), key=lambda one: one.name.lower()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in SHOWN_SUFFIXES):
            continue
        name = path.name if path.is_dir() or path.stem in seen else path.stem
        seen.add(name)
        yield name, weights_in(path) or path


def library_path(models_dir: Path, name: str) -> Path | None:
    """Where the model of that name lies, as `library_entries` has it, without listing the folder: a run must not."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0:"):
        return None
    folder = models_dir / name
    if folder.is_dir():
        return weights_in(folder) or folder
    if folder.is_file() and folder.suffix.lower() in SHOWN_SUFFIXES:
        return folder
    files = (models_dir / f"{name}{suffix}" for suffix in SHOWN_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def weights_in(path: Path) -> Path | None:
    """The one .safetensors file of a folder that is no diffusers folder: a single file with what it needs beside it."""
    if not path.is_dir() or (path / "model_index.json").exists():
        return None
    files = list(path.glob(f"*{WEIGHT_SUFFIX}"))
    return files[0] if len(files) == 1 else None


def fingerprint(path: Path, cache_dir: Path) -> str:
    """SHA-256 over names and contents of a model's files, 64 hexadecimal digits. Unchanged files are not read again."""
    whole = hashlib.sha256()
    for part, sha256 in file_hashes(model_parts(path), cache_dir).items():
        # A single file's name is not part of its content: a renamed model keeps its caches.
        relative = part.suffix if path.is_file() else part.relative_to(path).as_posix()
        whole.update(f"{relative}\0{sha256}\n".encode())
    return whole.hexdigest()


def file_hashes(files: list[Path], cache_dir: Path, *, reread: bool = False) -> dict[Path, str]:
    """SHA-256 of each file, in their order.

    Hashes are remembered in `cache_dir` by path, size and times of change, so only a changed file is read again;
    with `reread` all of them are.
    """
    memory_path = cache_dir / FINGERPRINTS_FILE
    memory = _read_memory(memory_path)
    known = {} if reread else dict(memory)
    hashes = {}
    for file in files:
        key = _memory_key(file)
        if key not in memory and file.suffix == WEIGHT_SUFFIX:
            check_finite(file)  # once for each content: a NaN in the base spoils every loss
        hashes[file] = known[key] = known.get(key) or _sha256(file)
    if known != memory:
        _write_memory(memory_path, memory | known)
    return hashes


def known_hashes(files: list[Path], cache_dir: Path) -> dict[Path, str]:
    """What `file_hashes` remembers, without reading a file; those that it does not know are left out."""
    memory = _read_memory(cache_dir / FINGERPRINTS_FILE)
    return {file: memory[key] for file in files if (key := _memory_key(file)) in memory}


def remember_hashes(hashes: dict[Path, str], cache_dir: Path) -> None:
    """Tells `file_hashes` of files whose SHA-256 was just computed from their content."""
    memory_path = cache_dir / FINGERPRINTS_FILE
    _write_memory(memory_path, _read_memory(memory_path) | {_memory_key(file): one for file, one in hashes.items()})


def _memory_key(file: Path) -> str:
    status = file.stat()
    # Anybody can set a modification time back; the time of the last change of any kind is the system's own.
    return f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"


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
