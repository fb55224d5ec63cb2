"""The kinds of layers that LoRA files hold, each with what it adds to a base weight, computed in fp32.

LoRA: Hu et al. 2021, arXiv:2106.09685. LoHa, LoKr, LoCon: LyCORIS, Yeh et al. 2023, arXiv:2309.14859. DoRA: Liu et al. 2024,
arXiv:2402.09353. OFT: Qiu et al. 2023, arXiv:2306.07280. BOFT: Liu et al. 2023, arXiv:2311.06243. Layers that turn the base
weight do so on its output side, as LyCORIS' files are meant. A weight is (out, in) or (out, in, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NORM_FLOOR = 1e-8
"""Added to a rotation's norm before it is compared with its limit, so that nothing is divided by zero."""


class Layer(Protocol):
    """What a LoRA file holds for one module."""

    @property
    def kind(self) -> str:
        """lora, locon, loha, lokr, oft, boft, dora, full or norm."""
        ...

    @property
    def rank(self) -> int | None:
        """Width of the bottleneck; block size of a rotation; None where there is none."""
        ...

    @property
    def alpha(self) -> float | None:
        """The alpha that its effect is scaled by; None where nothing is."""
        ...

    @property
    def needs_weight(self) -> bool:
        """Whether `delta` can't do without the base weight."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(out, in, ...) of the weight that it is for, as far as the file tells; None where only the outputs are known."""
        ...

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """What is added to the base weight, fp32, in its shape; without one, in the shape that the file tells.

        Raises ValueError where `weight` is missing but needed, or has another shape than the layer is made for.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the end of their keys in kohya's and LyCORIS' files, without alpha."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA and LoCon: alpha / r * up @ down. `down` (r, in, ...), `up` (out, r, ...), `mid` (r, r, height, width) or None.

    With `mid` the convolution is in Tucker form: up and down are 1x1 and mid has the kernel (LyCORIS, section 3.2).
    """

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None

    @property
    def kind(self) -> str:
        """locon if it has a kernel, else lora."""
        widest = self.down if self.mid is None else self.mid
        return "locon" if widest.ndim > 2 and max(widest.shape[2:]) > 1 else "lora"

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return len(self.down)

    @property
    def needs_weight(self) -> bool:
        """No."""
        return False

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, ...)."""
        return (len(self.up), self.down.shape[1], *(self.down if self.mid is None else self.mid).shape[2:])

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """scale * up @ down, (out, in, ...)."""
        down, up = self.down.float(), self.up.float().flatten(1)
        if self.mid is None:
            product = (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        else:
            product = torch.einsum("mn...,im,nj->ij...", self.mid.float(), up, down.flatten(1))
        return _shaped(self.scale * product, weight)

    def tensors(self) -> dict[str, Tensor]:
        """lora_up, lora_down and lora_mid."""
        return {"lora_up.weight": self.up, "lora_down.weight": self.down, **_given({"lora_mid.weight": self.mid})}


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b), element by element. `w1_a` (out, r), `w1_b` (r, in * height * width).

    In Tucker form `t1` and `t2` are (r, r, height, width), `w1_a` (r, out) and `w1_b` (r, in). `kernel`: the sides of the
    convolution that it is for, where only its name tells them.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    kernel: tuple[int, int] | None = None

    kind = "loha"
    needs_weight = False

    @property
    def rank(self) -> int:
        """Width of each of the two bottlenecks."""
        return len(self.w1_b)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, ...)."""
        return _kernel_shape(_product_shape(self.w1_a, self.w1_b, self.t1), self.kernel)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The product, (out, in, ...)."""
        first = _product(self.w1_a, self.w1_b, self.t1)
        second = _product(self.w2_a, self.w2_b, self.t2)
        return _shaped((self.alpha / self.rank * first * second).reshape(self.shape), weight)

    def tensors(self) -> dict[str, Tensor]:
        """hada_w1_a and so on."""
        names = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
        return _given({f"hada_{name}": getattr(self, name) for name in names})


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: the Kronecker product of w1 (o1, i1) and w2 (o2, i2, ...), each whole or as a product of two matrices.

    Scaled by alpha / r only if at least one of them is factored; every reader takes 1 otherwise. In Tucker form `t2` is
    (r, r, height, width), `w2_a` (r, o2) and `w2_b` (r, i2). `kernel` as in Hadamard.
    """

    alpha_stored: float
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    kernel: tuple[int, int] | None = None

    kind = "lokr"
    needs_weight = False

    @property
    def rank(self) -> int | None:
        """Width of the factored half's bottleneck; None if both are whole."""
        factored = self.w2_b if self.w2_b is not None else self.w1_b
        return None if factored is None else len(factored)

    @property
    def alpha(self) -> float | None:
        """The alpha that counts: None if both halves are whole."""
        return None if self.rank is None else self.alpha_stored

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, ...)."""
        first = _either_shape(self.w1, self.w1_a, self.w1_b, None)
        second = _either_shape(self.w2, self.w2_a, self.w2_b, self.t2)
        return _kernel_shape((first[0] * second[0], first[1] * second[1], *first[2:], *second[2:]), self.kernel)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The product, (out, in, ...)."""
        first = _either(self.w1, self.w1_a, self.w1_b, None)
        second = _either(self.w2, self.w2_a, self.w2_b, self.t2)
        scale = 1.0 if self.rank is None else self.alpha_stored / self.rank
        first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
        return _shaped((scale * torch.kron(first.contiguous(), second.contiguous())).reshape(self.shape), weight)

    def tensors(self) -> dict[str, Tensor]:
        """lokr_w1 or lokr_w1_a and lokr_w1_b, and so on."""
        names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        return _given({f"lokr_{name}": getattr(self, name) for name in names})


