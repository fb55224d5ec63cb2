"""How long a caption is for the text encoders: tokens as CLIP counts them, in chunks of 75.

By `tokenizers` alone, which is up in a moment; loading transformers for a number on the page would take seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.demo import BASE_DIR

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 75
"""Tokens that one pass of CLIP's 77 places holds beside the two marks at its ends."""
MAX_REMEMBERED = 50_000
CLIP_DIR = Path(__file__).resolve().parent.parent / "families" / "configs" / "clip_tokenizer"
DEMO_TOKENIZER_DIR = BASE_DIR / "tokenizer"
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""The pattern of OpenAI's CLIP (`simple_tokenizer.py`)."""


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Tokenizer:
    """The byte-pair encoding of CLIP over the `vocab.json` and `merges.txt` of a folder, as transformers builds it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token="<|endoftext|>",  # noqa: S106 - CLIP's mark for the end of a text
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


_counted: dict[tuple[Path, str], int] = {}


def count_tokens(texts: Iterable[str], base: str = "") -> list[int]:
    """Tokens of each text without the two marks at its ends. `base`: the embedded one has a vocabulary of its own."""
    folder = DEMO_TOKENIZER_DIR if base == "demo" else CLIP_DIR
    wanted = list(texts)
    fresh = [text for text in dict.fromkeys(wanted) if text and (folder, text) not in _counted]
    if len(_counted) + len(fresh) > MAX_REMEMBERED:
        _counted.clear()
        fresh = [text for text in dict.fromkeys(wanted) if text]
    if fresh:
        encoded = _tokenizer(folder).encode_batch(fresh, add_special_tokens=False)
        _counted.update({(folder, text): len(one.ids) for text, one in zip(fresh, encoded, strict=True)})
    return [_counted[folder, text] if text else 0 for text in wanted]
