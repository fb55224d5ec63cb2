"""Bakes LoRAs into a model of the library, as a new model of the library: with its record, ready to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from security.errors import RefusedName, SafelightError
from security.names import safe_name
from trainer.lora_files.operations import Weighted, bake_loras
from trainer.lora_files.placing import copy_file, folder_beside, sweep
from trainer.lora_files.results import Outcome
from trainer.models.files import SIDECAR_SUFFIX, WEIGHT_SUFFIX, library_entries
from trainer.models.library import DEMO_NAME, find_model, model_places, remove_model
from trainer.models.provenance import Provenance, record_provenance
from trainer.tasks import TaskControl
from trainer.workspace import Workspace


def check_model_name(workspace: Workspace, name: str) -> str:
    """A name for a new model. Raises RefusedName for one that can't be, or is taken."""
    chosen = safe_name(name.strip(), "model name")
    if chosen == DEMO_NAME or chosen in dict(library_entries(workspace.models_dir)):
        raise RefusedName(f"There is a model named {chosen} already. Choose another name.")
    return chosen


def bake_into_library(
    workspace: Workspace,
    base: str,
    sources: Sequence[Weighted],
    name: str,
    *,
    control: TaskControl | None = None,
) -> Outcome:
    """The new model, which appears in the library whole or not at all. `base`: a name of the library, or a path.

    Raises SafelightError as `find_model` and `bake_loras`, RefusedName for a name that is taken.
    """
    chosen = check_model_name(workspace, name)
    sweep(workspace.models_dir)
    files = find_model(workspace, base)
    target = _bake(workspace, files.path, sources, chosen, control)
    recipe = " and ".join(f"{one.weight:g} x {one.name}" for one in sources)
    try:
        came = Provenance(source=f"{files.name} with {recipe} baked in", checked="as it was written")
        record_provenance(workspace, chosen, came)
    except SafelightError:
        remove_model(workspace, chosen)
        raise
    return target


def _bake(
    workspace: Workspace, base: Path, sources: Sequence[Weighted], name: str, control: TaskControl | None
) -> Outcome:
    if base.is_dir():
        return bake_loras(base, sources, workspace.models_dir / name, control=control)
    beside = model_places(base)[1:]
    if not beside:
        return bake_loras(base, sources, workspace.models_dir / f"{name}{WEIGHT_SUFFIX}", control=control)
    with folder_beside(workspace.models_dir / name) as fresh:
        for part in beside:
            own = f"{name}{SIDECAR_SUFFIX}" if part.name.endswith(SIDECAR_SUFFIX) else part.relative_to(base.parent)
            copy_file(part, fresh / own)
        return bake_loras(base, sources, fresh / f"{name}{WEIGHT_SUFFIX}", control=control)
