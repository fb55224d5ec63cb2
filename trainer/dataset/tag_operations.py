"""Operations on captions, in one table: each makes a pure function from caption to caption.

What an operation does not change keeps its bytes, spaces included. What reorders or cleans tags leaves captions in
sentences as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from security.patterns import Pattern, replace_text
from security.policy import MAX_PATTERN_SECONDS
from trainer.dataset.captions import split_tags
from trainer.dataset.tags import (
    blacklist,
    is_prose,
    is_prose_part,
    join_parts,
    spaces_for_underscores,
    split_parts,
    starts_with_word,
    tag_key,
    with_escapes,
    without_escapes,
)

Change = Callable[[str], str]

OFTEN_UNWANTED = (
    *("virtual youtuber", "parody", "style parody", "official alternate *", "alternate costume", "alternate hair*"),
    *("signature", "artist name", "dated", "web address", "watermark", "*username"),
)
"""What taggers often say that is not in the picture, or that nobody wants to teach: a list to begin with."""


@dataclass(frozen=True)
class EditOptions:
    """What an operation is given. Which of it one needs is in its row.

    `tags`: which tags; `text`: the new tag, or what is put in place of `find`; `counts`: pictures per tag of the dataset.
    """

    tags: tuple[str, ...] = ()
    text: str = ""
    find: str = ""
    ignore_case: bool = False
    trigger_word: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A row of OPERATIONS. `needs`: fields of EditOptions that have to be given; `build` makes the change.

    `label` names it in the list of edits; {tags}, {text} and {find} in it are filled in. `example`: tags to begin with;
    `spares_prose`: it leaves captions in sentences as they are.
    """

    title: str
    help: str
    label: str
    build: Callable[[EditOptions], Change]
    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    example: tuple[str, ...] = ()
    spares_prose: bool = False


def _is_one_of(options: EditOptions) -> Callable[[str], bool]:
    keys = {tag_key(tag, ignore_case=options.ignore_case) for tag in options.tags}
    return lambda part: tag_key(part, ignore_case=options.ignore_case) in keys


def _tags_only(change: Change) -> Change:
    """Leaves captions in sentences as they are."""
    return lambda caption: caption if is_prose(caption) else change(caption)


def _after_trigger(parts: Sequence[str], trigger_word: str) -> int:
    """Where the first place is that the trigger word does not take."""
    trigger = trigger_word.strip()
    return 1 if trigger and parts and starts_with_word(parts[0], trigger) else 0


def _add(options: EditOptions) -> Change:
    def change(caption: str) -> str:
        parts, lead = split_parts(caption)
        have = {tag_key(part) for part in parts}
        fresh = [tag for tag in options.tags if tag_key(tag) not in have]
        while fresh and parts and not parts[-1].strip():
            parts.pop()  # a comma at the end
        return join_parts([*parts, *(lead + tag for tag in fresh)]) if fresh else caption

    return change


def _prepend(options: EditOptions) -> Change:
    def change(caption: str) -> str:
        parts, lead = split_parts(caption)
        have = {tag_key(part) for part in parts}
        fresh = [lead + tag for tag in options.tags if tag_key(tag) not in have]
        at = _after_trigger(parts, options.trigger_word)
        return join_parts([*parts[:at], *fresh, *parts[at:]]) if fresh else caption

    return change


def _remove(options: EditOptions) -> Change:
    matches = _is_one_of(options)

    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        kept = [part for part in parts if not matches(part)]
        return join_parts(kept) if len(kept) < len(parts) else caption

    return change


def _rename(options: EditOptions) -> Change:
    """Puts the new tag where the first of the old ones was; a caption that has the new one already only loses the old."""
    matches = _is_one_of(options)
    new = split_tags(options.text)

    def change(caption: str) -> str:
        parts, lead = split_parts(caption)
        first = next((index for index, part in enumerate(parts) if matches(part)), None)
        if first is None:
            return caption
        rest = [part for part in parts if not matches(part)]
        have = {tag_key(part) for part in rest}
        fresh = [lead + tag for tag in new if tag_key(tag) not in have]
        renamed = join_parts([*rest[:first], *fresh, *rest[first:]])
        return renamed if renamed != join_parts(parts) else caption

    return change


def _sort(options: EditOptions) -> Change:
    return _sorted(options, lambda tag: (not tag, tag.casefold(), tag))


def _sort_common(options: EditOptions) -> Change:
    return _sorted(options, lambda tag: (not tag, -options.counts.get(tag, 0), tag.casefold(), tag))


def _sorted(options: EditOptions, key: Callable[[str], tuple[int | str, ...]]) -> Change:
    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        at = _after_trigger(parts, options.trigger_word)
        ordered = [*parts[:at], *sorted(parts[at:], key=lambda part: key(tag_key(part)))]
        return join_parts(ordered) if ordered != parts else caption

    return _tags_only(change)


def _deduplicate(options: EditOptions) -> Change:
    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        kept = {tag_key(part, ignore_case=options.ignore_case): part for part in reversed(parts) if part.strip()}
        return join_parts(list(reversed(kept.values()))) if len(kept) < len(parts) else caption

    return _tags_only(change)


def _to_front(options: EditOptions) -> Change:
    keys = [tag_key(tag, ignore_case=options.ignore_case) for tag in options.tags]

    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        at = _after_trigger(parts, options.trigger_word)
        head, tail = parts[:at], parts[at:]
        found = [part for part in tail if tag_key(part, ignore_case=options.ignore_case) in keys]
        found.sort(key=lambda part: keys.index(tag_key(part, ignore_case=options.ignore_case)))
        moved = [*head, *found, *(part for part in tail if part not in found)]
        return join_parts(moved) if moved != parts else caption

    return change


