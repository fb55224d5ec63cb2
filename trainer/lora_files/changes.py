"""What a layer of a LoRA file changes, as matrices to compute with; and layers made of such matrices again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.lora_files.algebra import Decomposition, Factors, RankRule, as_matrix, compress, expand_tucker
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Difference, Layer, LowRank
from trainer.lora_files.names import UNET, Place
from trainer.tasks import TaskControl

Layers = Mapping[Place, Layer]
"""The layers of a LoRA file by the module that each one changes."""

__all__ = ["Change", "Decomposition", "LayerReport", "Layers", "Ranks", "Work", "change_of", "compressed", "energy_of"]


class Unfit(SafelightError):
    """LoRA files or models that do not go together, or a result that could not be used. The message says which and why."""


@dataclass(frozen=True)
class Ranks:
    """What is kept of linear layers and of convolutions with a kernel; None leaves these convolutions out of the result."""

    linear: RankRule
    conv: RankRule | None

    def rule(self, shape: tuple[int, ...]) -> RankRule | None:
        """The rule for a weight of this shape. A 1x1 convolution is a linear layer of every pixel."""
        return self.conv if is_kernel(shape) else self.linear


def ranks_of(rank: int, conv_rank: int | None, *, energy: float | None = None, ratio: float | None = None) -> Ranks:
    """Ranks as a person gives them; `energy` and `ratio` go for both, None is no such limit.

    Raises Unfit for numbers that make no sense; a RankRule takes 0 for no limit, a person who types it means something else.
    """
    if energy == 0:
        raise Unfit("The energy to keep is 0, which would keep nothing. Give a share over 0 up to 1, such as 0.95.")
    if ratio == 0:
        raise Unfit("The ratio is 0. Give a number over 1, such as 10.")
    limits = energy or 0.0, ratio or 0.0
    try:
        linear = RankRule(rank, *limits)
        return Ranks(linear, RankRule(conv_rank, *limits) if conv_rank is not None else None)
    except ValueError as error:
        raise Unfit(str(error)) from None


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer: its rank before (None: it had none) and after, its squared norm, and the share kept."""

    place: Place
    before: int | None
    after: int
    energy: float
    kept: float


@dataclass(frozen=True)
class Change:
    """What one layer adds to a weight of `shape` (out, in, ...): as thin factors, or as a whole matrix."""

    shape: tuple[int, ...]
    content: Factors | Tensor

    def matrix(self) -> Tensor:
        """(out, in * kernel) in fp32."""
        return self.content.product() if isinstance(self.content, Factors) else self.content


class Work:
    """Progress over layers for a task; without one nobody is told."""

    def __init__(self, control: TaskControl | None, total: int, text: str) -> None:
        """`text` says what is done, `total` how often `step` will be called."""
        self._control, self._total, self._text = control, total, text
        self._done = 0
        if control is not None:
            control.progress(0, total, text)

    def step(self) -> None:
        """One more is done. Raises Cancelled if the user asked for it."""
        self._done += 1
        if self._control is not None:
            self._control.raise_if_cancelled()
            self._control.progress(self._done, self._total, self._text)


def is_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape is a convolution that looks beyond its own pixel."""
    return len(shape) > 2 and max(shape[2:]) > 1


def title(place: Place) -> str:
    """A module as messages name it."""
    return place.module if place.part == UNET else f"{place.part}.{place.module}"


def factors_of(layer: LowRank) -> Factors:
    """up (out, r) and down (r, in * kernel) of a LoRA or LoCon layer, its scale worked into up."""
    down = layer.down if layer.mid is None else expand_tucker(layer.mid, layer.down)
    return Factors(as_matrix(layer.up) * layer.scale, as_matrix(down))


def change_of(place: Place, layer: Layer, base: Checkpoint | None, name: str) -> Change:
    """What a layer adds; thin where it is stored thin. DoRA, OFT and BOFT need the base model.

    `name`: the LoRA, for messages. Raises Unfit where the base model is missing or of another kind.
    """
    if isinstance(layer, LowRank):
        down = layer.down if layer.mid is None else expand_tucker(layer.mid, layer.down)
        return Change((len(layer.up), *down.shape[1:]), factors_of(layer))
    if base is None and layer.needs_weight:
        raise Unfit(
            f"{name} has {layer.kind.upper()} layers, which work on the base model's own weights ({title(place)} first). "
            "Name the base model that it was trained on."
        )
    weight = base.weight(place) if base is not None and base.shape(place) is not None else None
    try:
        delta = layer.delta(weight)
    except ValueError as error:
        raise Unfit(f"{name} does not fit the base model: {title(place)}: {error}.") from None
    return Change(tuple(delta.shape), as_matrix(delta) if delta.ndim > 1 else delta.float()[:, None])


def energy_of(change: Change) -> float:
    """Squared Frobenius norm; of thin factors by their small Gram matrices, without multiplying them out.

    A file may claim a rank far above the sides of the weight; then the product is the smaller matrix.
    """
    if isinstance(change.content, Factors) and change.content.is_thin:
        up, down = change.content.up.double(), change.content.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum())
    return float(change.matrix().double().square().sum())


def compressed(place: Place, change: Change, rule: RankRule, before: int | None) -> tuple[LowRank, LayerReport]:
    """The layer of the rank that a rule asks for which is nearest to a change. Raises Unfit for numbers that are none."""
    parts = change.content
    tensors = (parts.up, parts.down) if isinstance(parts, Factors) else (parts,)
    if not all(bool(torch.isfinite(one).all()) for one in tensors):
        raise Unfit(f"{title(place)} holds NaN or infinity. The file is spoilt: take another step of its training.")
    found, kept = compress(parts, rule)
    return as_layer(found, change.shape), LayerReport(place, before, found.rank, energy_of(change), kept)


def as_layer(factors: Factors, shape: tuple[int, ...]) -> LowRank:
    """A LoRA layer for a weight of `shape`; alpha is its rank, so that the product counts as it is."""
    down = factors.down.reshape(factors.rank, *shape[1:]).contiguous()
    up = factors.up.reshape(len(factors.up), factors.rank, *[1] * (len(shape) - 2)).contiguous()
    return LowRank(down=down, up=up, alpha=float(factors.rank))


def is_norm(layer: Layer) -> bool:
    """Whether it is the difference of a norm's vector or a bias, which has no rank."""
    return isinstance(layer, Difference) and layer.diff.ndim == 1


def kept_overall(reports: list[LayerReport]) -> float:
    """The share of the squared norm of all layers together that was kept; 1 where there is nothing to lose."""
    whole = sum(report.energy for report in reports)
    return sum(report.energy * report.kept for report in reports) / whole if whole else 1.0
