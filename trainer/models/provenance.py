"""Where each model of the library came from and what its files were then, so that a changed file is not trained on.

The record is `NAME.provenance.json` beside the model: source, address without its query, commit, licence, the hub's scan
verdicts, and size and SHA-256 of every file. It shows a change; it does not stop someone who can write to the folder
from changing the record too.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import RefusedConfig, SafelightError
from security.policy import MAX_MODEL_JSON_BYTES
from security.roots import Root
from trainer.models.files import SIDECAR_SUFFIX, file_hashes, known_hashes, library_path, model_parts
from trainer.workspace import TAGGERS, Workspace

PROVENANCE_SUFFIX = ".provenance.json"
_FORMAT = 1


class Integrity(StrEnum):
    """Whether a model's files are those that came, as far as is known without reading them."""

    UNRECORDED = "not recorded"
    UNREAD = "not compared since it changed hands"
    VERIFIED = "verified"
    CHANGED = "changed"


@dataclass(frozen=True)
class FileRecord:
    """One file as it came: size in bytes and SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """The record of one model. `files` are paths relative to the models folder; `time` in seconds since the epoch.

    `checked` says in words what the files were compared with when they came.
    """

    source: str
    url: str = ""
    revision: str = ""
    licence: str = ""
    checked: str = ""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


def provenance_path(workspace: Workspace, name: str) -> Path:
    """Where the record of a model lies, whether there is one or not. Raises RefusedPath for an impossible name."""
    return Root(workspace.models_dir).child(f"{name}{PROVENANCE_SUFFIX}")


def record_provenance(workspace: Workspace, name: str, provenance: Provenance) -> Provenance:
    """Writes the record of a model that lies in the library; its files are hashed, which takes seconds for gigabytes.

    Returns the record with the files.
    """
    hashes = file_hashes(_files(workspace, name), workspace.models_cache_dir)
    files = {_relative(workspace, file): FileRecord(file.stat().st_size, sha256) for file, sha256 in hashes.items()}
    whole = replace(provenance, files=files)
    write_provenance(workspace, name, whole)
    return whole


def write_provenance(workspace: Workspace, name: str, whole: Provenance) -> None:
    """Writes a record as it is. It may come before the model itself: a record of nothing harms nobody."""
    values = {
        "format": _FORMAT,
        "name": name,
        "source": whole.source,
        "url": whole.url,
        "revision": whole.revision,
        "licence": whole.licence,
        "checked": whole.checked,
        "verdicts": dict(whole.verdicts),
        "time": datetime.datetime.fromtimestamp(whole.time, datetime.UTC).isoformat(timespec="seconds"),
        "files": {path: {"size": one.size, "sha256": one.sha256} for path, one in sorted(whole.files.items())},
    }
    path = provenance_path(workspace, name)
    Root(workspace.models_dir).write_text_atomic(path, json.dumps(values, indent=1) + "\n")


def read_provenance(workspace: Workspace, name: str) -> Provenance | None:
    """The record of a model, None if there is none. Raises RefusedConfig for one that cannot be read."""
    path = provenance_path(workspace, name)
    if not path.is_file():
        return None
    values = read_json(path, MAX_MODEL_JSON_BYTES)
    try:
        return _provenance(values)
    except (KeyError, TypeError, ValueError):
        raise RefusedConfig(
            f"The record {path.name} is damaged, so nobody can tell whether {name} is still what came. "
            "Remove the model and fetch it again."
        ) from None


def forget_provenance(workspace: Workspace, name: str) -> None:
    """Deletes a model's record, if there is one."""
    provenance_path(workspace, name).unlink(missing_ok=True)