def _blacklist(options: EditOptions) -> Change:
    listed = blacklist(options.tags)

    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        kept = [part for part in parts if is_prose_part(part) or not listed(part)]
        return join_parts(kept) if len(kept) < len(parts) else caption

    return change


def _each_tag(change_tag: Change) -> Callable[[EditOptions], Change]:
    """An operation that rewrites every tag for itself, and no sentence."""

    def change(caption: str) -> str:
        parts, _ = split_parts(caption)
        changed = [part if is_prose_part(part) else change_tag(part) for part in parts]
        return join_parts(changed) if changed != parts else caption

    return lambda _options: change


def _tidied(before: str, after: str) -> str:
    """What is left after a replacement, without the empty parts and double spaces that it made."""
    if after == before:
        return before
    had_empty = any(not part.strip() for part in before.split(","))
    parts = [part for part in after.split(",") if had_empty or part.strip()]
    return " ".join(",".join(parts).split())


def _replace_text(options: EditOptions) -> Change:
    def change(caption: str) -> str:
        return _tidied(caption, replace_text(caption, options.find, options.text, ignore_case=options.ignore_case))

    return change


def _replace_pattern(options: EditOptions) -> Change:
    pattern = Pattern(options.find, ignore_case=options.ignore_case, seconds=MAX_PATTERN_SECONDS)
    return lambda caption: _tidied(caption, pattern.replace(caption, options.text))


def _trigger(options: EditOptions) -> Change:
    """The trigger word once and in front. `tags` are former trigger words, which go."""
    word = options.text.strip()
    key, former = tag_key(word), {tag_key(tag) for tag in options.tags}

    def change(caption: str) -> str:
        parts, lead = split_parts(caption)
        rest = [part for part in parts if tag_key(part) not in former - {key}]
        if rest and starts_with_word(rest[0], word):
            kept = [rest[0], *(part for part in rest[1:] if tag_key(part) != key)]
        else:
            kept = [lead + word, *(part for part in rest if tag_key(part) != key)]
        return join_parts(kept) if kept != parts else caption

    return change


OPERATIONS: dict[str, Operation] = {
    "add": Operation(
        "Add at the end", "Adds the tags to every caption that lacks them.", "Add {tags}", _add, ("tags",)
    ),
    "prepend": Operation(
        "Add in front",
        "Puts the tags first, after the trigger word, in every caption that lacks them.",
        "Add {tags} in front",
        _prepend,
        ("tags",),
    ),
    "remove": Operation(
        "Remove",
        "Takes whole tags out: hair leaves long hair alone.",
        "Remove {tags}",
        _remove,
        ("tags",),
        ("ignore_case",),
    ),
    "rename": Operation(
        "Rename",
        "Puts another tag in its place. A caption that has that one already keeps only it.",
        "Rename {tags} to {text}",
        _rename,
        ("tags", "text"),
        ("ignore_case",),
    ),
    "merge": Operation(
        "Merge", "Makes one tag of several.", "Merge {tags} into {text}", _rename, ("tags", "text"), ("ignore_case",)
    ),
    "front": Operation(
        "Move to the front",
        "Moves these tags to the front, after the trigger word, where a caption has them.",
        "Move {tags} to the front",
        _to_front,
        ("tags",),
        ("ignore_case",),
    ),
    "trigger": Operation(
        "Trigger word",
        "Puts the trigger word first in every caption, once, and keeps it in the dataset's settings.",
        "Trigger word {text}",
        _trigger,
        ("text",),
    ),
    "sort": Operation(
        "Sort by name",
        "Puts tags in order of their letters; the trigger word stays first.",
        "Sort tags",
        _sort,
        spares_prose=True,
    ),
    "sort_common": Operation(
        "Sort by how common",
        "Puts the tags first that most pictures have; the trigger word stays first.",
        "Sort tags by how common they are",
        _sort_common,
        spares_prose=True,
    ),
    "deduplicate": Operation(
        "Remove repeated tags",
        "Keeps the first of equal tags in a caption.",
        "Remove repeated tags",
        _deduplicate,
        (),
        ("ignore_case",),
        spares_prose=True,
    ),
    "blacklist": Operation(
        "Remove a list",
        "Takes out every tag of a list. * stands for anything (alternate *); case and underscores don't matter.",
        "Remove a list of {num_tags} tags",
        _blacklist,
        ("tags",),
        example=OFTEN_UNWANTED,
    ),
    "underscores": Operation(
        "Underscores to spaces",
        "Writes long_hair as long hair; ^_^ and its like stay.",
        "Underscores to spaces",
        _each_tag(spaces_for_underscores),
    ),
    "escape": Operation(
        "Escape brackets",
        "Writes saber (fate) as saber \\(fate\\), for programs that read brackets as weights.",
        "Escape brackets",
        _each_tag(with_escapes),
    ),
    "unescape": Operation(
        "Unescape brackets",
        "Writes saber \\(fate\\) as saber (fate), as text encoders learned it.",
        "Unescape brackets",
        _each_tag(without_escapes),
    ),
    "replace": Operation(
        "Find and replace",
        "Replaces a text wherever it stands, within words and sentences too.",
        "Replace “{find}” by “{text}”",
        _replace_text,
        ("find",),
        ("text", "ignore_case"),
    ),
    "regex": Operation(
        "Find and replace by pattern",
        "Replaces what a regular expression finds; \\1 in the new text is the first group.",
        "Replace the pattern “{find}” by “{text}”",
        _replace_pattern,
        ("find",),
        ("text", "ignore_case"),
    ),
}
