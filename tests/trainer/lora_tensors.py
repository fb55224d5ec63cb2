"""Small LoRA tensors of every kind under any naming, made by hand: nothing here comes from the code that is tested."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SDXL_CONTEXT, SD15_CONTEXT = 2048, 768


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers of a shape, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def lora(
    stem: str, out: int = 6, inputs: int = 8, rank: int = 2, *, alpha: float | None = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """A linear LoRA in kohya's words."""
    state = {
        f"{stem}.lora_down.weight": numbers(rank, inputs, seed=seed),
        f"{stem}.lora_up.weight": numbers(out, rank, seed=seed + 1),
    }
    return state | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)})


def product(state: dict[str, Tensor], stem: str) -> Tensor:
    """What such a LoRA adds."""
    down, up = state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"]
    scale = float(state[f"{stem}.alpha"]) / len(down) if f"{stem}.alpha" in state else 1.0
    return scale * up @ down


def renamed(state: dict[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors with pieces of their keys replaced."""
    result = {}
    for key, value in state.items():
        for old, new in names:
            key = key.replace(old, new)
        result[key] = value
    return result
