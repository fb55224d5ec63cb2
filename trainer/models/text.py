"""Texts that come from outside, made fit to show: one line, printable, bounded."""

from __future__ import annotations

import unicodedata


def plain_text(text: object, max_characters: int) -> str:
    """One line of visible characters, shortened with an ellipsis. Anything but a string becomes an empty text."""
    if not isinstance(text, str):
        return ""
    spaced = " ".join(text[: 4 * max_characters].split())
    shown = "".join(character for character in spaced if unicodedata.category(character)[0] != "C")
    return shown if len(shown) <= max_characters else shown[: max_characters - 1] + "…"


def gigabytes(num_bytes: float) -> str:
    """Bytes as "6.9 GB" (10^9 bytes), or in MB or kB when small."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} bytes"
