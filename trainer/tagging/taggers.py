"""Taggers in the ONNX format: WaifuDiffusion's, JoyTag, and a user's own of the same kind.

Preprocessing as their authors' examples do it (huggingface.co/spaces/SmilingWolf/wd-tagger, github.com/fpgaminer/joytag):
padded to a square with white, scaled bicubically, then numbers as the row's settings say.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from security.errors import RefusedFile
from security.policy import MAX_VOCABULARY_BYTES
from security.sniff import open_regular
from trainer.tagging.base import Category, Description, Merge, Tag, TaggerFiles, TaggerRow, TaggingOptions
from trainer.tagging.onnx_session import OnnxNetwork

MODEL_FILE = "model.onnx"
DEFAULT_SIDE = 448
"""Pixels, for a network that takes any size."""
MAX_LABELS = 200_000
MAX_LABEL_LENGTH = 200
_CATEGORIES = {0: Category.GENERAL, 4: Category.CHARACTER, 9: Category.RATING}
"""Danbooru's numbers of kinds of tags; 9 is WD's own for ratings. Others: artists (1), series (3), notes (5)."""


@dataclass(frozen=True)
class Labels:
    """What each output of a network stands for."""

    names: tuple[str, ...]
    categories: tuple[Category, ...]


class OnnxTagger:
    """A tagger whose network is `model.onnx`. Follows the Protocol `Tagger`."""

    def __init__(self, options: TaggingOptions, row: TaggerRow) -> None:
        self._row = row
        compares_scores = len(options.models) > 1 and options.merge is Merge.MEAN
        lowest = min(options.general_threshold, options.character_threshold)
        self._floor = 0.0 if compares_scores else lowest
        self._network: OnnxNetwork | None = None
        self._labels = Labels((), ())
        self._is_rating = np.zeros(0, bool)

    def load(self, files: TaggerFiles, device: str) -> str:
        """Opens the network and its list of tags. Raises SafelightError if they do not fit together."""
        labels_file = str(self._row.settings["labels"])
        for name in (MODEL_FILE, labels_file):
            if name not in files.sha256:
                raise RefusedFile(
                    f"taggers/{self._row.name} has no {name}. Delete the folder and fetch the tagger again."
                )
        self._labels = read_labels(files.folder / labels_file)
        self._is_rating = np.array([category is Category.RATING for category in self._labels.categories])
        sha256 = files.sha256[MODEL_FILE]
        self._network = OnnxNetwork.open(files.folder / MODEL_FILE, sha256, device, title=self._row.title)
        return self._network.where

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The picture as the network takes it: (H, W, 3) or (3, H, W)."""
        assert self._network is not None
        wanted, settings = self._network.input, self._row.settings
        size = (wanted.width or DEFAULT_SIDE, wanted.height or DEFAULT_SIDE)
        pixels = np.asarray(on_square(image).resize(size, Image.Resampling.BICUBIC))
        if settings.get("colours") == "bgr":
            pixels = pixels[:, :, ::-1]
        numbers = pixels.astype(wanted.dtype)
        if "scale" in settings:
            numbers /= settings["scale"]
        if "mean" in settings:
            mean, deviation = (np.array(settings[name], wanted.dtype) for name in ("mean", "deviation"))
            numbers = (numbers - mean) / deviation
        return np.ascontiguousarray(numbers.transpose(2, 0, 1) if wanted.channels_first else numbers)

    def scores(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities of every label, (B, number of labels)."""
        assert self._network is not None
        outputs = self._network.run(np.stack(prepared))
        fitting = [one for one in outputs if one.ndim == 2 and one.shape[1] == len(self._labels.names)]
        if not fitting:
            shapes = ", ".join(str(list(one.shape)) for one in outputs)
            raise RefusedFile(
                f"The list of {self._row.title} has {len(self._labels.names)} tags, its network gives {shapes}: they do not "
                "belong together. Fetch the tagger again."
            )
        found = fitting[0].astype(np.float32)
        if self._row.settings.get("logits"):
            found = 1.0 / (1.0 + np.exp(-found))
        if not np.isfinite(found).all():
            raise RefusedFile(
                f"The network of {self._row.title} gives numbers that are none (NaN). It can't be used here."
            )
        return found

    def describe(self, prepared: Sequence[Any]) -> list[Description]:
        """Tags from the lowest threshold on, and every rating."""
        return [self._tags(scores) for scores in self.scores(prepared)]

    def close(self) -> None:
        """Lets go of the network."""
        if self._network is not None:
            self._network.close()
        self._network = None

    def _tags(self, scores: np.ndarray) -> tuple[Tag, ...]:
        names, categories = self._labels.names, self._labels.categories
        chosen = np.flatnonzero((scores >= self._floor) | self._is_rating)
        return tuple(Tag(names[index], float(scores[index]), categories[index]) for index in chosen)


def on_square(image: Image.Image) -> Image.Image:
    """The picture in the middle of a white square."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def read_labels(path: Path) -> Labels:
    """The tags of a list: WD's table with name and category, or one tag a line. Raises RefusedFile for anything else."""
    with open_regular(path) as file:
        data = file.read(MAX_VOCABULARY_BYTES + 1)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise RefusedFile(f"{path.name} is not UTF-8 text, so it is no list of tags.") from None
    if len(data) > MAX_VOCABULARY_BYTES or len(lines) > MAX_LABELS:
        raise RefusedFile(f"{path.name} is too long for a list of tags.")
    found = _table(lines, path) if path.suffix.lower() == ".csv" else [(line, 0) for line in lines if line.strip()]
    names = tuple(_clean(name) for name, _ in found)
    if not names or any(not name or len(name) > MAX_LABEL_LENGTH for name in names):
        raise RefusedFile(f"{path.name} is no list of tags: it is empty, or a tag in it is.")
    return Labels(names, tuple(_CATEGORIES.get(category, Category.OTHER) for _, category in found))


def _table(lines: list[str], path: Path) -> list[tuple[str, int]]:
    try:
        return [(row["name"], int(row["category"])) for row in csv.DictReader(lines, strict=True)]
    except (KeyError, TypeError, ValueError, csv.Error):
        raise RefusedFile(f"{path.name} is no table of tags: it needs the columns name and category.") from None


def _clean(name: str) -> str:
    """One line without commas, which divide the tags of a caption."""
    return "".join(sign if sign.isprintable() and sign != "," else " " for sign in name).strip()
