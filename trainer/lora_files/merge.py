"""Merges LoRAs into one: exactly, by putting their thin matrices beside each other, or at a rank of choice by SVD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.lora_files.algebra import Factors, RankRule, compress, weighted_sum
from trainer.lora_files.changes import (
    Change,
    LayerReport,
    Layers,
    Ranks,
    Unfit,
    Work,
    as_layer,
    change_of,
    compressed,
    energy_of,
    is_norm,
    title,
)
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Difference, Layer, LowRank
from trainer.lora_files.names import Place
from trainer.tasks import TaskControl

MAX_WEIGHT = 10.0
WEIGHT_RANGE = f"Give a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g} other than 0"
NOTHING_LEFT = 1e-10
"""Share of the squared norms of all LoRAs below which their sum is rounding: fp32 leaves less than 1e-12 of it."""


@dataclass(frozen=True)
class Ingredient:
    """One LoRA of a merge: its name for messages, its layers, and the weight that it counts with (may be negative)."""

    name: str
    layers: Layers
    weight: float

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)


def check_weight(name: str, weight: float) -> None:
    """Raises Unfit for a weight that a LoRA can't sensibly count with, in a merge or in a model."""
    if not math.isfinite(weight) or not 0 < abs(weight) <= MAX_WEIGHT:
        raise Unfit(f"The weight of {name} is {weight:g}. {WEIGHT_RANGE}; a LoRA that should not count is left out.")


def merge(
    ingredients: Sequence[Ingredient],
    ranks: Ranks | None,
    *,
    base: Checkpoint | None = None,
    control: TaskControl | None = None,
) -> tuple[dict[Place, Layer], list[LayerReport]]:
    """The sum of the LoRAs, each times its weight, and what became of each layer.

    Without `ranks` the sum is exact, and the rank of a layer is the sum of its ranks (or a side of the weight, if less).
    With `ranks`, it is the nearest of that rank. Raises Unfit: kinds that have no exact sum of a low rank, layers that
    need a base model when there is none, LoRAs that change weights of different shapes, and LoRAs that cancel each other.
    """
    places = list(dict.fromkeys(place for one in ingredients for place in one.layers))
    merged: dict[Place, Layer] = {}
    reports: list[LayerReport] = []
    asked = left = 0.0  # squared norms: of all parts by themselves, and of their sum
    work = Work(control, len(places), "Merging")
    for place in places:
        own = [(one, one.layers[place]) for one in ingredients if place in one.layers]
        if all(is_norm(layer) for _, layer in own):
            merged[place] = norms = _sum_of_norms(place, own)
            parts, rest = sum(_square(one.weight * layer.delta()) for one, layer in own), _square(norms.diff)
        else:
            merged[place], report, parts = _sum(place, own, ranks, base)
            reports.append(report)
            rest = report.energy
        asked, left = asked + parts, left + rest
        work.step()
    if left < NOTHING_LEFT * asked:
        raise Unfit("The LoRAs cancel each other with these weights, so nothing is left. Choose other weights.")
    return merged, reports


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _sum_of_norms(place: Place, own: list[tuple[Ingredient, Layer]]) -> Difference:
    differences = [one.weight * layer.delta() for one, layer in own]
    if len({difference.shape for difference in differences}) != 1:
        raise Unfit(f"The LoRAs change {title(place)} in different sizes: they were made for different models.")
    return Difference(torch.stack(differences).sum(0))


def _sum(
    place: Place, own: list[tuple[Ingredient, Layer]], ranks: Ranks | None, base: Checkpoint | None
) -> tuple[Layer, LayerReport, float]:
    """The summed layer, its report, and the squared norms of the parts added up."""
    if ranks is None:
        _refuse_inexact(own, base)
    changes = [(one.weight, change_of(place, layer, base, one.name)) for one, layer in own]
    shape = _common_shape(place, [change for _, change in changes])
    asked = sum(weight**2 * energy_of(change) for weight, change in changes)
    thin = [(weight, change.content) for weight, change in changes if isinstance(change.content, Factors)]
    before = max((layer.rank or 0 for _, layer in own), default=0) or None
    if len(thin) == len(changes):
        whole = Change(shape, weighted_sum(thin))
    else:
        whole = Change(shape, torch.stack([weight * change.matrix() for weight, change in changes]).sum(0))
    rule = ranks.rule(shape) if ranks is not None else None
    if rule is None:
        if not isinstance(whole.content, Factors):
            raise Unfit(
                f"{title(place)} is a convolution of a kind without a low rank. Give a rank for convolutions too."
            )
        exact = (
            whole.content if whole.content.is_thin else compress(whole.content, RankRule(min(whole.matrix().shape)))[0]
        )
        return as_layer(exact, shape), LayerReport(place, before, exact.rank, energy_of(whole), 1.0), asked
    return *compressed(place, whole, rule, before), asked


def _refuse_inexact(own: list[tuple[Ingredient, Layer]], base: Checkpoint | None) -> None:
    """Raises Unfit for layers whose exact sum has no low rank, and says all that they need instead."""
    for one, layer in own:
        if not isinstance(layer, LowRank):
            more = " and name the base model that it was trained on" if layer.needs_weight and base is None else ""
            raise Unfit(
                f"{one.name} has {layer.kind.upper()} layers, whose exact sum has no low rank. Give a rank for the result{more}."
            )


def _common_shape(place: Place, changes: list[Change]) -> tuple[int, ...]:
    """The shape that all have; a linear layer and a 1x1 convolution are the same. Raises Unfit."""
    shapes = {
        change.shape if len(change.shape) > 2 and max(change.shape[2:]) > 1 else change.shape[:2] for change in changes
    }
    if len(shapes) > 1:
        one, other = sorted(shapes)[:2]
        raise Unfit(
            f"The LoRAs change {title(place)} in different sizes, {one} and {other}: they were made for different models."
        )
    return max((change.shape for change in changes), key=len)