@dataclass(frozen=True, eq=False)
class Rotation:
    """OFT: blocks of the base weight's output rows are turned by Cayley's R = (1 + Q)(1 - Q)^-1, Q = B - B^T.

    `blocks` B (number, size, size). `constraint`: the longest Q (its Frobenius norm over all blocks) as a share of the
    number of output rows, 0 for none; stored as alpha. `rescale` (out, 1, ...) scales the turned rows.
    """

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    kind = "oft"
    needs_weight = True
    shape = None

    @property
    def rank(self) -> int:
        """Size of a block."""
        return int(self.blocks.shape[-1])

    @property
    def alpha(self) -> float:
        """The constraint, which is stored under this name."""
        return self.constraint

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The turned weight less the weight."""
        base = _needed(weight, len(self.blocks) * self.rank, "OFT")
        blocked = base.reshape(len(self.blocks), self.rank, -1)
        turned = _cayley(self.blocks.to(base.device), self.constraint * len(base)).transpose(1, 2) @ blocked
        return _rescaled(turned.reshape(base.shape), self.rescale) - base

    def tensors(self) -> dict[str, Tensor]:
        """oft_blocks and rescale."""
        return {"oft_blocks": self.blocks, **_given({"rescale": self.rescale})}


@dataclass(frozen=True, eq=False)
class Butterfly:
    """BOFT: several rotations in blocks, each of rows that lie further apart (a butterfly, as in the fast Fourier transform).

    `blocks` (stages, number, size, size) with an even size. `constraint` and `rescale` as in Rotation.
    """

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    kind = "boft"
    needs_weight = True
    shape = None

    @property
    def rank(self) -> int:
        """Size of a block."""
        return int(self.blocks.shape[-1])

    @property
    def alpha(self) -> float:
        """The constraint, which is stored under this name."""
        return self.constraint

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The turned weight less the weight."""
        num_stages, num_blocks, size, _ = self.blocks.shape
        base = _needed(weight, num_blocks * size, "BOFT")
        rotations = _cayley(self.blocks.to(base.device), self.constraint * len(base))
        turned = base.flatten(1)
        for stage in range(num_stages):
            reach = 2**stage * size // 2
            # Rows `reach` apart come together, are turned block by block, and go back to their places.
            order = torch.arange(len(base), device=base.device).reshape(-1, 2, reach).transpose(1, 2).flatten()
            blocked = turned[order].reshape(num_blocks, size, -1)
            turned = torch.empty_like(turned).index_copy(0, order, (rotations[stage] @ blocked).flatten(0, 1))
        return _rescaled(turned.reshape(base.shape), self.rescale) - base

    def tensors(self) -> dict[str, Tensor]:
        """oft_blocks and rescale."""
        return {"oft_blocks": self.blocks, **_given({"rescale": self.rescale})}


