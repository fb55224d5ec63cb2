"""Which pictures each micro-batch holds, as a pure function of its number: nothing to save, nothing to restore."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from trainer.dataset.buckets import Placement, Size
from trainer.dataset.scan import Picture
from trainer.randomness import derive_random

MEAN_OVER_EPOCHS = 1000
"""Epochs that a mean is taken over where fractional weights take longer than that to come round."""


@dataclass(frozen=True)
class PlacedPicture:
    """A picture with the bucket it is trained at.

    `source`: the number of its dataset. `weight`: how much oftener it is seen than its repeats say. `is_prior`: it shows
    what the model knows already (regularisation), and its loss is weighted by loss.prior_loss_weight. `size_number`: 0 for
    dataset.resolution, then as in dataset.more_resolutions. `crop_number` of `num_crops` that are taken in turn.
    """

    picture: Picture
    placement: Placement
    source: int = 0
    weight: Fraction = Fraction(1)
    is_prior: bool = False
    size_number: int = 0
    crop_number: int = 0
    num_crops: int = 1

    @property
    def looks(self) -> Fraction:
        """How often it is seen per epoch, on average."""
        return self.weight * self.picture.repeats / self.num_crops

    @property
    def is_first(self) -> bool:
        """Whether it stands for its picture where each counts once, whatever its sizes and crops."""
        return self.size_number == 0 and self.crop_number == 0


@dataclass(frozen=True)
class Sample:
    """One look at a picture. `index`: its place in the list of pictures; `sample_id` names it in derived seeds."""

    index: int
    repeat: int
    sample_id: str


@dataclass(frozen=True)
class _Group:
    """Pictures of one dataset and bucket that are seen equally often. In epoch e, member j has
    floor(looks * (e + 1) + j / n) - floor(looks * e + j / n) looks: fractions are made up by taking turns.
    """

    bucket: Size
    looks: Fraction
    members: tuple[int, ...]

    def looks_before(self, epoch: int) -> int:
        """Looks at all members in the epochs before, by Hermite's identity: the sum of floor(x + j / n) is floor(n x)."""
        return len(self.members) * self.looks.numerator * epoch // self.looks.denominator

    def looks_of(self, position: int, epoch: int) -> int:
        """Looks at one member in an epoch."""
        share, whole, count = self.looks.numerator, self.looks.denominator, len(self.members)
        before, after = ((share * end * count + position * whole) // (whole * count) for end in (epoch, epoch + 1))
        return after - before


@dataclass
class BatchPlan:
    """Endless micro-batches of one bucket each, reshuffled every epoch, none of an epoch's samples dropped.

    Samples get a random rank per epoch; each bucket is cut into batches in that order, and batches follow each other
    by the rank of their first sample. So with one bucket, batch 4 and four batches of 1 hold the same samples in order.
    Where weights make looks fractional, pictures take turns and epochs differ in length by a few batches.
    """

    placed: Sequence[PlacedPicture]
    batch_size: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _batches: list[list[Sample]] = field(default_factory=list, init=False)
    _first_batches: list[int] = field(default_factory=lambda: [0], init=False)

    @cached_property
    def _groups(self) -> list[_Group]:
        members: dict[tuple[Size, int, Fraction], list[int]] = {}
        for index, one in enumerate(self.placed):
            members.setdefault((one.placement.bucket, one.source, one.looks), []).append(index)
        # By content, so that neighbours in a folder, which are often alike, don't have their turns together; first by
        # the number of the crop, so that the turns of one crop of every picture come before those of the next.
        return [
            _Group(bucket, looks, tuple(sorted(own, key=self._turn))) for (bucket, _, looks), own in members.items()
        ]

    def _turn(self, index: int) -> tuple[int, str]:
        return self.placed[index].crop_number, self.placed[index].picture.content_hash

    @cached_property
    def period(self) -> int:
        """After how many epochs the lengths of epochs come round."""
        return math.lcm(*((len(group.members) * group.looks).denominator for group in self._groups))

    def bucket_looks(self, epoch: int) -> dict[Size, int]:
        """How many samples each bucket has in an epoch."""
        looks: dict[Size, int] = {}
        for group in self._groups:
            added = group.looks_before(epoch + 1) - group.looks_before(epoch)
            looks[group.bucket] = looks.get(group.bucket, 0) + added
        return looks

    def num_batches(self, epoch: int) -> int:
        """Micro-batches of an epoch, the last of a bucket being short when it does not come out even."""
        return sum(-(-looks // self.batch_size) for looks in self.bucket_looks(epoch).values())

    @property
    def batches_per_epoch(self) -> float:
        """Micro-batches of an epoch: a whole number unless fractional weights make them differ, then their mean."""
        epochs = min(self.period, MEAN_OVER_EPOCHS)
        return self.num_batches(0) if epochs == 1 else self._first_batch(epochs) / epochs

    def batch(self, number: int) -> list[Sample]:
        """Micro-batch `number`, counted from 0 over all epochs."""
        epoch = self.epoch_of(number)
        return self._epoch_batches(epoch)[number - self._first_batch(epoch)]

    def epoch_of(self, number: int) -> int:
        """The epoch, counted from 0, that micro-batch `number` belongs to."""
        if self.period == 1:
            return number // self.num_batches(0)
        while self._first_batches[-1] <= number:
            self._first_batch(len(self._first_batches))
        return bisect.bisect_right(self._first_batches, number) - 1

    def _first_batch(self, epoch: int) -> int:
        """The number of an epoch's first micro-batch."""
        if self.period == 1:
            return epoch * self.num_batches(0)
        while len(self._first_batches) <= epoch:
            self._first_batches.append(self._first_batches[-1] + self.num_batches(len(self._first_batches) - 1))
        return self._first_batches[epoch]

    def _epoch_batches(self, epoch: int) -> list[list[Sample]]:
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches

    def _shuffled(self, epoch: int) -> list[list[Sample]]:
        looks = {
            index: group.looks_of(position, epoch)
            for group in self._groups
            for position, index in enumerate(group.members)
        }
        samples = [
            Sample(index, repeat, _sample_id(placed, repeat))
            for index, placed in enumerate(self.placed)
            for repeat in range(looks[index])
        ]
        derive_random(self.seed, "order", epoch).shuffle(samples)
        groups: dict[Size, list[tuple[int, Sample]]] = {}
        for rank, sample in enumerate(samples):
            groups.setdefault(self.placed[sample.index].placement.bucket, []).append((rank, sample))
        batches = [
            group[begin : begin + self.batch_size]
            for group in groups.values()
            for begin in range(0, len(group), self.batch_size)
        ]
        return [[sample for _, sample in batch] for batch in sorted(batches, key=lambda batch: batch[0][0])]


def _sample_id(placed: PlacedPicture, repeat: int) -> str:
    """A name for one look. The same picture in a second dataset, size or crop is another sample, with noise of its own."""
    name = f"{placed.picture.content_hash[:16]}:{repeat}"
    name = f"{name}:{placed.source}" if placed.source else name
    return name if placed.is_first else f"{name}@{placed.size_number}.{placed.crop_number}"
