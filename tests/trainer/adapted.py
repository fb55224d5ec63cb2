"""Tiny models with adapters whose numbers are as if they had been trained: none zero, large enough to change a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from trainer.adapters.layer import adapted_layers
from trainer.adapters.place import adapt
from trainer.config.schema import TrainConfig
from trainer.families.base import Components, ModelFamily

RANK, ALPHA = 4, 0.7


def adapted(family: ModelFamily, folder: Path, *, std: float = 0.14, **lora: Any) -> Components:
    """The tiny model with trained adapters. `lora`: settings of [lora]; text encoders are trained unless it says no."""
    components = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)
    settings = {"rank": RANK, "alpha": ALPHA, "train_text_encoder": True} | lora
    values = {"name": "x", "dataset": {"folder": "x"}, "save": {"key_format": "kohya"}, "lora": settings}
    adapt(TrainConfig.model_validate(values), family, components)
    generator = torch.Generator().manual_seed(7)
    for part in components.modules().values():
        for layer in adapted_layers(part).values():
            for parameter in layer.adapter.parameters():
                # A magnitude begins at the length of a weight's column, which it stays near to.
                noise = torch.randn(parameter.shape, generator=generator) * std
                parameter.data = parameter.data * (1 + noise) if parameter.ndim == 1 else noise
        part.eval()
    return components


def outputs(unet: Any, text_encoders: list[Any]) -> dict[str, Tensor]:
    """What each network says to a fixed input."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 12, generator=generator)
    width = unet.config.cross_attention_dim
    states = torch.randn(2, 77, width, generator=generator)
    added = {
        "text_embeds": torch.randn(2, 24, generator=generator),
        "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2),
    }
    ids = torch.randint(0, 1500, (2, 77), generator=generator)
    ids[:, 20:] = 1513
    with torch.no_grad():
        found = {"unet": unet(latents, torch.tensor([5, 900]), states, added_cond_kwargs=added, return_dict=False)[0]}
        for number, encoder in enumerate(text_encoders):
            found[f"text {number}"] = encoder(ids, output_hidden_states=True).hidden_states[-1]
    return found
