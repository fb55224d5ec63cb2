"""From a caption file to the text that a step trains on: trigger word, wildcards, order and dropout of tags, prefix, suffix.

A caption begins as its file's text with the trigger word; what chance makes of it is decided anew at every step, and
without chance there is one text, which samples of other moments (held-out loss, token counts) go by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from security.errors import RefusedFile
from security.sniff import open_regular
from trainer.config.schema import DatasetConfig
from trainer.randomness import derive_random

MAX_CAPTION_BYTES = 64_000


def read_caption(picture: Path, extension: str, *, keep_lines: bool = False) -> str | None:
    """The text beside a picture with line breaks turned into spaces, or None when there is no caption file.

    With `keep_lines` each line stays one, as wildcards want it; empty ones are left out.
    Raises RefusedFile for a file that is not UTF-8 text of a sane size, and for a link: in a dataset of somebody else it
    could lead to a private file, which would be shown and published.
    """
    path = picture.with_suffix(extension)
    if path.is_symlink():
        raise RefusedFile(f"{path.name} is a link. Put the caption itself there.")
    return caption_text(path, path.name, keep_lines=keep_lines) if path.is_file() else None


def caption_text(path: Path, name: str, *, keep_lines: bool = False) -> str:
    """The text of a caption file, called `name` in messages, its lines as above. Raises as above."""
    with open_regular(path) as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise RefusedFile(f"{name} has {path.stat().st_size} bytes; a caption has at most {MAX_CAPTION_BYTES}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RefusedFile(f"{name} is not UTF-8 text. Save it as UTF-8.") from None
    if "\0" in text:
        raise RefusedFile(f"{name} holds a NUL character, so it is no text. Is it another file?")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return ("\n" if keep_lines else " ").join(line for line in lines if line)


def with_trigger(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word in front: put there, or moved there if it is a tag of the caption already.

    A part that goes on after the word ("in the garden, mira smiles") stays where it is, since it is half a sentence.
    """
    trigger = trigger_word.strip()
    parts = split_tags(caption)
    if not trigger or any(holds_trigger(part, trigger) for part in parts[:1]):
        return caption
    if trigger in parts:
        return ", ".join([trigger, *(part for part in parts if part != trigger)])
    if any(holds_trigger(part, trigger) for part in parts):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def holds_trigger(part: str, trigger: str) -> bool:
    """Whether a part of a caption is the trigger word or starts with it as a word: "mira", "mira smiles", not "miracle"."""
    following = part[len(trigger) :][:1]
    return part.startswith(trigger) and not (following.isalnum() or following == "_")


def split_tags(caption: str) -> list[str]:
    """The comma-separated parts of a caption, without empty ones."""
    return [part.strip() for part in caption.split(",") if part.strip()]


def prepared_caption(text: str, settings: DatasetConfig, trigger_word: str) -> str:
    """The text of a caption file as steps start from it: the trigger word in each line, each separator a part by itself."""
    separator = settings.keep_tokens_separator
    if separator:
        text = "\n".join(", ".join(split_tags(line.replace(separator, f",{separator},"))) for line in text.split("\n"))
    return "\n".join(with_trigger(line, trigger_word) for line in text.split("\n"))


def training_caption(
    prepared: str, settings: DatasetConfig, seed: int, step: int, sample_id: str, trigger_word: str = ""
) -> str:
    """The text that `step` trains on: chosen, shuffled and dropped as the settings say, the same for the same arguments.

    `prepared` is of `prepared_caption`. When tags are shuffled or dropped, the part that holds the trigger word comes
    first and stays; it counts among the `keep_tokens`. Prefix and suffix stay as well, and go only with the whole caption.
    """
    random = derive_random(seed, "caption", step, sample_id)
    if random.random() < settings.caption_dropout_rate:
        return ""
    choose = random.choice
    line = _resolved(choose(prepared.split("\n")), choose) if settings.wildcards else prepared
    return _around(_arranged(line, settings, trigger_word, random), settings, choose)


