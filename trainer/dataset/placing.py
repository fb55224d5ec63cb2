"""From the pictures of a run's datasets to pictures with their buckets, crops and shares of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from trainer.config.schema import DatasetConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.buckets import Size, bucket_sizes, choose_buckets, fit
from trainer.dataset.scan import Picture
from trainer.dataset.sources import Role, Source


def place_pictures(
    scanned: Sequence[tuple[Source, Sequence[Picture]]], settings: DatasetConfig, step: int
) -> list[PlacedPicture]:
    """All pictures of a run in a fixed order. `step`: sides are multiples of this many pixels.

    Regularisation pictures are seen as often as all training pictures together, whatever their number: as many samples
    of the prior as of the subject, as in DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, section 3.3).
    """
    sizes = _sizes(settings, step)
    every = [(number, source, picture) for number, (source, own) in enumerate(scanned) for picture in own]
    buckets = choose_buckets([picture.size for _, _, picture in every], sizes, settings.min_bucket_pictures)
    prior = _prior_weight(scanned)
    return [
        PlacedPicture(
            picture,
            fit(picture.size, bucket, picture.mark.focus, picture.mark.zoom),
            source=number,
            weight=prior if source.role is Role.REGULARISATION else source.weight,
            is_prior=source.role is Role.REGULARISATION,
        )
        for (number, source, picture), bucket in zip(every, buckets, strict=True)
    ]


def place_alone(pictures: Sequence[tuple[int, Picture]], settings: DatasetConfig, step: int) -> list[PlacedPicture]:
    """Pictures that are never batched with others, as held-out ones, each with the number of its source."""
    sizes = _sizes(settings, step)
    buckets = choose_buckets([picture.size for _, picture in pictures], sizes, min_pictures=1)
    return [
        PlacedPicture(picture, fit(picture.size, bucket, picture.mark.focus, picture.mark.zoom), source=number)
        for (number, picture), bucket in zip(pictures, buckets, strict=True)
    ]


def _sizes(settings: DatasetConfig, step: int) -> list[Size]:
    return bucket_sizes(settings.resolution, step, settings.max_aspect_ratio if settings.aspect_buckets else 1.0)


def _prior_weight(scanned: Sequence[tuple[Source, Sequence[Picture]]]) -> Fraction:
    looks = {role: Fraction(0) for role in Role}
    for source, pictures in scanned:
        looks[source.role] += source.weight * sum(picture.repeats for picture in pictures)
    own = looks[Role.REGULARISATION]
    return looks[Role.TRAINING] / own if own else Fraction(0)
