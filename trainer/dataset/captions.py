"""From a caption file to the text that a step trains on: trigger word, tag shuffle, caption dropout."""

from __future__ import annotations

from pathlib import Path

from security.errors import RefusedFile
from trainer.config.schema import DatasetConfig
from trainer.randomness import derive_random

MAX_CAPTION_BYTES = 64_000


def read_caption(picture: Path, extension: str) -> str | None:
    """The text beside a picture with line breaks turned into spaces, or None when there is no caption file.

    Raises RefusedFile for a file that is not UTF-8 text of a sane size.
    """
    path = picture.with_suffix(extension)
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise RefusedFile(f"{path.name} has {path.stat().st_size} bytes; a caption has at most {MAX_CAPTION_BYTES}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RefusedFile(f"{path.name} is not UTF-8 text. Save it as UTF-8.") from None
    if "\0" in text:
        raise RefusedFile(f"{path.name} holds a NUL character, so it is no text. Is it another file?")
    return " ".join(text.split())


def with_trigger(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word in front, unless one of its comma-separated parts starts with it already."""
    trigger = trigger_word.strip()
    if not trigger or any(part.startswith(trigger) for part in split_tags(caption)):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def split_tags(caption: str) -> list[str]:
    """The comma-separated parts of a caption, without empty ones."""
    return [part.strip() for part in caption.split(",") if part.strip()]


def training_caption(caption: str, settings: DatasetConfig, seed: int, step: int, sample_id: str) -> str:
    """The text that `step` trains on: shuffled and dropped as the settings say, the same for the same arguments."""
    random = derive_random(seed, "caption", step, sample_id)
    if random.random() < settings.caption_dropout_rate:
        return ""
    if not settings.shuffle_tags:
        return caption
    tags = split_tags(caption)
    kept, loose = tags[: settings.keep_tokens], tags[settings.keep_tokens :]
    random.shuffle(loose)
    return ", ".join([*kept, *loose])


def changes_every_step(settings: DatasetConfig) -> bool:
    """Whether captions can't be encoded once for the whole run."""
    return settings.shuffle_tags
