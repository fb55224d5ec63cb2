"""Reads settings that any of the known programs wrote: finds out which by the content, and reads our own as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.configs import read_json, read_text, read_toml, read_yaml
from security.errors import RefusedConfig
from trainer.config.files import MAX_CONFIG_BYTES, iter_settings, parse_config
from trainer.config.foreign.ai_toolkit import import_ai_toolkit, is_ai_toolkit
from trainer.config.foreign.kohya import import_kohya
from trainer.config.foreign.onetrainer import import_onetrainer, is_onetrainer
from trainer.config.foreign.report import Imported, Report
from trainer.config.foreign.sd_scripts import dataset_folders, import_sd_scripts, one_level
from trainer.config.foreign.sd_scripts_keys import TABLE
from trainer.config.foreign.seed import import_preset, is_preset
from trainer.config.foreign.taking import Surroundings, WrongValueError, flat
from trainer.config.migrate import migrated
from trainer.config.schema import TrainConfig

MAX_FILES = 3
SUFFIXES = (".toml", ".json", ".yaml", ".yml", ".txt")
READERS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    ".toml": read_toml,
    ".json": read_json,
    ".yaml": read_yaml,
    ".yml": read_yaml,
}
KOHYA_KEYS = frozenset({"LoRA_type", "network_dim", "lr_scheduler", "train_batch_size", "max_resolution", "unet_lr"})
KNOWN = "Known are runs of Safelight, kohya_ss, sd-scripts, OneTrainer, ai-toolkit and presets of Ktiseos-Nyx-Trainer."


@dataclass(frozen=True)
class _Files:
    """What was handed in, by its content."""

    main: dict[str, Any]
    name: str
    is_toml: bool
    dataset: dict[str, Any] | None = None
    prompts: str | None = None


def read_settings(
    paths: Sequence[Path], around: Surroundings | None = None, base: Mapping[str, Any] | None = None
) -> Imported:
    """Reads one settings file, or one of sd-scripts with its dataset file and its prompts.

    `base`: what a preset is laid over when lengths are counted, as `section.field` -> value; the defaults otherwise.
    Raises RefusedConfig for files that can't be read, are too large or of no known program, ConfigError for a file of
    our own with faults.
    """
    surroundings = around or Surroundings()
    files = _sorted(paths)
    start = dict(base or flat(TrainConfig()))
    if files.is_toml and files.dataset is None and _is_ours(files.main):
        config = parse_config(migrated(files.main))
        return Imported(config, flat(config), Report("Safelight", ()))
    try:
        return _import(files, surroundings, start)
    except WrongValueError as error:
        raise RefusedConfig(f"{files.name} {error}.") from None


def _import(files: _Files, around: Surroundings, start: dict[str, Any]) -> Imported:
    values = files.main
    whole = flat(TrainConfig())
    if files.is_toml:
        known = {**values, **({"sample_prompts": files.prompts} if files.prompts else {})}
        return import_sd_scripts(known, files.dataset, around, whole if values else start)
    if is_ai_toolkit(values):
        return import_ai_toolkit(values, around, whole)
    if is_onetrainer(values):
        return import_onetrainer(values, around, whole)
    if is_preset(values):
        return import_preset(values, around, start)
    if len(KOHYA_KEYS & values.keys()) >= 2:
        return import_kohya(values, around, whole)
    raise RefusedConfig(f"{files.name} is of no program whose settings are known. {KNOWN}")


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a TOML file is a run of ours, right or wrong: no option in it that only sd-scripts has."""
    sections = {name for name, info in TrainConfig.model_fields.items() if info.annotation is not str}
    fields = {setting.field for setting in iter_settings()}
    options, _ = one_level(values)
    if any(key in TABLE and key not in fields for key in options):
        return False
    return set(values) <= {"name", *sections} or not any(key in TABLE for key in options)


def _sorted(paths: Sequence[Path]) -> _Files:
    """Which file is which: the settings, the datasets of sd-scripts, its prompts. Raises RefusedConfig."""
    if not 1 <= len(paths) <= MAX_FILES:
        raise RefusedConfig(
            f"{len(paths)} files were given. Give one file; for sd-scripts its dataset and prompt files too."
        )
    mains: list[tuple[Path, dict[str, Any]]] = []
    dataset: dict[str, Any] | None = None
    prompts: str | None = None
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".txt":
            if prompts is not None:
                raise RefusedConfig(f"{path.name} is a second file of prompts. Give one of them.")
            prompts = read_text(path, MAX_CONFIG_BYTES)
            continue
        if suffix not in READERS:
            raise RefusedConfig(f"{path.name} is neither TOML, JSON nor YAML. {KNOWN}")
        values = READERS[suffix](path, MAX_CONFIG_BYTES)
        if suffix == ".toml" and isinstance(values.get("datasets"), list):
            if dataset is not None:
                raise RefusedConfig(f"{path.name} is a second dataset file. Give one of them.")
            dataset, options = _parted(values)
            _checked_folders(dataset, path.name)
            if options:
                mains.append((path, options))
        else:
            mains.append((path, values))
    if len(mains) > 1:
        names = " and ".join(path.name for path, _ in mains)
        raise RefusedConfig(f"{names} are both settings of a run. Import one after the other.")
    if not mains and dataset is None:
        raise RefusedConfig(f"{paths[0].name} has only text. {KNOWN}")
    path, values = mains[0] if mains else (paths[0], {})
    is_toml = path.suffix.lower() in (".toml", ".txt")
    if not is_toml and (dataset is not None or prompts is not None):
        raise RefusedConfig(f"{path.name} has its datasets and prompts in itself. Import it alone.")
    if is_toml and mains and _is_ours(values) and (dataset is not None or prompts is not None):
        raise RefusedConfig(f"{path.name} is a run of Safelight, which needs no other file. Import it alone.")
    return _Files(values, path.name, is_toml, dataset, prompts)


def _parted(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file with [[datasets]] as the dataset file and the run's options, which some people keep in the same file."""
    options = {key: value for key, value in values.items() if key not in ("general", "datasets")}
    if not any(key in TABLE for key in one_level(options)[0]):
        return values, {}  # what is strange in a dataset file is told as such
    return {key: value for key, value in values.items() if key not in options}, options


def _checked_folders(values: Mapping[str, Any], name: str) -> None:
    try:
        folders = dataset_folders(values)
    except WrongValueError as error:
        raise RefusedConfig(f"{name} {error}.") from None
    if not folders:
        raise RefusedConfig(f"{name} has no [[datasets.subsets]] with an image_dir.")