def verify_model(workspace: Workspace, name: str, *, reread: bool = False) -> list[str]:
    """What is no longer as it came, one sentence each, with what to do; empty when all is well or nothing was recorded.

    Files whose size and time are unchanged are not read again, unless `reread` asks for it.
    """
    try:
        recorded = read_provenance(workspace, name)
        if recorded is None:
            return []
        now = file_hashes(_files(workspace, name), workspace.models_cache_dir, reread=reread)
    except SafelightError as error:
        return [str(error)]
    return _differences(name, recorded, {_relative(workspace, file): sha256 for file, sha256 in now.items()})


def integrity(workspace: Workspace, name: str) -> Integrity:
    """What can be said without reading the files. Raises RefusedConfig for a record that cannot be read."""
    recorded = read_provenance(workspace, name)
    if recorded is None:
        return Integrity.UNRECORDED
    files = {_relative(workspace, file): file for file in _files(workspace, name)}
    sizes = {path: file.stat().st_size for path, file in files.items()}
    if any(sizes.get(path) != one.size for path, one in recorded.files.items()):
        return Integrity.CHANGED
    known = {
        _relative(workspace, file): one
        for file, one in known_hashes(list(files.values()), workspace.models_cache_dir).items()
    }
    if any(path in known and known[path] != one.sha256 for path, one in recorded.files.items()):
        return Integrity.CHANGED
    return Integrity.VERIFIED if recorded.files.keys() <= known.keys() else Integrity.UNREAD


def _differences(name: str, recorded: Provenance, now: Mapping[str, str]) -> list[str]:
    day = datetime.datetime.fromtimestamp(recorded.time).strftime("%Y-%m-%d")
    advice = (
        f"Remove {name} and fetch it again. If you changed it on purpose, move it out of the models folder and import it "
        "under another name."
    )
    faults = []
    for path, one in recorded.files.items():
        if path not in now:
            faults.append(f"{path} of the model {name} is gone since it came ({recorded.source}, {day}). {advice}")
        elif now[path] != one.sha256:
            faults.append(
                f"{path} has changed since it came ({recorded.source}, {day}): its SHA-256 was {one.sha256[:12]}… and is "
                f"{now[path][:12]}…. It is not used. {advice}"
            )
    added = [path for path in now if path not in recorded.files and not path.endswith(SIDECAR_SUFFIX)]
    faults += [
        f"{path} was added to the model {name} since it came ({recorded.source}, {day}). {advice}" for path in added
    ]
    return faults


def _files(workspace: Workspace, name: str) -> list[Path]:
    """The files of a model in the library: of its folder, or the file itself. Raises SafelightError: not there."""
    path = library_path(workspace.models_dir, name)
    if path is None:
        raise SafelightError(f"There is no model {name!r} in the library.")
    return recorded_parts(workspace, workspace.models_dir / path.relative_to(workspace.models_dir).parts[0])


def recorded_parts(workspace: Workspace, path: Path) -> list[Path]:
    """The files of a model that its record names: of a tagger every file, of a base model those that training reads."""
    if workspace.shelf == TAGGERS and path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file())
    return model_parts(path)


def _relative(workspace: Workspace, file: Path) -> str:
    return file.relative_to(workspace.models_dir).as_posix()


def _provenance(values: Mapping[str, Any]) -> Provenance:
    """Raises KeyError, TypeError or ValueError for values that are no record."""
    if values["format"] != _FORMAT or not isinstance(values["files"], dict) or not isinstance(values["verdicts"], dict):
        raise ValueError("not a record of this format")
    files = {}
    for path, one in values["files"].items():
        if type(one["size"]) is not int or not isinstance(one["sha256"], str) or len(one["sha256"]) != 64:
            raise ValueError("not a file's record")
        files[path] = FileRecord(one["size"], one["sha256"])
    texts = {key: values[key] for key in ("source", "url", "revision", "licence", "checked")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("not a text")
    verdicts = {str(path): str(verdict) for path, verdict in values["verdicts"].items()}
    when = datetime.datetime.fromisoformat(values["time"]).timestamp()
    return Provenance(**texts, verdicts=verdicts, files=files, time=when)
