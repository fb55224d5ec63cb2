"""Names of a Stable Diffusion checkpoint's modules: those of one big file as diffusers and transformers have them.

The original (LDM) U-Net numbers its blocks through; diffusers counts levels and layers. OpenCLIP keeps query, key and value
in one matrix. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.lora_files.names import TEXT_ENCODERS, UNET

TEXT_ENCODER, TEXT_ENCODER_2 = TEXT_ENCODERS
PREFIXES: dict[str, str] = {
    "model.diffusion_model.": UNET,
    "cond_stage_model.transformer.": TEXT_ENCODER,
    "conditioner.embedders.0.transformer.": TEXT_ENCODER,
    "conditioner.embedders.1.model.": TEXT_ENCODER_2,
}
"""Beginnings of the names in one big file, and the part that each belongs to."""

_WHOLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_OPEN_CLIP_INNER = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPEN_CLIP_WHOLE = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding",
    "ln_final": "final_layer_norm",
    "text_projection": "text_projection",
}
FUSED = "attn.in_proj"
"""End of the name of OpenCLIP's matrix of query, key and value, one below the other."""
FUSED_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def part_of(key: str) -> tuple[str, str] | None:
    """The part that a tensor of one big file belongs to, and its name in there; None for the VAE and the rest."""
    for prefix, part in PREFIXES.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix)
    return None


def layers_per_level(unet_names: Mapping[str, object]) -> int:
    """How many numbers one level of the U-Net takes: its layers and its down-sampler. Names without their prefix."""
    number = 1
    while f"input_blocks.{number}.0.in_layers.2.weight" in unet_names:
        number += 1
    return number


def unet_module(name: str, per_level: int) -> str | None:
    """diffusers' name of a module of the original U-Net, None for one that it does not have."""
    if name in _WHOLE:
        return _WHOLE[name]
    if match := _MIDDLE.fullmatch(name):
        number, rest = int(match[1]), match[2]
        if number == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{number // 2}.{_RESNET[rest]}" if rest in _RESNET else None
    if match := _BLOCK.fullmatch(name):
        number, inner, rest = int(match[2]), int(match[3]), match[4]
        if match[1] == "input":
            return _block("down", *divmod(number - 1, per_level), inner, rest)
        return _block("up", *divmod(number, per_level), inner, rest)
    return None


def _block(side: str, level: int, layer: int, inner: int, rest: str) -> str | None:
    block = f"{side}_blocks.{level}"
    if rest == "op":
        return f"{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"{block}.upsamplers.0.conv"
    if inner == 1:
        return f"{block}.attentions.{layer}.{rest}"
    return f"{block}.resnets.{layer}.{_RESNET[rest]}" if rest in _RESNET else None


def open_clip_module(name: str) -> str | None:
    """transformers' name of a module of an OpenCLIP text encoder, without `text_model.`; None for others and fused ones."""
    if match := _OPEN_CLIP_LAYER.fullmatch(name):
        inner = _OPEN_CLIP_INNER.get(match[2])
        return f"encoder.layers.{match[1]}.{inner}" if inner else None
    return _OPEN_CLIP_WHOLE.get(name)


def fused_modules(name: str) -> tuple[str, ...]:
    """transformers' names of query, key and value for the name of OpenCLIP's one matrix of them; empty for others."""
    match = _OPEN_CLIP_LAYER.fullmatch(name)
    if match is None or match[2] != FUSED:
        return ()
    return tuple(f"encoder.layers.{match[1]}.{part}" for part in FUSED_PARTS)


def module_of(part: str, name: str, per_level: int) -> str | None:
    """The module of a part by its name in one big file, as diffusers and transformers name it; None if it is none."""
    if part == UNET:
        return unet_module(name, per_level)
    return open_clip_module(name) if part == TEXT_ENCODER_2 else name
