"""What Stable Diffusion's U-Net families share: pictures to latents and back, LoRA targets, sizes, frozen parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.schema import LoraTargets
from trainer.families.base import Components, UnusableLatents, UnusableModel

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
_PROJECTION = ["proj_in", "proj_out"]

CONVOLUTION_TARGETS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
"""Endings of the names of what is in the residual blocks and samplers: what kohya's trainer takes with a `conv_dim`."""
_EDGES = [
    *("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
    *("add_embedding.linear_1", "add_embedding.linear_2"),
]

LORA_TARGETS: dict[LoraTargets, list[str]] = {
    LoraTargets.CROSS_ATTENTION: [f"attn2.{name}" for name in _ATTENTION],
    LoraTargets.ATTENTION: _ATTENTION,
    LoraTargets.ATTENTION_FEED_FORWARD: _ATTENTION + _FEED_FORWARD,
    LoraTargets.ATTENTION_FEED_FORWARD_PROJECTION: _ATTENTION + _FEED_FORWARD + _PROJECTION,
    LoraTargets.ALL: _ATTENTION + _FEED_FORWARD + _PROJECTION + CONVOLUTION_TARGETS + _EDGES,
}
"""Endings of module names. The one with projections is what kohya's trainer calls "LoRA for Linear and 1x1 Conv"."""


def compute_dtype(denoiser: nn.Module) -> torch.dtype:
    """Format of the frozen U-Net's weights. Asked of a layer that no LoRA touches: its parameters are fp32."""
    dtype: torch.dtype = denoiser.conv_in.weight.dtype
    return dtype


def vae_dtype(vae: Any, dtype: torch.dtype) -> torch.dtype:
    """Format to run a VAE in: fp32 unless its config says that it stands less, as SDXL's overflows in fp16."""
    return torch.float32 if vae.config.get("force_upcast", True) else dtype


def freeze(part: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """The part on its device, in evaluation mode, with no parameter that learns; in `dtype` if it is in another one."""
    if dtype is not None and part.dtype != dtype:
        part = part.to(dtype)
    return part.to(device).eval().requires_grad_(False)


def vae_factor(components: Components) -> int:
    """Pixels per latent along a side."""
    return int(2 ** (len(components.vae.config.block_out_channels) - 1))


def latent_shape(components: Components, width: int, height: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a picture. Raises UnusableModel for sides that the VAE can't halve evenly."""
    factor = vae_factor(components)
    if width % factor or height % factor:
        raise UnusableModel(f"{width}x{height} pixels don't fit this model. Use multiples of {factor}.")
    return components.denoiser.config.in_channels, height // factor, width // factor


def bucket_step(components: Components) -> int:
    """Picture sides must be multiples of this, so that every level of the U-Net halves evenly."""
    return vae_factor(components) * int(2 ** (len(components.denoiser.config.block_out_channels) - 1))


def encode_images(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w) in fp32: the mode of the VAE's distribution.

    Raises UnusableLatents where the VAE gives NaN or Inf: hiding them (as zeros) would train on a grey picture.
    """
    with torch.no_grad():
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
    bad = [index for index, finite in enumerate(torch.isfinite(latents).flatten(1).all(dim=1).tolist()) if not finite]
    if bad:
        raise UnusableLatents(bad, vae.dtype)
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], fp32."""
    unscaled = latents.float() / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    with torch.no_grad():
        pixels: Tensor = vae.decode(unscaled.to(vae.device, vae.dtype), return_dict=False)[0]
    return pixels.float().clamp(-1, 1)
