"""Puts adapters on frozen networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from security.errors import SafelightError
from trainer.adapters.groups import Groups, parameter_groups
from trainer.adapters.layer import AdaptedLayer, BaseLayer
from trainer.adapters.table import make_adapter
from trainer.adapters.targets import DENOISER, LayerPlan, Part, plan_layers
from trainer.config.schema import LoraConfig, TrainConfig
from trainer.families.base import Components, ModelFamily
from trainer.randomness import derive_seed


@dataclass(frozen=True)
class Adapted:
    """The networks that have adapters, by diffusers' names of them, and what an optimizer moves."""

    parts: dict[str, nn.Module]
    groups: Groups


def adapt(config: TrainConfig, family: ModelFamily, components: Components) -> Adapted:
    """Puts the adapters of the settings on a model's parts.

    Raises SafelightError when a pattern matches nothing or a layer can't take the adapter.
    """
    wanted = learning_parts(config.lora, family, components)
    plans = plan_layers(wanted, config.lora)
    groups: Groups = []
    for part in wanted:
        seed = derive_seed(config.training.seed, "lora", *([] if part.name == DENOISER else [part.name]))
        layers = place(part.module, config.lora, plans[part.name], seed=seed)
        optimizer = config.optimizer
        groups += parameter_groups(
            part.name if part.name == DENOISER else "text_encoder",
            [(layer, plans[part.name][name].rate) for name, layer in layers.items()],
            learning_rate=optimizer.learning_rate if part.name == DENOISER else optimizer.text_encoder_learning_rate,
            lora_plus_ratio=optimizer.lora_plus_ratio,
        )
    if not groups:
        raise SafelightError(
            "lora.block_learning_rates freezes every layer, so nothing would be trained. Take a line with the factor 0 out."
        )
    return Adapted({part.name: part.module for part in wanted}, _joined(groups))


def learning_parts(settings: LoraConfig, family: ModelFamily, components: Components) -> list[Part]:
    """The networks that get adapters, with the layers that the presets name."""
    parts = []
    if settings.train_denoiser:
        endings = family.lora_targets(settings.targets)
        parts.append(Part(DENOISER, components.denoiser, endings, family.convolution_targets()))
    if settings.train_text_encoder:
        parts += [
            Part(name, module, family.text_encoder_targets())
            for name, module in components.modules().items()
            if name.startswith("text_encoder")
        ]
    return parts


def add_adapter(
    model: nn.Module, settings: LoraConfig, targets: Sequence[str], *, seed: int, part: str = DENOISER
) -> list[AdaptedLayer]:
    """Puts adapters on every layer of one network whose name ends in one of `targets`, unless patterns choose others."""
    plan = plan_layers([Part(part, model, targets)], settings)[part]
    return list(place(model, settings, plan, seed=seed).values())


def place(
    model: nn.Module, settings: LoraConfig, plan: Mapping[str, LayerPlan], *, seed: int
) -> dict[str, AdaptedLayer]:
    """Puts adapters on the planned layers and freezes all else; the model computes as before. Parameters are fp32.

    `seed` makes the start repeatable without touching other randomness: it is drawn on the CPU, layer by layer.
    """
    model.requires_grad_(False)
    placed = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, one in plan.items():
            base = cast("BaseLayer", model.get_submodule(name))
            adapter = make_adapter(settings.adapter, base, one.options)
            placed[name] = AdaptedLayer(base, adapter, module_dropout=settings.module_dropout)
            placed[name].adapter.to(base.weight.device)
    for name, layer in placed.items():
        model.set_submodule(name, layer)
    return placed


def _joined(groups: Groups) -> Groups:
    """Groups of the same name and rate as one: both text encoders of SDXL learn alike."""
    joined: dict[tuple[str, float], dict[str, object]] = {}
    for group in groups:
        same = joined.setdefault((group["name"], group["lr"]), {**group, "params": []})
        same["params"] = [*cast("list[nn.Parameter]", same["params"]), *group["params"]]
    return list(joined.values())
