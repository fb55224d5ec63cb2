"""Reads any LoRA file of Stable Diffusion 1.x and SDXL into layers, whoever wrote it.

The header is checked before anything is loaded, all numbers before they are used. What can't be a layer is refused with the
key; keys that are no part of a known layer are listed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from security.errors import RefusedFile
from security.weights import WeightsHeader, check_finite, check_safetensors, refuse_pickle
from trainer.lora_files import keys
from trainer.lora_files.building import build_layer
from trainer.lora_files.file import LoraFile
from trainer.lora_files.identify import family_of, refuse_foreign
from trainer.lora_files.keys import FileFormat, Key, parse_key
from trainer.lora_files.layers import Layer
from trainer.lora_files.names import FAMILY_NAMES, Place
from trainer.lora_files.peft_metadata import PeftSettings, peft_settings

_BIASES = {"diff_b", "b_norm"}
_OTHER_KINDS = {
    ".oft_diag": "old OFT files, which LyCORIS itself has replaced, are not read",
    ".on_input": "IA3 is not read",
    ".a1.weight": "GLoRA is not read",
    ".a2.weight": "GLoRA is not read",
    ".b1.weight": "GLoRA is not read",
    ".b2.weight": "GLoRA is not read",
    ".oft_R.weight": "peft's OFT turns inputs, which LoRA files don't",
    ".scalar": "LyCORIS works it into the weights on saving, this file has it beside them",
}
"""Ends of keys of kinds that are known and not read, with the reason."""


@dataclass(frozen=True)
class Sorted:
    """A header's keys by what they mean: by place and suffix, by word, and the rest with a reason."""

    found: dict[Place, dict[str, tuple[str, Key]]]
    embeddings: dict[str, dict[str, str]]
    unmatched: dict[str, str]
    file_format: FileFormat


def read_lora(path: Path, family: str | None = None) -> LoraFile:
    """The layers of a LoRA file. `family` is sd15 or sdxl; None finds it out.

    Raises RefusedFile that names the key or says what the file is instead.
    """
    refuse_pickle(path)
    header = check_safetensors(path)
    family = family_of(header, path.name) if family is None else family
    ordered = sort_keys(header, family, path.name)
    check_finite(path)
    tensors = _load(path, header.tensors.keys() - ordered.unmatched.keys())
    layers: dict[Place, Layer] = {}
    biases: dict[Place, Tensor] = {}
    unmatched = dict(ordered.unmatched)
    settings = peft_settings(header.metadata, path.name)
    for place, by_suffix in ordered.found.items():
        key_of = {suffix: key for suffix, (key, _) in by_suffix.items()}
        own = {suffix: tensors[key] for suffix, key in key_of.items() if suffix not in _BIASES}
        layer = build_layer(place, own, key_of, _peft_alpha(settings.get(place.part), place, own))
        if layer is not None:
            layers[place] = layer
        else:
            unmatched |= {key_of[suffix]: "it belongs to a layer that the file does not have" for suffix in own}
        for suffix in _BIASES & key_of.keys():
            biases[place] = _bias(key_of[suffix], tensors[key_of[suffix]])
    if not layers:
        raise RefusedFile(
            f"{path.name} has no LoRA layers that can be read: {next(iter(unmatched.items()), 'only biases')}."
        )
    embeddings = {
        word: {name: tensors[key] for name, key in own_keys.items()} for word, own_keys in ordered.embeddings.items()
    }
    return LoraFile(
        family,
        layers,
        header.metadata,
        ordered.file_format,
        unmatched,
        biases,
        embeddings,
        shapes={key: info.shape for key, info in header.tensors.items()},
    )


def sort_keys(header: WeightsHeader, family: str, name: str) -> Sorted:
    """What each key of the file `name` means. Reads no tensor.

    Raises RefusedFile if no key is a LoRA's of a known model, or if two keys mean the same tensor.
    """
    usual = FAMILY_NAMES[family].original_numbering
    found: dict[Place, dict[str, tuple[str, Key]]] = defaultdict(dict)
    embeddings: dict[str, dict[str, str]] = defaultdict(dict)
    unmatched: dict[str, str] = {}
    formats: Counter[FileFormat] = Counter()
    for key in header.tensors:
        if key.startswith(keys.EMBEDDING_PREFIX):
            word, _, inner = key.removeprefix(keys.EMBEDDING_PREFIX).partition(".")
            if word and inner:
                embeddings[word][inner] = key
            else:
                unmatched[key] = "it names no trained word"
            continue
        meaning = parse_key(key, usual)
        if meaning is None:
            unmatched[key] = next((why for end, why in _OTHER_KINDS.items() if key.endswith(end)), "no known name")
            continue
        other = found[meaning.place].setdefault(meaning.suffix, (key, meaning))[0]
        if other != key:
            raise RefusedFile(f"{name} has {key} and {other}, which name the same weights. Export it again.")
        formats[meaning.file_format] += 1
    if not found:
        refuse_foreign(header.tensors.keys(), name)
    return Sorted(dict(found), dict(embeddings), unmatched, formats.most_common(1)[0][0])


def _peft_alpha(settings: PeftSettings | None, place: Place, own: dict[str, Tensor]) -> float | None:
    down = own.get(keys.DOWN)
    return None if settings is None or down is None else settings.alpha_for(place.module, len(down))


def _load(path: Path, wanted: set[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in sorted(wanted)}


def _bias(key: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 1 or not tensor.is_floating_point() or not tensor.numel():
        raise RefusedFile(f"{key} can't be used: a bias is a row of numbers, its shape is {tuple(tensor.shape)}.")
    return tensor
