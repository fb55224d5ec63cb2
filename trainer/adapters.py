"""Putting a LoRA on a frozen model and taking its weights out again, through peft."""

from __future__ import annotations

import peft
import torch
from peft.functional import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from trainer.config.schema import LoraConfig

ADAPTER_NAME = "default"


def add_lora(model: nn.Module, settings: LoraConfig, targets: list[str], *, seed: int) -> list[nn.Parameter]:
    """Adds a LoRA to every module whose name ends in one of `targets`; returns its parameters, in fp32.

    The base's own parameters stay frozen. A (rank, in) starts as in peft, B (out, rank) at zero, so the model is
    unchanged at first. `seed` makes the start repeatable without touching other randomness.
    """
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        init_lora_weights=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "add_adapter"):
            model.add_adapter(config, adapter_name=ADAPTER_NAME)
        else:
            inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    # peft leaves adapters that were injected by hand in the base's format, where small updates would be rounded away.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def lora_weights(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by peft's names, as they are."""
    return get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME)


def load_lora_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts tensors from `lora_weights` back. Raises ValueError when names don't match."""
    result = set_peft_model_state_dict(model, weights, adapter_name=ADAPTER_NAME)
    missing = [name for name in result.missing_keys if "lora_" in name]
    if result.unexpected_keys or missing:
        raise ValueError(f"LoRA weights don't fit: unexpected {result.unexpected_keys[:3]}, missing {missing[:3]}")
