"""What a tag is: the whole of what stands between two commas, so that "hair" is never found within "long hair".

Captions in sentences have commas too; `is_prose` tells them from lists of tags.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from trainer.dataset.captions import split_tags

_FACES = r"0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
FACES = frozenset(_FACES.split())
"""Tags of the booru sites that are drawings, where an underscore is no space."""
_LONG_TAG_WORDS = 7
"""A part of this many words is taken for prose; the longest common tags have six."""
_FULL_STOP = re.compile(r"[^\W\d_]{3,}\.[\"')\]]*(?:\s+[^\W\d_a-z]|$)")
"""The end of a sentence, but not dr. stone, and not 1.5 m."""
_CALL = re.compile(r"[^\W\d_a-z].*[!?][\"')\]]*$")
"""A question or a call; k-on! and love live! school idol project are tags."""


def split_parts(caption: str) -> tuple[list[str], str]:
    """The parts between commas, each with the space in front of it, and the space that new parts get."""
    if not caption.strip():
        return [], " "
    parts = caption.split(",")
    second = next((part for part in parts[1:] if part.strip()), " ,")
    lead = second[: len(second) - len(second.lstrip())]
    return [lead + parts[0].lstrip(), *parts[1:]], lead


def join_parts(parts: Sequence[str]) -> str:
    """The caption of these parts."""
    return ",".join(parts).strip()


def tag_key(tag: str, *, ignore_case: bool = False) -> str:
    """What two spellings of one tag have in common: the form of the characters and the width of spaces don't count."""
    key = unicodedata.normalize("NFC", " ".join(tag.split()))
    return key.casefold() if ignore_case else key


def is_prose_part(part: str) -> bool:
    """Whether a part between commas is a piece of a sentence rather than a tag."""
    text = part.strip()
    words = len(text.split())
    if words >= _LONG_TAG_WORDS:
        return True
    return (words >= 2 and _FULL_STOP.search(text) is not None) or (words >= 4 and _CALL.match(text) is not None)


def is_prose(caption: str) -> bool:
    """Whether a caption is written in sentences, or has one among its tags."""
    return any(is_prose_part(part) for part in caption.split(","))


def starts_with_word(part: str, word: str) -> bool:
    """Whether a part is this word, or begins with it and goes on with another one."""
    return re.match(re.escape(word) + r"(?!\w)", part.strip()) is not None


def blacklist(tags: Iterable[str]) -> Callable[[str], bool]:
    """Whether a tag is on a list. * stands for anything; case, underscores and brackets' backslashes don't count."""

    def plain(tag: str) -> str:
        return tag_key(without_escapes(tag).replace("_", " "), ignore_case=True)

    exact = {plain(tag) for tag in tags if "*" not in tag}
    globs = [plain(tag).split("*") for tag in tags if "*" in tag]

    def listed(tag: str) -> bool:
        text = plain(tag)
        return text in exact or any(_fits(text, pieces) for pieces in globs)

    return listed


def _fits(text: str, pieces: Sequence[str]) -> bool:
    """Whether a text is the pieces with anything between them; takes time in proportion to the text only."""
    first, *middle, last = pieces
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def spaces_for_underscores(tag: str) -> str:
    """`long_hair` as `long hair`; drawings such as ^_^ stay, and so does what has spaces already."""
    bare = tag.strip()
    return tag if " " in bare or bare in FACES else tag.replace("_", " ")


def with_escapes(tag: str) -> str:
    """Brackets with a backslash in front, as programs want them that read brackets as weights. Idempotent."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", tag)


def without_escapes(tag: str) -> str:
    """The opposite of `with_escapes`."""
    return re.sub(r"\\([()])", r"\1", tag)


def tags_of(caption: str) -> list[str]:
    """The tags of a caption in their order, each once, without pieces of sentences."""
    return list(dict.fromkeys(tag_key(part) for part in split_tags(caption) if not is_prose_part(part)))


def count_tags(captions: Iterable[str]) -> Counter[str]:
    """In how many captions each tag is."""
    return Counter(tag for caption in captions for tag in tags_of(caption))
