"""Captions that other programs wrote in other encodings than UTF-8: which one it was can only be guessed from the text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

FOREIGN = ("utf-16", "shift_jis", "euc_kr", "gb18030", "cp1251", "cp1252")
"""Encodings that caption files of other programs have, besides UTF-8."""


def decoded(data: bytes) -> str | None:
    """The text of a file in one of the FOREIGN encodings: the one that gives the fewest odd characters; None if none does."""
    best: tuple[float, str] | None = None
    for encoding in FOREIGN:
        if encoding == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            continue
        odd = oddness(text)
        if best is None or odd < best[0]:
            best = odd, text
    return best[1] if best else None


def oddness(text: str) -> float:
    """How unlikely a text is, 0 to some: letters of several alphabets, signs among letters, capitals inside words."""
    alphabets = Counter(_alphabet(character) for character in text if ord(character) > 127)
    mixed = sum(alphabets.values()) - max(alphabets.values(), default=0)
    signs = sum(unicodedata.category(character)[0] in "SCM" for character in text if ord(character) > 127)
    inside = len(re.findall(r"[^\W\d_A-Z](?=[A-ZÀ-ÞА-Я])", text)) + len(re.findall(r"[À-ÿ]{3,}", text))
    inside += len(re.findall(r"[A-Za-z][Ѐ-ӿ]|[Ѐ-ӿ][A-Za-z]|[A-Za-z][ｦ-ﾟ぀-鿿가-힣]", text))  # two alphabets in one word
    return (2 * mixed + 3 * signs + 2 * inside) / max(1, len(text))


def _alphabet(character: str) -> str:
    """Kana and Han are written together."""
    name = unicodedata.name(character, "?").split()[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK", "FULLWIDTH": "CJK"}.get(name, name)
