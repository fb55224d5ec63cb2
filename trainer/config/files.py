"""Reading and writing a run's settings: TOML files, command line flags, and error texts that name the way out."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_origin

import annotated_types
import tomlkit
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from security.configs import read_toml
from security.errors import SafelightError
from security.redaction import refuse_secrets
from trainer.config.migrate import MOVED, migrated
from trainer.config.schema import Section, TrainConfig

MAX_CONFIG_BYTES = 1_000_000
REASONS = {
    "int_from_float": "and has to be a whole number",
    "int": "which is no whole number",
    "float": "which is no number",
    "finite_number": "which is no finite number",
    "bool": "which is neither true nor false",
    "string_type": "which is no text",
    "list_type": "which is no list",
    "tuple_type": "which is no list",
    "model_type": "which is no section of settings",
    "dict_type": "which is no table of names and values",
    "enum": "which is none of the choices",
    "greater_than": "which is too small",
    "less_than": "which is too large",
}
"""What is wrong with a value, by the beginning of pydantic's type of the error."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a config. `setting` is `section.field`, or empty when several settings don't fit together."""

    setting: str
    message: str


class ConfigError(SafelightError):
    """Settings that can't be run; `faults` has all of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(fault.message for fault in self.faults))


class SettingKind(StrEnum):
    """How a setting is typed in: one word for the form, the flags and the documentation."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    SWITCH = "switch"
    CHOICE = "choice"
    LINES = "lines"


@dataclass(frozen=True)
class Setting:
    """One setting as the form, the flags and the documentation see it. Bounds are inclusive unless `above` is given."""

    name: str
    section: str
    field: str
    kind: SettingKind
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    multiple_of: float | None = None

    @property
    def range_text(self) -> str:
        """The allowed values in a few words, empty when anything goes."""
        if self.choices:
            return ", ".join(self.choices)
        low = (
            _number(self.minimum)
            if self.minimum is not None
            else f"over {_number(self.above)}"
            if self.above is not None
            else ""
        )
        high = (
            _number(self.maximum)
            if self.maximum is not None
            else f"under {_number(self.below)}"
            if self.below is not None
            else ""
        )
        return f"{low} to {high}" if low and high else low or high


def _number(value: float | None) -> str:
    return f"{value:g}" if value is None or abs(value) < 1e5 or value != int(value) else f"{int(value)}"


def iter_settings() -> Iterator[Setting]:
    """Every setting of the schema in its order; `name` is `section.field`, or `field` for the run's own."""
    for field_name, info in TrainConfig.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            for inner_name, inner in annotation.model_fields.items():
                yield _setting(field_name, inner_name, inner)
        else:
            yield _setting("", field_name, info)


def section_settings(section: type[Section]) -> Iterator[Setting]:
    """The settings of one group that is no part of a run, such as the options of a tagging; `name` is the field."""
    for field_name, info in section.model_fields.items():
        yield _setting("", field_name, info)


def _setting(section: str, field: str, info: FieldInfo) -> Setting:
    annotation = info.annotation
    choices: tuple[str, ...] = ()
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        kind, choices = SettingKind.CHOICE, tuple(member.value for member in annotation)
    elif get_origin(annotation) is tuple:
        kind = SettingKind.LINES
    else:
        kinds = {bool: SettingKind.SWITCH, int: SettingKind.INTEGER, float: SettingKind.NUMBER, str: SettingKind.TEXT}
        assert isinstance(annotation, type), f"{section}.{field} has no plain type: {annotation}"
        kind = kinds[annotation]
    bounds: dict[str, Any] = {}
    keys = {
        annotated_types.Ge: ("minimum", "ge"),
        annotated_types.Gt: ("above", "gt"),
        annotated_types.Le: ("maximum", "le"),
        annotated_types.Lt: ("below", "lt"),
        annotated_types.MultipleOf: ("multiple_of", "multiple_of"),
    }
    for constraint in info.metadata:
        if type(constraint) in keys:
            ours, theirs = keys[type(constraint)]
            bounds[ours] = getattr(constraint, theirs)
    default = info.default.value if isinstance(info.default, StrEnum) else info.default
    name = f"{section}.{field}" if section else field
    return Setting(name, section, field, kind, default, info.description or "", choices, **bounds)


