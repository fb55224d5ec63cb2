"""Checkpoints that a run can go on from exactly: written whole or not at all, verified before use, never pickled.

A checkpoint is a folder `step-00000123` with lora.safetensors, optimizer.safetensors, state.json, and manifest.json that
holds the SHA-256 of each. Order, noise and dropout are functions of the step, so no random state needs saving.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from security.configs import read_json
from security.errors import SafelightError
from security.roots import Root

STEP_FOLDER = re.compile(r"^step-(\d{8,})$")
FILES = ("lora.safetensors", "optimizer.safetensors", "state.json")
MAX_STATE_BYTES = 50_000_000


class DamagedCheckpoint(SafelightError):
    """A checkpoint is incomplete or its content is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """`lora`: fp32 tensors by name. `optimizer`: its `state_dict()`. `scaler`: the fp16 loss scaler's, else empty."""

    step: int
    images_seen: int
    lora: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep_last: int) -> Path:
    """Writes `folder/step-...`, then deletes all but the newest `keep_last`. Returns the new checkpoint's path.

    Everything goes to a temporary folder, is flushed to disk and renamed, so a crash leaves the older ones untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:08d}"
    tensors, structure = flatten(checkpoint.optimizer)
    state = {
        "step": checkpoint.step,
        "images_seen": checkpoint.images_seen,
        "optimizer": structure,
        "scaler": checkpoint.scaler,
    }
    contents = {
        "lora.safetensors": save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.lora.items()}
        ),
        "optimizer.safetensors": save(tensors),
        "state.json": json.dumps(state).encode(),
    }
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents["manifest.json"] = json.dumps({"step": checkpoint.step, "sha256": manifest}).encode()
    root = Root(folder)
    temporary = folder / f"{final.name}.partial"
    if temporary.exists():
        root.remove_tree(temporary)
    temporary.mkdir()
    for name, data in contents.items():
        with (temporary / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if final.exists():  # the same step was saved before a resume; the new one is as good and is known to be whole
        root.remove_tree(final)
    temporary.rename(final)
    _sync_folder(folder)
    for old in list_checkpoints(folder)[:-keep_last]:
        root.remove_tree(old)
    return final


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows can't open folders and flushes renames itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; unfinished ones don't count."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if STEP_FOLDER.match(path.name) and path.is_dir())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises DamagedCheckpoint when a file is missing or differs from the manifest."""
    try:
        manifest = read_json(path / "manifest.json", max_bytes=MAX_STATE_BYTES)
        contents = {name: (path / name).read_bytes() for name in FILES}
    except (OSError, SafelightError) as error:
        raise DamagedCheckpoint(f"Checkpoint {path.name} can't be read: {error}") from error
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256", {}).get(name):
            raise DamagedCheckpoint(f"Checkpoint {path.name} is damaged: {name} is not what was written.")
    state = json.loads(contents["state.json"])
    optimizer = unflatten(load(contents["optimizer.safetensors"]), state["optimizer"])
    return Checkpoint(
        state["step"], state["images_seen"], load(contents["lora.safetensors"]), optimizer, state["scaler"]
    )


def newest_good_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None, and a sentence for each damaged one that was passed over."""
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), complaints
        except DamagedCheckpoint as error:
            complaints.append(f"{error} Going on from an older one.")
    return None, complaints


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state as named tensors and a JSON structure that points at them; `unflatten` is the exact reverse.

    Dictionaries become lists of pairs, because JSON keys can't be integers.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, walk(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [walk(item) for item in value]}
        assert value is None or isinstance(value, bool | int | float | str), f"can't save a {type(value).__name__}"
        return {"value": value}

    return tensors, walk(state)


def unflatten(tensors: dict[str, Tensor], structure: Any) -> Any:
    """The nested state that `flatten` took apart."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(tensors, item) for key, item in content}
    if kind in ("list", "tuple"):
        items: Iterator[Any] = (unflatten(tensors, item) for item in content)
        return list(items) if kind == "list" else tuple(items)
    return content
