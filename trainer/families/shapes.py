"""Sizes of a model's parts read off the tensor shapes of a single-file checkpoint in the original (LDM) key layout.

Imports no torch: works on the header of a .safetensors file. What no shape tells (the number of attention heads, the
groups of a norm) follows the family's rule, or a `<file>.config.json` beside the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from security.errors import SafelightError

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
LATENT_CHANNELS = 4
SIZE_EMBEDDINGS = 6
"""Numbers in SDXL's size conditioning: original size, crop offset, target size."""
HEAD_DIM = 64
"""Width of one head in every CLIP text encoder and in SDXL's U-Net."""

_UNUSED_TEXT_TENSORS = ("embeddings.position_ids", "text_projection.weight", "text_projection", "logit_scale")
"""A counter that old versions of transformers saved, and parts of CLIP that no Stable Diffusion model reads."""


class UnknownLayout(SafelightError):
    """A checkpoint's tensors don't form the model that their names promise."""


@dataclass(frozen=True)
class _Level:
    channels: int
    num_layers: int
    num_transformers: int  # transformer blocks per attention, 0 where the level has none


def unet_sizes(shapes: Shapes, *, heads: int | None) -> dict[str, Any]:
    """Settings of a UNet2DConditionModel. `heads`: per attention at every level, or None for 64 channels a head.

    Raises UnknownLayout.
    """
    blocks = {key.removeprefix(UNET_PREFIX): shape for key, shape in shapes.items() if key.startswith(UNET_PREFIX)}
    in_channels = _shape(blocks, "input_blocks.0.0.weight")[1]
    if in_channels != LATENT_CHANNELS:
        raise UnknownLayout(
            f"The U-Net takes {in_channels} channels instead of {LATENT_CHANNELS}: an inpainting or editing model. "
            "Use the base model that it was made from."
        )
    levels = _levels(blocks)
    middle = _num_transformers(blocks, "middle_block.1")
    depths = [level.num_transformers or 1 for level in levels]
    if not levels[-1].num_transformers:
        depths[-1] = (
            middle  # diffusers builds the middle with the last entry, which is free where the level has no attention
        )
    channels = [level.channels for level in levels]
    attends = [level.num_transformers > 0 for level in levels]
    first = next(key for key in blocks if key.endswith(".attn2.to_k.weight"))
    projection = next(key for key in blocks if key.endswith(".proj_in.weight"))
    return {
        "in_channels": in_channels,
        "out_channels": _shape(blocks, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": levels[0].num_layers,
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        "transformer_layers_per_block": depths,
        "cross_attention_dim": blocks[first][1],
        "use_linear_projection": len(blocks[projection]) == 2,
        "attention_head_dim": heads if heads is not None else [max(1, one // HEAD_DIM) for one in channels],
    }


def added_embedding_sizes(shapes: Shapes, pooled_size: int) -> dict[str, Any]:
    """Settings of SDXL's embedding of the pooled prompt and the six sizes. Raises UnknownLayout."""
    total = _shape(shapes, UNET_PREFIX + "label_emb.0.0.weight")[1]
    if total <= pooled_size or (total - pooled_size) % SIZE_EMBEDDINGS:
        raise UnknownLayout(
            f"The U-Net is conditioned on {total} numbers, which is not a pooled prompt of {pooled_size} and "
            f"{SIZE_EMBEDDINGS} sizes: an SDXL refiner or another kind of model. Use an SDXL base model."
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (total - pooled_size) // SIZE_EMBEDDINGS,
        "projection_class_embeddings_input_dim": total,
    }


def vae_sizes(shapes: Shapes) -> dict[str, Any]:
    """Settings of an AutoencoderKL. Raises UnknownLayout."""
    parts = {key.removeprefix(VAE_PREFIX): shape for key, shape in shapes.items() if key.startswith(VAE_PREFIX)}
    num_levels = _count(parts, "encoder.down.{}.block.0.conv1.weight")
    if not num_levels:
        raise UnknownLayout("The file has no VAE. Use a checkpoint that has one built in.")
    return {
        "latent_channels": _shape(parts, "decoder.conv_in.weight")[1],
        "block_out_channels": [
            _shape(parts, f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(num_levels)
        ],
        "layers_per_block": _count(parts, "encoder.down.0.block.{}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in parts,
        "use_quant_conv": "quant_conv.weight" in parts,
        "use_post_quant_conv": "post_quant_conv.weight" in parts,
    }


def clip_sizes(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Settings of a CLIPTextModel stored in Hugging Face's layout under `prefix`. Raises UnknownLayout."""
    parts = hugging_face_keys(shapes, prefix)
    vocabulary, width = _shape(parts, "embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": _shape(parts, "embeddings.position_embedding.weight")[0],
        "num_hidden_layers": _count(parts, "encoder.layers.{}.self_attn.q_proj.weight"),
        "intermediate_size": _shape(parts, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_attention_heads": max(1, width // HEAD_DIM),
    }


def open_clip_sizes(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Settings of a CLIPTextModelWithProjection stored in OpenCLIP's layout under `prefix`. Raises UnknownLayout."""
    parts = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    vocabulary, width = _shape(parts, "token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": _shape(parts, "positional_embedding")[0],
        "num_hidden_layers": _count(parts, "transformer.resblocks.{}.attn.in_proj_weight"),
        "intermediate_size": _shape(parts, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "projection_dim": _shape(parts, "text_projection")[1],
        "num_attention_heads": max(1, width // HEAD_DIM),
    }


def hugging_face_keys(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries under `prefix` without it, and without the `text_model.` that older files have after it.

    What some files add and a CLIPTextModel lacks is left out.
    """
    return {
        key.removeprefix(prefix).removeprefix("text_model."): value
        for key, value in tensors.items()
        if key.startswith(prefix) and not key.endswith(_UNUSED_TEXT_TENSORS)
    }


def _levels(blocks: Shapes) -> list[_Level]:
    levels: list[_Level] = []
    layers: list[tuple[int, int]] = []
    for number in range(
        1, _count(blocks, "input_blocks.{}.0.in_layers.2.weight", "input_blocks.{}.0.op.weight", 1) + 1
    ):
        if f"input_blocks.{number}.0.op.weight" in blocks:
            levels.append(_level(layers))
            layers = []
        else:
            channels = blocks[f"input_blocks.{number}.0.in_layers.2.weight"][0]
            layers.append((channels, _num_transformers(blocks, f"input_blocks.{number}.1")))
    levels.append(_level(layers))
    if len({level.num_layers for level in levels}) != 1:
        raise UnknownLayout(
            "The U-Net has levels with different numbers of layers, which is no Stable Diffusion model."
        )
    return levels


def _level(layers: list[tuple[int, int]]) -> _Level:
    if len(set(layers)) != 1:
        raise UnknownLayout("The U-Net has unlike layers in one level, which is no Stable Diffusion model.")
    (channels, num_transformers), num_layers = layers[0], len(layers)
    return _Level(channels, num_layers, num_transformers)


def _num_transformers(blocks: Shapes, attention: str) -> int:
    return _count(blocks, attention + ".transformer_blocks.{}.attn1.to_q.weight")


def _count(shapes: Shapes, *patterns: str | int) -> int:
    """How many numbers in a row, from the last argument (0 if none is given), fill any of the patterns."""
    names = [one for one in patterns if isinstance(one, str)]
    number = start = next((one for one in patterns if isinstance(one, int)), 0)
    while any(name.format(number) in shapes for name in names):
        number += 1
    return number - start


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UnknownLayout(f"The file has no tensor {key!r}: it is damaged or another kind of model.")
    return shapes[key]
