"""What training will do with a dataset, before it starts: the size and crop of each picture, and the batches of an epoch.

By the functions that training itself uses; without torch, so that the page can ask while somebody types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.schema import TrainConfig
from trainer.dataset.batches import MEAN_OVER_EPOCHS, BatchPlan, PlacedPicture
from trainer.dataset.buckets import Size
from trainer.dataset.facts import facts_of
from trainer.dataset.looks import known_measures, measures_of
from trainer.dataset.placing import place_alone, place_pictures
from trainer.dataset.scan import Measure, Picture, Scan, scan_folder
from trainer.dataset.similar import Fingerprint
from trainer.dataset.sources import Source, find_held_out, find_sources
from trainer.dataset.splitting import Divided, Relatives, divide, find_relatives
from trainer.families.bucket_steps import bucket_step_of
from trainer.models.library import locate_model
from trainer.workspace import Workspace

USUAL_STEP = 64
"""Pixels that the sides of pictures are multiples of with the usual Stable Diffusion models."""


@dataclass(frozen=True)
class BucketRow:
    """One size of the table. `looks` and `batches` per epoch, means where fractional weights make epochs differ."""

    size: Size
    num_pictures: int
    looks: float
    batches: float


@dataclass(frozen=True)
class SourceRow:
    """One dataset of the run. `looks` per epoch; `skipped`: (picture, reason) of what can't be used."""

    source: Source
    num_pictures: int
    looks: float
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DatasetPlan:
    """Everything that the page tells. `step`: sides are multiples of it, in pixels; `epochs` that the run will see.

    `placed` are the pictures that are trained, at all their sizes and crops, `resting` each of them once. `held_out` are
    those that only measure it: out of the training datasets, each with the number of its own, or all of
    `held_out_source`. `held_out_is_sure` is whether they were compared with all others; otherwise a few may be swapped for
    others when the run does it.
    """

    step: int
    placed: tuple[PlacedPicture, ...]
    buckets: tuple[BucketRow, ...]
    sources: tuple[SourceRow, ...]
    batch_size: int
    batches_per_epoch: float
    steps_per_epoch: float
    epochs: float
    resting: tuple[PlacedPicture, ...] = ()
    held_out: tuple[PlacedPicture, ...] = ()
    held_out_source: Source | None = None
    held_out_is_sure: bool = True

    @property
    def looks_per_epoch(self) -> float:
        """Samples of an epoch, regularisation pictures among them."""
        return sum(row.looks for row in self.sources)

    def of_source(self, number: int = 0) -> Mapping[str, PlacedPicture]:
        """The pictures of one dataset by name: 0 is dataset.folder, then as in `sources`. Each once, as dataset.resolution
        has it and cut in the middle or by hand."""
        return {one.picture.name: one for one in self.resting if one.source == number}


def model_step(workspace: Workspace, base: str) -> int:
    """What sides must be multiples of, in pixels, for a model of the library or at a path. Raises SafelightError."""
    return bucket_step_of(locate_model(workspace, base)[1])


def plan_dataset(
    workspace: Workspace, config: TrainConfig, step: int | None = None, *, max_new_looks: int | None = None
) -> DatasetPlan:
    """The plan of a run with these settings. `step` is read from the base model unless given.

    For validation.split the pictures are compared with each other; with more than `max_new_looks` of them that no check
    has looked at yet, that is left for the run. Sizes come from the cache where a file did not change. Raises
    SafelightError when a dataset or the model is missing or damaged; a dataset without usable pictures gives a plan
    without batches.
    """
    step = step or model_step(workspace, config.model.base)
    scans = [(source, _scan(workspace, config, source)) for source in find_sources(workspace, config.dataset)]
    separate = find_held_out(workspace, config.validation.folder, scans[0][0].trigger_word)
    divided, is_sure = _divide(workspace, config, scans, max_new_looks)
    if separate is not None:
        divided.held_out.extend((0, picture) for picture in _scan(workspace, config, separate).pictures)
    placed = place_pictures(divided.trained, config.dataset, step)
    batches = BatchPlan(placed, config.training.batch_size, config.training.seed)
    per_epoch = batches.batches_per_epoch if placed else 0.0
    steps = per_epoch / config.training.gradient_accumulation_steps
    return DatasetPlan(
        step=step,
        placed=tuple(placed),
        buckets=bucket_table(batches),
        sources=tuple(
            SourceRow(source, len(scan.pictures), _looks(placed, number), scan.skipped)
            for number, (source, scan) in enumerate(scans)
        ),
        batch_size=config.training.batch_size,
        batches_per_epoch=per_epoch,
        steps_per_epoch=steps,
        epochs=config.training.max_train_steps / steps if steps else 0.0,
        resting=tuple(placed if all(one.is_first for one in placed) else _resting(divided.trained, config, step)),
        held_out=tuple(place_alone(divided.held_out, config.dataset, step)),
        held_out_source=separate,
        held_out_is_sure=is_sure,
    )


