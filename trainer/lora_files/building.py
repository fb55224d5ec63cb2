"""Makes a layer of the tensors that a LoRA file has for one module, and refuses what no layer is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from security.errors import RefusedFile
from trainer.lora_files import keys
from trainer.lora_files.layers import Butterfly, Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank, Rotation
from trainer.lora_files.names import UNET, Place, kernel_of

MAX_WEIGHT_NUMBERS = 1 << 27
"""Of the weight that one layer changes; the largest of any Stable Diffusion model has half of that."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)

Tensors = Mapping[str, Tensor]


class OddLayer(Exception):
    """The tensors of a module make no layer. `suffix` is the one that the fault shows at."""

    def __init__(self, suffix: str, reason: str) -> None:
        super().__init__(reason)
        self.suffix, self.reason = suffix, reason


@dataclass(frozen=True)
class Parts:
    """The tensors of one module by their suffix, its alpha if the file has one, and its kernel if its name tells."""

    tensors: Tensors
    alpha: float | None
    kernel: tuple[int, int] | None

    def need(self, suffix: str) -> Tensor:
        """A tensor that the kind can't do without."""
        if suffix not in self.tensors:
            present = next(iter(self.tensors))
            raise OddLayer(present, f"its other half, {suffix}, is missing")
        return self.tensors[suffix]

    def get(self, suffix: str) -> Tensor | None:
        """A tensor that the kind may have."""
        return self.tensors.get(suffix)


def _low_rank(parts: Parts) -> LowRank:
    up, down, mid = parts.need(keys.UP), parts.need(keys.DOWN), parts.get(keys.MID)
    rank = len(down)
    _check(
        keys.UP, up.ndim in (2, 4) and up.numel() == len(up) * rank, f"its shape {_shape(up)} does not fit rank {rank}"
    )
    _check(keys.DOWN, down.ndim in (2, 4), f"its shape is {_shape(down)}")
    if mid is not None:
        one_by_one = down.numel() == rank * down.shape[1]
        _check(keys.MID, mid.ndim == 4 and mid.shape[:2] == (rank, rank) and one_by_one, f"its shape is {_shape(mid)}")
    kernel = math.prod(down.shape[2:]) if mid is None else math.prod(mid.shape[2:])
    _check_size(keys.UP, len(up) * down.shape[1] * kernel)
    return LowRank(down, up, rank if parts.alpha is None else parts.alpha, mid)


def _hadamard(parts: Parts) -> Hadamard:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    w1_a, w1_b, w2_a, w2_b = (_matrix(name, parts.need(name)) for name in names)
    t1, t2 = parts.get("hada_t1"), parts.get("hada_t2")
    if (t1 is None) != (t2 is None):
        raise OddLayer("hada_t1" if t2 is None else "hada_t2", "the other one of hada_t1 and hada_t2 is missing")
    shapes = [_product_shape(*one) for one in (("hada_w1_b", w1_a, w1_b, t1), ("hada_w2_b", w2_a, w2_b, t2))]
    _check("hada_w2_a", shapes[0] == shapes[1], f"it makes a weight of {shapes[1]}, the first half one of {shapes[0]}")
    _check("hada_w2_b", len(w1_b) == len(w2_b), f"its rank {len(w2_b)} is not {len(w1_b)} as the first half's")
    _check_size("hada_w1_a", math.prod(shapes[0]))
    alpha = float(len(w1_b)) if parts.alpha is None else parts.alpha
    return Hadamard(w1_a, w1_b, w2_a, w2_b, alpha, t1, t2, _kernel("hada_w1_b", parts, shapes[0]))


