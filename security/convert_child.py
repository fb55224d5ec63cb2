"""The confined child of convert.py: loads a checkpoint from an open file and writes its tensors as safetensors.

The one place that calls torch.load: with `weights_only`, without rights, on bytes that pickles.py has accepted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers put the tensors, beside step counters and the like."""
MAX_DROPPED = 200
_MAX_NAME_CHARACTERS, _MAX_LISTED = 80, 100


class NotTaken(Exception):
    """What is wrong, for the person."""


def main(arguments: list[str]) -> int:
    """Reads from the descriptor arguments[0], writes the file arguments[1], prints a report as JSON."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    with os.fdopen(int(arguments[0]), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        loaded = torch.load(file, weights_only=True, map_location="cpu", mmap=False)
    try:
        tensors, dropped = take_tensors(loaded, max_bytes=2 * size)
    except NotTaken as error:
        sys.stdout.write(json.dumps({"fault": str(error)}))
        return 0
    del loaded
    save_file(tensors, Path(arguments[1]), metadata={"format": "pt"})
    sys.stdout.write(json.dumps({"dropped": dropped}))
    return 0


def take_tensors(loaded: object, *, max_bytes: int) -> tuple[dict[str, Tensor], list[str]]:
    """Copies of the tensors by name, and the names of everything else. Takes them out of `loaded`, to save memory.

    Raises NotTaken for what is no table of tensors, and for tensors that are larger than the file.
    """
    table, dropped = _unwrapped(loaded)
    tensors: dict[str, Tensor] = {}
    total = 0
    for key in list(table):
        value = table.pop(key)
        if not isinstance(key, str) or not _is_tensor(value):
            dropped.append(str(key)[:_MAX_NAME_CHARACTERS])
            continue
        _check_tensor(key, value)
        total += value.numel() * value.element_size()
        if total > max_bytes:
            raise NotTaken("its tensors together are far larger than the file")
        tensors[key] = value.detach().clone().contiguous()
    if not tensors:
        inside = f", but {len(dropped)} other things ({', '.join(dropped[:5])[:_MAX_LISTED]})" if dropped else ""
        raise NotTaken(
            f"it holds no tensors by name{inside}. They must be in its table itself or under {', '.join(WRAPPERS)}, as "
            "those of a model are"
        )
    if len(dropped) > MAX_DROPPED:
        raise NotTaken(f"it holds {len(dropped)} things that are no tensors")
    return tensors, dropped


def _unwrapped(loaded: object) -> tuple[dict[object, Tensor], list[str]]:
    if not isinstance(loaded, dict):
        raise NotTaken("it is no table of tensors")
    for name in WRAPPERS:
        if isinstance(loaded.get(name), dict):
            dropped = [str(key)[:_MAX_NAME_CHARACTERS] for key in loaded if key != name]
            table = loaded.pop(name)
            loaded.clear()
            return table, dropped
    return loaded, []


def _is_tensor(value: object) -> bool:
    import torch

    return type(value) in (torch.Tensor, torch.nn.Parameter)


def _check_tensor(key: str, tensor: Tensor) -> None:
    import torch

    shown = ascii(key[:_MAX_NAME_CHARACTERS])
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise NotTaken(f"the tensor {shown} is sparse, quantised or of a device, which safetensors does not know")
    if tensor.is_conj() or tensor.is_neg() or tensor.dtype not in known_dtypes():
        raise NotTaken(f"the tensor {shown} is of the type {tensor.dtype}, which safetensors does not know")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise NotTaken(f"the tensor {shown} claims more numbers than the file holds")


def known_dtypes() -> Mapping[object, str]:
    """The element types that safetensors stores and this torch knows."""
    import torch

    from security.pickles import DTYPE_BYTES

    names = (name.removeprefix("torch.") for name in DTYPE_BYTES)
    return {getattr(torch, name): name for name in names if hasattr(torch, name)}
