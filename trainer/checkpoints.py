"""Checkpoints that a run can go on from exactly: written whole or not at all, verified before use, never pickled.

A checkpoint is a folder `step-00000123` with lora.safetensors, optimizer.safetensors, state.json, and manifest.json that
holds the SHA-256 of each. Order, noise and dropout are functions of the step, so no random state needs saving.

Beside them, for moments only: `step-….partial` is being written, `step-….replaced` gives way to a new one of its step,
and `step-….damaged` was passed over; the next checkpoint that is whole takes them away.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from security.configs import read_json
from security.errors import SafelightError
from security.roots import Root
from trainer.nested import flatten, unflatten

STEP_FOLDER = re.compile(r"^step-(\d{8,})$")
MOMENTARY = re.compile(r"^step-(\d{8,})\.(partial|replaced|damaged)$")
FILES = ("lora.safetensors", "optimizer.safetensors", "state.json")
MAX_STATE_BYTES = 50_000_000


class DamagedCheckpoint(SafelightError):
    """A checkpoint is incomplete or its content is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """`lora`: all that learns, by name. `optimizer`: its `state_dict()`. `scaler`: the fp16 loss scaler's, else empty.

    `parameters`: the names in the order in which the optimizer counts them. `settings`: the run's, as plain values by
    `section.field`. `made_by`: what else the numbers depend on, such as the base and the versions. `memory`: what parts
    of the loop remember from step to step, any nested values. `healthy`: the training had not gone astray.
    """

    step: int
    images_seen: int
    lora: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    parameters: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    healthy: bool = True


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as it was at one moment: nothing in it is shared with a run that trains on.

    `lora` and `tensors`, those of optimizer and memory, lie in the machine's memory; `state` is the text of state.json.
    """

    step: int
    healthy: bool
    lora: dict[str, Tensor]
    tensors: dict[str, Tensor]
    state: str


def snapshot(checkpoint: Checkpoint) -> Snapshot:
    """Copies all that a checkpoint holds."""
    tensors, structure = flatten({"optimizer": checkpoint.optimizer, "memory": checkpoint.memory})
    state = {
        "step": checkpoint.step,
        "images_seen": checkpoint.images_seen,
        "nested": structure,
        "scaler": checkpoint.scaler,
        "parameters": checkpoint.parameters,
        "settings": checkpoint.settings,
        "made_by": checkpoint.made_by,
    }
    lora = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in checkpoint.lora.items()}
    return Snapshot(checkpoint.step, checkpoint.healthy, lora, tensors, json.dumps(state))


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint | Snapshot, *, keep_last: int, protected: Collection[int] = frozenset()
) -> Path:
    """Writes `folder/step-...`, then prunes (see `prune`). Returns the new checkpoint's path.

    Everything goes to a temporary folder, is flushed to disk and renamed, so a kill or a full disk leaves the older ones
    untouched. Raises OSError when it can't be written; nothing of it is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    final = folder / f"step-{checkpoint.step:08d}"
    contents = _contents(checkpoint if isinstance(checkpoint, Snapshot) else snapshot(checkpoint))
    if _manifest(final) != json.loads(contents["manifest.json"]):  # else this very state was saved a moment ago
        _write_whole(folder, final, contents)
    for path in _momentary(folder):
        if path.suffix != ".damaged" or _step(path) <= checkpoint.step:
            Root(folder).remove_tree(path)
    prune(folder, checkpoint.step, keep_last=keep_last, protected=protected)
    return final


