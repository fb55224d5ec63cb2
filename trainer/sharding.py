"""A frozen base in parts: each worker keeps its share of every block, and all bring a block together while it computes.

FSDP2 of PyTorch (Zhao et al. 2023, arXiv:2304.11277). What learns stays whole on every worker, so that steps, checkpoints and
files are those of a base that is whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def shard(denoiser: nn.Module, device: torch.device, count: int) -> None:
    """Divides the frozen parameters among `count` workers, on their devices; the network may lie in the machine's memory.

    Block after block, so that no more than one is whole on a device at any time.
    """
    mesh = init_device_mesh(device.type, (count,))
    learning = {parameter for parameter in denoiser.parameters() if parameter.requires_grad}
    for tensor in (*learning, *denoiser.buffers()):
        tensor.data = tensor.data.to(device)
    for block in (*_blocks(denoiser), denoiser):
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=learning)


def _blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that compute one after the other."""
    for child in denoiser.children():
        for part in child if isinstance(child, nn.ModuleList) else (child,):
            if any(not parameter.requires_grad for parameter in part.parameters()):
                yield part


def whole(tensor: Tensor) -> Tensor:
    """All of a parameter of which each worker has a part; any other tensor as it is. All workers have to ask together."""
    found = tensor.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found
