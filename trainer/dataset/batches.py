"""Which pictures each micro-batch holds, as a pure function of its number: nothing to save, nothing to restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.dataset.buckets import Placement
from trainer.dataset.scan import Picture
from trainer.randomness import derive_random


@dataclass(frozen=True)
class PlacedPicture:
    """A picture with the bucket it is trained at."""

    picture: Picture
    placement: Placement


@dataclass(frozen=True)
class Sample:
    """One look at a picture. `index`: its place in the list of pictures; `sample_id` names it in derived seeds."""

    index: int
    repeat: int
    sample_id: str


@dataclass
class BatchPlan:
    """Endless micro-batches of one bucket each, reshuffled every epoch, none of an epoch's samples dropped.

    Samples get a random rank per epoch; each bucket is cut into batches in that order, and batches follow each other
    by the rank of their first sample. So with one bucket, batch 4 and four batches of 1 hold the same samples in order.
    """

    placed: Sequence[PlacedPicture]
    batch_size: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _batches: list[list[Sample]] = field(default_factory=list, init=False)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches in one epoch, the last of a bucket being short when it does not come out even."""
        return len(self._epoch_batches(0))

    def batch(self, number: int) -> list[Sample]:
        """Micro-batch `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return self._epoch_batches(epoch)[position]

    def _epoch_batches(self, epoch: int) -> list[list[Sample]]:
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches

    def _shuffled(self, epoch: int) -> list[list[Sample]]:
        samples = [
            Sample(index, repeat, f"{placed.picture.content_hash[:16]}:{repeat}")
            for index, placed in enumerate(self.placed)
            for repeat in range(placed.picture.repeats)
        ]
        derive_random(self.seed, "order", epoch).shuffle(samples)
        groups: dict[tuple[int, int], list[tuple[int, Sample]]] = {}
        for rank, sample in enumerate(samples):
            groups.setdefault(self.placed[sample.index].placement.bucket, []).append((rank, sample))
        batches = [
            group[begin : begin + self.batch_size]
            for group in groups.values()
            for begin in range(0, len(group), self.batch_size)
        ]
        return [[sample for _, sample in batch] for batch in sorted(batches, key=lambda batch: batch[0][0])]
