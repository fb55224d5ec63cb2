"""Stands in for torchvision.transforms where torchvision has no wheel: what the peers' scripts use of it, by PIL and torch.

`install` lays it where a peer finds it; the results are torchvision's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class InterpolationMode(Enum):
    """How to scale."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Compose:
    """One after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """Any function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        return self.function(image)


class Resize:
    """The shorter side gets that many pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, Image.Resampling[interpolation.name]

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.size / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return image if size == image.size else image.resize(size, self.filter)


class CenterCrop:
    """The square in the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *((side - self.size) // 2 for side in (image.height, image.width)), self.size, self.size)


class RandomCrop:
    """A square anywhere."""

    def __init__(self, size: int) -> None:
        self.size = (size, size)

    @staticmethod
    def get_params(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width of a place."""
        top, left = (
            random.randint(0, whole - part) for whole, part in zip((image.height, image.width), size, strict=True)
        )
        return top, left, *size

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *self.get_params(image, self.size))


class RandomHorizontalFlip:
    """Mirrored, or not."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if random.random() < self.p else image


class ToTensor:
    """A picture or array (h, w, C) of bytes as (C, h, w) from 0 to 1."""

    def __call__(self, image: Any) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Less the mean, divided by the deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A part of a picture."""
    return image.crop((left, top, left + width, top + height))


def install(folder: Path) -> Path:
    """Writes a package `torchvision` into the folder, for the stopwatch to offer; returns the folder."""
    package = folder / "torchvision" / "transforms"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text('__version__ = "0.0.0"\n', encoding="utf-8")
    (package / "__init__.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (package / "functional.py").write_text("from torchvision.transforms import crop\n", encoding="utf-8")
    return folder
