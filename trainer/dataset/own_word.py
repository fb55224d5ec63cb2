"""The word of one's own in captions: how it is found in a text, and the rule that some caption must hold it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from security.errors import SafelightError
from trainer.config.schema import DatasetConfig
from trainer.dataset.scan import Picture


def pattern_of(word: str) -> re.Pattern[str]:
    """Finds the word in a prompt: whole, in capitals or not, as CLIP's tokenizers read it."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def refuse_unused(word: str, dataset: DatasetConfig, trained: Iterable[Picture]) -> None:
    """Raises SafelightError if no caption of what is trained holds the word, so that nothing of it would be learned.

    `trained`: the pictures without those for regularisation. An empty word is no word, and nothing is wrong with it.
    """
    pattern = pattern_of(word)
    captions = [dataset.caption_prefix, dataset.caption_suffix, *(picture.prepared for picture in trained)]
    if word and not any(pattern.search(caption) for caption in captions):
        raise SafelightError(
            f"embedding.word is {word}, but no caption holds it, so nothing of it would be learned. Set dataset.trigger_word "
            f"to {word}, which puts it into every caption, or write it into the captions that it belongs to."
        )
