"""Takes what was trained out of a model as a LoRA file, and proves the file: by our own reader, and by diffusers where
diffusers is said to load it.

kohya's and LyCORIS' key names are what ComfyUI, A1111, Forge and most tools read; diffusers' names are for diffusers and peft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.adapters.layer import AdaptedLayer, adapted_layers
from trainer.adapters.table import ADAPTERS
from trainer.config.choices import AdapterName, KeyFormat, SavePrecision
from trainer.embeddings import trained_words
from trainer.families.base import Components, ModelFamily
from trainer.lora_files.building import build_layer
from trainer.lora_files.by_diffusers import loaded_by_diffusers
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Layer, LowRank
from trainer.lora_files.names import UNET, Place, canonical
from trainer.lora_files.programs import DIFFUSERS, loads_in
from trainer.lora_files.reading import read_lora
from trainer.lora_files.writing import DTYPES, DamagedExport, as_written, write_lora

ROUNDING_SLACK = 2.0
"""How many times half a unit in the last place a number may be off: the matrices are scaled in fp32 on both sides."""
LARGEST_DIFFERENCE = 1e-4
"""How far what a file's layer adds may be from what the trained layer adds, as a share of its length; both in fp32."""


def written_formats(key_format: KeyFormat, adapter: AdapterName) -> list[KeyFormat]:
    """The formats of the files that a run writes: of both, diffusers' only where diffusers has a reader for the adapter."""
    if key_format is not KeyFormat.BOTH:
        return [key_format]
    return [KeyFormat.KOHYA] + ([KeyFormat.DIFFUSERS] if DIFFUSERS in ADAPTERS[adapter].loads_in else [])


def trained_file(components: Components, family: ModelFamily) -> LoraFile:
    """The trained layers as a LoRA file in memory, in fp32 and without metadata."""
    layers = {place: _layer(place, adapted, "cpu") for place, adapted in _adapted(components)}
    return LoraFile(family.name, layers, embeddings=trained_words(components))


def save_lora(
    components: Components,
    family: ModelFamily,
    path: Path,
    *,
    key_format: KeyFormat,
    precision: SavePrecision,
    metadata: Mapping[str, str],
) -> int:
    """Writes the LoRA to `path` in one step; returns its bytes.

    Raises DamagedExport for NaN or Inf in it, Unwritable where diffusers' names have none for an adapter, and RefusedConfig for
    metadata with a token in it.
    """
    if key_format is KeyFormat.BOTH:
        raise ValueError(f"One file has one key format, not {key_format!r}. Call this once per format.")
    file = _for_format(trained_file(components, family), key_format)
    return write_lora(file, path, FileFormat(key_format.value), precision=precision, metadata=metadata)


def _for_format(file: LoraFile, key_format: KeyFormat) -> LoraFile:
    """Without trained words where the format has no names for them; they have a file of their own."""
    return dataclasses.replace(file, embeddings={}) if key_format is KeyFormat.DIFFUSERS else file


def verify_export(
    path: Path, components: Components, family: ModelFamily, key_format: KeyFormat, precision: SavePrecision
) -> dict[str, str]:
    """Reads a written file back and compares it with what is in memory. Returns what `loads_in` says of it.

    Each layer must be there under its name with no key left over, its tensors must be the trained ones up to rounding, and
    what they add to the base weight must be what the trained layer adds. Where a file is said to load in diffusers whole,
    diffusers must give the same layers. Raises DamagedExport.
    """
    trained = _for_format(trained_file(components, family), key_format)
    file_format = FileFormat(key_format.value)
    for place, adapted in _adapted(components):
        alone = LoraFile(family.name, {place: _layer(place, adapted, adapted.weight.device)})
        _compare_effect(path.name, place, as_written(alone, file_format).layers[place], adapted)
    expected = as_written(trained, file_format)
    found = read_lora(path, family.name)
    _refuse_unmatched(
        path.name, [*(found.layers.keys() ^ expected.layers.keys()), *found.unmatched], len(trained.layers)
    )
    for place, layer in expected.layers.items():
        _compare(path.name, place, layer, found.layers[place], DTYPES[precision])
    _compare_words(path.name, expected, found)
    told = loads_in(found)
    if not told[DIFFUSERS]:
        _verify_with_diffusers(path, components, family, expected, DTYPES[precision])
    return told


def _adapted(components: Components) -> Iterator[tuple[Place, AdaptedLayer]]:
    for part, module in components.modules().items():
        for name, layer in adapted_layers(module).items():
            yield Place(part, name if part == UNET else canonical(name)), layer


