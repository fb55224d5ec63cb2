"""A limit on how far each layer may be changed: longer changes are shortened to it after every step.

Max-norm regularisation (Srebro and Shraibman 2005; Hinton et al. 2012, arXiv:1207.0580), on the change that
an adapter makes instead of on the weight; sd-scripts calls it `scale_weight_norms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor

from trainer.adapters.layer import AdaptedLayer
from trainer.adapters.low_rank import LoraAdapter


def limit_norms(layers: Iterable[AdaptedLayer], limit: float) -> None:
    """Shortens the change of each layer to the Frobenius norm `limit`; one that is not longer stays bit for bit.

    A change is a product of all of an adapter's parameters, so each takes the same root of the factor. Layers of other
    kinds are left alone: a rotation has no length that grows, and DoRA learns the lengths itself.
    """
    with torch.no_grad():
        for layer in layers:
            if layer.kind not in _NORMS:
                continue
            norm = _NORMS[layer.kind](layer)
            parameters = list(layer.adapter.parameters())
            # 1 where nothing is too long. Without a question to the GPU, which would be one for each layer of the model.
            factor = (limit / norm.clamp(min=limit)) ** (1 / len(parameters))
            for parameter in parameters:
                parameter.mul_(factor)


def _lora_norm(layer: AdaptedLayer) -> Tensor:
    """||B A||^2 is the sum of (B^T B) * (A A^T): two matrices of the rank's size instead of one of the layer's."""
    adapter = cast("LoraAdapter", layer.adapter)
    up, down = adapter.factors()
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0).sqrt() * abs(adapter.scale)


_NORMS: dict[str, Callable[[AdaptedLayer], Tensor]] = {
    "lora": _lora_norm,
    "loha": lambda layer: layer.delta().norm(),
    "lokr": lambda layer: layer.delta().norm(),
}
