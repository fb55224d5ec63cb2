"""The weights of a base model on disk, by the module that each belongs to, whichever way the model is stored.

Reads one weight at a time: a diffusers folder and a single .safetensors file of SD 1.x or SDXL look the same from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from security.errors import SafelightError
from security.weights import WeightsHeader, check_safetensors
from trainer.demo import BASE_DIR
from trainer.lora_files import checkpoint_names as single_file
from trainer.lora_files.names import TEXT_ENCODERS, UNET, Place, canonical
from trainer.lora_files.streaming import WeightsReader
from trainer.models.detect import Detected, detect
from trainer.models.files import WEIGHT_SUFFIX
from trainer.models.library import DEMO_NAME

PARTS = (UNET, *TEXT_ENCODERS)
_TABLES = ("token_embedding", "position_embedding")
"""Ends of the names of tables of vectors, which no LoRA layer can change."""


@dataclass(frozen=True)
class Stored:
    """Where a module's weight lies: a tensor of a file, perhaps only its `rows`, perhaps `turned` (stored as (in, out))."""

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    turned: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The weight (out, in, ...), as a view of the stored tensor."""
        if self.rows is not None:
            tensor = tensor[self.rows[0] : self.rows[1]]
        return tensor.T if self.turned else tensor


class Checkpoint:
    """A base model whose weights can be read one by one. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """A diffusers folder or single file. Raises RefusedFile and UnsupportedModel as `detect`."""
        self.path = path
        self.found: Detected = detect(path)
        self.headers: dict[Path, WeightsHeader] = {file: check_safetensors(file) for file in _weight_files(path)}
        self.places: dict[Place, list[Stored]] = defaultdict(list)
        self.biases: dict[Place, list[Stored]] = defaultdict(list)
        for file, header in self.headers.items():
            if self.found.kind == "single_file":
                self._add_single_file(file, header)
            else:
                self._add_folder_file(file, header)
        self._readers: dict[Path, WeightsReader] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    @property
    def name(self) -> str:
        """What people call it: without its place and ending."""
        if self.path == BASE_DIR:
            return DEMO_NAME
        return self.path.stem if self.path.is_file() else self.path.name

    def modules(self) -> Iterator[Place]:
        """Linear and convolutional modules, in a fixed order: part by part, by name."""
        yield from sorted(
            (module for module, places in self.places.items() if len(places[0].shape) > 1),
            key=lambda module: (PARTS.index(module[0]), module[1]),
        )

    def shape(self, module: Place) -> tuple[int, ...] | None:
        """Shape (out, in, ...) of a module's weight; None if the model has no such module."""
        places = self.places.get(module)
        return places[0].shape if places else None

    def dtype(self, module: Place) -> str:
        """How a module's weight is stored: "F16", "BF16", "F32" and so on."""
        stored = self.places[module][0]
        return self.headers[stored.file].tensors[stored.key].dtype

    def weight(self, module: Place) -> Tensor:
        """A module's weight (out, in, ...) in fp32. Raises SafelightError if the model has no such module."""
        places = self.places.get(module)
        if not places:
            raise SafelightError(f"{self.name} has no module {'.'.join(module)}. It is of another kind than the LoRA.")
        place = places[0]
        return place.of(self.reader(place.file).tensor(place.key)).to(torch.float32)

    def reader(self, file: Path) -> WeightsReader:
        """One of its files, opened on first use."""
        if file not in self._readers:
            self._readers[file] = WeightsReader(file)
        return self._readers[file]

    def _add_folder_file(self, file: Path, header: WeightsHeader) -> None:
        part = file.parent.name
        for key, info in header.tensors.items():
            name, _, leaf = key.rpartition(".")
            self._add(part, name, leaf, Stored(file, key, tuple(info.shape)))

    def _add(self, part: str, name: str, leaf: str, stored: Stored) -> None:
        """Enters where a module's weight or bias (`leaf`) lies; other tensors belong to no module that can be changed."""
        table = {"weight": self.places, "bias": self.biases}.get(leaf)
        if table is not None and not name.endswith(_TABLES):
            table[Place(part, name if part == UNET else canonical(name))].append(stored)

    def _add_single_file(self, file: Path, header: WeightsHeader) -> None:
        inside: dict[str, dict[str, str]] = defaultdict(dict)
        for key in header.tensors:
            if found := single_file.part_of(key):
                inside[found[0]][found[1]] = key
        per_level = single_file.layers_per_level(inside[UNET])
        for part, keys in inside.items():
            for name, key in keys.items():
                stored = Stored(file, key, tuple(header.tensors[key].shape))
                stem, fused, leaf = name.partition(f"{single_file.FUSED}_")
                if fused:
                    self._add_fused(part, stem + single_file.FUSED, leaf, stored)
                elif part == TEXT_ENCODERS[1] and name == "text_projection":
                    self._add(part, name, "weight", Stored(file, key, stored.shape[::-1], turned=True))
                else:
                    stem, _, leaf = name.rpartition(".")
                    module = single_file.module_of(part, stem, per_level)
                    if module is not None:
                        self._add(part, module, leaf, stored)

    def _add_fused(self, part: str, name: str, leaf: str, whole: Stored) -> None:
        modules = single_file.fused_modules(name)
        height = whole.shape[0] // len(modules) if modules else 0
        for number, module in enumerate(modules):
            rows = (number * height, (number + 1) * height)
            self._add(part, module, leaf, Stored(whole.file, whole.key, (height, *whole.shape[1:]), rows=rows))


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the U-Net and the text encoders."""
    if path.is_file():
        return [path]
    return [file for part in PARTS for file in sorted((path / part).glob(f"*{WEIGHT_SUFFIX}"))]
