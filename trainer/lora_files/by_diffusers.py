"""Loads a LoRA file with diffusers itself, into networks that take no memory: what it makes of the file, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.families.base import Components, ModelFamily
from trainer.lora_files.layers import LowRank
from trainer.lora_files.names import UNET, Place, canonical

ADAPTER = "default"
"""peft's name for the one adapter that is loaded."""


def loaded_by_diffusers(path: Path, components: Components, family: ModelFamily) -> dict[Place, LowRank]:
    """The LoRA layers that diffusers' `load_lora_weights` makes of a file, by module.

    Raises ValueError, as diffusers does, for a file that it does not take.
    """
    pipeline = family.pipeline_class()
    state, alphas, metadata = pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        unet_config=components.denoiser.config,
        return_lora_metadata=True,
        local_files_only=True,
    )
    skeletons = {name: _skeleton(part) for name, part in components.modules().items() if name != "vae"}
    for name, part in skeletons.items():
        options = {"adapter_name": ADAPTER, "metadata": metadata}
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        if name == UNET:
            pipeline.load_lora_into_unet(state, alphas, part, **options)
        else:
            pipeline.load_lora_into_text_encoder(state, alphas, part, prefix=name, **options)
    return {
        Place(part, module if part == UNET else canonical(module)): layer
        for part, skeleton in skeletons.items()
        for module, layer in _peft_layers(skeleton).items()
    }


def _peft_layers(part: nn.Module) -> dict[str, LowRank]:
    from peft.tuners.lora import LoraLayer

    layers = {}
    for name, module in part.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            down, up = module.lora_A[ADAPTER].weight.detach(), module.lora_B[ADAPTER].weight.detach()
            # The scale that is really applied, rather than what a config says it should be.
            layers[name] = LowRank(down, up, alpha=float(module.scaling[ADAPTER]) * len(down))
    return layers


def _skeleton(part: Any) -> Any:
    """A network of the same class and config, each of its weights one zero seen as a whole tensor: it takes no memory."""
    with torch.device("meta"):
        empty = part.from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)
    for module in empty.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros(()).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))
    return empty
