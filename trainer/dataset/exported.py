"""Reads the manifest.json of an export, so that crops, masks, repeats and the trigger word come back with the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.configs import parse_json
from security.errors import RefusedConfig
from security.sniff import open_regular
from trainer.dataset.settings import Mark, checked_mark, checked_settings

MANIFEST = "manifest.json"
VERSION = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Told:
    """What an export says of one picture. `mask`: the name of its mask's file, "" for none."""

    repeats: int
    mark: Mark | None = None
    mask: str = ""


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself. `pictures` by name, as the manifest's folder has them."""

    trigger_word: str
    pictures: Mapping[str, Told]


def read_manifest(path: Path, name: str) -> Manifest | None:
    """The manifest of an export; None for another program's file. `name` stands for it in messages.

    Raises RefusedConfig, RefusedFile or OSError for one that can't be read or holds what no export says.
    """
    with open_regular(path) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise RefusedConfig(f"{name} is larger than {MAX_MANIFEST_BYTES // 2**20} MiB, which no export is.")
    try:
        values = parse_json(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError:
        raise RefusedConfig(f"{name} is not UTF-8 text.") from None
    rows = values.get("pictures")
    if "dataset" not in values or "layout" not in values or not isinstance(rows, list):
        return None
    if values.get("version") != VERSION:
        raise RefusedConfig(f"{name} has version {str(values.get('version'))[:20]}: a newer Safelight wrote it.")
    try:
        trigger_word = checked_settings({"trigger_word": values.get("trigger_word", "")}).trigger_word
        return Manifest(trigger_word, dict(map(_row, rows)))
    except RefusedConfig as error:
        raise RefusedConfig(f"In {name} {error}, so its crops, masks and repeats are not taken over.") from None


def _row(row: Any) -> tuple[str, Told]:
    if not isinstance(row, dict) or not isinstance(row.get("picture"), str):
        raise RefusedConfig("an entry is no picture")
    picture, crop, mask = row["picture"], row.get("crop"), row.get("mask") or ""
    if not isinstance(mask, str):
        raise RefusedConfig(f"the mask of {picture[:80]!r} is no file name")
    repeats = checked_settings({"repeats": {"": row.get("repeats", 1)}}).repeats[""]
    return picture, Told(repeats, None if crop is None else checked_mark(picture, crop), mask)
