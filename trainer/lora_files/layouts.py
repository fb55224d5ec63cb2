"""The modules of the published SD 1.x and SDXL models, as lists of names made from their layout alone. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

_LAYERS = 2
"""Residual blocks at each level on the way down; one more on the way up."""
_TEXT_LAYER = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("mlp.fc1", "mlp.fc2"),
)


@dataclass(frozen=True)
class Layout:
    """A model. `depths`: transformer blocks in each attention, level by level from the outside, 0 where there is none.

    `text_layers`: of each text encoder. `has_sizes`: it is told picture sizes. `maps_original_names`: diffusers' pipeline
    renames kohya's block numbers of it.
    """

    depths: tuple[int, ...]
    middle_depth: int
    text_layers: tuple[int, ...]
    has_sizes: bool
    maps_original_names: bool


LAYOUTS = {
    "sd15": Layout((1, 1, 1, 0), 1, (12,), has_sizes=False, maps_original_names=False),
    "sdxl": Layout((0, 2, 10), 10, (12, 32), has_sizes=True, maps_original_names=True),
}


@functools.cache
def unet_modules(layout: Layout) -> dict[str, str]:
    """All modules of the U-Net that have weights: diffusers' dotted names to the original code's."""
    return dict([*_edges(layout), *_way_down(layout), *_middle(layout), *_way_up(layout)])


def text_modules(num_layers: int) -> list[str]:
    """The linear layers of a CLIP text encoder as LoRA files name them."""
    return [f"text_model.encoder.layers.{layer}.{leaf}" for layer in range(num_layers) for leaf in _TEXT_LAYER]


def _edges(layout: Layout) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"
    if layout.has_sizes:
        yield "add_embedding.linear_1", "label_emb.0.0"
        yield "add_embedding.linear_2", "label_emb.0.2"


def _way_down(layout: Layout) -> Iterator[tuple[str, str]]:
    number = 1
    for level, depth in enumerate(layout.depths):
        for layer in range(_LAYERS):
            yield from _residual(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0")
            yield from _attention(f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1", depth)
            number += 1
        if level < len(layout.depths) - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1


def _middle(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from _residual("mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1", layout.middle_depth)
    yield from _residual("mid_block.resnets.1", "middle_block.2")


def _way_up(layout: Layout) -> Iterator[tuple[str, str]]:
    number = 0
    for level, depth in enumerate(reversed(layout.depths)):
        for layer in range(_LAYERS + 1):
            yield from _residual(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0")
            yield from _attention(f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1", depth)
            number += 1
        if level < len(layout.depths) - 1:
            yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number - 1}.{2 if depth else 1}.conv"


def _residual(name: str, original: str) -> Iterator[tuple[str, str]]:
    leaves = ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1")
    more = ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")
    for leaf, original_leaf in (*leaves, *more):
        yield f"{name}.{leaf}", f"{original}.{original_leaf}"


def _attention(name: str, original: str, depth: int) -> Iterator[tuple[str, str]]:
    if not depth:
        return
    inner = ["norm", "proj_in", "proj_out"]
    for block in range(depth):
        start = f"transformer_blocks.{block}"
        inner += [f"{start}.attn{which}.to_{one}" for which in (1, 2) for one in ("q", "k", "v", "out.0")]
        inner += [f"{start}.ff.net.0.proj", f"{start}.ff.net.2", *(f"{start}.norm{one}" for one in (1, 2, 3))]
    for leaf in inner:
        yield f"{name}.{leaf}", f"{original}.{leaf}"
