"""Presets: settings to start from, by what is taught, the family of the base and the memory; and those of a user.

A shipped preset is two files of presets/ laid over the defaults: one of purpose and family, one of family and memory.
A user's own is a file of the same form in the workspace. Each says its reason, and only what differs from the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit

from security.configs import read_toml
from security.errors import RefusedConfig, RefusedName, SafelightError
from security.names import safe_name
from security.redaction import refuse_secrets
from security.roots import Root
from trainer.config.files import MAX_CONFIG_BYTES, config_values, iter_settings, parse_config, value_fault
from trainer.config.migrate import migrated
from trainer.config.schema import TrainConfig

PRESETS_DIR = Path(__file__).parent / "presets"
OWN_FOLDER = "presets"
"""Folder of a workspace with a user's own presets."""
MAX_OWN_PRESETS = 500
MAX_NAME_LENGTH = 64
MAX_REASON_LENGTH = 500


class Purpose(StrEnum):
    """What a LoRA is to teach."""

    CHARACTER = "character"
    STYLE = "style"
    THING = "thing"


TITLES = {
    Purpose.CHARACTER: "A person or character",
    Purpose.STYLE: "A style",
    Purpose.THING: "A thing or concept",
}
MEMORY: dict[str, tuple[int, ...]] = {"sd15": (6, 8, 12, 24), "sdxl": (8, 12, 24), "sdxl-v": (8, 12, 24)}
"""Gigabytes that there is a preset for, by kind of base. SDXL's weights alone take 5 GB, so it needs 8."""
PERSONAL = frozenset({"name", "model.base", "dataset.folder", "dataset.trigger_word"})
"""Settings that say what is trained, not how: no preset has them."""


@dataclass(frozen=True)
class Preset:
    """Settings to start from: `values` as `section.field` -> value, only those that differ from the defaults."""

    name: str
    title: str
    reason: str
    values: Mapping[str, Any]


def kind_of_base(family: str, prediction_type: str) -> str:
    """Which presets fit a base: its family, v-prediction apart for SDXL; empty if there are none."""
    kind = f"{family}-v" if family == "sdxl" and prediction_type == "v_prediction" else family
    return kind if kind in MEMORY else ""


def memory_level(num_bytes: int) -> int:
    """The level of a GPU with that much memory, in GB; 0 if it has less than the smallest. A card's 8 GB are a bit less."""
    gigabytes = num_bytes / 2**30 + 0.6
    return max((level for level in MEMORY["sd15"] if level <= gigabytes), default=0)


def shipped_preset(purpose: Purpose, kind: str, memory: int = 0) -> Preset:
    """The preset of a purpose for a kind of base; `memory` in GB, 0 for any.

    A kind that has no preset for so little gets its smallest, and the reason says so.
    """
    first = _shipped(f"{purpose.value}-{kind}")
    if not memory:
        return first
    levels = MEMORY[kind]
    level = max((each for each in levels if each <= memory), default=levels[0])
    second = _shipped(f"memory-{kind.removesuffix('-v')}-{level}gb")
    short = f" It needs {level} GB; {memory} are too few for this base." if level > memory else ""
    return Preset(
        f"{first.name}-{level}gb",
        f"{first.title}, {second.title}",
        f"{first.reason} {second.reason}{short}",
        {**first.values, **second.values},
    )


def shipped_presets() -> Iterator[Preset]:
    """Every preset that comes with the program: purpose x kind of base x memory."""
    for kind, levels in MEMORY.items():
        for purpose in Purpose:
            for level in levels:
                yield shipped_preset(purpose, kind, level)


@cache
def _shipped(name: str) -> Preset:
    return read_preset(PRESETS_DIR / f"{name}.toml")


def read_preset(path: Path) -> Preset:
    """Reads a preset file. Raises RefusedConfig for what is none, ConfigError for settings that are none."""
    content = read_toml(path, MAX_CONFIG_BYTES)
    title, reason = content.pop("title", path.stem), content.pop("reason", "")
    if not isinstance(title, str) or not isinstance(reason, str):
        raise RefusedConfig(f"{path.name} has a title or a reason that is no text. Correct it there.")
    values: dict[str, Any] = {}
    for section, held in migrated(content).items():
        if not isinstance(held, dict):
            raise RefusedConfig(
                f"{path.name} has {section[:60]!r} outside of a group of settings. A preset has none there."
            )
        values |= {f"{section}.{field}": value for field, value in held.items()}
    config = parse_config(_nested(values))
    plain = config_values(config)
    known = {name: plain[name.partition(".")[0]][name.partition(".")[2]] for name in values}
    if personal := sorted(PERSONAL & known.keys()):
        raise RefusedConfig(f"{path.name} sets {', '.join(personal)}, which says what is trained. A preset says how.")
    return Preset(path.stem, title, reason, known)


