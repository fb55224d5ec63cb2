"""One file that rebuilds a run: its settings, every picture by its hash, the base, the versions; and what is other now.

`rebuild.json` lies in every run's folder. It names no path of the machine: models, datasets and LoRAs go by their names,
and whoever has them elsewhere says where. Imports no torch.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import RefusedConfig, SafelightError
from security.integrity import sha256_of
from security.redaction import refuse_secrets
from security.weights import check_safetensors
from trainer.config.files import apply_flags, config_values, iter_settings, parse_config
from trainer.config.schema import TrainConfig, weighted_dataset
from trainer.dataset.manifest import run_manifest
from trainer.dataset.plan import plan_dataset
from trainer.inputs import find_inputs
from trainer.rebuild_changes import dataset_differences
from trainer.versions import code_version, package_versions
from trainer.workspace import Workspace

FORMAT, VERSION = "safelight-rebuild", 1
MAX_BYTES = 256 * 1024 * 1024
"""Largest file that is read: the pictures of half a million."""
PLACES = (
    *("name", "model.base", "dataset.folder", "dataset.more", "dataset.regularisation", "validation.folder"),
    *("lora.continue_from", "lora.merge_first", "training.device"),
)
"""Settings that say where things lie. All others make the run what it is, so a rebuild takes them from the file."""


HASH_ENTRY = "sshs_model_hash"
"""The entry of a LoRA's metadata that holds the SHA-256 of its tensors."""


@dataclass(frozen=True)
class Recipe:
    """What the file says. `values`: the settings, nested; `manifest`: the run's dataset.json as plain values.

    `loras`: name and SHA-256 of those that are merged into the base, then of the one that the run goes on from.
    `changes`: what was changed while the run was trained. `end`: the step it ended at, and why if it ended
    early by itself. `results`: LoRA file -> SHA-256 of its tensors.
    """

    values: Mapping[str, Any]
    manifest: Mapping[str, Any]
    base: Mapping[str, Any]
    loras: Sequence[Mapping[str, str]] = ()
    safelight: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = ()
    end: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One thing that is other than the file says. `decisive`: the LoRA will be another one; else by its last digits."""

    text: str
    decisive: bool


@dataclass(frozen=True)
class Checked:
    """A rebuild that was looked at: the settings to train with and what is other. `possible`: everything was found."""

    config: TrainConfig
    recipe: Recipe
    differences: tuple[Difference, ...]
    possible: bool

    @property
    def is_same(self) -> bool:
        """Whether nothing that decides about the LoRA is other."""
        return not any(one.decisive for one in self.differences)


def recipe_text(recipe: Recipe) -> str:
    """The file of a recipe. Raises RefusedConfig if a token is in it."""
    values = {"format": FORMAT, "version": VERSION, **{name: getattr(recipe, key) for key, name in _NAMES.items()}}
    text = json.dumps(values, indent=1) + "\n"  # ASCII: names may be no UTF-8
    refuse_secrets(text, "The file that rebuilds this run")
    return text


_NAMES = {
    "safelight": "safelight", "packages": "packages", "machine": "machine", "base": "base", "loras": "loras",
    "values": "config", "manifest": "dataset", "changes": "changes", "end": "end", "results": "results",
}  # fmt: skip
"""Fields of a Recipe and their names in the file."""
_KINDS = {name: list if name in ("loras", "changes") else dict for name in _NAMES.values()}


def is_recipe(values: Mapping[str, Any]) -> bool:
    """Whether plain values out of a JSON file are a recipe."""
    return values.get("format") == FORMAT


def read_recipe(path: Path) -> Recipe:
    """Reads a file that rebuilds a run. Raises RefusedConfig that says what is wrong with it."""
    values = read_json(path, max_bytes=MAX_BYTES)
    if not is_recipe(values):
        raise RefusedConfig(f"{path.name} is no file that rebuilds a run. Take rebuild.json of a run's folder.")
    if values.get("version") != VERSION:
        found = str(values.get("version"))[:20]
        raise RefusedConfig(
            f"{path.name} has version {found}, not {VERSION}: a newer Safelight wrote it. Update Safelight."
        )
    wrong = [name for name, kind in _KINDS.items() if not isinstance(values.get(name), kind)]
    if wrong:
        raise RefusedConfig(f"{path.name} has no usable part {', '.join(wrong)}. It is damaged: take another copy.")
    rows = [row for name in ("loras", "changes") for row in values[name]]
    if not all(isinstance(row, dict) for row in rows) or not all(
        isinstance(one, str) for one in values["results"].values()
    ):
        raise RefusedConfig(f"{path.name} has entries that can't be used. It is damaged: take another copy.")
    return Recipe(**{key: values[name] for key, name in _NAMES.items()})


def tensor_hashes(folder: Path) -> dict[str, str]:
    """LoRA file -> SHA-256 of its tensors: what stays the same though metadata has times in it.

    A file that is no sound .safetensors file is none of the run's.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            metadata = check_safetensors(path).metadata
        except SafelightError:
            continue
        if HASH_ENTRY in metadata:
            found[path.name] = metadata[HASH_ENTRY]
    return found


def compare_results(recipe: Recipe, folder: Path, name: str) -> tuple[list[str], list[str]]:
    """LoRA files of a finished rebuild that have the tensors of the first run, and those that have others.

    `name`: the rebuilt run's; files of both runs belong together by what comes behind the name.
    """
    before = str(recipe.values.get("name", ""))
    wanted = {file.removeprefix(before): digest for file, digest in recipe.results.items()}
    known = {file: one for file, one in tensor_hashes(folder).items() if file.removeprefix(name) in wanted}
    same = [file for file, one in known.items() if wanted[file.removeprefix(name)] == one]
    return same, [file for file in known if file not in same]


