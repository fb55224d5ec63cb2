"""What a run begins with besides a fresh adapter: LoRAs put into the base first, and a LoRA to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from security.errors import SafelightError
from security.integrity import sha256_of
from trainer.adapters.kinds import refuse_other_kind
from trainer.adapters.layer import AdaptedLayer, adapted_layers
from trainer.adapters.targets import DENOISER
from trainer.embeddings import take_words
from trainer.families.base import Components
from trainer.lora_files.file import LoraFile
from trainer.lora_files.layers import Layer
from trainer.lora_files.names import Place, canonical, module_in
from trainer.lora_files.reading import read_lora

SETTING_OF_PART = {DENOISER: "lora.train_denoiser"}
"""The setting that trains a part; all other parts are text encoders."""


def merge_loras(components: Components, family: str, loras: Sequence[tuple[float, Path]]) -> list[str]:
    """Adds LoRAs, each times its weight, to the base's weights; the base gets a fingerprint of its own by that.

    Returns a sentence for each file whose trained words a base can't hold.
    Every layer is worked out from the base's own weight, so the order does not matter. Raises SafelightError for a file
    that holds what this model does not have.
    """
    if not loras:
        return []
    files = [(weight, path.name, read_lora(path, family)) for weight, path in loras]
    changes: dict[tuple[Place, str], Tensor] = {}
    modules = {name: dict(part.named_modules()) for name, part in components.modules().items()}
    with torch.no_grad():
        for weight, name, file in files:
            _refuse_unread(name, file)
            for place, layer in file.layers.items():
                base = _parameter(modules, place, "weight", name)
                change = _delta(layer, base, place, name)
                changes[place, "weight"] = changes.get((place, "weight"), torch.zeros(())) + weight * change
            for place, bias in file.biases.items():
                _parameter(modules, place, "bias", name)
                changes[place, "bias"] = changes.get((place, "bias"), torch.zeros(())) + weight * bias.float()
        for (place, kind), change in changes.items():
            parameter = _parameter(modules, place, kind, "")
            parameter.copy_(parameter.float() + change.to(parameter.device))
    told = [components.model_files.fingerprint, *(f"{weight:g} {sha256_of(path)}" for weight, path in loras)]
    # What is cached of texts was encoded by the base as it was, and a checkpoint fits the merged base alone.
    fingerprint = hashlib.sha256("\n".join(told).encode()).hexdigest()
    components.model_files = dataclasses.replace(components.model_files, fingerprint=fingerprint)
    return [
        f"{name} brings the trained words {', '.join(file.embeddings)}, which the base can't hold: only its layers are merged."
        for _, name, file in files
        if file.embeddings
    ]


def _parameter(modules: Mapping[str, Mapping[str, nn.Module]], place: Place, kind: str, name: str) -> nn.Parameter:
    """A weight or bias of the base. Raises SafelightError if the model has none."""
    own = modules.get(place.part, {})
    found = module_in(own, place.module)
    parameter = getattr(own[found], kind, None) if found is not None else None
    if not isinstance(parameter, nn.Parameter):
        raise SafelightError(
            f"lora.merge_first names {name}, which changes {place.part} {place.module}, but this model has no such layer. "
            "It was made for another kind of model: take it out."
        )
    return parameter


def _delta(layer: Layer, base: nn.Parameter, place: Place, name: str) -> Tensor:
    weight = base.detach().float()
    try:
        change = layer.delta(weight)
    except ValueError as error:
        raise SafelightError(
            f"lora.merge_first names {name}, which does not fit {place.part} {place.module} of this model: {error}. "
            "Take it out."
        ) from error
    return change.to(weight.device)


def _refuse_unread(name: str, file: LoraFile) -> None:
    if file.unmatched:
        key, reason = next(iter(file.unmatched.items()))
        raise SafelightError(
            f"lora.merge_first names {name}, of which {len(file.unmatched)} keys can't be read, {key} first: {reason}. "
            "Take it out, or export it again with the program that made it."
        )


def continue_from(components: Components, family: str, path: Path) -> tuple[int, int]:
    """Fills the adapters with a LoRA file's. Returns how many layers it had, and how many begin anew.

    Raises SafelightError for a file that holds more than is trained, or another kind, rank or shape.
    """
    file = read_lora(path, family)
    trained = {
        Place(part, name if part == DENOISER else canonical(name)): layer
        for part, module in components.modules().items()
        for name, layer in adapted_layers(module).items()
    }
    missing = [place for place in file.layers if place not in trained]
    if missing:
        raise SafelightError(_too_much(path.name, missing, trained))
    for place, layer in file.layers.items():
        own = trained[place]
        refuse_other_kind(path.name, "lora" if layer.kind == "locon" else layer.kind, own.kind)
        try:
            own.take(_tensors(layer, own))
        except ValueError as error:
            raise SafelightError(
                f"lora.continue_from names {path.name}, whose layer {place.module} does not fit: {error}. Set lora.rank and "
                "the like as they were, resize the file, or put it into the base with lora.merge_first."
            ) from error
    take_words(components, file.embeddings, path.name)
    return len(file.layers), len(trained) - len(file.layers)


def _too_much(name: str, missing: Sequence[Place], trained: Mapping[Place, AdaptedLayer]) -> str:
    parts = {place.part for place in trained}
    foreign = [place for place in missing if place.part not in parts]
    if foreign:
        setting = SETTING_OF_PART.get(foreign[0].part, "lora.train_text_encoder")
        way_out = f"Switch {setting} on"
    else:
        way_out = "Set lora.targets, the patterns and lora.conv_rank so that those are trained too"
    return (
        f"lora.continue_from names {name}, which holds {len(missing)} layers that this run does not train, such as "
        f"{missing[0].part} {missing[0].module}; they would be lost. {way_out}, or put the file into the base with "
        "lora.merge_first."
    )


def _tensors(layer: Layer, own: AdaptedLayer) -> dict[str, Tensor]:
    """A file's layer in the form of `AdaptedLayer.tensors`: fp32, and 1x1 convolutions with as many axes as ours have."""
    expected = own.tensors()
    found = {}
    for suffix, tensor in layer.tensors().items():
        like = expected.get(suffix)
        if like is not None and like.ndim != tensor.ndim and math.prod(like.shape[2:]) == math.prod(tensor.shape[2:]):
            tensor = tensor.reshape(*tensor.shape[:2], *like.shape[2:])
        found[suffix] = tensor.to(expected["alpha"].device).float()
    alpha = layer.alpha
    return {**found, "alpha": expected["alpha"] if alpha is None else torch.tensor(float(alpha))}
