"""Networks that find the subject of a picture, for masks: U²-Net, IS-Net, BiRefNet in the ONNX format.

Preprocessing as their authors do it: github.com/xuebinqin/U-2-Net (u2net_test.py), github.com/xuebinqin/DIS,
github.com/SkyTNT/anime-segmentation (inference.py), github.com/ZhengPeng7/BiRefNet. They run as taggers do, on the same
confined thread, and their files lie beside those of taggers.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from security.configs import read_toml
from security.errors import RefusedFile, SafelightError
from trainer.tagging.base import KnownFile, TaggerFiles, TaggerRow, TaggingOptions
from trainer.tagging.onnx_session import OnnxNetwork

CATALOG = Path(__file__).with_name("cutouts.toml")
LOADER = "trainer.tagging.cutouts:CutoutNetwork"
DEFAULT_SIDE = 1024
"""Pixels, for a network that takes any size."""
FITS = ("stretch", "pad")
ANSWERS = ("spread", "logits", "as it is")
"""How the answer becomes 0 to 1: spread over that range, through a sigmoid, or cut off at its ends."""


@dataclass(frozen=True)
class Fitted:
    """A picture as a network takes it. `box`: the part of it that is picture (left, top, right, bottom), in pixels."""

    numbers: np.ndarray
    box: tuple[int, int, int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Cutout:
    """Where the subject is: white, in mode L, at the network's size. `size`: (width, height) of the picture itself."""

    subject: Image.Image
    size: tuple[int, int]

    def mask(self) -> Image.Image:
        """The subject at the size of the picture."""
        return self.subject.resize(self.size, Image.Resampling.BILINEAR)


class CutoutNetwork:
    """One such network; follows the Protocol `Tagger`, but its descriptions are `Cutout`s."""

    def __init__(self, _options: TaggingOptions, row: TaggerRow) -> None:
        self._row = row
        self._network: OnnxNetwork | None = None

    def load(self, files: TaggerFiles, device: str) -> str:
        """Opens the network. Raises SafelightError for one that is not sound, or a device that is not there."""
        (name,) = self._row.files
        if name not in files.sha256:
            raise RefusedFile(f"taggers/{self._row.name} has no {name}. Delete the folder and fetch the network again.")
        self._network = OnnxNetwork.open(files.folder / name, files.sha256[name], device, title=self._row.title)
        return self._network.where

    def prepare(self, image: Image.Image) -> Fitted:
        """The picture scaled to the network's size, as numbers."""
        assert self._network is not None
        wanted, settings = self._network.input, self._row.settings
        width, height = wanted.width or DEFAULT_SIDE, wanted.height or DEFAULT_SIDE
        box = (0, 0, width, height)
        if settings["fit"] == "pad":
            scale = min(width / image.width, height / image.height)
            inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
            box = (left, top, left + inner[0], top + inner[1])
        pixels = np.zeros((height, width, 3), np.float32)
        scaled = image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        pixels[box[1] : box[3], box[0] : box[2]] = np.asarray(scaled, np.float32)
        pixels /= max(float(pixels.max()), 1.0) if settings.get("brightest") else 255.0
        if "mean" in settings:
            mean, deviation = (np.array(settings[name], np.float32) for name in ("mean", "deviation"))
            pixels = (pixels - mean) / deviation
        numbers = pixels.transpose(2, 0, 1) if wanted.channels_first else pixels
        return Fitted(np.ascontiguousarray(numbers.astype(wanted.dtype)), box, image.size)

    def describe(self, prepared: Sequence[Any]) -> list[Any]:
        """One `Cutout` for each picture. Raises RefusedFile for an answer that is no map of the picture."""
        assert self._network is not None
        outputs = self._network.run(np.stack([one.numbers for one in prepared]))
        found = next((one for one in outputs if _is_map(one, len(prepared))), None)
        if found is None:
            shapes = ", ".join(str(list(one.shape)) for one in outputs)
            raise RefusedFile(f"The network of {self._row.title} gives {shapes}, which is no map of the subject.")
        if not np.isfinite(found).all():
            raise RefusedFile(
                f"The network of {self._row.title} gives numbers that are none (NaN). It can't be used here."
            )
        maps = found.astype(np.float32).reshape(len(prepared), *found.shape[-2:])
        return [self._cutout(one, fitted) for one, fitted in zip(maps, prepared, strict=True)]

    def close(self) -> None:
        """Lets go of the network."""
        if self._network is not None:
            self._network.close()
        self._network = None

    def _cutout(self, answer: np.ndarray, fitted: Fitted) -> Cutout:
        """The answer's part that is picture. A map may be smaller than the network's input."""
        channels_first = fitted.numbers.shape[0] == 3
        height, width = fitted.numbers.shape[1:] if channels_first else fitted.numbers.shape[:2]
        down, right = answer.shape[0] / height, answer.shape[1] / width
        left, top, end, bottom = fitted.box
        part = answer[round(top * down) : round(bottom * down), round(left * right) : round(end * right)]
        levels = np.clip(_as_share(part, self._row.settings["answer"]) * 255 + 0.5, 0, 255).astype(np.uint8)
        return Cutout(Image.fromarray(levels), fitted.size)


def _is_map(output: np.ndarray, batch: int) -> bool:
    """(B, 1, H, W) or (B, H, W)."""
    one_channel = output.ndim == 3 or (output.ndim == 4 and output.shape[1] == 1)
    return one_channel and output.shape[0] == batch and min(output.shape[-2:]) > 1


def _as_share(answer: np.ndarray, kind: str) -> np.ndarray:
    """The answer from 0 (background) to 1 (subject)."""
    if kind == "logits":
        return 1.0 / (1.0 + np.exp(-np.clip(answer, -30, 30)))
    if kind == "as it is":
        return np.clip(answer, 0.0, 1.0)
    low, high = float(answer.min()), float(answer.max())
    if high - low < 1e-6:  # the same everywhere: no subject, or nothing else
        return np.full_like(answer, float(high > 0.5))
    return (answer - low) / (high - low)


@functools.cache
def cutouts() -> Mapping[str, TaggerRow]:
    """Every network by its name, in the order of the file."""
    rows = {}
    for values in read_toml(CATALOG)["cutouts"]:
        known = {path: KnownFile(**one) for path, one in values.pop("known", {}).items()}
        row = TaggerRow(**{**values, "kind": "mask", "loader": LOADER, "files": tuple(values["files"]), "known": known})
        rows[row.name] = row
    return rows


def find_cutout(name: str) -> TaggerRow:
    """The network of that name. Raises SafelightError with a near name."""
    if name in cutouts():
        return cutouts()[name]
    near = difflib.get_close_matches(name, cutouts(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SafelightError(f"There is no network {name[:80]!r} for masks.{hint} There are: {', '.join(cutouts())}.")
