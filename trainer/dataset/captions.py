"""From a caption file to the text that a step trains on: trigger word, tag shuffle, caption dropout."""

from __future__ import annotations

from pathlib import Path

from security.errors import RefusedFile
from security.sniff import open_regular
from trainer.config.schema import DatasetConfig
from trainer.randomness import derive_random

MAX_CAPTION_BYTES = 64_000


def read_caption(picture: Path, extension: str) -> str | None:
    """The text beside a picture with line breaks turned into spaces, or None when there is no caption file.

    Raises RefusedFile for a file that is not UTF-8 text of a sane size, and for a link: in a dataset of somebody else it
    could lead to a private file, which would be shown and published.
    """
    path = picture.with_suffix(extension)
    if path.is_symlink():
        raise RefusedFile(f"{path.name} is a link. Put the caption itself there.")
    return caption_text(path, path.name) if path.is_file() else None


def caption_text(path: Path, name: str) -> str:
    """The text of a caption file, called `name` in messages, with line breaks turned into spaces. Raises as above."""
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
    return " ".join(text.split())


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


def training_caption(
    caption: str, settings: DatasetConfig, seed: int, step: int, sample_id: str, trigger_word: str = ""
) -> str:
    """The text that `step` trains on: shuffled and dropped as the settings say, the same for the same arguments.

    When shuffling, the part that holds the trigger word comes first; it counts among the `keep_tokens` that stay.
    """
    random = derive_random(seed, "caption", step, sample_id)
    if random.random() < settings.caption_dropout_rate:
        return ""
    if not settings.shuffle_tags:
        return caption
    tags = split_tags(caption)
    num_kept = settings.keep_tokens
    held = next((number for number, tag in enumerate(tags) if trigger_word and holds_trigger(tag, trigger_word)), None)
    if held is not None:
        tags.insert(0, tags.pop(held))
        num_kept = max(1, num_kept)
    kept, loose = tags[:num_kept], tags[num_kept:]
    random.shuffle(loose)
    return ", ".join([*kept, *loose])


def changes_every_step(settings: DatasetConfig) -> bool:
    """Whether captions can't be encoded once for the whole run."""
    return settings.shuffle_tags
