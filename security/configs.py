"""Reads TOML, JSON and YAML that others wrote: bounded in size and depth, no duplicate keys, finite numbers only."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]  # it comes with no types of its own

from security.errors import RefusedConfig
from security.policy import MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH, MAX_CONFIG_DOTS_PER_LINE

# The tokens of TOML in which a dot is only text: multi-line strings, strings, comments. Each matches wherever it can
# begin, ended or not: one that fails at the end would be tried again from every quotation mark, for minutes. Up to two
# of the five quotation marks at the end of a multi-line string belong to its text.
_TOML_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\\?\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)

_ENDLESS = 10**100
"""No setting has such a number. In hexadecimal it passes the parser's limit, and then nothing can print it."""


def read_toml(source: Path | str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a TOML file (a Path) or text (a str). Raises RefusedConfig that says where the fault is."""
    text, name = _bounded_text(source, max_bytes)
    for number, line in enumerate(_TOML_TEXT.sub('""', text).splitlines(), start=1):
        if line.count(".") > MAX_CONFIG_DOTS_PER_LINE:
            raise RefusedConfig(f"{name} has over {MAX_CONFIG_DOTS_PER_LINE} dots in line {number}. Shorten that key.")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise RefusedConfig(_too_deep(name)) from None
    except ValueError as error:
        raise RefusedConfig(f"{name} is not valid TOML: {error}. Correct it there.") from None
    _check_values(values, name)
    return values


def read_text(source: Path | str, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """Reads a plain text from a file (a Path). Raises RefusedConfig if it is too large, not UTF-8 or has NUL."""
    return _bounded_text(source, max_bytes)[0]


def read_json(source: Path | str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file (a Path) or text (a str). Raises RefusedConfig that says where the fault is."""
    text, name = _bounded_text(source, max_bytes)
    values = parse_json(text, name)
    _check_values(values, name)
    return values


def parse_json(text: str, name: str) -> dict[str, Any]:
    """Parses a JSON object strictly: no duplicate keys, no NaN, no Infinity. Size and depth are the caller's to check.

    `name` stands for the text in messages. Raises RefusedConfig.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            double = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise RefusedConfig(f"{name} has the key {double[:80]!r} twice. Remove one of them.")
        return values

    def not_finite(constant: str) -> NoReturn:
        raise RefusedConfig(f"{name} holds {constant}, which is not a number. Write a number instead.")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=not_finite, parse_int=_whole_number)
    except RecursionError:
        raise RefusedConfig(_too_deep(name)) from None
    except RefusedConfig:
        raise
    except ValueError as error:
        raise RefusedConfig(f"{name} is not valid JSON: {error}. Correct it there.") from None
    if "\\u" in text:
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # "\\ud800" alone: it could be neither shown nor saved
            raise RefusedConfig(f"{name} holds half of a character (a lone surrogate). Save it anew.") from None
    if not isinstance(values, dict):
        raise RefusedConfig(f"{name} holds a {type(values).__name__} where an object {{...}} must be.")
    return values


def _whole_number(digits: str) -> int | float:
    """The number that `digits` are. Python alone takes -0 for a whole one; to every other reader it is a float."""
    return -0.0 if digits == "-0" else int(digits)


_YAML_WORDS: dict[str, Any] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"], True),
    **dict.fromkeys(["false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"], False),
}
_YAML_WHOLE = re.compile(r"[-+]?[0-9]{1,100}")
_YAML_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,100}(?:\.[0-9]{0,100})?|\.[0-9]{1,100})(?:[eE][-+]?[0-9]{1,5})?")


def read_yaml(source: Path | str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a YAML mapping from a file (a Path) or text (a str), as plain data.

    Only texts, numbers, switches, lists and mappings: no tags, which can name code, and no aliases, with which a page
    of text becomes terabytes. `1e-4` is a number, as people mean it. Raises RefusedConfig that says where the fault is.
    """
    text, name = _bounded_text(source, max_bytes)
    try:
        _check_yaml_events(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise RefusedConfig(f"{name} is not valid YAML{where}: {getattr(error, 'problem', error)}.") from None
    if not isinstance(node, yaml.MappingNode):
        raise RefusedConfig(f"{name} holds no mapping (KEY: VALUE) where one must be.")
    values: dict[str, Any] = _yaml_value(node, name)
    _check_values(values, name)
    return values


def _check_yaml_events(text: str, name: str) -> None:
    """Refuses what would be dangerous to build, while the text is read piece by piece. Raises RefusedConfig."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise RefusedConfig(
                f"{name} repeats a part by an alias (*{event.anchor}) in line {line}. Write the part out."
            )
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in ("!", "tag:yaml.org,2002:str"):
            raise RefusedConfig(
                f"{name} has the tag {str(tag)[:60]!r} in line {line}; tags can name code. Take it out."
            )
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise RefusedConfig(f"{name} holds several documents (--- in line {line}). Leave one in it.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:
            raise RefusedConfig(_too_deep(name))


def _yaml_value(node: yaml.Node, name: str) -> Any:
    """The plain data of a node. Raises RefusedConfig for a key that stands twice or is none."""
    if isinstance(node, yaml.SequenceNode):
        return [_yaml_value(part, name) for part in node.value]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RefusedConfig(f"{name} has a key that is not a word in line {line}.")
            if key.value in values:
                raise RefusedConfig(
                    f"{name} has the key {key.value[:80]!r} twice, again in line {line}. Remove one of them."
                )
            values[key.value] = _yaml_value(value, name)
        return values
    if node.style is not None or node.tag == "!":  # in quotation marks or a block: text, whatever it looks like
        return node.value
    if node.value in _YAML_WORDS:
        return _YAML_WORDS[node.value]
    if _YAML_WHOLE.fullmatch(node.value):
        return int(node.value)
    return float(node.value) if _YAML_NUMBER.fullmatch(node.value) else node.value


def _bounded_text(source: Path | str, max_bytes: int) -> tuple[str, str]:
    """The text and the name that messages call it by. Raises RefusedConfig if it is too large, not UTF-8 or has NUL."""
    if isinstance(source, str):
        name, data = "The text", source.encode("utf-8", "surrogatepass")
    else:
        name = source.name
        try:
            with source.open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise RefusedConfig(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > max_bytes:
        raise RefusedConfig(f"{name} is larger than {max_bytes} bytes, too large for this. Is it another file?")
    try:
        text = data.decode("utf-8-sig")  # Windows editors put a byte order mark in front
    except UnicodeDecodeError as error:
        raise RefusedConfig(f"{name} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    if "\0" in text:
        raise RefusedConfig(f"{name} holds a NUL character, so it is not text. Is it another file?")
    return text, name


def _check_values(values: dict[str, Any], name: str) -> None:
    """Raises RefusedConfig for nesting beyond MAX_CONFIG_DEPTH and for endless or infinite numbers and nan (1e999)."""
    level: list[Any] = [values]
    for _ in range(MAX_CONFIG_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise RefusedConfig(f"{name} holds the number {value}. Write a finite number instead.")
            elif isinstance(value, int) and abs(value) >= _ENDLESS:
                raise RefusedConfig(f"{name} holds a whole number of over 100 digits. Write one that is meant.")
        level = below
        if not level:
            return
    raise RefusedConfig(_too_deep(name))


def _too_deep(name: str) -> str:
    return f"{name} is nested deeper than {MAX_CONFIG_DEPTH} levels, which no configuration needs. Is it another file?"
