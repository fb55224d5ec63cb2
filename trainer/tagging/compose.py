"""From what taggers say of a picture to its caption: merge, thresholds, order, and the caption that is there already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.dataset.tag_operations import OPERATIONS, EditOptions
from trainer.dataset.tags import (
    blacklist,
    is_prose_part,
    spaces_for_underscores,
    tag_key,
    with_escapes,
    without_escapes,
)
from trainer.tagging.base import CaptionMode, Category, Description, Merge, RatingPlace, Tag, TaggingOptions

_SERIES = re.compile(r"(.+?)[_ ]\((.+)\)")


def caption_of(descriptions: Sequence[Description], options: TaggingOptions) -> str:
    """The caption that the descriptions of one picture make, one description for each tagger: sentences, then tags."""
    sentences = [" ".join(said.split()) for said in descriptions if isinstance(said, str) and said.strip()]
    tags = chosen_tags(merged([said for said in descriptions if not isinstance(said, str)], options.merge), options)
    listed = [*(tag.strip() for tag in options.always_first), *tags]
    parts = _once([tag for tag in listed if tag])
    return ", ".join([*sentences, *parts])


def merged(answers: Sequence[tuple[Tag, ...]], how: Merge) -> list[Tag]:
    """The tags of several taggers as one list: with the highest score each, or the mean of those that know the tag."""
    found: dict[str, list[Tag]] = {}
    for answer in answers:
        for tag in answer:
            found.setdefault(tag_key(tag.name.replace("_", " "), ignore_case=True), []).append(tag)
    if how is Merge.MEAN:
        return [
            Tag(same[0].name, sum(tag.score for tag in same) / len(same), same[0].category) for same in found.values()
        ]
    return [max(same, key=lambda tag: tag.score) for same in found.values()]


def chosen_tags(tags: Sequence[Tag], options: TaggingOptions) -> list[str]:
    """The tags that go into a caption, as they are written there, surest first within their kind."""
    is_listed = blacklist(options.blacklist)
    surest = sorted(tags, key=lambda tag: -tag.score)
    general = [tag for tag in surest if tag.category is Category.GENERAL and tag.score >= options.general_threshold]
    general = [tag for tag in general if not is_listed(tag.name)][: options.max_tags or None]
    named = [
        tag
        for tag in surest
        if tag.category in (Category.CHARACTER, Category.OTHER) and tag.score >= options.character_threshold
    ]
    characters = [name for tag in named for name in _names(tag, options)] if options.characters else []
    ratings = [tag.name for tag in surest if tag.category is Category.RATING][:1]
    ordered = [tag.name for tag in general]
    ordered = [*characters, *ordered] if options.characters_first else [*ordered, *characters]
    if options.rating is RatingPlace.FIRST:
        ordered = [*ratings, *ordered]
    elif options.rating is RatingPlace.LAST:
        ordered = [*ordered, *ratings]
    return _once([written(name, options) for name in ordered if not is_listed(name)])


def written(name: str, options: TaggingOptions) -> str:
    """A tag of a network as it stands in a caption."""
    name = spaces_for_underscores(name) if options.replace_underscores else name
    return with_escapes(name) if options.escape_brackets else name


def combined(existing: str | None, fresh: str, mode: CaptionMode, trigger_word: str) -> str | None:
    """The new caption of a picture that has `existing`; None when it stays as it is.

    Nothing of an existing caption is ever left out but in the mode `replace`, and there not for an empty one. The trigger
    word of the dataset stands first, once; a caption that is nothing else counts as none.
    """
    before = (existing or "").strip()
    if not fresh or (mode is CaptionMode.IGNORE and not is_untagged(before, trigger_word)):
        return None
    after = _appended(before, fresh) if before and mode is not CaptionMode.REPLACE else fresh
    if trigger_word.strip():
        after = OPERATIONS["trigger"].build(EditOptions(trigger_word=trigger_word, text=trigger_word))(after)
    return after if after != existing else None


def is_untagged(caption: str | None, trigger_word: str) -> bool:
    """Whether a picture has no caption, or nothing but the trigger word."""
    return _plain(caption or "") in ("", _plain(trigger_word))


def _appended(before: str, fresh: str) -> str:
    """The old caption, and behind it those parts of the new one that it does not have."""
    have = {_plain(part) for part in before.split(",")}
    parts = [part.strip() for part in fresh.split(",")] if not any(map(is_prose_part, fresh.split(","))) else [fresh]
    new = [part for part in parts if part and _plain(part) not in have]
    if not new:
        return before
    if before.endswith((".", "!", "?")) and is_prose_part(new[0]):
        return f"{before} {', '.join(new)}"
    return f"{before.rstrip(', ')}, {', '.join(new)}"


def _names(tag: Tag, options: TaggingOptions) -> list[str]:
    """A character's tag, or its name and series as two tags."""
    found = _SERIES.fullmatch(tag.name) if options.expand_characters else None
    return [found[1], found[2]] if found else [tag.name]


def _once(tags: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(_plain(tag), tag)
    return list(first.values())


def _plain(tag: str) -> str:
    return tag_key(without_escapes(tag).replace("_", " "), ignore_case=True)
