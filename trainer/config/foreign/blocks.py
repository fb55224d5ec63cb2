"""Blocks of a U-Net as kohya's tools count them (0 to 11 going in, the middle, 0 to 11 going out) as patterns of ours.

The count is that of Stability's own code: block 1 + 3 i + j of the way in is layer j of our `down_blocks.i`, its third
layer the downsampler; block 3 i + j of the way out is layer j of `up_blocks.i`, the upsampler goes with its third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

CURVES: dict[str, Callable[[float], float]] = {
    "sine": lambda share: math.sin(math.pi * share / 2),
    "cosine": lambda share: math.sin(math.pi * (1 - share) / 2),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda _share: 0.0,
}
"""Names for a row of weights, by the share of the way through it."""


def input_patterns(index: int) -> list[str]:
    """Patterns of a block on the way in; block 0 is the first convolution, which has no adapter."""
    if index == 0:
        return []
    block, layer = divmod(index - 1, 3)
    if layer == 2:
        return [rf"^down_blocks\.{block}\.downsamplers\."]
    return [rf"^down_blocks\.{block}\.(attentions|resnets)\.{layer}\."]


def middle_patterns(index: int) -> list[str]:
    """Patterns of one of the three layers of the middle of SDXL."""
    return [[r"^mid_block\.resnets\.0\."], [r"^mid_block\.attentions\.0\."], [r"^mid_block\.resnets\.1\."]][index]


def output_patterns(index: int) -> list[str]:
    """Patterns of a block on the way out."""
    block, layer = divmod(index, 3)
    if layer == 2:  # one pattern for both: the last block has no upsampler, and a pattern must match something
        return [rf"^up_blocks\.{block}\.((attentions|resnets)\.2|upsamplers)\."]
    return [rf"^up_blocks\.{block}\.(attentions|resnets)\.{layer}\."]


MOST_BLOCKS = 12


def curve(text: str, length: int) -> list[float]:
    """Weights as a list, or by the name of a curve of `length` with an optional `+LEAST`. Raises ValueError."""
    name, _, least = text.strip().partition("+")
    if name in CURVES:
        base = float(least or 0)
        return [CURVES[name](step / (length - 1)) + base for step in range(length)]
    weights = [float(part) for part in text.split(",")]
    if len(weights) > MOST_BLOCKS or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"{len(weights)} weights where at most {MOST_BLOCKS}, none below 0, are known")
    return weights


def block_lines(weights: Sequence[float], patterns: Callable[[int], list[str]], *, alone: bool) -> list[str]:
    """`PATTERN FACTOR` for each block whose weight isn't 1; `alone`: one weight stands for the whole middle."""
    if alone and len(weights) == 1:
        return [] if weights[0] == 1 else [rf"^mid_block\. {weights[0]:g}"]
    return [
        f"{pattern} {weight:g}" for index, weight in enumerate(weights) if weight != 1 for pattern in patterns(index)
    ]
