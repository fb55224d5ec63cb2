"""What a dataset says of itself, in its hidden folder `.safelight`: settings, crops chosen by hand, masks.

Read for any folder of pictures; a folder without these files has the defaults. Whoever made the folder may have written
them, so every value is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from security.configs import read_json
from security.errors import RefusedConfig, SafelightError

T = TypeVar("T")
OWN_FOLDER = ".safelight"
SETTINGS_FILE = "dataset.json"
MARKS_FILE = "marks.json"
MASKS_FOLDER = "masks"
VERSION = 1
MAX_REPEATS = 1000
MAX_ZOOM = 64.0
MAX_TEXT = 200
MAX_OWN_BYTES = 32 * 1024 * 1024
"""Largest file of ours: the marks of 100,000 pictures."""


@dataclass(frozen=True)
class DatasetSettings:
    """Settings that belong to the pictures, not to a run.

    `repeats`: how often an epoch looks at the pictures of a sub-folder ("" is the top, else its path from the dataset);
    it counts more than a number in front of the folder's name. `made_from`: the dataset that this one was made of.
    """

    trigger_word: str = ""
    repeats: Mapping[str, int] = field(default_factory=dict)
    made_from: str = ""


@dataclass(frozen=True)
class Mark:
    """The crop chosen for a picture: its centre as a share of the upright picture, and how far it is drawn near (>= 1)."""

    focus: tuple[float, float] = (0.5, 0.5)
    zoom: float = 1.0


def own_folder(folder: Path) -> Path:
    """The hidden folder of a dataset, there or not. Raises SafelightError if it is a link or a file."""
    path = folder / OWN_FOLDER
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise SafelightError(f"{folder.name}/{OWN_FOLDER} is a link or a file, not a folder. Move it away.")
    return path


def mask_path(folder: Path, picture: str) -> Path:
    """Where the mask of a picture lies: 8-bit grey PNG, white is learned. Raises SafelightError for a link."""
    masks = own_folder(folder) / MASKS_FOLDER
    if masks.is_symlink():
        raise SafelightError(f"{folder.name}/{OWN_FOLDER}/{MASKS_FOLDER} is a link, not a folder. Move it away.")
    return masks / f"{picture}.png"


def load_settings(folder: Path) -> DatasetSettings:
    """The settings of a dataset. Raises SafelightError that names the file if it is damaged."""
    values = _read(folder, SETTINGS_FILE, {"trigger_word", "repeats", "made_from"})
    return _named(SETTINGS_FILE, lambda: checked_settings(values))


def load_marks(folder: Path) -> dict[str, Mark]:
    """The crops chosen by hand, by picture. Raises SafelightError that names the file if it is damaged."""
    marks = _read(folder, MARKS_FILE, {"marks"}).get("marks", {})
    if not isinstance(marks, dict):
        raise RefusedConfig(f"{OWN_FOLDER}/{MARKS_FILE} has no list of marks. Correct or delete the file.")
    return _named(MARKS_FILE, lambda: {name: checked_mark(name, value) for name, value in marks.items()})


def checked_settings(values: Mapping[str, Any]) -> DatasetSettings:
    """Settings out of plain values. Raises RefusedConfig that names the value."""
    repeats = values.get("repeats", {})
    if not isinstance(repeats, dict):
        raise RefusedConfig(f"repeats is {str(repeats)[:80]!r}, not a table of folders and numbers")
    for folder, number in repeats.items():
        if not _is_folder(folder):
            raise RefusedConfig(f"repeats names the folder {str(folder)[:80]!r}, which can't be one below the dataset")
        if type(number) is not int or not 1 <= number <= MAX_REPEATS:
            raise RefusedConfig(f"the repeats of {folder or 'the top folder'!r} are {number!r}, not 1 to {MAX_REPEATS}")
    return DatasetSettings(_line(values, "trigger_word"), dict(repeats), _line(values, "made_from"))


def settings_bytes(settings: DatasetSettings) -> bytes:
    """The file of these settings."""
    values = {"trigger_word": settings.trigger_word, "repeats": dict(settings.repeats), "made_from": settings.made_from}
    checked_settings(values)
    return _file_of(values)


def marks_bytes(marks: Mapping[str, Mark]) -> bytes | None:
    """The file of these marks; None if there are none."""
    values = {name: {"focus": list(mark.focus), "zoom": mark.zoom} for name, mark in sorted(marks.items())}
    for name, value in values.items():
        checked_mark(name, value)
    return _file_of({"marks": values}) if values else None


def _file_of(values: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps({"version": VERSION, **values}, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        raise SafelightError("A file name or text is no valid UTF-8, so it can't be written down. Rename it.") from None


def _read(folder: Path, name: str, known: set[str]) -> dict[str, Any]:
    path = own_folder(folder) / name
    if path.is_symlink():
        raise RefusedConfig(f"{OWN_FOLDER}/{name} is a link. Put the file itself there, or delete it.")
    if not path.exists():
        return {}
    values = read_json(path, MAX_OWN_BYTES)
    if values.get("version") != VERSION:
        found = str(values.get("version"))[:20]
        raise RefusedConfig(f"{OWN_FOLDER}/{name} has version {found}, not {VERSION}: a newer Safelight wrote it.")
    for key in values.keys() - known - {"version"}:
        raise RefusedConfig(f"{OWN_FOLDER}/{name} has the unknown entry {key[:80]!r}. Take it out.")
    return values


def _named(name: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except RefusedConfig as error:
        raise RefusedConfig(f"In {OWN_FOLDER}/{name} {error}. Correct or delete the file.") from None


def _line(values: Mapping[str, Any], key: str) -> str:
    text = values.get(key, "")
    if not isinstance(text, str) or len(text) > MAX_TEXT or not (text == "" or text.isprintable()):
        raise RefusedConfig(f"{key} is {str(text)[:80]!r}, not one line of at most {MAX_TEXT} characters")
    return text


def _is_folder(text: object) -> bool:
    if not isinstance(text, str) or "\\" in text or "\0" in text:
        return False
    return text == "" or all(part and not part.startswith(".") for part in text.split("/"))


def checked_mark(name: str, value: Any) -> Mark:
    """The mark of the picture `name` out of a plain value. Raises RefusedConfig that names what is wrong."""
    if not isinstance(value, dict) or value.keys() - {"focus", "zoom"}:
        raise RefusedConfig(f"the mark of {name[:80]!r} is {str(value)[:80]}, not a focus and a zoom")
    focus, zoom = value.get("focus", [0.5, 0.5]), value.get("zoom", 1.0)
    if not isinstance(focus, list) or len(focus) != 2 or not all(_is_number(part, 0.0, 1.0) for part in focus):
        raise RefusedConfig(f"the focus of {name[:80]!r} is {str(focus)[:80]}, not two numbers from 0 to 1")
    if not _is_number(zoom, 1.0, MAX_ZOOM):
        raise RefusedConfig(f"the zoom of {name[:80]!r} is {str(zoom)[:80]}, not a number from 1 to {MAX_ZOOM:g}")
    return Mark((float(focus[0]), float(focus[1])), float(zoom))


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and least <= value <= most  # which NaN is not; a whole number may be too large to be a float
