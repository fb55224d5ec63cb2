"""Texts that come from outside, made fit to show: one line, printable, bounded."""

from __future__ import annotations

import unicodedata
from typing import Any

from security.names import sanitized_name
from security.policy import MAX_NAME_BYTES

MAX_LISTED_BYTES = 2**50
"""A size above this, a petabyte, is no size of a file; floats have all whole numbers up to here."""

MAX_MODEL_NAME_BYTES = MAX_NAME_BYTES - len(".provenance.json")
"""The longest ending of a file that is named after a model."""


def plain_text(text: object, max_characters: int) -> str:
    """One line of visible characters, shortened with an ellipsis. Anything but a string becomes an empty text."""
    if not isinstance(text, str):
        return ""
    spaced = " ".join(text[: 4 * max_characters].split())
    shown = "".join(character for character in spaced if unicodedata.category(character)[0] != "C")
    return shown if len(shown) <= max_characters else shown[: max_characters - 1] + "…"


def listed(value: object) -> list[Any]:
    """A list as it is; anything else, which an answer may hold in its place, is none at all."""
    return value if isinstance(value, list) else []


def whole_number(value: object, largest: int) -> int | None:
    """A number from 0 to `largest`, None for anything else: JSON has numbers of any length, and true is 1 in Python."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= largest else None


def model_name(text: str, fallback: str) -> str:
    """A name for the library made of any text, short enough for the files that are named after the model."""
    name = sanitized_name(text, fallback).encode()[:MAX_MODEL_NAME_BYTES].decode("utf-8", "ignore").rstrip(". ")
    return sanitized_name(name, fallback)


def gigabytes(num_bytes: float) -> str:
    """Bytes as "6.9 GB" (10^9 bytes), or in MB or kB when small."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} bytes"