def _layer(place: Place, adapted: AdaptedLayer, device: torch.device | str) -> Layer:
    """What a file would hold for a trained layer, in fp32 on a device."""
    tensors = {suffix: tensor.detach().to(device).float() for suffix, tensor in adapted.tensors().items()}
    layer = build_layer(place, tensors, {suffix: f"{place.module}.{suffix}" for suffix in tensors}, None)
    assert layer is not None, f"{place} has tensors that make no layer: {sorted(tensors)}"
    return layer


def _verify_with_diffusers(
    path: Path, components: Components, family: ModelFamily, expected: LoraFile, dtype: torch.dtype
) -> None:
    try:
        found = loaded_by_diffusers(path, components, family)
    except ValueError as error:
        raise DamagedExport(f"{path.name} was written, but diffusers does not take it: {error}") from error
    _refuse_unmatched(path.name, list(found.keys() ^ expected.layers.keys()), len(expected.layers))
    for place, layer in expected.layers.items():
        assert isinstance(layer, LowRank), f"diffusers is said to load {layer.kind}"
        for one, other in zip(_balanced(layer), _balanced(found[place]), strict=True):
            _compare_tensor(path.name, place, one, other, dtype, root=(layer.alpha / layer.rank) ** 0.5)


def _balanced(layer: LowRank) -> tuple[Tensor, Tensor]:
    """Both matrices in fp32 with half of the scale (its root) worked into each, so that every way to store it is alike."""
    root = layer.scale**0.5
    return layer.down.cpu().float() * root, layer.up.cpu().float() * root


def _refuse_unmatched(name: str, unmatched: list[object], num_layers: int) -> None:
    if unmatched:
        raise DamagedExport(
            f"{name} was written, but {len(unmatched)} of its {num_layers} layers don't match on reading, "
            f"{sorted(map(str, unmatched))[0]} first. This is a fault of Safelight; the training itself is safe in its "
            "checkpoint."
        )


def _compare(name: str, place: Place, expected: Layer, found: Layer, dtype: torch.dtype) -> None:
    """Raises DamagedExport unless a layer as read is the one that was written, up to rounding."""
    wanted, read = expected.tensors(), found.tensors()
    if wanted.keys() != read.keys() or expected.kind != found.kind or expected.alpha != found.alpha:
        raise DamagedExport(
            f"{name} was written, but {place.module} reads back as another kind of layer or with another scale. "
            "The disk may be damaged: free some space or use another one, and save again."
        )
    for suffix, tensor in wanted.items():
        _compare_tensor(name, place, tensor.cpu().float(), read[suffix].float().reshape(tensor.shape), dtype)


def _compare_words(name: str, expected: LoraFile, found: LoraFile) -> None:
    """Raises DamagedExport unless the trained words are there bit for bit: they are always stored in fp32."""
    for word, vectors in {**found.embeddings, **expected.embeddings}.items():
        wanted, read = expected.embeddings.get(word, {}), found.embeddings.get(word, {})
        if wanted.keys() != read.keys() or not all(torch.equal(vectors[key], read[key]) for key in wanted):
            raise DamagedExport(f"{name} was written, but its word {word} reads back with other numbers. Save again.")


def _compare_tensor(
    name: str, place: Place, expected: Tensor, found: Tensor, dtype: torch.dtype, root: float = 1.0
) -> None:
    """Raises DamagedExport unless two tensors differ by no more than storing one of them in `dtype` explains.

    `root`: what the numbers were multiplied by after they had been stored.
    """
    limits = torch.finfo(dtype)
    # Half a unit in the last place; tiny numbers lose up to half of the smallest one there is, also before scaling.
    smallest = limits.smallest_normal * limits.eps * max(1.0, root)
    bound = ROUNDING_SLACK * (expected.abs() * limits.eps + smallest) / 2
    if expected.shape != found.shape or not bool(((expected - found).abs() <= bound).all()):
        raise DamagedExport(
            f"{name} was written, but {place.module} reads back with other numbers than were trained. "
            "The disk may be damaged: free some space or use another one, and save again."
        )


def _compare_effect(name: str, place: Place, layer: Layer, adapted: AdaptedLayer) -> None:
    """Raises DamagedExport unless the file's layer adds to the base weight what the trained layer adds."""
    weight = adapted.weight.detach().float()
    trained, added = adapted.delta().float(), layer.delta(weight).to(weight.device)
    difference, length = float((trained - added).norm()), float(trained.norm())
    # Turned and scaled weights are told by small differences of large numbers, whose rounding is the weight's.
    if not difference <= LARGEST_DIFFERENCE * length + 1e-5 * float(weight.norm()) * layer.needs_weight:
        raise DamagedExport(
            f"{name} would not give what was trained: {place.module} is off by {difference:.2g} of {length:.2g}. This is a "
            "fault of Safelight; the training itself is safe in its checkpoint."
        )
