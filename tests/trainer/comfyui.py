"""A LoRA file applied to a model by ComfyUI's rules, written down apart from the product: names, scales, axes and all.

What is read: comfy/lora.py and comfy/weight_adapter of 2026, at strength 1 and in fp32. Nothing here imports the product's
reader, so that a file which both apply alike is right for more reasons than that one of them was taken from the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import tiny

LINEAR_OF_CLIP = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)


def apply_file(state: dict[str, Tensor], unet: nn.Module, text_encoders: list[nn.Module]) -> set[str]:
    """Changes the weights as ComfyUI does; returns the keys that it would complain about."""
    left = set(state)
    for stems, weight in [*_unet_stems(unet), *_text_stems(text_encoders)]:
        for stem in stems:
            own = {
                key.removeprefix(f"{stem}."): one.float() for key, one in state.items() if key.startswith(f"{stem}.")
            }
            if own:
                left -= {f"{stem}.{suffix}" for suffix in own}
                weight.data = _changed(weight.data, own)
    return left


def _unet_stems(unet: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    original = tiny.ldm_unet({f"{name}.weight": torch.empty(0) for name in names})
    found = []
    for name, other in zip(names, original, strict=True):
        flat, other_flat = name.replace(".", "_"), other.removesuffix(".weight").replace(".", "_")
        weight = unet.get_parameter(f"{name}.weight")
        found.append(([f"lora_unet_{flat}", f"lora_unet_{other_flat}"], weight))
    return found


def _text_stems(text_encoders: list[nn.Module]) -> list[tuple[list[str], nn.Parameter]]:
    found = []
    for number, encoder in enumerate(text_encoders, start=1):
        for name, weight in encoder.named_parameters():
            bare = name.removeprefix("text_model.").removesuffix(".weight")
            if bare.endswith(LINEAR_OF_CLIP) and name.endswith("weight"):
                flat = f"text_model_{bare.replace('.', '_')}"
                stems = [f"lora_te{number}_{flat}"] + ([f"lora_te_{flat}"] if number == 1 else [])
                found.append((stems, weight))
    return found


def _changed(weight: Tensor, own: dict[str, Tensor]) -> Tensor:
    """The weight with one module's tensors applied: the first kind that is there."""
    alpha = float(own["alpha"]) if "alpha" in own else None
    if "oft_blocks" in own:
        assert alpha is not None, "older versions fail silently without an alpha"
        return _turned(weight, own["oft_blocks"])
    rank, change = _product(weight, own)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    changed = weight + scale * change.reshape(weight.shape)
    if "dora_scale" not in own:
        return changed
    lengths = own["dora_scale"]
    if lengths.shape[0] == weight.shape[0]:
        norms = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))  # of the weight before the change
    else:
        norms = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.ndim - 2))
    return changed * lengths / norms


def _product(weight: Tensor, own: dict[str, Tensor]) -> tuple[int | None, Tensor]:
    """The rank that alpha is divided by, and the change without scale."""
    if "lora_up.weight" in own:
        down = own["lora_down.weight"]
        return len(down), own["lora_up.weight"].flatten(1) @ down.flatten(1)
    if "hada_w1_a" in own:
        first, second = own["hada_w1_a"] @ own["hada_w1_b"], own["hada_w2_a"] @ own["hada_w2_b"]
        return len(own["hada_w1_b"]), first * second
    rank = None
    halves = []
    for half in ("lokr_w1", "lokr_w2"):
        if half not in own:
            rank = len(own[f"{half}_b"])
        halves.append(own[half] if half in own else own[f"{half}_a"] @ own[f"{half}_b"])
    small, large = halves
    return rank, torch.kron(small[..., None, None] if large.ndim == 4 else small, large)


def _turned(weight: Tensor, blocks: Tensor) -> Tensor:
    skew = blocks - blocks.mT
    one = torch.eye(blocks.shape[-1])
    turns = (one + skew) @ (one - skew).inverse()
    if blocks.ndim == 3:
        rows = weight.unflatten(0, blocks.shape[:2])
        return torch.stack([torch.tensordot(turn.T, part, 1) for turn, part in zip(turns, rows, strict=True)]).flatten(
            0, 1
        )
    size = blocks.shape[-1]
    for stage, turn in enumerate(turns):
        width = 2**stage * (size // 2)
        # (groups, 2, width) becomes (groups, width, 2); blocks of `size` rows of that are turned, and it goes back.
        spread = weight.unflatten(0, (-1, 2, width)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        parts = torch.stack([torch.tensordot(one_turn, part, 1) for one_turn, part in zip(turn, spread, strict=True)])
        weight = parts.flatten(0, 1).unflatten(0, (-1, width, 2)).transpose(1, 2).flatten(0, 2)
    return weight
