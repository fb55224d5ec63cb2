"""SECURITY.md and the other pages as tests read them: one line of plain words, whatever the line breaks and marks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def raw(name: str) -> str:
    """The text of a page as it is written."""
    return (ROOT / name).read_text(encoding="utf-8")


def plain(name: str = "SECURITY.md") -> str:
    """The words of a page without the marks of Markdown, the targets of links and line breaks."""
    text = re.sub(r"\]\([^)]*\)", "]", raw(name))
    return " ".join(re.sub(r"[*`#|>\[\]]", " ", text).split())


def section(title: str, name: str = "SECURITY.md") -> str:
    """The words of one chapter. Fails where there is none of that title."""
    parts = re.split(r"^## ", raw(name), flags=re.MULTILINE)
    found = [part for part in parts if part.splitlines()[0].strip() == title]
    assert len(found) == 1, f"{name} has no one chapter {title!r}"
    return " ".join(re.sub(r"[*`#|>\[\]]", " ", re.sub(r"\]\([^)]*\)", "]", found[0])).split())
