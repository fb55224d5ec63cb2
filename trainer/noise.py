"""What a sample is noised with: how much (the timestep law) and with what, drawn from (seed, step, sample id) alone.

Each ingredient has a random generator of its own, so that switching one on leaves the numbers of the others as they were.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer import diffusion
from trainer.config.schema import NoiseConfig, TimestepLaw
from trainer.randomness import derive_random, derive_seed

Key = tuple[int, int, str]
"""(seed of the run, step, sample id)."""


class Timesteps(Protocol):
    """What is asked of a noise schedule here: its number of noise levels."""

    @property
    def num_train_timesteps(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise for a batch. `target` (B, C, h, w): what is to be found; `mixed` (B, C, h, w): what is mixed in, which is
    the same unless the input is perturbed; `timesteps` (B,). fp32 and int64, on the CPU."""

    target: Tensor
    mixed: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class _Law:
    """A law of the timestep as a share of the range, 0 (clean) to 1 (noise): a draw, and its inverse distribution.

    Both get the mean and scale of the settings.
    """

    draw: Callable[[torch.Generator, float, float], float]
    quantile: Callable[[float, float, float], float]


def _logit_normal_draw(generator: torch.Generator, mean: float, scale: float) -> float:
    return float(torch.sigmoid(mean + scale * torch.randn(1, generator=generator)))


def _logit_normal_quantile(share: float, mean: float, scale: float) -> float:
    return float(torch.sigmoid(torch.tensor(mean + scale * statistics.NormalDist().inv_cdf(share))))


_LAWS: dict[TimestepLaw, _Law] = {
    # sigmoid(N(mean, scale)): Esser et al. 2024, arXiv:2403.03206, section 3.1.
    TimestepLaw.LOGIT_NORMAL: _Law(_logit_normal_draw, _logit_normal_quantile),
    # The same around the middle, as sd-scripts and ai-toolkit call it: sigmoid(scale * N(0, 1)).
    TimestepLaw.SIGMOID: _Law(
        lambda generator, mean, scale: _logit_normal_draw(generator, 0.0, scale),
        lambda share, mean, scale: _logit_normal_quantile(share, 0.0, scale),
    ),
}
"""All but the uniform law, which is drawn as a whole number: a float in between would shift it."""


def timestep_range(settings: NoiseConfig, schedule: Timesteps) -> tuple[int, int]:
    """The timesteps that are trained: from the first up to, but not with, the second.

    Raises SafelightError when the model has none of them.
    """
    low, high = settings.min_timestep, min(settings.max_timestep, schedule.num_train_timesteps)
    if low >= high:
        raise SafelightError(
            f"noise.min_timestep is {low}, but this model has only the timesteps 0 to {schedule.num_train_timesteps - 1}. "
            "Lower it."
        )
    return low, high


def draw_timestep(settings: NoiseConfig, schedule: Timesteps, generator: torch.Generator) -> int:
    """One timestep by the law of the settings, stretched over their range."""
    low, high = timestep_range(settings, schedule)
    if settings.timestep_law is TimestepLaw.UNIFORM:
        return int(torch.randint(low, high, (1,), generator=generator))
    share = _LAWS[settings.timestep_law].draw(generator, settings.timestep_mean, settings.timestep_scale)
    return _at(share, low, high)


def timestep_quantiles(settings: NoiseConfig, schedule: Timesteps, count: int) -> list[int]:
    """`count` timesteps that stand for the law: its quantiles (i + 1/2) / count, in rising order; some may be equal."""
    low, high = timestep_range(settings, schedule)
    shares = [(number + 0.5) / count for number in range(count)]
    if settings.timestep_law is not TimestepLaw.UNIFORM:
        quantile = _LAWS[settings.timestep_law].quantile
        shares = [quantile(share, settings.timestep_mean, settings.timestep_scale) for share in shares]
    return [_at(share, low, high) for share in shares]


def _at(share: float, low: int, high: int) -> int:
    return min(low + int(share * (high - low)), high - 1)  # a share may round to 1


def draw_noise(settings: NoiseConfig, schedule: Timesteps, latents: Tensor, keys: Sequence[Key]) -> Noise:
    """Noise and timesteps for latents (B, C, h, w), each sample's from its own key."""
    targets, mixed, timesteps = [], [], []
    for row, key in zip(latents.cpu(), keys, strict=True):
        generator = _generator("noise", key)
        noise = torch.randn(1, *row.shape, generator=generator)
        offsets = torch.randn(1, row.shape[0], generator=generator)
        timesteps.append(draw_timestep(settings, schedule, generator))
        noise = diffusion.noise_offset(noise, offsets, _offset_strength(settings, row, key))
        if settings.pyramid_iterations:
            noise = _with_pyramid(settings, noise, key)
        targets.append(noise)
        mixed.append(_perturbed(settings, noise, key))
    return Noise(torch.cat(targets), torch.cat(mixed), torch.tensor(timesteps))


def _generator(purpose: str, key: Key) -> torch.Generator:
    seed, step, sample_id = key
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step, sample_id))


def _offset_strength(settings: NoiseConfig, latents: Tensor, key: Key) -> Tensor | float:
    """How strong the offset noise of latents (C, h, w) is: one number, or (1, C) where it follows the picture."""
    seed, step, sample_id = key
    strength = settings.offset
    if settings.offset_random_strength:
        strength *= derive_random(seed, "offset strength", step, sample_id).random()
    if settings.adaptive_offset == 0:
        return strength
    return diffusion.adaptive_offset_strength(latents[None], strength, settings.adaptive_offset)


def _with_pyramid(settings: NoiseConfig, noise: Tensor, key: Key) -> Tensor:
    seed, step, sample_id = key
    ratios = derive_random(seed, "pyramid ratios", step, sample_id)
    sizes = diffusion.pyramid_sizes(
        (noise.shape[-2], noise.shape[-1]), [2.0 + 2.0 * ratios.random() for _ in range(settings.pyramid_iterations)]
    )
    generator = _generator("pyramid", key)
    levels = [torch.randn(*noise.shape[:2], *size, generator=generator) for size in sizes]
    return diffusion.pyramid_noise(noise, levels, settings.pyramid_discount)


def _perturbed(settings: NoiseConfig, noise: Tensor, key: Key) -> Tensor:
    if settings.input_perturbation == 0:
        return noise
    disturbance = torch.randn(noise.shape, generator=_generator("input perturbation", key))
    return diffusion.perturbed_noise(noise, disturbance, settings.input_perturbation)
