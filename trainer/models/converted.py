"""Bringing a PyTorch checkpoint that is on this machine into the library: converted in a sandbox, then imported."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from security.convert import CONVERTIBLE_SUFFIXES, Conversion, convert_checkpoint
from security.roots import Root
from trainer.models.library import ModelInfo, import_model, model_places
from trainer.workspace import Workspace


def can_be_converted(path: Path) -> bool:
    """Whether the file's ending is one of a PyTorch checkpoint."""
    return path.is_file() and path.suffix.lower() in CONVERTIBLE_SUFFIXES


def import_checkpoint(workspace: Workspace, source: Path, name: str | None = None) -> tuple[ModelInfo, Conversion]:
    """Converts `source` and takes the result into the library under `name`, or under its own name.

    `source` stays as it is. Raises as `convert_checkpoint` and `import_model` do.
    """
    # The leading dot hides it from the library, and the conversion needs the room of the same disk anyway.
    fresh = workspace.models_dir / f".import-{uuid.uuid4().hex}"
    fresh.mkdir(mode=0o700)
    try:
        converted = fresh / f"{source.stem}.safetensors"
        conversion = convert_checkpoint(source, converted)
        for beside in model_places(source)[1:]:
            target = fresh / beside.relative_to(source.parent)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(beside, target)
        return import_model(workspace, converted, name or source.stem), conversion
    finally:
        Root(workspace.models_dir).remove_tree(fresh)