def resting_caption(prepared: str, settings: DatasetConfig) -> str:
    """A caption without chance: its first line and the first choice of each wildcard, all tags in their own order."""
    return _settled(prepared.split("\n")[0] if settings.wildcards else prepared, settings, lambda choices: choices[0])


def longest_caption(prepared: str, settings: DatasetConfig) -> str:
    """The longest text in letters that a step may train on, to see whether the model can hear all of it."""
    lines = prepared.split("\n") if settings.wildcards else [prepared]
    return max((_settled(line, settings, lambda choices: max(choices, key=len)) for line in lines), key=len)


def changes_every_step(settings: DatasetConfig) -> bool:
    """Whether captions can't be encoded once for the whole run."""
    return settings.shuffle_tags or settings.tag_dropout_rate > 0 or settings.wildcards


Choose = Callable[[list[str]], str]


def _settled(line: str, settings: DatasetConfig, choose: Choose) -> str:
    text = _resolved(line, choose) if settings.wildcards else line
    return _around(_without_separators(text, settings), settings, choose)


def _arranged(caption: str, settings: DatasetConfig, trigger_word: str, random: Random) -> str:
    """The tags of a caption: those that stay at the front, the loose ones shuffled and thinned out, those of the end."""
    if not settings.shuffle_tags and settings.tag_dropout_rate == 0:
        return _without_separators(caption, settings)
    front, loose, end = _parted(split_tags(caption), settings, trigger_word)
    if settings.shuffle_tags:
        random.shuffle(loose)
    if settings.tag_dropout_rate > 0:
        loose = [tag for tag in loose if random.random() >= settings.tag_dropout_rate]
    return ", ".join([*front, *loose, *end])


def _parted(tags: list[str], settings: DatasetConfig, trigger_word: str) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay at the front, that may move, and that stay at the end: by separators if there are any, else by
    number. The one with the trigger word comes first."""
    num_kept, end = settings.keep_tokens, []
    separator = settings.keep_tokens_separator
    marked = bool(separator) and separator in tags
    if marked:
        num_kept = tags.index(separator)
        rest = tags[num_kept + 1 :]
        second = rest.index(separator) if separator in rest else len(rest)
        tags, end = tags[:num_kept] + rest[:second], [tag for tag in rest[second:] if tag != separator]
    held = next((number for number, tag in enumerate(tags) if trigger_word and holds_trigger(tag, trigger_word)), None)
    if held is not None:
        num_kept = num_kept + 1 if marked and held >= num_kept else max(1, num_kept)
        tags.insert(0, tags.pop(held))
    return tags[:num_kept], tags[num_kept:], end


def _without_separators(caption: str, settings: DatasetConfig) -> str:
    separator = settings.keep_tokens_separator
    if not separator or separator not in caption:
        return caption
    return ", ".join(tag for tag in split_tags(caption) if tag != separator)


def _around(caption: str, settings: DatasetConfig, choose: Choose) -> str:
    """The caption between prefix and suffix; a suffix that begins with a comma or full stop needs no space."""
    prefix, suffix = settings.caption_prefix.strip(), settings.caption_suffix.strip()
    if settings.wildcards:
        prefix, suffix = _resolved(prefix, choose), _resolved(suffix, choose)
    text = " ".join(part for part in (prefix, caption) if part)
    glue = "" if suffix.startswith((",", ".", ";", ":")) else " "
    return f"{text}{glue}{suffix}" if text and suffix else text or suffix


_WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")
"""`{a|b}`; braces without a choice in them are text. The innermost come first, so they may lie in each other."""


def _resolved(caption: str, choose: Choose) -> str:
    if not _WILDCARD.search(caption):
        return caption
    while match := _WILDCARD.search(caption):
        caption = caption[: match.start()] + choose(match[1].split("|")) + caption[match.end() :]
    return " ".join(caption.split())
