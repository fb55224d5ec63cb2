"""What may be wrong with the text of a caption: broken off, contradicting itself, repeating tags, naming text in the picture.

Tags are as the booru sites write them, which taggers and most captions of drawings use; sentences are left alone but
for their end.
"""

from __future__ import annotations

import re
from collections import Counter

from trainer.dataset.captions import split_tags
from trainer.dataset.tags import is_prose, spaces_for_underscores, tag_key, without_escapes

Tags = frozenset[str]


def _tags(text: str) -> Tags:
    return frozenset(tag.strip() for tag in text.split(","))


_OPEN_WORDS = _tags(
    "a, an, the, and, or, but, of, with, in, on, at, to, from, by, for, as, into, onto, over, under, behind, beside, "
    "between, above, near, while, that, which, who, whose, is, are, was, were, has, have, his, her, their, its, very, "
    "some, each, this, these, those"
)
"""Words that no English sentence ends with; a captioner that ran out of tokens stops at one of them."""
_LAST_WORD = re.compile(r"([^\W\d_']+)\s*[,;:–-]*\s*$")
_LEAST_WORDS = 4
"""In the part after the last comma: `shirt tucked in` is a tag."""


def cut_off(caption: str) -> str:
    """The last words of a sentence that was broken off, or an empty text."""
    words = caption.rpartition(",")[2].split() or caption.split()
    last = _LAST_WORD.search(caption)
    if len(words) < _LEAST_WORDS or last is None or last[1].casefold() not in _OPEN_WORDS:
        return ""
    return " ".join(words[-3:])


def finished(caption: str) -> str:
    """The caption up to its last whole sentence; if there is none, without the words that lead nowhere."""
    if not cut_off(caption):
        return caption
    whole = re.match(r"(.*[.!?][\"'”’)]*)\s", caption, re.DOTALL)
    if whole:
        return whole[1]
    while (last := _LAST_WORD.search(caption)) and last[1].casefold() in _OPEN_WORDS:
        caption = caption[: last.start()].rstrip(" ,;:–-")
    return caption


# ---- tags that exclude each other -----------------------------------------------------------------------------------


_COLOURS = "aqua black blonde blue brown green grey orange pink purple red white yellow"


def _colours(thing: str) -> Tags:
    return frozenset(f"{colour} {thing}" for colour in _COLOURS.split())


_GIRLS = _tags("1girl, 2girls, 3girls, 4girls, 5girls, 6+girls")
_BOYS = _tags("1boy, 2boys, 3boys, 4boys, 5boys, 6+boys")
_SEVERAL = (_GIRLS | _BOYS | _tags("multiple girls, multiple boys, multiple others, crowd")) - _tags("1girl, 1boy")

_EXCLUSIVE: tuple[tuple[Tags, Tags], ...] = (
    (_tags("indoors"), _tags("outdoors")),
    (_tags("day"), _tags("night")),
    (_tags("from above"), _tags("from below")),
    (_tags("no humans"), _GIRLS | _BOYS | _tags("multiple girls, multiple boys")),
    (_tags("solo"), _SEVERAL),
)
"""A tag of the one set with a tag of the other is a contradiction, whatever else there is."""
_ONE_OF: tuple[Tags, ...] = (_GIRLS, _BOYS, _tags("portrait, upper body, cowboy shot, full body"))
"""Of each set, a caption can have one tag."""
_ONE_OF_SOLO: tuple[tuple[Tags, Tags], ...] = (
    (_tags("bald, short hair, long hair"), _tags("")),
    (_tags("open mouth, closed mouth"), _tags("")),
    (_tags("standing, sitting, lying"), _tags("")),
    (_tags("barefoot, shoes"), _tags("shoes removed, unworn shoes, single shoe")),
    (
        _colours("hair"),
        _tags("multicolored hair, two-tone hair, gradient hair, streaked hair, colored tips, colored inner hair"),
    ),
    (_colours("eyes"), _tags("heterochromia, multicolored eyes, gradient eyes, two-tone eyes")),
)
"""The same for pictures of one person (`solo`), unless a tag of the second set explains it."""
_WITHOUT_COLOUR = _tags("greyscale, grayscale, black and white photo")


def contradictions(caption: str, *, is_colourful: bool = False) -> list[tuple[str, ...]]:
    """Tags of a caption that can't be true together, each set once, in the caption's own spelling; none for sentences.

    `is_colourful`: whether the picture has colours, which `greyscale` then contradicts.
    """
    if is_prose(caption):
        return []
    tags = {_plain(tag): tag for tag in split_tags(caption)}
    have = frozenset(tags)
    found = [(one | other) & have for one, other in _EXCLUSIVE if one & have and other & have]
    found += [choice & have for choice in _ONE_OF if len(choice & have) > 1]
    if "solo" in have:
        found += [choice & have for choice, why in _ONE_OF_SOLO if len(choice & have) > 1 and not why & have]
    if is_colourful and _WITHOUT_COLOUR & have:
        found.append(_WITHOUT_COLOUR & have)
    return [tuple(tags[tag] for tag in sorted(one)) for one in found]


def repeated(caption: str) -> list[str]:
    """Tags that stand in a caption more than once, each once; none for sentences."""
    if is_prose(caption):
        return []
    counts = Counter(tag_key(tag, ignore_case=True) for tag in split_tags(caption))
    return [tag for tag, number in counts.items() if number > 1]


# ---- writing in the picture -----------------------------------------------------------------------------------------

_WRITING = _tags(
    "watermark, sample watermark, third-party watermark, weibo watermark, xiaohongshu watermark, bilibili watermark, "
    "signature, artist name, artist logo, username, twitter username, patreon username, instagram username, "
    "weibo username, pixiv username, web address, patreon logo, twitter logo, dated, copyright notice, copyright name, "
    "text, english text, japanese text, chinese text, korean text, romaji text, translated, speech bubble, "
    "subtitled, logo, cover, cover page, letterboxed, ui, gameplay mechanics, fake screenshot"
)
"""Tags of WD taggers and the booru sites that mean letters or marks laid over a picture."""
_WRITING_IN_SENTENCES = re.compile(r"\bwatermark(?:s|ed)?\b", re.IGNORECASE)


def writing(caption: str) -> list[str]:
    """What a caption says of text, signatures and watermarks in the picture."""
    if is_prose(caption):
        return ["watermark"] if _WRITING_IN_SENTENCES.search(caption) else []
    return [tag for tag in split_tags(caption) if _plain(tag) in _WRITING]


def _plain(tag: str) -> str:
    """A tag as in the tables above: small letters, spaces for underscores, no escapes."""
    return tag_key(spaces_for_underscores(without_escapes(tag)), ignore_case=True)
