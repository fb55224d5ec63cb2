"""What of an adapted network a checkpoint holds, and putting it back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.adapters.layer import adapted_layers


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """All that the adapters of a network hold, learned or not, by module and name; the tensors themselves, no copies."""
    return {
        f"{name}.adapter.{key}": tensor
        for name, layer in adapted_layers(model).items()
        for key, tensor in layer.adapter.state_dict(keep_vars=False).items()
    }


def load_adapter_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts tensors from `adapter_weights` back. Raises ValueError when names or shapes don't match."""
    present = adapter_weights(model)
    if present.keys() != weights.keys():
        unknown, missing = sorted(weights.keys() - present.keys()), sorted(present.keys() - weights.keys())
        raise ValueError(f"adapter weights don't fit: unexpected {unknown[:3]}, missing {missing[:3]}")
    with torch.no_grad():
        for name, tensor in weights.items():
            if present[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, and the network has {tuple(present[name].shape)}")
            present[name].copy_(tensor)
