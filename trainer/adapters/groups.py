"""Parameter groups: which weights learn at which rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from trainer.adapters.layer import AdaptedLayer, adapted_layers

Groups = list[dict[str, Any]]
"""Each holds `params`, its base rate `lr` and a `name`; schedules multiply each group's own rate."""


def parameter_groups(
    part: str, layers: Sequence[tuple[AdaptedLayer, float]], *, learning_rate: float, lora_plus_ratio: float
) -> Groups:
    """The groups of a part's layers, each given with its factor on the rate; a factor of 0 freezes the layer.

    Without LoRA+ and factors that is one group with all parameters in the layers' order.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for layer, factor in layers:
        for parameter, faster in _sides(layer, lora_plus_ratio):
            if factor == 0:
                parameter.requires_grad_(False)
                continue
            rate = learning_rate * factor * (lora_plus_ratio if faster else 1.0)
            name = part + (f" x{factor:g}" if factor != 1 else "") + (" up" if faster else "")
            group = groups.setdefault((factor, faster), {"params": [], "lr": rate, "name": name})
            group["params"].append(parameter)
    return list(groups.values())


def _sides(layer: AdaptedLayer, lora_plus_ratio: float) -> Iterator[tuple[nn.Parameter, bool]]:
    """The parameters of a layer's adapter, each with whether LoRA+ trains it faster."""
    ups = {id(parameter) for parameter in layer.output_side()} if lora_plus_ratio != 1 else set()
    for parameter in layer.adapter.parameters():
        yield parameter, id(parameter) in ups


def stop_learning(parts: Mapping[str, nn.Module]) -> None:
    """Ends the learning of adapters for good: no gradient, so that no optimizer moves them, and no dropout."""
    for part in parts.values():
        for layer in adapted_layers(part).values():
            layer.eval()
            layer.adapter.requires_grad_(False)
