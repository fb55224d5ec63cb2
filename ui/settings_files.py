"""What settings of other programs need to know of this machine, and imports and exports as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from security.errors import RefusedPath, SafelightError
from trainer.config.files import dump_config
from trainer.config.foreign.report import Imported, Outcome
from trainer.config.foreign.sd_scripts_export import export_sd_scripts
from trainer.config.foreign.taking import Surroundings
from trainer.config.schema import TrainConfig, weighted_dataset
from trainer.dataset.scan import dataset_names, find_dataset
from trainer.models.library import ModelInfo, list_models
from trainer.workspace import Workspace
from ui.recipes import DatasetSizes

OUTCOME_WORDS = {
    Outcome.NOT_TAKEN: "Not taken",
    Outcome.CHANGED: "Changed",
    Outcome.TAKEN: "Taken as it is",
    Outcome.NO_EFFECT: "Without effect here",
}
"""In the order in which a person wants to read them."""


def surroundings(
    workspace: Workspace, models: Sequence[ModelInfo] | None = None, *, library_only: bool = False
) -> Surroundings:
    """What an import may ask. `library_only`: folders are looked for among the library's datasets alone, as it must be
    while others can reach the page.
    """
    sizes = DatasetSizes(workspace)
    known = list_models(workspace) if models is None else models

    def samples(values: Mapping[str, Any]) -> float | None:
        named = [values["dataset.folder"], *values["dataset.regularisation"]]
        named += [weighted_dataset(line)[1] for line in values["dataset.more"]]
        named += [folder for folder in [values["validation.folder"]] if folder]
        if library_only and not set(named) <= set(dataset_names(workspace)):
            return None
        try:
            size = sizes.of(values)
        except SafelightError:
            return None
        return size.samples + size.prior

    def folder_fault(name: str) -> str:
        if library_only:
            return "" if name in dataset_names(workspace) else "is not among the datasets here; choose one"
        try:
            find_dataset(workspace, name)
        except SafelightError:
            return "is not on this machine; choose a dataset"
        return ""

    names: dict[str, str] = {}
    for info in known:
        if not info.problem:
            names |= {text.lower(): info.name for text in (info.name, info.path.name, info.source) if text}
    return Surroundings(samples=samples, models=names, folder_fault=folder_fault)


def library_paths(workspace: Workspace, config: TrainConfig) -> tuple[dict[str, str], bool]:
    """Where the models and datasets of a run lie, by name, and whether the base is an SDXL."""
    models = {info.name: info for info in list_models(workspace)}
    paths = {name: str(info.path) for name, info in models.items() if name == config.model.base}
    named = [config.dataset.folder, *config.dataset.regularisation]
    named += [weighted_dataset(line)[1] for line in config.dataset.more]
    for name in named:
        try:
            paths[name] = str(find_dataset(workspace, name))
        except SafelightError:
            continue  # of another machine: the path stays as it is, and a note says so
    info = models.get(config.model.base)
    return paths, info is not None and info.family == "sdxl"


def import_told(result: Imported) -> dict[str, Any]:
    """An import for the page: a summary, and the entries by what became of them."""
    groups = [
        {
            "title": f"{words} ({len(entries)})",
            "open": outcome in (Outcome.NOT_TAKEN, Outcome.CHANGED),
            "entries": [
                {
                    "theirs": f"{entry.theirs} = {entry.value}",
                    "ours": f"{entry.ours} = {entry.our_value}" if entry.ours else "",
                    "reason": entry.reason,
                }
                for entry in entries
            ],
        }
        for outcome, words in OUTCOME_WORDS.items()
        if (entries := result.report.of(outcome))
    ]
    return {"summary": result.report.summary(), "notes": list(result.report.notes), "groups": groups}


def own_file(config: TrainConfig) -> dict[str, Any]:
    """A run as our file, with the command that trains it."""
    name = f"{config.name}.toml"
    return {
        "title": name,
        "files": [{"name": name, "text": dump_config(config)}],
        "command": f"python launch.py train {name}",
    }


def sd_scripts_files(workspace: Workspace, config: TrainConfig, *, show_paths: bool) -> dict[str, Any]:
    """A run as files for sd-scripts, and what they cannot say. `show_paths`: where models and datasets lie is told."""
    paths, is_sdxl = library_paths(workspace, config)
    exported = export_sd_scripts(config, paths if show_paths else {}, is_sdxl=is_sdxl)
    return {
        "title": "Files for sd-scripts",
        "files": [{"name": name, "text": text} for name, text in exported.files.items()],
        "command": exported.command,
        "notes": list(exported.notes),
        "lost": [entry.line() for entry in exported.lost],
    }


def named_file(path: Path) -> Path:
    """The file that a person named on the command line. Raises RefusedPath with the path as it was typed."""
    if path.is_dir():
        raise RefusedPath(f"{path} is a folder. Name the file in it.")
    if not path.is_file():
        raise RefusedPath(f"There is no file {path}. Check the path.")
    return path


def uploaded(paths: str | Sequence[str]) -> list[Path]:
    """The files of an upload field, one or several."""
    return [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
