"""A word of one's own: new token vectors that are trained beside the LoRA (pivotal tuning), and files with them.

The vectors are those of textual inversion (Gal et al. 2022, arXiv:2208.01618), trained together with the network as in
pivotal tuning (Roich et al. 2021, arXiv:2106.05744). The model's own table of vectors and its tokenizers stay as they
are: both only get something put before them that knows the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from security.errors import SafelightError
from security.roots import replace_file
from security.weights import check_safetensors
from trainer.config.schema import EmbeddingConfig
from trainer.dataset.own_word import pattern_of
from trainer.families.base import Components
from trainer.families.clip import prompt_ids, text_model

GROUP = "embedding"
"""Name of the vectors' parameter group."""
FOLDER = "embeddings"
"""Where a run's files with the vectors lie: programs call the word by the file's name, which may be that of the LoRA."""
BOTH_ENCODERS = ("clip_l", "clip_g")
"""SDXL's names for the vectors of its two text encoders, in A1111's and ComfyUI's files."""


@dataclass(frozen=True)
class Ids:
    """What a tokenizer gives, as far as prompts need it."""

    input_ids: list[int]


class WordTokenizer:
    """A tokenizer that knows one word more, as `ids`. The one it stands on is asked for all else and never changed."""

    def __init__(self, tokenizer: Any, word: str, ids: Sequence[int]) -> None:
        self.base, self.ids = tokenizer, list(ids)
        self._pattern = pattern_of(word)

    def __call__(self, prompt: str, *, add_special_tokens: bool, **options: Any) -> Ids:
        """The ids of a prompt, without the two that mark its ends."""
        assert not add_special_tokens, "pieces get their marks when they are cut"
        ids: list[int] = []
        for number, text in enumerate(self._pattern.split(prompt)):
            ids += self.ids if number else []
            ids += self.base(text, add_special_tokens=False, **options).input_ids
        return Ids(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


class ExtendedTable(nn.Module):
    """A frozen table of token vectors, and after its last id those of a new word, in fp32.

    The table comes first, so that a network's own number format is still found from its first weight.
    """

    def __init__(self, table: nn.Embedding, word: str, vectors: Tensor) -> None:
        super().__init__()
        self.table = table
        self.added = nn.Embedding(*vectors.shape, _weight=vectors)
        self.word = word

    @property
    def weight(self) -> Tensor:
        """The table's own weights, as code that knows nothing of the word expects them."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of ids (...), in the table's format."""
        beyond = ids - self.table.num_embeddings
        own = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        return torch.where(beyond[..., None] < 0, own, self.added(beyond.clamp(min=0)).to(own.dtype))


def add_word(components: Components, settings: EmbeddingConfig) -> list[str]:
    """Teaches all text encoders and tokenizers a word; returns what the user should know, as sentences.

    Each vector begins as that of a token of `init_words`, in turn; without any, of the word as the model reads it now.
    """
    begin = settings.init_words or settings.word
    warnings = []
    for number, (encoder, tokenizer) in enumerate(zip(components.text_encoders, components.tokenizers, strict=True)):
        network = text_model(encoder).embeddings
        table: nn.Embedding = network.token_embedding
        begins = prompt_ids(tokenizer, begin)
        if not begins:
            raise SafelightError(f"embedding.init_words is {begin!r}, in which the model finds no word. Name one.")
        taken = torch.tensor([begins[index % len(begins)] for index in range(settings.num_vectors)])
        vectors = table.weight.detach()[taken.to(table.weight.device)].float().clone()
        network.token_embedding = ExtendedTable(table, settings.word, vectors)
        first = table.num_embeddings
        components.tokenizers[number] = WordTokenizer(
            tokenizer, settings.word, range(first, first + settings.num_vectors)
        )
        if settings.word in tokenizer.get_vocab() and not warnings:
            warnings.append(
                f"{settings.word} is in the model's own vocabulary. ComfyUI and A1111 take the trained one in its place, but "
                "diffusers wants another name for it, given as token=..."
            )
    return warnings


def tables_of(components: Components) -> list[ExtendedTable]:
    """The tables with a new word, in the order of the text encoders; empty when there is none."""
    present = [encoder for encoder in components.text_encoders if encoder is not None]
    found = [text_model(encoder).embeddings.token_embedding for encoder in present]
    return [table for table in found if isinstance(table, ExtendedTable)]


def embedding_groups(components: Components, settings: EmbeddingConfig) -> list[dict[str, Any]]:
    """Makes the vectors learn. Returns their parameter group; they are not pulled towards zero, where no word lies."""
    weights = [table.added.weight.requires_grad_(True) for table in tables_of(components)]
    group = {"params": weights, "lr": settings.learning_rate, "name": GROUP, "is_embedding": True, "weight_decay": 0.0}
    return [group] if weights else []


def stop_word(components: Components) -> None:
    """Ends the vectors' learning for good: without a gradient no optimizer moves them."""
    for table in tables_of(components):
        table.added.requires_grad_(False)


def trained_words(components: Components) -> dict[str, dict[str, Tensor]]:
    """The vectors (n, D) fp32 by word, under the names that a LoRA file bundles them by.

    These are A1111's: `string_to_param.*` of one text encoder, `clip_l` and `clip_g` of SDXL's two.
    """
    tables = tables_of(components)
    if not tables:
        return {}
    names = BOTH_ENCODERS if len(tables) == 2 else ("string_to_param.*",)
    vectors = [table.added.weight.detach().cpu().float().clone() for table in tables]
    return {tables[0].word: dict(zip(names, vectors, strict=True))}


def take_words(components: Components, words: dict[str, dict[str, Tensor]], name: str) -> None:
    """Begins the vectors as those of the LoRA file `name`. Raises SafelightError for a word that would be lost."""
    own = trained_words(components)
    for word, vectors in words.items():
        present = {key: tuple(one.shape) for key, one in own.get(word, {}).items()}
        if present != {key: tuple(one.shape) for key, one in vectors.items()}:
            count = max(len(one) for one in vectors.values())
            raise SafelightError(
                f"lora.continue_from names {name}, which brings the trained word {word} with {count} vectors; it would be "
                f"lost. Set embedding.word to {word} and embedding.num_vectors to {count}."
            )
        with torch.no_grad():
            for table, key in zip(tables_of(components), own[word], strict=True):
                table.added.weight.copy_(vectors[key])


def save_word(components: Components, folder: Path, ending: str) -> list[tuple[Path, dict[str, str]]]:
    """Writes each trained word as `WORD<ending>.safetensors`, reads it back, and tells by program what keeps it from
    loading ("" for nothing).

    One text encoder's vectors lie under the word itself, which is diffusers' form; A1111 and ComfyUI take whatever single
    tensor there is. Two lie under their own names. Raises SafelightError for a file that is not what was written.
    """
    from safetensors.torch import load_file, save

    written = []
    for word, vectors in trained_words(components).items():
        tensors = {word: next(iter(vectors.values()))} if len(vectors) == 1 else vectors
        if not all(bool(torch.isfinite(one).all()) for one in tensors.values()):
            raise SafelightError(f"The vectors of {word} hold NaN or Inf. Lower embedding.learning_rate.")
        path = folder / f"{word}{ending}.safetensors"
        folder.mkdir(exist_ok=True)
        replace_file(path, save(tensors, metadata={"format": "pt", "modelspec.title": word}))
        check_safetensors(path)
        read = load_file(path)
        if read.keys() != tensors.keys() or not all(torch.equal(read[key], tensors[key]) for key in tensors):
            raise SafelightError(
                f"{path.name} reads back with other numbers than were trained. The disk may be damaged."
            )
        one_by_one = (
            "diffusers takes it for one text encoder at a time: load_textual_inversion(load_file(...)['clip_l'], "
            f"token='{word}'), and once more with clip_g, text_encoder_2 and tokenizer_2."
        )
        diffusers = "" if len(tensors) == 1 else one_by_one
        written.append((path, {"comfyui": "", "a1111": "", "forge": "", "diffusers": diffusers}))
    return written