def parse_config(values: dict[str, Any]) -> TrainConfig:
    """Validates nested plain values. Raises ConfigError with every fault at once."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([fault for detail in error.errors() for fault in _faults(detail)]) from None


def _faults(detail: Any) -> list[Fault]:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location[:2]) if location and location[0] in _sections() else ".".join(location[:1])
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return [Fault(name, f"{'.'.join(location)} is not a setting.{_did_you_mean('.'.join(location))}")]
    if not location:  # a check between settings: its text is ours already, one fault a line
        return [Fault(line.split(" ")[0], line) for line in str(detail["ctx"]["error"]).splitlines()]
    known = {setting.name: setting for setting in iter_settings()}
    setting = known.get(name)
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    allowed = f" Allowed: {setting.range_text}." if setting and setting.range_text else ""
    if value is None or (isinstance(value, str) and not value.strip()):
        return [Fault(name, f"{name} is empty.{allowed}{f' {setting.help}' if setting and not allowed else ''}")]
    reason = next((words for kind, words in REASONS.items() if detail["type"].startswith(kind)), "")
    if isinstance(value, float) and math.isnan(value):
        reason = REASONS["float"]
    reason = reason or f"but {detail['msg'][0].lower()}{detail['msg'][1:]}"
    if detail["type"] == "string_pattern_mismatch":
        return [Fault(name, f"{name} is {shown}, which does not fit. {setting.help if setting else reason}")]
    return [Fault(name, f"{name} is {shown}, {reason}.{allowed}")]


def _sections() -> set[str]:
    return {setting.section for setting in iter_settings() if setting.section}


def _did_you_mean(name: str) -> str:
    if name in MOVED:
        return f" It is {MOVED[name]} now."
    section, _, field = name.rpartition(".")
    known = list(iter_settings())
    own = [setting.field for setting in known if setting.section == section]
    near = [setting.name for setting in known if setting.field == field]
    if not near:  # the section is alike in all of its settings, so only what stands behind it tells which one is meant
        alike = difflib.get_close_matches(field, own, n=1, cutoff=0.7)
        alike = alike or [one for one in own if len(field) > 2 and one.startswith(field)]
        near = [f"{section}.{one}".lstrip(".") for one in alike]
    near = near or difflib.get_close_matches(name, [setting.name for setting in known], n=1, cutoff=0.85)
    return f" Did you mean {near[0]}?" if near else " See `python launch.py train --help` for all of them."


def value_fault(name: str, value: Any) -> str:
    """What is wrong with one value for the setting `name` alone, in words; empty if nothing is."""
    section, _, field = name.rpartition(".")
    model: Any = TrainConfig.model_fields[section].annotation if section else TrainConfig
    try:
        model.__pydantic_validator__.validate_assignment(model.model_construct(), field, value)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "value_error":  # a check between settings: one value alone can't break it
            return ""
        located = {**detail, "loc": ((section,) if section else ()) + tuple(detail["loc"])}
        return _faults(located)[0].message
    return ""


def load_values(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises RefusedConfig when it is not readable TOML of a sane size."""
    return migrated(read_toml(path, max_bytes=MAX_CONFIG_BYTES))


def load_config(path: Path) -> TrainConfig:
    """Reads and validates a TOML file. Raises RefusedConfig or ConfigError."""
    return parse_config(load_values(path))


def apply_flags(values: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Lays `--section.field VALUE` flags over plain values; a setting that is a list may be given several times.

    Raises ConfigError for an unknown flag, a missing value, or a value of the wrong type.
    """
    known = {setting.name: setting for setting in iter_settings()}
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    faults: list[Fault] = []
    seen_lists: set[str] = set()
    position = 0
    while position < len(flags):
        name, equals, inline = flags[position].removeprefix("--").partition("=")
        setting = known.get(name)
        if not flags[position].startswith("--") or setting is None:
            faults.append(Fault(name, f"{flags[position]} is not a setting.{_did_you_mean(name)}"))
            position += 1 if equals or not flags[position].startswith("--") else 2
            continue
        if not equals and position + 1 >= len(flags):
            faults.append(Fault(name, f"--{name} needs a value: {setting.range_text or setting.kind.value}."))
            break
        text = inline if equals else flags[position + 1]
        position += 1 if equals else 2
        target = result.setdefault(setting.section, {}) if setting.section else result
        try:
            value = parse_text(setting, text)
        except ValueError:
            faults.append(Fault(name, f"--{name} is {text!r}, which is not {_KIND_WORDS[setting.kind]}."))
            continue
        if setting.kind is SettingKind.LINES and name in seen_lists:
            value = [*target[setting.field], *value]
        seen_lists.add(name)
        target[setting.field] = value
    if faults:
        raise ConfigError(faults)
    return result


_KIND_WORDS = {SettingKind.INTEGER: "a whole number", SettingKind.NUMBER: "a number", SettingKind.SWITCH: "on or off"}


def parse_text(setting: Setting, text: str) -> Any:
    """A setting's value from typed text. Raises ValueError when it doesn't have the setting's type."""
    if setting.kind is SettingKind.SWITCH:
        words = {
            "true": True,
            "on": True,
            "yes": True,
            "1": True,
            "false": False,
            "off": False,
            "no": False,
            "0": False,
        }
        if text.strip().lower() not in words:
            raise ValueError(text)
        return words[text.strip().lower()]
    if setting.kind is SettingKind.INTEGER:
        return int(text)
    if setting.kind is SettingKind.NUMBER:
        return float(text)
    if setting.kind is SettingKind.LINES:
        return [line.strip() for line in text.splitlines() if line.strip()]
    return text


def config_values(config: TrainConfig) -> dict[str, Any]:
    """The config as nested plain values; `parse_config` turns them back into an equal config."""
    return config.model_dump(mode="json")


def dump_config(config: TrainConfig) -> str:
    """The whole config as TOML, for a file: each setting under its help text. Raises RefusedConfig for one with a token."""
    text = config_text(config)
    refuse_secrets(text, f"The settings of {config.name}")
    return text


def config_text(config: TrainConfig) -> str:
    """The whole config as TOML, for the eyes."""
    values = config_values(config)
    document = tomlkit.document()
    for setting in iter_settings():
        table = document.setdefault(setting.section, tomlkit.table()) if setting.section else document
        table.add(tomlkit.comment(setting.help))
        value = values[setting.section][setting.field] if setting.section else values[setting.field]
        table.add(setting.field, _toml_lines(value) if setting.kind is SettingKind.LINES else value)
    return tomlkit.dumps(document)


def _toml_lines(lines: list[str]) -> Any:
    array = tomlkit.array()
    array.extend(lines)
    return array.multiline(len(lines) > 1)
