"""From the pictures of a run's datasets to pictures with their buckets, crops and shares of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from trainer.config.schema import DatasetConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.buckets import Placement, Size, bucket_sizes, choose_buckets, fit, moved, place
from trainer.dataset.scan import UNMARKED, Picture
from trainer.dataset.sources import Role, Source
from trainer.randomness import derive_random


def place_pictures(
    scanned: Sequence[tuple[Source, Sequence[Picture]]], settings: DatasetConfig, step: int
) -> list[PlacedPicture]:
    """All pictures of a run in a fixed order, each at all its sizes and crops. `step`: sides are multiples of so many pixels.

    Regularisation pictures are seen as often as all training pictures together, whatever their number: as many samples
    of the prior as of the subject, as in DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, section 3.3).
    """
    every = [(number, source, picture) for number, (source, own) in enumerate(scanned) for picture in own]
    placed = [
        one
        for size_number, resolution in enumerate((settings.resolution, *settings.more_resolutions))
        for one in _placed_at(every, settings, _sizes(settings, step, resolution), size_number)
    ]
    prior = _prior_weight(placed)
    return [replace(one, weight=prior) if one.is_prior else one for one in placed]


def _placed_at(
    every: Sequence[tuple[int, Source, Picture]], settings: DatasetConfig, sizes: Sequence[Size], size_number: int
) -> Iterator[PlacedPicture]:
    """All pictures at one resolution. At a further one, none that would have to be enlarged: it has nothing to add."""
    if size_number > 0:
        every = [one for one in every if place(one[2].size, sizes, zoom=one[2].mark.zoom).enlargement <= 1.0]
    buckets = choose_buckets([picture.size for _, _, picture in every], sizes, settings.min_bucket_pictures)
    for (number, source, picture), bucket in zip(every, buckets, strict=True):
        crops = _crops(picture, bucket, settings.random_crops)
        for crop_number, placement in enumerate(crops):
            yield PlacedPicture(
                picture,
                placement,
                source=number,
                weight=source.weight,
                is_prior=source.role is Role.REGULARISATION,
                size_number=size_number,
                crop_number=crop_number,
                num_crops=len(crops),
            )


def _crops(picture: Picture, bucket: Size, count: int) -> list[Placement]:
    """Where a picture is cut: in the middle or where it was chosen by hand, or at `count` places, evenly spread.

    They depend on the picture alone, so that runs with other seeds find them encoded.
    """
    resting = fit(picture.size, bucket, picture.mark.focus, picture.mark.zoom)
    if count == 0 or picture.mark != UNMARKED:
        return [resting]
    begin = derive_random("crops", picture.content_hash).random()
    return moved(resting, [(number + begin) / count for number in range(count)])


def place_alone(pictures: Sequence[tuple[int, Picture]], settings: DatasetConfig, step: int) -> list[PlacedPicture]:
    """Pictures that are never batched with others, as held-out ones, each with the number of its source."""
    sizes = _sizes(settings, step, settings.resolution)
    buckets = choose_buckets([picture.size for _, picture in pictures], sizes, min_pictures=1)
    return [
        PlacedPicture(picture, fit(picture.size, bucket, picture.mark.focus, picture.mark.zoom), source=number)
        for (number, picture), bucket in zip(pictures, buckets, strict=True)
    ]


def _sizes(settings: DatasetConfig, step: int, resolution: int) -> list[Size]:
    return bucket_sizes(resolution, step, settings.max_aspect_ratio if settings.aspect_buckets else 1.0)


def _prior_weight(placed: Sequence[PlacedPicture]) -> Fraction:
    learned, prior = (sum((one.looks for one in placed if one.is_prior is kind), Fraction(0)) for kind in (False, True))
    return learned / prior if prior else Fraction(0)