# -- a user's own --


def own_presets(workspace_path: Path) -> tuple[list[Preset], list[str]]:
    """The presets in a workspace by name, and a sentence for each file that can't be read."""
    folder = workspace_path / OWN_FOLDER
    presets, faults = [], []
    for path in sorted(folder.glob("*.toml"))[:MAX_OWN_PRESETS] if folder.is_dir() else []:
        try:
            presets.append(read_preset(Root(folder).child(path.name)))
        except SafelightError as error:
            faults.append(f"The preset {path.stem} can't be used: {error}")
    return presets, faults


def own_preset(workspace_path: Path, name: str) -> Preset:
    """One of them. Raises RefusedName that lists the names when there is none."""
    return read_preset(_existing(workspace_path, name))


def save_preset(workspace_path: Path, name: str, values: Mapping[str, Any], reason: str = "") -> Path:
    """Writes a preset of what differs from the defaults. Raises RefusedName, or RefusedConfig for texts with a token."""
    path = new_preset_path(workspace_path, name, reason)
    text = preset_text(path.stem, values, reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    Root(path.parent).write_text_atomic(path, text)
    return path


def new_preset_path(workspace_path: Path, name: str, reason: str = "") -> Path:
    """Where a preset would be kept. Raises RefusedName for a name that is no good or taken, RefusedConfig for a reason
    that is too long and when there are too many.
    """
    folder = workspace_path / OWN_FOLDER
    if folder.is_dir() and len(list(folder.glob("*.toml"))) >= MAX_OWN_PRESETS:
        raise RefusedConfig(f"There are {MAX_OWN_PRESETS} presets already. Delete some of them.")
    path = _path(workspace_path, name)
    if path.exists():
        raise RefusedName(f"There is a preset {path.stem} already. Choose another name, or delete it first.")
    _refuse_long_reason(reason)
    return path


def preset_text(title: str, values: Mapping[str, Any], reason: str = "") -> str:
    """A preset as TOML. Raises RefusedConfig if a text in it holds a token."""
    _refuse_long_reason(reason)
    document = tomlkit.document()
    document["title"] = title
    document["reason"] = reason
    for setting in iter_settings():
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        if setting.name in PERSONAL or setting.name not in values or values[setting.name] == default:
            continue
        if fault := value_fault(setting.name, values[setting.name]):
            raise RefusedConfig(fault)
        document.setdefault(setting.section, tomlkit.table()).add(setting.field, values[setting.name])
    text = tomlkit.dumps(document)
    refuse_secrets(text, f"The preset {title}")
    return text


def _refuse_long_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_LENGTH:
        raise RefusedConfig(f"The reason has {len(reason)} characters; {MAX_REASON_LENGTH} are allowed. Shorten it.")


def rename_preset(workspace_path: Path, name: str, new: str) -> Path:
    """Gives a preset another name. Raises RefusedName."""
    path, target = _existing(workspace_path, name), _path(workspace_path, new)
    if target.exists():
        raise RefusedName(f"There is a preset {target.stem} already. Choose another name.")
    preset = read_preset(path)
    root = Root(workspace_path / OWN_FOLDER)
    root.write_text_atomic(target, preset_text(target.stem, preset.values, preset.reason))
    root.remove_tree(path)
    return target


def delete_preset(workspace_path: Path, name: str) -> None:
    """Deletes a preset. Raises RefusedName."""
    path = _existing(workspace_path, name)
    Root(path.parent).remove_tree(path)


def _path(workspace_path: Path, name: str) -> Path:
    typed = name.strip()
    if len(typed) > MAX_NAME_LENGTH:
        raise RefusedName(f"The name has {len(typed)} characters; {MAX_NAME_LENGTH} are allowed. Shorten it.")
    return workspace_path / OWN_FOLDER / f"{safe_name(typed, 'preset name')}.toml"


def _existing(workspace_path: Path, name: str) -> Path:
    path = _path(workspace_path, name)
    if not path.is_file() or path.is_symlink():
        names = ", ".join(preset.name for preset in own_presets(workspace_path)[0]) or "none yet"
        raise RefusedName(f"There is no preset {name[:80]!r} of your own. There are: {names}.")
    return path


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        result.setdefault(section, {})[field] = value
    return result


def config_of(preset: Preset) -> TrainConfig:
    """The defaults with a preset laid over them."""
    return parse_config(_nested(preset.values))
