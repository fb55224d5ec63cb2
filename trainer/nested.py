"""Nested state as named tensors and plain JSON, and back: any optimizer's state, whatever it is made of. Never pickled."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state as named tensors on the CPU and a JSON structure that points at them; `unflatten` is the reverse.

    Dictionaries become lists of pairs, because JSON keys can only be texts. Raises TypeError for what it does not know.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            # Cloned: safetensors refuses two names for one memory, and some optimizers begin with a state that is shared.
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[walk(key), walk(item)] for key, item in value.items()]}
        if type(value) in SEQUENCES.values():
            return {type(value).__name__: [walk(item) for item in value]}
        if isinstance(value, torch.Size):
            return {"tuple": [walk(item) for item in value]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if hasattr(value, "item"):  # a number of numpy's
            return {"value": value.item()}
        raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")

    return tensors, walk(state)


def unflatten(tensors: dict[str, Tensor], structure: Any) -> Any:
    """The nested state that `flatten` took apart. Raises ValueError for a structure that it did not make."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unflatten(tensors, key): unflatten(tensors, item) for key, item in content}
    if kind in SEQUENCES:
        items: Iterator[Any] = (unflatten(tensors, item) for item in content)
        return SEQUENCES[kind](items)
    if kind == "dtype":
        return DTYPES[content]
    if kind == "value":
        return content
    raise ValueError(f"a checkpoint holds {kind!r}, which is no kind of value")
