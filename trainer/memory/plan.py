"""How much memory a run needs at each level of thrift, and the quickest level that fits. Imports no torch.

What a step remembers for its backward pass grows with the pixels of a batch alone, since attention is computed in
pieces. How much it is per pixel follows from the network's shape; benchmarks/memory.py counts it on the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.choices import Checkpointing, Offload
from trainer.config.sections import MemoryConfig

TRANSFORMER_NUMBERS, RESIDUAL_NUMBERS = 28.5, 11.0
"""Numbers that one block remembers for each pixel and channel: with a LoRA on all layers of the transformers."""
RESIDUAL_KEPT = 5.4
"""Numbers for each pixel and channel that stay of a residual block where all blocks are computed twice."""
TRANSFORMER_SHARE, RESIDUAL_SHARE = 0.6, 0.9
"""How much of it is left in 16 bits: norms and sums stay in 32. Reckoned by the formats of the operations."""
AWAY_BYTES = 192 * 2**20
"""Of a base that lives elsewhere: the layer that computes and those on their way."""
SPARE = 1.1
"""For what operations take for a moment, and the gaps of the allocator."""
FULL = 0.92
"""Share of the memory that a plan may fill."""


@dataclass(frozen=True)
class Level:
    """What is computed twice, and what lives elsewhere; never `auto`."""

    checkpointing: Checkpointing = Checkpointing.OFF
    offload: Offload = Offload.NONE

    @property
    def offloads_blocks(self) -> bool:
        """Whether the base's blocks live in the machine's memory."""
        return self.offload in (Offload.BLOCKS, Offload.BOTH)

    @property
    def offloads_activations(self) -> bool:
        """Whether what a step remembers lives in the machine's memory."""
        return self.offload in (Offload.ACTIVATIONS, Offload.BOTH)

    def __str__(self) -> str:
        twice = {
            Checkpointing.OFF: "nothing is computed twice",
            Checkpointing.ATTENTION: "the transformers are computed twice",
            Checkpointing.BLOCKS: "all blocks are computed twice",
        }[self.checkpointing]
        away = {
            Offload.ACTIVATIONS: ", activations wait in the machine's memory",
            Offload.BLOCKS: ", the base's blocks wait in the machine's memory",
            Offload.BOTH: ", activations and the base's blocks wait in the machine's memory",
        }
        return twice + away.get(self.offload, "")


LEVELS = tuple(
    Level(checkpointing, offload)
    for checkpointing, offload in (
        (Checkpointing.OFF, Offload.NONE),
        (Checkpointing.ATTENTION, Offload.NONE),
        (Checkpointing.BLOCKS, Offload.NONE),
        (Checkpointing.BLOCKS, Offload.ACTIVATIONS),
        (Checkpointing.BLOCKS, Offload.BLOCKS),
        (Checkpointing.BLOCKS, Offload.BOTH),
    )
)
"""From the quickest to the one that needs least."""


@dataclass(frozen=True)
class Shape:
    """A denoiser's blocks: channels of all, each weighed by how many of its pixels come to one latent pixel.

    `largest`: the most numbers that one block remembers for a latent pixel.
    """

    transformers: float
    residuals: float
    largest: float


@dataclass(frozen=True)
class Load:
    """What a run brings into the memory. Bytes, but for `trained` and `pixels`, which are numbers.

    `blocks_bytes`: the base's blocks as they are stored; `rest_bytes`: of the base besides, and what else stays.
    `pixels`: latent pixels of the largest batch. `is_narrow`: whether it computes in 16 bits. `copied_bytes`: of the
    checkpoint that is being written, where it lies in the same memory.
    """

    blocks_bytes: int
    rest_bytes: int
    trained: int
    optimizer_bytes: int
    pixels: int
    is_narrow: bool
    shape: Shape
    copied_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """What is there already before the first step."""
        return self.blocks_bytes + self.rest_bytes + 4 * self.trained


def needs(load: Load, level: Level) -> dict[str, int]:
    """Bytes on the device that computes, by what they are for."""
    base = min(AWAY_BYTES, load.blocks_bytes) if level.offloads_blocks else load.blocks_bytes
    parts = {
        "base model": base + load.rest_bytes,
        "what is trained": 4 * load.trained,
        "its gradients": 4 * load.trained,
        "the optimizer's state": load.optimizer_bytes,
        "activations": round(SPARE * activation_bytes(load, level)),
    }
    return parts | ({"the checkpoint being saved": load.copied_bytes} if load.copied_bytes else {})


