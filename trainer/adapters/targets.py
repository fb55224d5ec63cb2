"""Which layers get an adapter, and with which rank, alpha and share of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from security.errors import SafelightError
from trainer.adapters.layer import AdapterOptions
from trainer.adapters.patterns import PATTERN_SETTINGS, PatternLines
from trainer.adapters.table import ADAPTERS
from trainer.config.schema import LoraConfig
from trainer.config.sections import block_rank, block_rate

DENOISER = "unet"
"""The part whose layers are named without a prefix; a text encoder's names begin with the part's own."""


@dataclass(frozen=True)
class Part:
    """A network that gets adapters. `endings`: of the names of its layers that the preset takes; `convolution_endings`:
    of those that come with convolutions."""

    name: str
    module: nn.Module
    endings: Sequence[str]
    convolution_endings: Sequence[str] = ()


@dataclass(frozen=True)
class LayerPlan:
    """One layer that gets an adapter. `rate`: factor on the learning rate, 0 for a frozen one."""

    options: AdapterOptions
    rate: float


def plan_layers(parts: Sequence[Part], settings: LoraConfig) -> dict[str, dict[str, LayerPlan]]:
    """The chosen layers of each part by name, in the order of the part's own modules.

    Raises SafelightError for a line of patterns that matches nothing, and when nothing is left to train.
    """
    every = {part.name: {full_name(part.name, name): name for name in _possible(part.module)} for part in parts}
    choose, leave_out, ranks, rates = (PatternLines(settings, field) for field in PATTERN_SETTINGS)
    if DENOISER in every:
        choose.refuse_idle([*every[DENOISER]])
    for lines in (leave_out, ranks, rates):
        lines.refuse_idle([full for names in every.values() for full in names])
    plans: dict[str, dict[str, LayerPlan]] = {}
    for part in parts:
        plans[part.name] = {}
        modules = dict(part.module.named_modules())
        for full, name in every[part.name].items():
            by_pattern = part.name == DENOISER and bool(settings.target_patterns)
            wanted = choose.first(full) is not None if by_pattern else _in_preset(name, part, settings)
            if not wanted or leave_out.first(full) is not None:
                continue
            options = _options(modules[name], settings, ranks.first(full))
            if options.rank > 0:
                rate = rates.first(full)
                plans[part.name][name] = LayerPlan(options, 1.0 if rate is None else block_rate(rate)[1])
    if not any(plans.values()):
        raise SafelightError(
            "No layer is left to train: lora.targets, lora.exclude_patterns and lora.block_ranks leave all of them out. "
            "Take a line out."
        )
    return plans


def full_name(part: str, name: str) -> str:
    """A layer's name as patterns see it."""
    return name if part == DENOISER else f"{part}.{name}"


def _possible(module: nn.Module) -> list[str]:
    """Names of all layers of a network that could get an adapter."""
    return [name for name, one in module.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)]


def _in_preset(name: str, part: Part, settings: LoraConfig) -> bool:
    endings = [*part.endings]
    if settings.conv_rank > 0 or ADAPTERS[settings.adapter].takes_convolutions:
        endings += part.convolution_endings
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _options(base: nn.Module, settings: LoraConfig, rank_line: str | None) -> AdapterOptions:
    large = isinstance(base, nn.Conv2d) and max(base.kernel_size) > 1
    rank = settings.conv_rank if large and settings.conv_rank > 0 else settings.rank
    alpha = settings.conv_alpha if large and settings.conv_alpha > 0 else settings.alpha
    if rank_line is not None:
        _, rank, own_alpha = block_rank(rank_line)
        alpha = alpha if own_alpha is None else own_alpha
    scale = 0.0 if rank == 0 else alpha / (math.sqrt(rank) if settings.rs_lora else rank)
    return AdapterOptions(
        rank=rank,
        scale=scale,
        dropout=settings.dropout,
        rank_dropout=settings.rank_dropout,
        init=settings.init,
        lokr_factor=settings.lokr_factor,
        block_size=settings.block_size,
    )
