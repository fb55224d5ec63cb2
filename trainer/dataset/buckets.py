"""Which size each picture is trained at: buckets of one area and many shapes, and the crop that fits a picture into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]


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
        """Over 1 when the picture is smaller than its bucket and has to be enlarged."""
        return self.resized[0] / self.original[0]

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


def place(original: Size, sizes: list[Size]) -> Placement:
    """Fits a picture of `original` (width, height) pixels into the bucket of the nearest shape, cropping the centre."""
    width, height = original
    aspect = math.log(width / height)
    bucket = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1]))
    scale = max(bucket[0] / width, bucket[1] / height)
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    return Placement(original, resized, bucket, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)