def portable_values(config: TrainConfig, base_name: str) -> dict[str, Any]:
    """The settings with names in place of paths: where things lie on this machine is nobody's business."""
    values = config_values(config)
    values["model"]["base"] = base_name
    dataset, lora = values["dataset"], values["lora"]
    dataset["folder"] = _last(dataset["folder"])
    dataset["more"] = [" ".join([line.partition(" ")[0], _last(weighted_dataset(line)[1])]) for line in dataset["more"]]
    dataset["regularisation"] = [_last(name) for name in dataset["regularisation"]]
    values["validation"]["folder"] = _last(values["validation"]["folder"])
    lora["continue_from"] = _last(lora["continue_from"])
    lora["merge_first"] = [
        " ".join([line.partition(" ")[0], _last(line.partition(" ")[2])]) for line in lora["merge_first"]
    ]
    return values


def _last(name: str) -> str:
    return name.strip().replace("\\", "/").rstrip("/").rpartition("/")[2]


def rebuild_config(recipe: Recipe, flags: Sequence[str] = ()) -> TrainConfig:
    """The settings of a rebuild; `flags` (`--section.field VALUE`) say where things lie on this machine.

    Raises ConfigError, and RefusedConfig for a flag that would make it another run.
    """
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name not in PLACES:
            raise RefusedConfig(
                f"--{name} would make it another run. A rebuild takes these: {', '.join(PLACES)}. For anything else "
                "train with the run's config.toml."
            )
    return parse_config(apply_flags(copy.deepcopy(dict(recipe.values)), flags))


def check_rebuild(workspace: Workspace, recipe: Recipe, config: TrainConfig) -> Checked:
    """Compares everything that the file tells with what is here. Reads every picture and, once, the base."""
    differences = [*_course_differences(recipe, config), *_version_differences(recipe), *_setting_differences(recipe)]
    try:
        inputs = find_inputs(config, workspace)
        if inputs.fault:
            raise SafelightError(inputs.fault)
        plan = plan_dataset(workspace, config)
    except SafelightError as error:
        return Checked(config, recipe, (Difference(str(error), True), *differences), possible=False)
    if inputs.model.fingerprint != recipe.base.get("fingerprint"):
        differences.append(
            Difference(
                f"The base {inputs.model.name} has other weights: its fingerprint is {inputs.model.fingerprint[:16]}, and "
                f"the run was trained on {recipe.base.get('name')} with {str(recipe.base.get('fingerprint'))[:16]}.",
                True,
            )
        )
    files = [path for _, path in inputs.merge_first] + ([inputs.continue_from] if inputs.continue_from else [])
    differences += [
        Difference(f"The LoRA {path.name} is another one than {lora.get('name')} was.", True)
        for path, lora in zip(files, recipe.loras, strict=False)
        if sha256_of(path) != lora.get("sha256")
    ]
    sources = [row.source for row in plan.sources]
    now = json.loads(run_manifest(sources, plan.placed, plan.held_out_source, plan.held_out))
    found = dataset_differences(recipe.manifest, now)
    differences += [Difference(text, True) for text in found]
    return Checked(config, recipe, tuple(sorted(differences, key=lambda one: not one.decisive)), possible=True)


def _course_differences(recipe: Recipe, config: TrainConfig) -> list[Difference]:
    """What happened to the run that a rebuild can't repeat: changes on the way, and a stop by its user."""
    found = [
        Difference(
            f"The run was changed at step {one.get('step')}: {one.get('what')}. A rebuild has it from the start.", True
        )
        for one in recipe.changes
    ]
    total, step = config.training.max_train_steps, recipe.end.get("step")
    if not recipe.end:
        found.append(
            Difference("The run had not ended when this file was taken, so there is no result to compare with.", False)
        )
    elif step != total and not recipe.end.get("reason"):
        found.append(Difference(f"The run was stopped at step {step} of {total}; a rebuild trains all {total}.", True))
    return found


def _version_differences(recipe: Recipe) -> list[Difference]:
    found = []
    now = package_versions()
    for name, version in recipe.packages.items():
        if now.get(name) != version:
            here = f"it is {now[name]} here" if name in now else "it is not installed here"
            found.append(f"{name} was {version}, and {here}")
    if (python := platform.python_version()) != recipe.machine.get("python"):
        found.append(f"Python was {recipe.machine.get('python')}, and it is {python} here")
    code = code_version()
    if recipe.safelight.get("code_sha256") != code["code_sha256"]:
        was, here = (one.get("commit") or "one without a commit" for one in (recipe.safelight, code))
        found.append(f"Safelight's own code was another one ({was}, here {here})")
    return [Difference(f"{text}: the LoRA may differ, mostly in its last digits.", False) for text in found]


def _setting_differences(recipe: Recipe) -> list[Difference]:
    """Settings that the file does not know, because it is of another version: they keep their defaults."""
    new = []
    for setting in iter_settings():
        values = recipe.values.get(setting.section, {}) if setting.section else recipe.values
        if isinstance(values, Mapping) and setting.field not in values:
            new.append(setting.name)
    if not new:
        return []
    return [Difference(f"The file says nothing of {', '.join(new)}: the defaults of this version are taken.", False)]
