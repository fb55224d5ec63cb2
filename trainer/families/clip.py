"""Prompts through CLIP text encoders: pieces of 75 tokens, the layer that is read, and the pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PIECE_LENGTH = 75
"""Tokens of a prompt that fit into one pass; with the two that mark its ends CLIP reads 77."""
CONTEXT_LENGTH = PIECE_LENGTH + 2

TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
"""All linear layers of a CLIP text encoder's blocks, as kohya's trainer takes them."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, without the two that mark its ends and without a limit."""
    # verbose=False: the tokenizer would warn about more than 77 tokens, which is what the pieces are for.
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return ids


def count_tokens(tokenizers: Sequence[Any], prompt: str) -> int:
    """Tokens of a prompt in the tokenizer that needs most of them."""
    return max(len(prompt_ids(tokenizer, prompt)) for tokenizer in tokenizers)


def tokenize(tokenizer: Any, prompts: Sequence[str], num_pieces: int) -> Tensor:
    """Ids (B, num_pieces, 77): each piece has its own begin, end and padding; what does not fit is cut off.

    Missing pieces are encoded as empty prompts, so that all prompts of a run have one shape.
    """
    rows = []
    for prompt in prompts:
        ids = prompt_ids(tokenizer, prompt)[: num_pieces * PIECE_LENGTH]
        pieces = [ids[start : start + PIECE_LENGTH] for start in range(0, num_pieces * PIECE_LENGTH, PIECE_LENGTH)]
        rows.append([_framed(tokenizer, piece) for piece in pieces])
    return torch.tensor(rows, dtype=torch.long)


def _framed(tokenizer: Any, piece: list[int]) -> list[int]:
    framed = [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (CONTEXT_LENGTH - len(framed))


def encode_skipping(text_encoder: nn.Module, ids: Tensor, clip_skip: int) -> Tensor:
    """Hidden states (B, pieces * 77, D) of the `clip_skip`-th last layer through the final norm, as SD 1.x does."""
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    hidden_states = text_model(text_encoder).final_layer_norm(output.hidden_states[-clip_skip])
    return _joined(hidden_states, ids)


def encode_penultimate(text_encoder: nn.Module, ids: Tensor, end_id: int) -> tuple[Tensor, Tensor]:
    """Hidden states (B, pieces * 77, D) of the layer before the last without the final norm, as SDXL reads them.

    The second value is the last layer through the final norm at the first piece's end marker, (B, D).
    """
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    last = output.last_hidden_state.unflatten(0, ids.shape[:2])[:, 0]
    # Read at the end marker itself: CLIP's own code takes the highest id, which is another token once some are added.
    end = end_positions(ids[:, 0], end_id)
    at_end = last[torch.arange(len(last), device=last.device), end]
    return _joined(output.hidden_states[-2], ids), at_end


def end_positions(ids: Tensor, end_id: int) -> Tensor:
    """Position (B,) of the first end marker in each row of ids (B, 77)."""
    return (ids == end_id).int().argmax(dim=-1)


def text_model(text_encoder: nn.Module) -> nn.Module:
    """The network that has the embeddings and the final norm: itself, or what a projection was put on."""
    return getattr(text_encoder, "text_model", text_encoder)


def _joined(hidden_states: Tensor, ids: Tensor) -> Tensor:
    return hidden_states.unflatten(0, ids.shape[:2]).flatten(1, 2)