def _contents(checkpoint: Snapshot) -> dict[str, bytes]:
    """Every file of a checkpoint, the manifest last."""
    contents = {
        "lora.safetensors": save(checkpoint.lora),
        "optimizer.safetensors": save(checkpoint.tensors),
        "state.json": checkpoint.state.encode(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = {"step": checkpoint.step, "healthy": checkpoint.healthy, "sha256": digests}
    return contents | {"manifest.json": json.dumps(manifest).encode()}


def _write_whole(folder: Path, final: Path, contents: dict[str, bytes]) -> None:
    root, temporary = Root(folder), folder / f"{final.name}.partial"
    temporary.mkdir()
    try:
        for name, data in contents.items():
            with (temporary / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(temporary)
    except OSError:
        root.remove_tree(temporary)
        raise
    if final.exists():  # another state of the same step: a run that went back got here again
        final.rename(folder / f"{final.name}.replaced")
    temporary.rename(final)
    _sync_folder(folder)


def settle(folder: Path) -> None:
    """Ends what a killed save had begun: takes half a checkpoint away, and puts back one that was to be replaced."""
    for path in _momentary(folder):
        if path.suffix == ".partial":
            Root(folder).remove_tree(path)
        elif path.suffix == ".replaced" and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))


def prune(folder: Path, step: int, *, keep_last: int, protected: Collection[int] = frozenset()) -> None:
    """Deletes all but the newest `keep_last` checkpoints up to `step`, those of `protected` steps, and the newest
    healthy one. Later ones belong to a course that the run went back from, and go."""
    paths = list_checkpoints(folder)
    present = [path for path in paths if _step(path) <= step]
    kept = set(present[-keep_last:])
    kept |= {path for path in present if _step(path) in protected}
    if not any(is_healthy(path) for path in kept):
        kept |= set([path for path in present if is_healthy(path)][-1:])
    for path in paths:
        if path not in kept:
            _delete(folder, path)


def _delete(folder: Path, path: Path) -> None:
    """Deletes a whole checkpoint. Killed on the way, it leaves no half of one that would pass for a whole one."""
    doomed = path.with_name(f"{path.name}.partial")
    path.rename(doomed)
    Root(folder).remove_tree(doomed)


def is_healthy(path: Path) -> bool:
    """Whether a checkpoint was made while the training had not gone astray; False when it can't be read."""
    return bool(_manifest(path).get("healthy", False))


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, empty when there is none that can be read."""
    try:
        manifest: dict[str, Any] = read_json(path / "manifest.json", max_bytes=MAX_STATE_BYTES)
    except (OSError, SafelightError):
        return {}
    return manifest


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows can't open folders and flushes renames itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; unfinished ones don't count."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if STEP_FOLDER.match(path.name) and path.is_dir()), key=_step)


def _momentary(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if MOMENTARY.match(path.name)) if folder.is_dir() else []


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises DamagedCheckpoint when a file is missing or differs from the manifest."""
    try:
        manifest = read_json(path / "manifest.json", max_bytes=MAX_STATE_BYTES)
        contents = {name: (path / name).read_bytes() for name in FILES}
    except (OSError, SafelightError) as error:
        raise DamagedCheckpoint(f"Checkpoint {path.name} can't be read: {error}") from error
    digests = manifest.get("sha256", {}) if isinstance(manifest, dict) else {}
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != digests.get(name):
            raise DamagedCheckpoint(f"Checkpoint {path.name} is damaged: {name} is not what was written.")
    try:
        state = json.loads(contents["state.json"])
        nested = unflatten(load(contents["optimizer.safetensors"]), state["nested"])
        return Checkpoint(
            step=state["step"],
            images_seen=state["images_seen"],
            lora=load(contents["lora.safetensors"]),
            optimizer=nested["optimizer"],
            scaler=state["scaler"],
            parameters=tuple(state["parameters"]),
            settings=state["settings"],
            made_by=state["made_by"],
            memory=nested["memory"],
            healthy=bool(manifest.get("healthy", False)),
        )
    except (SafetensorError, KeyError, TypeError, ValueError, ImportError) as error:
        raise DamagedCheckpoint(
            f"Checkpoint {path.name} was written by another version of Safelight and can't be read ({error!r})."
        ) from error


def newest_good_checkpoint(
    folder: Path, *, healthy: bool = False, before: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None, and a sentence for each damaged one that was passed over.

    Passed over ones are set aside as `.damaged`, so that they don't count as kept. `healthy`: also pass over those of a
    training that had gone astray; `before`: and those of this step and later. These stay where they are.
    """
    settle(folder)
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        if (healthy and _manifest(path).get("healthy") is False) or (before is not None and _step(path) >= before):
            continue
        try:
            return load_checkpoint(path), complaints
        except DamagedCheckpoint as error:
            complaints.append(f"{error} Going on from an older one.")
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                Root(folder).remove_tree(aside)
            path.rename(aside)
    return None, complaints
