"""Writes LoRA files: layers under the keys of one format, with hashes, in one step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from security.errors import SafelightError
from security.roots import replace_file
from trainer.config.choices import KeyFormat, SavePrecision
from trainer.families.base import UnusableModel
from trainer.lora_files import keys, peft_metadata
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat, write_key
from trainer.lora_files.layers import Decomposed, Layer, LowRank
from trainer.lora_files.names import Place
from trainer.lora_files.programs import loads_in, told_in_words
from trainer.metadata import IMPLEMENTATIONS, refuse_secret_entries

DTYPES = {SavePrecision.FP16: torch.float16, SavePrecision.BF16: torch.bfloat16, SavePrecision.FP32: torch.float32}
LENGTH_BYTES = 8
"""A .safetensors file starts with the length of its header in this many bytes (little-endian)."""
LOADS_ENTRY = "safelight_loads_in"
"""Entry with a sentence or more on which programs load the file."""


class DamagedExport(UnusableModel):
    """A LoRA file can't hold or does not give back what was trained."""


class Unwritable(SafelightError):
    """A file format has no keys for a layer. The message names both."""


def write_lora(
    file: LoraFile,
    path: Path,
    file_format: FileFormat,
    *,
    precision: SavePrecision | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes a LoRA file in one step (a reader sees the old file or the whole new one); returns its bytes.

    `precision` None keeps each tensor's own; `metadata` None takes the file's. Hashes, formats, peft's settings and which
    programs load it are set anew. Raises Unwritable where the format has no keys for a layer, DamagedExport for NaN or Inf,
    also such as the precision would make, and RefusedConfig for metadata with a token in it.
    """
    from safetensors.torch import save

    entries = dict(file.metadata if metadata is None else metadata)
    refuse_secret_entries(entries, path.name)
    written = as_written(file, file_format)
    tensors = {key: _stored(key, one, precision) for key, one in sorted(file_tensors(written, file_format).items())}
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        too_narrow = f" or save.precision {precision.value} is too narrow" if precision else ""
        raise DamagedExport(
            f"{len(broken)} tensors of the LoRA hold NaN or Inf, {broken[0]} first: the training went astray{too_narrow}. "
            "Lower the learning rate, or save as fp32."
        )
    entries.pop(peft_metadata.ENTRY, None)
    if file_format is FileFormat.DIFFUSERS:
        entries[peft_metadata.ENTRY] = json.dumps(peft_entries(written), sort_keys=True)
    shapes = {key: tuple(one.shape) for key, one in tensors.items()}
    entries[LOADS_ENTRY] = told_in_words(loads_in(dataclasses.replace(written, shapes=shapes)))
    digest = tensor_hash(save(tensors))
    entries |= {"format": "pt", "modelspec.implementation": _implementation(file_format)}
    entries |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    data = save(tensors, metadata=entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    return len(data)


def as_written(file: LoraFile, file_format: FileFormat) -> LoraFile:
    """The file with its layers as the format can hold them. Raises Unwritable.

    diffusers' names have none for alpha. The scale alpha / rank is worked into the matrices, half into each: readers that
    know no metadata take 1, and peft reads the same from the metadata, where alpha equals rank.
    """
    if file_format is not FileFormat.DIFFUSERS:
        return file
    if file.biases:
        raise Unwritable(
            f"diffusers' names have none for differences of biases, and {next(iter(file.biases)).module} has one. Keep kohya's "
            "or ComfyUI's names."
        )
    if file.embeddings:
        raise Unwritable(
            f"diffusers' names have none for trained words, and the file has {', '.join(file.embeddings)}."
        )
    return dataclasses.replace(file, layers={place: _for_peft(place, layer) for place, layer in file.layers.items()})


def file_tensors(file: LoraFile, file_format: FileFormat) -> dict[str, Tensor]:
    """All tensors of a file by their keys, with an `.alpha` for every layer that has one. Raises Unwritable."""
    state: dict[str, Tensor] = {}
    try:
        for place, layer in file.layers.items():
            for suffix, tensor in layer.tensors().items():
                if file_format is FileFormat.DIFFUSERS and suffix == keys.MAGNITUDE:
                    tensor = _peft_magnitude(layer, tensor)
                state[write_key(place, suffix, file.family, file_format)] = tensor
            if file_format is not FileFormat.DIFFUSERS and (alpha := _stored_alpha(layer)) is not None:
                state[write_key(place, keys.ALPHA, file.family, file_format)] = torch.tensor(alpha, dtype=torch.float32)
        for place, tensor in file.biases.items():
            suffix = "b_norm" if place in file.layers and file.layers[place].kind == "norm" else "diff_b"
            state[write_key(place, suffix, file.family, file_format)] = tensor
    except ValueError as error:
        raise Unwritable(str(error)) from None
    for word, tensors in file.embeddings.items():
        state |= {f"{keys.EMBEDDING_PREFIX}{word}.{name}": tensor for name, tensor in tensors.items()}
    return state


def peft_entries(file: LoraFile) -> dict[str, Any]:
    """The settings that diffusers writes beside a LoRA, of layers whose alpha is their rank."""
    entries: dict[str, Any] = {}
    for part in dict.fromkeys(place.part for place in file.layers):
        # Without `text_model.`, which transformers 5 dropped: peft matches the ends of names.
        layers = {module.removeprefix("text_model."): layer for module, layer in file.part(part).items()}
        ranks = [layer.rank or 0 for layer in layers.values()]
        usual = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
        others = {module: layer.rank for module, layer in layers.items() if layer.rank != usual}
        values: dict[str, Any] = {
            "peft_type": "LORA",
            "r": usual,
            "lora_alpha": usual,
            "target_modules": sorted(layers),
            "bias": "none",
        }
        if others:
            values |= {"rank_pattern": others, "alpha_pattern": others}
        if any(layer.kind == "dora" for layer in layers.values()):
            values["use_dora"] = True
        entries |= {f"{part}.{name}": value for name, value in values.items()}
    return entries


def tensor_hash(data: bytes) -> str:
    """SHA-256 of the tensors' bytes of a .safetensors file, without its header, as modelspec and kohya's tools take it."""
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    return hashlib.sha256(data[start:]).hexdigest()


def _for_peft(place: Place, layer: Layer) -> Layer:
    """The layer with its scale worked in. Raises Unwritable for what diffusers has no reader for."""
    if isinstance(layer, Decomposed) and isinstance(layer.inner, LowRank):
        if max(layer.magnitude.shape) != layer.magnitude.shape[0] or layer.magnitude.shape[0] != layer.shape[0]:
            raise Unwritable(f"diffusers' DoRA has one length for each output; {place.module} has one for each input.")
        return Decomposed(_balanced(place, layer.inner), layer.magnitude)
    if isinstance(layer, LowRank):
        return _balanced(place, layer)
    raise Unwritable(
        f"diffusers reads LoRA and DoRA only; {place.module} is {layer.kind}. Convert can make LoRA of it: give a rank under "
        "'Turn other kinds into LoRA of rank' on the Tools tab, or `lora convert --as-lora RANK`."
    )


def _balanced(place: Place, layer: LowRank) -> LowRank:
    if layer.mid is not None:
        raise Unwritable(f"diffusers reads no convolutions in Tucker form, as {place.module} is.")
    scale = abs(layer.scale) ** 0.5
    sign = -1.0 if layer.scale < 0 else 1.0
    return LowRank(layer.down.float() * scale, layer.up.float() * scale * sign, alpha=float(layer.rank))


def _peft_magnitude(layer: Layer, magnitude: Tensor) -> Tensor:
    """One length for each output in the shape that peft has it in: (out,), or (1, out, 1, 1) for convolutions."""
    return magnitude.flatten() if len(layer.shape or ()) == 2 else magnitude.reshape(1, -1, 1, 1)


def _stored_alpha(layer: Layer) -> float | None:
    """What goes into `.alpha`. A LoKr of two whole matrices keeps its own, though no reader uses it."""
    inner = layer.inner if isinstance(layer, Decomposed) else layer
    return getattr(inner, "alpha_stored", inner.alpha)


def _stored(key: str, value: Tensor, precision: SavePrecision | None) -> Tensor:
    # An alpha of 0.7 rounded to fp16 would scale its whole layer wrongly; one fp32 number costs nothing, and few do a word's.
    exact = key.endswith(f".{keys.ALPHA}") or key.startswith(keys.EMBEDDING_PREFIX)
    dtype = value.dtype if precision is None else DTYPES[precision]
    return value.to("cpu", torch.float32 if exact else dtype).contiguous()


def _implementation(file_format: FileFormat) -> str:
    return IMPLEMENTATIONS[KeyFormat.DIFFUSERS if file_format is FileFormat.DIFFUSERS else KeyFormat.KOHYA]
