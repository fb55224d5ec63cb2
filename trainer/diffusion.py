"""The mathematics of noising a picture: pure functions on tensors, each named as in the paper that it follows.

`alphas_cumprod` is the (T,) fp32 table of the cumulative signal power, written as alpha-bar in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def make_betas(schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Noise power added per step, (T,) in fp32, in the three shapes that Stable Diffusion models use.

    `linear` is DDPM's (Ho et al. 2020, arXiv:2006.11239), `scaled_linear` latent diffusion's (Rombach et al. 2022,
    arXiv:2112.10752), `squaredcos_cap_v2` the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672).
    Raises ValueError for another name.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    if schedule == "squaredcos_cap_v2":
        time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        alpha_bar = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999).float()
    raise ValueError(
        f"beta_schedule is {schedule!r}, which is not known. Known: linear, scaled_linear, squaredcos_cap_v2."
    )


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas (T,) changed so that the last step is pure noise: Lin et al. 2023, arXiv:2305.08891, algorithm 1."""
    signal = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    signal = (signal - last) * (first / (first - last))
    alpha_bar = signal**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def cumulative_alphas(betas: Tensor) -> Tensor:
    """Alpha-bar (T,) in fp32 of betas (T,): the product of all 1 - beta so far."""
    return torch.cumprod(1.0 - betas.float(), dim=0)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy latents (B, C, h, w) at timesteps (B,): sqrt(alpha-bar) x + sqrt(1 - alpha-bar) n; Ho 2020, eq. 4."""
    signal, deviation = _signal_and_deviation(timesteps, alphas_cumprod, latents)
    return signal * latents + deviation * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """v = sqrt(alpha-bar) n - sqrt(1 - alpha-bar) x: Salimans and Ho 2022, arXiv:2202.00512, appendix D."""
    signal, deviation = _signal_and_deviation(timesteps, alphas_cumprod, latents)
    return signal * noise - deviation * latents


def target(prediction_type: str, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What the denoiser should say, (B, C, h, w): the noise for `epsilon`, the velocity for `v_prediction`."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(latents, noise, timesteps, alphas_cumprod)
    raise ValueError(f"The prediction type is {prediction_type!r}. Known: epsilon, v_prediction.")


def snr(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Signal over noise power at `timesteps` (B,), fp32: alpha-bar / (1 - alpha-bar); Hang et al. 2023, section 3.1."""
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alpha_bar / (1.0 - alpha_bar)


def noise_offset(noise: Tensor, offsets: Tensor, strength: float | Tensor) -> Tensor:
    """Noise (B, C, h, w) plus a constant per picture and channel: `offsets` (B, C) from N(0, 1), times `strength`.

    The network then learns to move the mean brightness (N. Guttenberg 2023, "Diffusion with Offset Noise"). `strength`
    may be (B, C).
    """
    return noise + (strength * offsets)[:, :, None, None].to(noise.dtype)


def adaptive_offset_strength(latents: Tensor, strength: float, adaptive: float) -> Tensor:
    """Strength (B, C) of offset noise that follows the picture: `strength` plus `adaptive` times |mean| of each channel.

    Never below 0. Bright and dark pictures, whose latents (B, C, h, w) lie far from 0, get more of it, or less for a
    negative `adaptive`. There is no paper: it is the adaptive noise scale of sd-scripts.
    """
    return (strength + adaptive * latents.float().mean(dim=(2, 3)).abs()).clamp(min=0.0)


def pyramid_sizes(size: tuple[int, int], ratios: Sequence[float]) -> list[tuple[int, int]]:
    """(h, w) of the layers of pyramid noise: layer i is `ratios[i]` to the power of i times coarser than `size`.

    Ends with the first layer that has only one row or column, as there is nothing coarser.
    """
    sizes: list[tuple[int, int]] = []
    for level, ratio in enumerate(ratios):
        height, width = (max(1, int(side / ratio**level)) for side in size)
        sizes.append((height, width))
        if min(height, width) == 1:
            break
    return sizes


def pyramid_noise(noise: Tensor, levels: Sequence[Tensor], discount: float) -> Tensor:
    """Noise (B, C, h, w) plus coarser and coarser layers of it, each drawn up to its size and `discount` times weaker.

    `levels[i]`: (B, C, h_i, w_i) from N(0, 1). Every picture is brought back to unit variance by itself, so that it does
    not depend on which others share its batch. J. Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training".
    """
    total = noise.clone()
    for number, level in enumerate(levels):
        total += discount**number * torch.nn.functional.interpolate(level, size=noise.shape[-2:], mode="bilinear")
    return total / total.flatten(1).std(dim=1)[:, None, None, None]


def perturbed_noise(noise: Tensor, disturbance: Tensor, strength: float) -> Tensor:
    """The noise to mix in, (B, C, h, w), when `noise` is still what is to be found: noise + strength * N(0, 1).

    It stands for the errors that add up while drawing: Ning et al. 2023, arXiv:2301.11706.
    """
    return noise + strength * disturbance


def _signal_and_deviation(timesteps: Tensor, alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    # Taken in fp32 and only then cast: bf16 has 8 bits, and 1 - alpha-bar loses all of them near a clean picture.
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps].float()[:, None, None, None]
    return alpha_bar.sqrt().to(like.dtype), (1.0 - alpha_bar).sqrt().to(like.dtype)
