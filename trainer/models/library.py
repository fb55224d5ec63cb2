"""The base models at hand: the embedded one and those in the workspace, and importing another. Imports no torch."""

from __future__ import annotations

import difflib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedName, SafelightError
from security.names import safe_name, sanitized_name
from security.roots import resolve_user_path
from trainer.demo import BASE_DIR
from trainer.families import FAMILIES
from trainer.models.detect import detect
from trainer.models.files import (
    SIDECAR_SUFFIX,
    TOKENIZER_FOLDERS,
    VOCABULARY_FILES,
    ModelFiles,
    fingerprint,
    model_parts,
    size_in_bytes,
)
from trainer.workspace import Workspace

DEMO_NAME = "demo"
"""Name of the embedded model."""
_WEIGHT_SUFFIX = ".safetensors"
_SHOWN_SUFFIXES = (_WEIGHT_SUFFIX, ".ckpt", ".pt", ".pth", ".gguf")
"""Files that look like a model to a person; those that can't be used are shown with the reason."""


@dataclass(frozen=True)
class ModelInfo:
    """One model in the library. `problem` says why it can't be used; the family is empty then."""

    name: str
    path: Path
    family: str
    family_label: str
    num_bytes: int
    prediction_type: str
    builtin: bool
    problem: str = ""


def list_models(workspace: Workspace) -> list[ModelInfo]:
    """The embedded model, then those in the workspace by name, unusable ones included."""
    entries = [(DEMO_NAME, BASE_DIR, True)] if BASE_DIR.is_dir() else []
    entries += [(name, path, False) for name, path in _entries(workspace.models_dir)]
    return [_info(name, path, builtin) for name, path, builtin in entries]


def find_model(workspace: Workspace, base: str) -> ModelFiles:
    """The model of that name in the library, or at that path, checked and recognised.

    Hashes the files (once; unchanged ones are remembered), which takes seconds for gigabytes. Raises SafelightError: no
    such model, near names included, or why it can't be used.
    """
    named = dict(_entries(workspace.models_dir)) | ({DEMO_NAME: BASE_DIR} if BASE_DIR.is_dir() else {})
    if base in named:
        name, path = base, named[base]
    elif _looks_like_a_path(base):
        path = resolve_user_path(base, None)
        path = _weights_in(path) or path
        name = path.stem if path.is_file() else path.name
    else:
        near = difflib.get_close_matches(base, named, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SafelightError(
            f"There is no model {base!r} in the library.{hint} It has: {', '.join(named) or 'nothing yet'}. "
            "Import the model on the Models page, or give the whole path of its file or folder."
        )
    found = detect(path)
    return ModelFiles(
        name=name,
        path=path,
        kind=found.kind,
        family=found.family,
        prediction_type=found.prediction_type,
        zero_terminal_snr=found.zero_terminal_snr,
        num_bytes=size_in_bytes(path),
        fingerprint=fingerprint(path, workspace.cache_dir),
    )


def import_model(workspace: Workspace, source: Path, name: str | None = None) -> ModelInfo:
    """Copies a model into the library under `name`, or under its own name. It appears there whole or not at all.

    Raises RefusedFile or UnsupportedModel for what can't be trained, RefusedName for a name that is taken or not
    possible, SafelightError when the disk is too full.
    """
    source = _weights_in(source) or source
    found = detect(source)
    own = source.stem if source.is_file() else source.name
    chosen = safe_name(name, "model name") if name else sanitized_name(own, "model")
    if chosen == DEMO_NAME or chosen in dict(_entries(workspace.models_dir)):
        raise RefusedName(f"There is a model named {chosen} already. Choose another name.")
    _check_space(source, workspace.models_dir)
    # The leading dot hides a half-copied model from the library.
    fresh = workspace.models_dir / f".import-{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    try:
        extras = [] if found.kind == "folder" else _extras(source)
        target = workspace.models_dir / (chosen if found.kind == "folder" or extras else chosen + source.suffix)
        copied = fresh / target.name
        if found.kind == "folder":
            _copy_folder(source, copied)
        elif extras:
            copied.mkdir()
            shutil.copyfile(source, copied / (chosen + source.suffix))
            for part in extras:
                beside = part.relative_to(source.parent)
                destination = copied / (chosen + SIDECAR_SUFFIX if part.name.endswith(SIDECAR_SUFFIX) else beside)
                destination.parent.mkdir(exist_ok=True)
                shutil.copyfile(part, destination)
        else:
            shutil.copyfile(source, copied)
        copied.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return _info(chosen, _weights_in(target) or target, False)


def _entries(models_dir: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of what lies in the library's folder: diffusers folders, files, folders with one file."""
    seen: set[str] = set()
    for path in sorted(models_dir.iterdir() if models_dir.is_dir() else (), key=lambda one: one.name.lower()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in _SHOWN_SUFFIXES):
            continue
        name = path.name if path.is_dir() or path.stem in seen else path.stem
        seen.add(name)
        yield name, _weights_in(path) or path


def _weights_in(path: Path) -> Path | None:
    """The one .safetensors file of a folder that is no diffusers folder: a single file with what it needs beside it."""
    if not path.is_dir() or (path / "model_index.json").exists():
        return None
    files = list(path.glob(f"*{_WEIGHT_SUFFIX}"))
    return files[0] if len(files) == 1 else None


def _info(name: str, path: Path, builtin: bool) -> ModelInfo:
    try:
        found = detect(path)
    except SafelightError as error:
        return ModelInfo(name, path, "", "", size_in_bytes(path), "", builtin, problem=str(error))
    label = FAMILIES[found.family].label
    return ModelInfo(name, path, found.family, label, size_in_bytes(path), found.prediction_type, builtin)


def _looks_like_a_path(base: str) -> bool:
    return any(mark in base for mark in ("/", "\\", "~")) or base.lower().endswith(_SHOWN_SUFFIXES)


def _extras(source: Path) -> list[Path]:
    """The files that belong to a single file and lie beside it: its settings, and the tables of its own vocabulary."""
    sidecar = source.with_name(source.stem + SIDECAR_SUFFIX)
    tables = [source.parent / folder / name for folder in TOKENIZER_FOLDERS for name in VOCABULARY_FILES]
    return [one for one in (sidecar, *tables) if one.is_file()]


def _copy_folder(source: Path, target: Path) -> None:
    # Only what a model consists of: pictures, notes and other formats of the same weights stay behind.
    for part in model_parts(source):
        destination = target / part.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, destination)


def _check_space(source: Path, models_dir: Path) -> None:
    needed, free = size_in_bytes(source), shutil.disk_usage(models_dir).free
    if needed > free:
        raise SafelightError(
            f"{source.name} needs {needed / 1e9:.1f} GB and {models_dir} has {free / 1e9:.1f} GB left. "
            "Delete something, or put the workspace on another disk."
        )