def _resting(
    trained: Sequence[tuple[Source, Sequence[Picture]]], config: TrainConfig, step: int
) -> list[PlacedPicture]:
    plain = config.dataset.model_copy(update={"more_resolutions": (), "random_crops": 0})
    return place_pictures(trained, plain, step)


def _scan(workspace: Workspace, config: TrainConfig, source: Source) -> Scan:
    return scan_folder(
        source.folder,
        config.dataset,
        trigger_word=source.trigger_word,
        use_masks=config.loss.use_masks,
        measure=remembered(workspace),
    )


class _TooManyLooks(Exception):
    """More pictures would have to be looked at than there is time for."""


def _divide(
    workspace: Workspace, config: TrainConfig, scans: Sequence[tuple[Source, Scan]], max_new_looks: int | None
) -> tuple[Divided, bool]:
    """What is trained and what is held out, by the functions that the run uses; and whether all was looked at."""
    scanned = [(source, list(scan.pictures)) for source, scan in scans]
    share, seed = config.validation.split, config.training.seed
    if share == 0 or not any(pictures for _, pictures in scanned):
        return Divided(scanned, []), True
    looked = 0

    def fingerprint_of(picture: Picture) -> Fingerprint:
        nonlocal looked
        known = known_measures(workspace, picture.content_hash)
        if known is None:
            looked += 1
            if max_new_looks is not None and looked > max_new_looks:
                raise _TooManyLooks
            known = measures_of(workspace, picture.path, picture.content_hash)
        return known.fingerprint

    try:
        return divide(scanned, lambda pictures: find_relatives(pictures, fingerprint_of), share=share, seed=seed), True
    except _TooManyLooks:
        return divide(scanned, Relatives.unknown, share=share, seed=seed), False


def remembered(workspace: Workspace) -> Measure:
    """Sizes and hashes as the cache knows them of files that did not change."""

    def measure(path: Path) -> tuple[Size, str]:
        facts = facts_of(workspace, path)
        return (facts.width, facts.height), facts.sha256

    return measure


def bucket_table(batches: BatchPlan) -> tuple[BucketRow, ...]:
    """A row for each size that pictures are trained at, the fullest first."""
    epochs = range(min(batches.period, MEAN_OVER_EPOCHS))
    looks: dict[Size, int] = {}
    full: dict[Size, int] = {}
    for epoch in epochs:
        for size, count in batches.bucket_looks(epoch).items():
            looks[size] = looks.get(size, 0) + count
            full[size] = full.get(size, 0) - (-count // batches.batch_size)
    pictures: dict[Size, int] = {}
    for one in batches.placed:
        pictures[one.placement.bucket] = pictures.get(one.placement.bucket, 0) + (one.crop_number == 0)
    rows = [BucketRow(size, pictures[size], looks[size] / len(epochs), full[size] / len(epochs)) for size in pictures]
    return tuple(sorted(rows, key=lambda row: (-row.num_pictures, row.size)))


def _looks(placed: Sequence[PlacedPicture], source: int) -> float:
    return float(sum(one.looks for one in placed if one.source == source))
