"""Writes into a run's folder the file that rebuilds it, and at its end what it gave."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from security.errors import SafelightError
from security.integrity import sha256_of
from security.roots import Root
from trainer.device import device_label
from trainer.inputs import Inputs
from trainer.rebuild import Recipe, portable_values, read_recipe, recipe_text, tensor_hashes
from trainer.rebuild_changes import dataset_differences
from trainer.runs import RunFolder
from trainer.setup import Run
from trainer.versions import code_version, package_versions


def record_run(run: Run, inputs: Inputs) -> None:
    """Writes rebuild.json before the first step. A run that goes on notes what was changed since it began."""
    earlier = _earlier(run.folder) if run.resumed_from is not None else None
    base = run.components.model_files
    recipe = Recipe(
        values=portable_values(run.config, base.name),
        manifest=json.loads(run.folder.manifest_path.read_text(encoding="utf-8")),
        base={
            "name": base.name,
            "family": base.family,
            "fingerprint": base.fingerprint,
            "num_bytes": base.num_bytes,
            "prediction_type": run.noise_schedule.prediction_type,
        },
        loras=_loras(inputs) if earlier is None else earlier.loras,
        safelight=code_version(),
        packages=package_versions(),
        machine={
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device_label(run.device, run.dtype),
            "threads": torch.get_num_threads(),
        },
    )
    if earlier is not None:
        recipe = replace(recipe, changes=[*earlier.changes, *_changes(run, earlier, recipe)], results=earlier.results)
    _write(run.folder, recipe)


def record_results(run: Run, reason: str) -> None:
    """Adds the hashes of the LoRA files' tensors, by which a rebuild sees whether it gave the same, and where it ended.

    `reason`: why the run ended before its last step by itself, if it did.
    """
    recipe = _earlier(run.folder)
    if recipe is not None:
        end = {"step": run.step, "reason": reason}
        _write(run.folder, replace(recipe, results=tensor_hashes(run.folder.path), end=end))


def _earlier(folder: RunFolder) -> Recipe | None:
    """The recipe that the run began with; None if it is gone or damaged."""
    try:
        return read_recipe(folder.rebuild_path)
    except (SafelightError, OSError):
        return None


def _write(folder: RunFolder, recipe: Recipe) -> None:
    Root(folder.path).write_text_atomic(folder.rebuild_path, recipe_text(recipe))


def _loras(inputs: Inputs) -> list[dict[str, str]]:
    files = [path for _, path in inputs.merge_first] + ([inputs.continue_from] if inputs.continue_from else [])
    return [{"name": path.name, "sha256": sha256_of(path)} for path in files]


def _changes(run: Run, earlier: Recipe, now: Recipe) -> list[dict[str, Any]]:
    """What a rebuild can't do in the middle of a run: settings, pictures and versions that were changed."""
    told = [f"{name} {change}" for name, change in run.changed.items()]
    told += dataset_differences(earlier.manifest, now.manifest)
    told += _other(earlier.packages, now.packages)
    return [{"step": run.step, "what": text} for text in told]


def _other(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {before.get(name, 'not there')} became {after.get(name, 'not there')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
