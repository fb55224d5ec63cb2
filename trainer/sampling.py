"""Draws sample pictures from the model in training, with fixed seeds and without leaving a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trainer.config.schema import SampleConfig
from trainer.families.base import Components, Conditioning, ModelFamily, NoiseSchedule

PIXELS_TOGETHER = 2**16
"""So many pixels are drawn at a time: small pictures in one batch, which takes half the time, from 256 x 256 on each alone."""
GUIDANCE_RESCALE = 0.7
"""How far guidance's contrast is pulled back to the unguided one at zero terminal SNR: Lin et al. 2023, section 3.4."""


@dataclass(frozen=True)
class SamplePrompts:
    """The encoded prompts of the samples, one Conditioning of batch 1 each, and the encoded negative prompt."""

    prompts: tuple[Conditioning, ...]
    negative: Conditioning


def draw(
    family: ModelFamily,
    components: Components,
    noise_schedule: NoiseSchedule,
    settings: SampleConfig,
    prompts: SamplePrompts,
    *,
    indices: Sequence[int],
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Image.Image]:
    """Draws these prompts in one batch, each with seed `settings.seed + index`; none where `interrupted` said so.

    The noise comes from generators of its own on the CPU, so a picture depends on the seed and the weights alone. The
    global random state and the training mode of every layer are as before afterwards.
    """
    shape = family.latent_shape(components, settings.width, settings.height)
    generators = [torch.Generator("cpu").manual_seed(settings.seed + index) for index in indices]
    latents = torch.cat([torch.randn((1, *shape), generator=one, dtype=torch.float32) for one in generators])
    conditioning = Conditioning.cat([prompts.prompts[index] for index in indices])
    with evaluation([components.denoiser, components.vae]), untouched_random_state(), torch.no_grad():
        finished = _denoise(
            family, components, noise_schedule, settings, (conditioning, prompts.negative), latents, interrupted
        )
        if finished is None:
            return []
        pixels = family.decode_latents(components, finished)
    bytes_nhwc = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.numpy()) for picture in bytes_nhwc]


def drawn_together(settings: SampleConfig) -> list[range]:
    """The indices of the prompts, in order, by the batches that they are drawn in."""
    count = max(1, PIXELS_TOGETHER // (settings.width * settings.height))
    total = len(settings.prompts)
    return [range(first, min(first + count, total)) for first in range(0, total, count)]


def _denoise(
    family: ModelFamily,
    components: Components,
    noise_schedule: NoiseSchedule,
    settings: SampleConfig,
    conditionings: tuple[Conditioning, Conditioning],  # batch B, and the negative prompt's of batch 1
    latents: Tensor,
    interrupted: Callable[[], bool],
) -> Tensor | None:
    """Noise (B, C, h, w) -> latents by DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), fp32 on the model's device."""
    from diffusers import DPMSolverMultistepScheduler

    device = next(components.denoiser.parameters()).device
    scheduler: Any = DPMSolverMultistepScheduler(**noise_schedule.sampler_config())
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    guided = settings.guidance_scale > 1.0
    size = (settings.height, settings.width)
    conditional, negative = conditionings
    batch = Conditioning.cat([conditional, *([negative] * len(conditional) if guided else [])]).to(device)
    sizes = family.size_conditioning(size, (0, 0), size)
    batch = batch.with_time_ids(None if sizes is None else sizes.to(device).repeat(len(batch), 1))
    latents = latents.to(device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        if interrupted():
            return None
        inputs = scheduler.scale_model_input(latents, timestep).repeat(1 + guided, 1, 1, 1)
        prediction = family.predict(components.denoiser, inputs, timestep.repeat(len(batch)), batch).float()
        if guided:
            rescale = GUIDANCE_RESCALE if noise_schedule.zero_terminal_snr else 0.0
            prediction = guide(*prediction.chunk(2), scale=settings.guidance_scale, rescale=rescale)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


def guide(conditional: Tensor, unconditional: Tensor, *, scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598), contrast pulled back by `rescale` (0 to 1).

    The pull is Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16: without it, zero terminal SNR gives burnt pictures.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    dimensions = tuple(range(1, guided.ndim))
    matched = guided * (conditional.std(dim=dimensions, keepdim=True) / guided.std(dim=dimensions, keepdim=True))
    return rescale * matched + (1 - rescale) * guided


@contextmanager
def evaluation(parts: Sequence[nn.Module | None]) -> Iterator[None]:
    """Evaluation mode (no dropout, no checkpointing), and afterwards every layer as it was. None: a freed part."""
    present = [part for part in parts if part is not None]
    modes = [(layer, layer.training) for part in present for layer in part.modules()]
    for part in present:
        part.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """torch's global random state, on the CPU and every GPU, is as before afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
