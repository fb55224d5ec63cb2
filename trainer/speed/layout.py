"""Frozen convolutions whose weights lie channels last, as the tensor cores of GPUs want them: (out, height, width, in).

The weights' order decides: what such a convolution answers lies channels last too, and so does all that follows. What
learns stays in the usual order, in which it is written to files.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.memory.layers import StoredConv2d


def put_channels_last(part: nn.Module) -> int:
    """Reorders the frozen weights in place; returns how many. Stored and packed ones have an order of their own."""
    found = [
        module.weight
        for module in part.modules()
        if isinstance(module, nn.Conv2d) and not isinstance(module, StoredConv2d) and not module.weight.requires_grad
    ]
    for weight in found:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return len(found)
