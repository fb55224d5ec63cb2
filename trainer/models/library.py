"""The base models at hand: the embedded one and those in the workspace, and importing another. Imports no torch."""

from __future__ import annotations

import difflib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedName, SafelightError
from security.names import safe_name, sanitized_name
from security.roots import Root, resolve_user_path
from trainer.demo import BASE_DIR
from trainer.families import FAMILIES
from trainer.models.detect import detect
from trainer.models.files import (
    SHOWN_SUFFIXES,
    SIDECAR_SUFFIX,
    TOKENIZER_FOLDERS,
    VOCABULARY_FILES,
    ModelFiles,
    fingerprint,
    library_entries,
    library_path,
    model_parts,
    size_in_bytes,
    weights_in,
)
from trainer.models.provenance import (
    Integrity,
    Provenance,
    forget_provenance,
    integrity,
    read_provenance,
    record_provenance,
    verify_model,
)
from trainer.workspace import Workspace

DEMO_NAME = "demo"
"""Name of the embedded model."""


@dataclass(frozen=True)
class ModelInfo:
    """One model in the library. `problem` says why it can't be used; the family is empty then.

    `source` says where it came from, `integrity` whether its files are still those that came.
    """

    name: str
    path: Path
    family: str
    family_label: str
    num_bytes: int
    prediction_type: str
    builtin: bool
    problem: str = ""
    source: str = ""
    integrity: Integrity = Integrity.UNRECORDED


def list_models(workspace: Workspace) -> list[ModelInfo]:
    """The embedded model, then those in the workspace by name, unusable ones included."""
    entries = [(DEMO_NAME, BASE_DIR, True)] if BASE_DIR.is_dir() else []
    entries += [(name, path, False) for name, path in library_entries(workspace.models_dir)]
    return [_info(workspace, name, path, builtin) for name, path, builtin in entries]


def find_model(workspace: Workspace, base: str) -> ModelFiles:
    """The model of that name in the library, or at that path, checked and recognised.

    Hashes the files (once; unchanged ones are remembered), which takes seconds for gigabytes. Raises SafelightError: no
    such model, near names included, why it can't be used, or that it is no longer what was downloaded or imported.
    """
    name, path = locate_model(workspace, base)
    found = detect(path)
    if path.is_relative_to(workspace.models_dir):  # by its name or by its path
        top = workspace.models_dir / path.relative_to(workspace.models_dir).parts[0]
        if faults := verify_model(workspace, top.name if top.is_dir() else top.stem):
            raise SafelightError("\n".join(faults))
    return ModelFiles(
        name=name,
        path=path,
        kind=found.kind,
        family=found.family,
        prediction_type=found.prediction_type,
        zero_terminal_snr=found.zero_terminal_snr,
        num_bytes=size_in_bytes(path),
        fingerprint=fingerprint(path, workspace.models_cache_dir),
    )


def locate_model(workspace: Workspace, base: str) -> tuple[str, Path]:
    """Name and path of that model; nothing of it is opened. Raises SafelightError when there is none."""
    in_library = BASE_DIR if base == DEMO_NAME and BASE_DIR.is_dir() else library_path(workspace.models_dir, base)
    if in_library is not None:
        name, path = base, in_library
    elif _looks_like_a_path(base):
        path = resolve_user_path(base, None)
        path = weights_in(path) or path
        name = path.stem if path.is_file() else path.name
    else:
        names = [DEMO_NAME] if BASE_DIR.is_dir() else []
        names += [name for name, _ in library_entries(workspace.models_dir)]
        near = difflib.get_close_matches(base, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SafelightError(
            f"There is no model {base!r} in the library.{hint} It has: {', '.join(names) or 'nothing yet'}. "
            "Import the model on the Models tab, or give the whole path of its file or folder."
        )
    return name, path


def model_places(path: Path) -> list[Path]:
    """Everything that loading this model reads: a folder, or a single file and what lies beside it for it."""
    return [path] if path.is_dir() else [path, *_extras(path)]


def import_model(workspace: Workspace, source: Path, name: str | None = None) -> ModelInfo:
    """Copies a model into the library under `name`, or under its own name. It appears there whole or not at all.

    Raises RefusedFile or UnsupportedModel for what can't be trained, RefusedName for a name that is taken or not
    possible, SafelightError when the disk is too full.
    """
    source = weights_in(source) or source
    found = detect(source)
    own = source.stem if source.is_file() else source.name
    chosen = safe_name(name, "model name") if name else sanitized_name(own, "model")
    if chosen == DEMO_NAME or chosen in dict(library_entries(workspace.models_dir)):
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
    try:
        came = Provenance(source=f"imported from {source.name}", checked="as it was imported")
        record_provenance(workspace, chosen, came)
    except SafelightError:
        remove_model(workspace, chosen)
        raise
    return _info(workspace, chosen, weights_in(target) or target, False)


def remove_model(workspace: Workspace, name: str) -> None:
    """Takes a model out of the library, with what lies beside it and its record. Raises SafelightError: not there."""
    path = library_path(workspace.models_dir, name)
    if path is None:
        raise SafelightError(f"{name} is not a model of the library, so it can't be removed.")
    root = Root(workspace.models_dir)
    top = workspace.models_dir / path.relative_to(workspace.models_dir).parts[0]
    sidecar = top.with_name(top.stem + SIDECAR_SUFFIX)
    if top.is_file() and sidecar.is_file():
        root.remove_tree(sidecar)
    root.remove_tree(top)
    forget_provenance(workspace, name)


def _info(workspace: Workspace, name: str, path: Path, builtin: bool) -> ModelInfo:
    size = size_in_bytes(path)
    source, state = "part of Safelight" if builtin else "", Integrity.UNRECORDED
    problem = ""
    if not builtin:
        try:
            recorded = read_provenance(workspace, name)
            source, state = recorded.source if recorded else "", integrity(workspace, name)
        except SafelightError as error:
            problem = str(error)
    try:
        found = detect(path)
    except SafelightError as error:
        return ModelInfo(name, path, "", "", size, "", builtin, str(error), source, state)
    label, prediction = FAMILIES[found.family].label, found.prediction_type
    return ModelInfo(name, path, found.family, label, size, prediction, builtin, problem, source, state)


def _looks_like_a_path(base: str) -> bool:
    return any(mark in base for mark in ("/", "\\", "~")) or base.lower().endswith(SHOWN_SUFFIXES)


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