@dataclass(frozen=True, eq=False)
class Decomposed:
    """DoRA over another layer: the changed weight's rows or columns get the lengths in `magnitude`.

    `magnitude` (out, 1, ...) for the weights of each output, (1, in, 1, 1) for those of each input.
    """

    inner: LowRank | Hadamard | Kronecker
    magnitude: Tensor

    kind = "dora"
    needs_weight = True

    @property
    def rank(self) -> int | None:
        """The inner layer's."""
        return self.inner.rank

    @property
    def alpha(self) -> float | None:
        """The inner layer's."""
        return self.inner.alpha

    @property
    def shape(self) -> tuple[int, ...]:
        """The inner layer's."""
        return self.inner.shape

    def on_output_axis(self, weight: Tensor) -> bool:
        """Whether the magnitude is one number for each output. Raises ValueError where it fits neither side."""
        if self.magnitude.shape[0] == weight.shape[0] and self.magnitude.numel() == weight.shape[0]:
            return True
        if self.magnitude.numel() == weight.shape[1]:
            return False
        raise ValueError(
            f"a DoRA magnitude of shape {tuple(self.magnitude.shape)} fits no weight of {tuple(weight.shape)}"
        )

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The changed weight with its new lengths, less the weight."""
        base = _needed(weight, None, "DoRA")
        changed = base + self.inner.delta(base)
        along = [0, *range(2, base.ndim)]
        shape = [1, base.shape[1], *[1] * (base.ndim - 2)]
        if self.on_output_axis(base):
            along, shape = list(range(1, base.ndim)), [len(base), *[1] * (base.ndim - 1)]
        lengths = torch.linalg.vector_norm(changed, dim=along, keepdim=True) + torch.finfo(torch.float32).eps
        return changed * self.magnitude.to(base.device).float().reshape(shape) / lengths - base

    def tensors(self) -> dict[str, Tensor]:
        """The inner layer's and dora_scale."""
        return {**self.inner.tensors(), "dora_scale": self.magnitude}


@dataclass(frozen=True, eq=False)
class Difference:
    """The whole difference of a weight, as a fine-tune stores it; of a norm's weight (one number a channel) likewise."""

    diff: Tensor

    rank = None
    alpha = None
    needs_weight = False

    @property
    def kind(self) -> str:
        """norm for a vector, else full."""
        return "norm" if self.diff.ndim == 1 else "full"

    @property
    def shape(self) -> tuple[int, ...]:
        """The difference's own."""
        return tuple(self.diff.shape)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The difference."""
        return _shaped(self.diff.float(), weight)

    def tensors(self) -> dict[str, Tensor]:
        """diff, or w_norm."""
        return {"w_norm" if self.kind == "norm" else "diff": self.diff}


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a @ b, or the Tucker form (r, r, height, width) with a (r, out) and b (r, in)."""
    if core is None:
        return a.float() @ b.float()
    return torch.einsum("ij...,jr,ip->pr...", core.float(), b.float(), a.float())


def _either(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if whole is not None:
        return whole.float()
    assert a is not None and b is not None, "a Kronecker factor is whole or a product; the reader checks it"
    return _product(a, b, core)


def _product_shape(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    return (len(a), b.shape[1]) if core is None else (a.shape[1], b.shape[1], *core.shape[2:])


def _either_shape(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> tuple[int, ...]:
    if whole is not None:
        return tuple(whole.shape)
    assert a is not None and b is not None, "a Kronecker factor is whole or a product; the reader checks it"
    return _product_shape(a, b, core)


def _kernel_shape(shape: tuple[int, ...], kernel: tuple[int, int] | None) -> tuple[int, ...]:
    """(out, in * height * width) as (out, in, height, width) where the kernel is known and not already a dimension."""
    if kernel is None or len(shape) > 2:
        return shape
    return (shape[0], shape[1] // (kernel[0] * kernel[1]), *kernel)


def _shaped(delta: Tensor, weight: Tensor | None) -> Tensor:
    """In the weight's shape: 1x1 convolutions and linear layers are the same numbers. Raises ValueError if it has others."""
    if weight is None:
        return delta
    if delta.numel() != weight.numel() or len(delta) != len(weight):
        raise ValueError(
            f"a layer for a weight of shape {tuple(delta.shape)} can't change one of {tuple(weight.shape)}"
        )
    return delta.reshape(weight.shape).to(weight.device)


def _needed(weight: Tensor | None, num_rows: int | None, kind: str) -> Tensor:
    """The base weight in fp32. Raises ValueError if there is none or it has other than `num_rows` outputs."""
    if weight is None:
        raise ValueError(f"{kind} changes the base weight itself, so it can't be computed without the base model")
    if num_rows is not None and len(weight) != num_rows:
        raise ValueError(f"a {kind} layer for {num_rows} outputs can't change a weight of {tuple(weight.shape)}")
    return weight.float()


def _cayley(blocks: Tensor, limit: float) -> Tensor:
    """Rotations (..., size, size) in fp32 from free square matrices; `limit` on the length of all of Q, 0 for none."""
    skew = blocks.float() - blocks.float().transpose(-1, -2)
    if limit > 0:
        length = skew.norm() + NORM_FLOOR
        if length > limit:
            skew = skew * (limit / length)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    # (1 + Q)(1 - Q)^-1; both factors commute, so one solve gives it without forming an inverse.
    return torch.linalg.solve(one - skew, one + skew)


def _rescaled(weight: Tensor, rescale: Tensor | None) -> Tensor:
    if rescale is None:
        return weight
    return weight * rescale.to(weight.device).float().reshape(len(weight), *[1] * (weight.ndim - 1))


def _given(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
