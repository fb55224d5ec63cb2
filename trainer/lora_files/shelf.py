"""The LoRA files at hand: those that runs have saved, and those of workspace/loras. Imports no torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedName, RefusedPath, SafelightError
from security.names import safe_name, sanitized_name
from security.roots import Root, refuse_full_disk, resolve_user_file
from security.weights import check_safetensors, refuse_pickle
from trainer.lora_files.identify import family_of
from trainer.lora_files.placing import copy_file, file_beside, sweep
from trainer.models.files import WEIGHT_SUFFIX
from trainer.workspace import Workspace


@dataclass(frozen=True)
class LoraEntry:
    """One file. `name`: `NAME` in workspace/loras, `RUN/NAME` of a run. `changed`: seconds since the epoch."""

    name: str
    path: Path
    run: str
    num_bytes: int
    changed: float


def list_loras(workspace: Workspace) -> list[LoraEntry]:
    """Those of workspace/loras, then those of runs; in both the newest first."""
    own = _entries(workspace.loras_dir, "")
    runs: list[LoraEntry] = []
    for folder in sorted(workspace.runs_dir.iterdir()) if workspace.runs_dir.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith(".") and not folder.is_symlink():
            runs += _entries(folder, folder.name)
    return [
        *sorted(own, key=lambda one: (-one.changed, one.name)),
        *sorted(runs, key=lambda one: (-one.changed, one.name)),
    ]


def find_lora(workspace: Workspace, name: str) -> LoraEntry:
    """The file of that name. Raises SafelightError with near names if there is none; a path is never followed."""
    entries = list_loras(workspace)
    found = next((one for one in entries if one.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, [one.name for one in entries], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SafelightError(
            f"There is no LoRA {name[:100]!r} here.{hint} The Tools tab and `lora list` list those that are."
        )
    return found


def locate_lora(workspace: Workspace, typed: str) -> LoraEntry:
    """What a person at the command line means: a file by its path, or a LoRA by its name. Raises SafelightError."""
    if not typed.lower().endswith(WEIGHT_SUFFIX) and not Path(typed).is_file():
        return find_lora(workspace, typed)
    path = resolve_user_file(typed if typed.startswith("~") else str(Path(typed).absolute()), None)
    status = path.stat()
    return LoraEntry(path.stem, path, "", status.st_size, status.st_mtime)


def new_lora_place(workspace: Workspace, name: str, *, replace: bool = False) -> Path:
    """Where a new LoRA of that name goes, in workspace/loras.

    Raises RefusedName for a name that can't be one, or is taken unless `replace`.
    """
    sweep(workspace.loras_dir)
    stem = safe_name(name.strip().removesuffix(WEIGHT_SUFFIX), "LoRA name")
    target = workspace.loras_dir / f"{stem}{WEIGHT_SUFFIX}"
    if target.is_symlink() or (target.exists() and not replace):
        raise RefusedName(f"There is a LoRA named {stem} already. Choose another name.")
    return target


def free_name(workspace: Workspace, wanted: str) -> str:
    """`wanted`, mended if it can't be a name, or with the first number behind it that makes it one of its own."""
    stem = sanitized_name(f"{wanted.rpartition('/')[2]}{WEIGHT_SUFFIX}", f"lora{WEIGHT_SUFFIX}").removesuffix(
        WEIGHT_SUFFIX
    )
    number, name = 1, stem
    while (workspace.loras_dir / f"{name}{WEIGHT_SUFFIX}").exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def bring_in(workspace: Workspace, source: Path, name: str = "") -> LoraEntry:
    """Copies a checked .safetensors file into workspace/loras, under `name` or a free one like its own.

    Raises RefusedFile for anything that is no sound .safetensors file or no LoRA of a known model, RefusedName for a name that
    is taken, SafelightError when the disk is too full. It appears whole or not at all.
    """
    refuse_pickle(source)
    family_of(check_safetensors(source), source.name)
    target = new_lora_place(workspace, name or free_name(workspace, source.stem))
    refuse_full_disk(workspace.loras_dir, [source])
    with file_beside(target) as temporary:
        copy_file(source, temporary)
        check_safetensors(temporary)
    return find_lora(workspace, target.stem)


def remove_lora(workspace: Workspace, name: str) -> None:
    """Deletes a file of workspace/loras. Raises SafelightError for one that is not there; runs keep theirs."""
    entry = find_lora(workspace, name)
    if entry.run:
        raise SafelightError(f"{name} belongs to the run {entry.run}. Delete the run on the Runs tab instead.")
    Root(workspace.loras_dir).remove_tree(entry.path)


def file_of(workspace: Workspace, name: str) -> Path:
    """The file of workspace/loras that an address names. Raises RefusedPath if it is none of them."""
    path = Root(workspace.loras_dir).known_child(name)
    if path.parent != Root(workspace.loras_dir).path or path.suffix != WEIGHT_SUFFIX or not path.is_file():
        raise RefusedPath("There is no such file.")
    return path


def _entries(folder: Path, run: str) -> list[LoraEntry]:
    found = []
    for path in folder.glob(f"*{WEIGHT_SUFFIX}") if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_symlink():
            continue
        try:
            status = path.stat()
        except OSError:  # removed just now
            continue
        found.append(LoraEntry(f"{run}/{path.stem}" if run else path.stem, path, run, status.st_size, status.st_mtime))
    return found