def _kronecker(parts: Parts) -> Kronecker:
    sides = {name.removeprefix("lokr_"): tensor for name, tensor in parts.tensors.items()}
    first = _half(parts, "lokr_w1", None)
    second = _half(parts, "lokr_w2", sides.get("t2"))
    _check("lokr_w1", len(first) == 2, f"it makes a matrix of {first}")
    _check_size("lokr_w1", math.prod(first) * math.prod(second))
    product = (first[0] * second[0], first[1] * second[1], *second[2:])
    ranks = {len(sides[name]) for name in ("w1_b", "w2_b") if name in sides}
    _check("lokr_w1_b", len(ranks) < 2, f"its rank and the other half's differ: {sorted(ranks)}")
    stored = float(next(iter(ranks), 1)) if parts.alpha is None else parts.alpha
    return Kronecker(alpha_stored=stored, kernel=_kernel("lokr_w2", parts, product), **sides)


def _half(parts: Parts, name: str, core: Tensor | None) -> tuple[int, ...]:
    """The shape of one factor of a Kronecker product, which is whole or a product of two matrices."""
    whole = parts.get(name)
    if whole is not None:
        extra = [one for one in (f"{name}_a", f"{name}_b") if one in parts.tensors] + ["lokr_t2"] * (core is not None)
        _check(name, not extra, f"it is there whole and also in parts ({', '.join(extra)})")
        _check(name, whole.ndim in (2, 4), f"its shape is {_shape(whole)}")
        return tuple(whole.shape)
    a, b = (_matrix(one, parts.need(one)) for one in (f"{name}_a", f"{name}_b"))
    return _product_shape(f"{name}_b", a, b, core)


def _rotation(parts: Parts) -> Rotation | Butterfly:
    blocks, rescale = parts.need("oft_blocks"), parts.get("rescale")
    square = blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2]
    _check("oft_blocks", square, f"its shape {_shape(blocks)} is not a row of square blocks")
    num_rows = blocks.shape[-3] * blocks.shape[-1]
    _check_size("oft_blocks", num_rows)
    if rescale is not None:
        _check("rescale", rescale.numel() == num_rows, f"it has {rescale.numel()} numbers for {num_rows} outputs")
    constraint = 0.0 if parts.alpha is None else parts.alpha
    _check(keys.ALPHA, constraint >= 0, f"a rotation's limit can't be {constraint:g}")
    if blocks.ndim == 3:
        return Rotation(blocks, constraint, rescale)
    num_stages, size = len(blocks), blocks.shape[-1]
    reach = 2**num_stages * size // 2 if num_stages < 32 else 0
    fits = size % 2 == 0 and reach > 0 and num_rows % reach == 0
    _check("oft_blocks", fits, f"{num_stages} stages of blocks of {size} don't fit {num_rows} outputs")
    return Butterfly(blocks, constraint, rescale)


def _full(parts: Parts) -> Difference:
    diff = parts.need("diff")
    _check("diff", diff.ndim in (2, 4), f"its shape is {_shape(diff)}")
    _check_size("diff", diff.numel())
    return Difference(diff)


def _norm(parts: Parts) -> Difference:
    diff = parts.need("w_norm")
    _check("w_norm", diff.ndim == 1, f"its shape is {_shape(diff)}")
    return Difference(diff)


_KINDS: tuple[tuple[frozenset[str], Callable[[Parts], Layer]], ...] = (
    (frozenset({keys.UP, keys.DOWN, keys.MID}), _low_rank),
    (frozenset(one for one in keys.LYCORIS_SUFFIXES if one.startswith("hada_")), _hadamard),
    (frozenset(one for one in keys.LYCORIS_SUFFIXES if one.startswith("lokr_")), _kronecker),
    (frozenset({"oft_blocks", "rescale"}), _rotation),
    (frozenset({"diff"}), _full),
    (frozenset({"w_norm"}), _norm),
)
"""The suffixes that belong to each kind of layer, and what makes one of them."""


