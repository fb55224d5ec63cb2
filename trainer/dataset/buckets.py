"""Which size each picture is trained at: buckets of one area and many shapes, and the crop that fits a picture into one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

Size = tuple[int, int]
CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Placement:
    """How a picture is fitted: scaled to `resized` (width, height), then cut to `bucket` at (`left`, `top`). Pixels."""

    original: Size
    resized: Size
    bucket: Size
    left: int
    top: int

    @property
    def enlargement(self) -> float:
        """Over 1 when the picture, or the part of it that is shown, is smaller than its bucket and has to be enlarged."""
        return self.resized[0] / self.original[0]

    @property
    def is_zoomed(self) -> bool:
        """Whether something is cut off on both axes, which only a chosen crop does."""
        return self.resized[0] > self.bucket[0] and self.resized[1] > self.bucket[1]

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The part that is trained on: left, top, width and height as shares of the upright picture."""
        (width, height), (bucket_width, bucket_height) = self.resized, self.bucket
        return self.left / width, self.top / height, bucket_width / width, bucket_height / height

    def mirrored(self) -> Placement:
        """The placement of the flipped picture: what was cut off on the right is now cut off on the left."""
        return Placement(
            self.original, self.resized, self.bucket, self.resized[0] - self.left - self.bucket[0], self.top
        )


def bucket_sizes(resolution: int, step: int, max_aspect_ratio: float) -> list[Size]:
    """All (width, height) that are multiples of `step` pixels, fill but don't exceed resolution^2, and aren't too slim.

    The square itself is always among them. Follows the bucketing idea of NovelAI's "aspect ratio bucketing" (2022).
    """
    square = max(step, resolution // step * step)
    area = resolution * resolution
    sizes = {(square, square)}
    for width in range(step, int(resolution * math.sqrt(max_aspect_ratio)) + step, step):
        height = area // width // step * step
        if height >= step and max(width, height) / min(width, height) <= max_aspect_ratio:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(original: Size, sizes: Sequence[Size]) -> Size:
    """The bucket whose shape is nearest to that of a picture of `original` (width, height) pixels."""
    aspect = math.log(original[0] / original[1])
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1]))


def fit(original: Size, bucket: Size, focus: tuple[float, float] = CENTRE, zoom: float = 1.0) -> Placement:
    """Fits a picture into a bucket. `focus`: the wanted middle of the crop, in shares of the picture; `zoom` >= 1.

    The crop never leaves the picture: where the focus is too near to a border, it ends there.
    """
    width, height = original
    scale = max(bucket[0] / width, bucket[1] / height) * zoom
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    left, top = (
        min(max(0, math.floor(share * whole - part / 2)), whole - part)
        for share, whole, part in zip(focus, resized, bucket, strict=True)
    )
    return Placement(original, resized, bucket, left, top)


def moved(placement: Placement, shares: Sequence[float]) -> list[Placement]:
    """The same picture cut at other places: `shares` (0 <= share < 1) of the way that the crop can move.

    Each place comes once, so there are fewer than shares where there are not as many pixels to move by.
    """
    width, height = (whole - part for whole, part in zip(placement.resized, placement.bucket, strict=True))
    corners = dict.fromkeys((int(share * (width + 1)), int(share * (height + 1))) for share in shares)
    return [replace(placement, left=left, top=top) for left, top in corners]


def place(original: Size, sizes: Sequence[Size], focus: tuple[float, float] = CENTRE, zoom: float = 1.0) -> Placement:
    """Fits a picture of `original` (width, height) pixels into the bucket of the nearest shape."""
    return fit(original, nearest_bucket(original, sizes), focus, zoom)


def choose_buckets(originals: Sequence[Size], sizes: Sequence[Size], min_pictures: int) -> list[Size]:
    """The bucket of each picture, in their order, so that none has fewer than `min_pictures` while there is another.

    The emptiest bucket is given up first (of equal ones the smaller), its pictures go to the nearest that is left.
    """
    chosen = [nearest_bucket(original, sizes) for original in originals]
    while True:
        counts = Counter(chosen)
        emptiest = min(counts, key=lambda size: (counts[size], size), default=None)
        if emptiest is None or counts[emptiest] >= min_pictures or len(counts) == 1:
            return chosen
        left = sorted(counts.keys() - {emptiest})
        chosen = [
            nearest_bucket(original, left) if size == emptiest else size
            for original, size in zip(originals, chosen, strict=True)
        ]
