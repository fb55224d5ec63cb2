"""Extracts a LoRA from two models: what a fine-tune changed in each weight, as the nearest change of a low rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trainer.lora_files.algebra import as_matrix
from trainer.lora_files.changes import Change, LayerReport, Ranks, Unfit, Work, compressed, title
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Layer
from trainer.lora_files.names import TEXT_ENCODERS, Place
from trainer.lora_files.streaming import DTYPES
from trainer.tasks import TaskControl


@dataclass
class Extracted:
    """The layers, what became of each, and what a LoRA of these settings can't tell.

    `unchanged`: modules that are equal in both models. `left_out`: changed ones that are convolutions when `conv` is None,
    with their squared norm.
    """

    layers: dict[Place, Layer] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    unchanged: int = 0
    left_out: int = 0
    left_out_energy: float = 0.0

    @property
    def kept(self) -> float:
        """The share of the whole change, the convolutions that were left out included, that the LoRA holds."""
        whole = sum(report.energy for report in self.reports) + self.left_out_energy
        return sum(report.energy * report.kept for report in self.reports) / whole if whole else 1.0


def extract(
    tuned: Checkpoint,
    base: Checkpoint,
    ranks: Ranks,
    *,
    text_encoders: bool = True,
    control: TaskControl | None = None,
) -> Extracted:
    """What `tuned` adds to `base`, layer by layer; each may be a folder or a single file.

    Raises Unfit for models of different families or sizes, and for two that are equal.
    """
    if tuned.found.family != base.found.family:
        raise Unfit(
            f"{tuned.name} is of the family {tuned.found.family} and {base.name} of {base.found.family}. A LoRA is the "
            "difference of two models of one family."
        )
    places = [place for place in tuned.modules() if text_encoders or place.part not in TEXT_ENCODERS]
    _refuse_other_sizes(tuned, base, places)
    found = Extracted()
    work = Work(control, len(places), f"Comparing {tuned.name} with {base.name}")
    for place in places:
        _add(found, tuned, base, place, ranks)
        work.step()
    if not found.layers:
        also = " outside of its convolutions; give a rank for them" if found.left_out else ""
        raise Unfit(f"{tuned.name} and {base.name} are equal in every weight that a LoRA can change{also}.")
    return found


def _add(found: Extracted, tuned: Checkpoint, base: Checkpoint, place: Place, ranks: Ranks) -> None:
    weight = tuned.weight(place)
    difference = weight - base.weight(place).reshape(weight.shape)
    if float(difference.abs().max()) <= _rounding(tuned, base, place) * float(weight.abs().max()):
        found.unchanged += 1
        return
    shape = tuple(difference.shape)
    rule = ranks.rule(shape)
    if rule is None:
        found.left_out += 1
        found.left_out_energy += float(difference.double().square().sum())
        return
    layer, report = compressed(place, Change(shape, as_matrix(difference)), rule, None)
    found.layers[place] = layer
    found.reports.append(report)


def _rounding(tuned: Checkpoint, base: Checkpoint, place: Place) -> float:
    """What storing the same number in the formats of both models may change in it, as a share; 0 if they are alike."""
    formats = {tuned.dtype(place), base.dtype(place)}
    return max(torch.finfo(DTYPES[one]).eps for one in formats) / 2 if len(formats) > 1 else 0.0


def _refuse_other_sizes(tuned: Checkpoint, base: Checkpoint, places: list[Place]) -> None:
    for place in places:
        one, other = tuned.shape(place), base.shape(place)
        # A folder may have as a linear layer what a single file has as a 1x1 convolution.
        if other is None or one is None or _plain(one) != _plain(other):
            raise Unfit(
                f"{title(place)} is {one} in {tuned.name} and {other or 'missing'} in {base.name}: they are models of "
                "different sizes. Give the very model that the other one was made from."
            )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) > 2 and max(shape[2:]) == 1 else shape