def build_layer(place: Place, tensors: Tensors, key_of: Mapping[str, str], default_alpha: float | None) -> Layer | None:
    """The layer of a module's tensors, given by suffix; None where there is only an alpha, magnitude or bias.

    `default_alpha` is for files that keep alpha in their metadata. `key_of`: the file's key of each suffix, for messages.
    Raises RefusedFile that names the key.
    """
    kinds = [(own, make) for own, make in _KINDS if own & tensors.keys()]
    if not kinds:
        return None
    try:
        if len(kinds) > 1:
            first, second = (min(own & tensors.keys()) for own, _ in kinds[:2])
            raise OddLayer(second, f"the module also has {first}, which is another kind of layer")
        for suffix, tensor in tensors.items():
            _check(suffix, tensor.dtype in _FLOATS, f"its numbers are {str(tensor.dtype).removeprefix('torch.')}")
            _check(suffix, tensor.numel() > 0, f"it is empty (shape {_shape(tensor)}); a rank of 0 changes nothing")
        own, make = kinds[0]
        alpha = _number(keys.ALPHA, tensors[keys.ALPHA]) if keys.ALPHA in tensors else default_alpha
        kernel = kernel_of(place.module) if place.part == UNET else None
        layer = make(Parts({suffix: one for suffix, one in tensors.items() if suffix in own}, alpha, kernel))
        return _decomposed(layer, tensors)
    except OddLayer as odd:
        key = key_of.get(odd.suffix, next(iter(key_of.values())))
        raise RefusedFile(f"{key} can't be used: {odd.reason}. Download or export the file again.") from None


def _decomposed(layer: Layer, tensors: Tensors) -> Layer:
    magnitude = tensors.get(keys.MAGNITUDE)
    if keys.PEFT_MAGNITUDE in tensors:
        magnitude = tensors[keys.PEFT_MAGNITUDE].flatten()[:, None]
    if magnitude is None:
        return layer
    suffix = keys.MAGNITUDE if keys.MAGNITUDE in tensors else keys.PEFT_MAGNITUDE
    if not isinstance(layer, LowRank | Hadamard | Kronecker):
        raise OddLayer(suffix, f"a DoRA magnitude does not go with {layer.kind}")
    num_out, num_in = layer.shape[:2]
    sizes = [max(magnitude.shape), magnitude.numel()]
    _check(
        suffix,
        sizes in ([num_out] * 2, [num_in] * 2),
        f"its shape {_shape(magnitude)} fits no weight of ({num_out}, {num_in}, ...)",
    )
    return Decomposed(layer, magnitude)


def _check(suffix: str, holds: bool, reason: str) -> None:
    if not holds:
        raise OddLayer(suffix, reason)


def _check_size(suffix: str, count: int) -> None:
    _check(
        suffix,
        0 < count <= MAX_WEIGHT_NUMBERS,
        f"it stands for a weight of {count} numbers, and no model has such a one",
    )


def _number(suffix: str, tensor: Tensor) -> float:
    _check(suffix, tensor.numel() == 1, f"its shape is {_shape(tensor)} instead of one number")
    return float(tensor.item())


def _matrix(suffix: str, tensor: Tensor) -> Tensor:
    _check(suffix, tensor.ndim == 2, f"its shape {_shape(tensor)} is no matrix")
    return tensor


def _product_shape(suffix: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    """The shape that two factors make, by themselves or around a Tucker core."""
    if core is None:
        _check(suffix, a.shape[1] == len(b), f"its rank {len(b)} is not {a.shape[1]} as the other factor's")
        return (len(a), b.shape[1])
    fits = core.ndim == 4 and core.shape[:2] == (len(a), len(b)) and len(a) == len(b)
    _check(
        suffix, fits, f"the core between the factors has the shape {_shape(core)}, the ranks are {len(a)} and {len(b)}"
    )
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _kernel(suffix: str, parts: Parts, made: tuple[int, ...]) -> tuple[int, int] | None:
    """The kernel that the product's columns hold, where the module's name tells that it has one."""
    if parts.kernel is None or len(made) > 2:
        return None
    _check(suffix, made[1] % math.prod(parts.kernel) == 0, f"{made[1]} columns don't hold a {parts.kernel} convolution")
    return parts.kernel


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