def activation_bytes(load: Load, level: Level) -> int:
    """What a step remembers on the device, at the most."""
    shape = load.shape
    transformers, residuals = 4 * TRANSFORMER_NUMBERS * shape.transformers, 4 * RESIDUAL_NUMBERS * shape.residuals
    block = 4 * shape.largest
    if load.is_narrow:
        transformers, residuals, block = transformers * TRANSFORMER_SHARE, residuals * RESIDUAL_SHARE, block * 0.75
    inputs = (2 if load.is_narrow else 4) * shape.transformers
    if level.checkpointing is Checkpointing.ATTENTION:
        transformers = inputs
    if level.checkpointing is Checkpointing.BLOCKS:
        transformers, residuals = inputs, residuals * RESIDUAL_KEPT / RESIDUAL_NUMBERS
    kept = 0.0 if level.offloads_activations else transformers + residuals
    again = block if level.checkpointing is not Checkpointing.OFF or level.offloads_activations else 0.0
    return round(load.pixels * (kept + again))


def possible_levels(settings: MemoryConfig, *, elsewhere: bool) -> list[Level]:
    """The levels that the settings leave open. `elsewhere`: whether there is another memory than the device's."""
    found = []
    offloads = [Offload.NONE] if not elsewhere else _open(settings.offload, Offload)
    for checkpointing in _open(settings.checkpointing, Checkpointing):
        found += [Level(checkpointing, offload) for offload in offloads]
    order = {level: place for place, level in enumerate(LEVELS)}
    known = sorted((level for level in found if level in order), key=order.__getitem__)
    return known or found[:1]


def _open(chosen: Any, kind: Any) -> list[Any]:
    return [one for one in kind if one != "auto"] if chosen == "auto" else [chosen]


def choose_level(load: Load, levels: Sequence[Level], free_bytes: int) -> Level:
    """The quickest level that fits, else the one that needs least. 0 free bytes: not known, so the quickest."""
    for level in levels:
        if not free_bytes or sum(needs(load, level).values()) <= FULL * free_bytes:
            return level
    return min(levels, key=lambda level: sum(needs(load, level).values()))


def next_level(level: Level, *, elsewhere: bool) -> Level | None:
    """The next level that needs less than this one; None where there is none."""
    later = [one for one in LEVELS if _is_below(one, level) and (elsewhere or one.offload is Offload.NONE)]
    return later[0] if later else None


def _is_below(one: Level, other: Level) -> bool:
    """Whether a level saves all that another does, and more."""
    twice = (Checkpointing.OFF, Checkpointing.ATTENTION, Checkpointing.BLOCKS)
    return (
        one != other
        and twice.index(one.checkpointing) >= twice.index(other.checkpointing)
        and one.offloads_blocks >= other.offloads_blocks
        and one.offloads_activations >= other.offloads_activations
    )


def unet_shape(config: Mapping[str, Any]) -> Shape:
    """The shape of a U-Net by its diffusers config."""
    widths: Sequence[int] = config["block_out_channels"]
    layers = _for_each(config["layers_per_block"], len(widths))
    depths = _for_each(config.get("transformer_layers_per_block") or 1, len(widths))
    attends = ["Attn" in name for name in config["down_block_types"]]
    attends_up = ["Attn" in name for name in reversed(config["up_block_types"])]
    transformers = residuals = largest = 0.0
    for level, (width, count, depth) in enumerate(zip(widths, layers, depths, strict=True)):
        share = width / 4**level
        last = level == len(widths) - 1
        residuals += share * (2 * count + 1 + 2 * last)
        with_attention = count * attends[level] + (count + 1) * attends_up[level] + last
        transformers += share * depth * with_attention
        largest = max(largest, share * (TRANSFORMER_NUMBERS if with_attention else RESIDUAL_NUMBERS))
    return Shape(transformers, residuals, largest)


def _for_each(value: Any, number: int) -> list[int]:
    """A number for each level of a network, given as one or as many."""
    return [value] * number if isinstance(value, int) else [int(one) for one in value]
