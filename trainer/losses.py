"""What counts as an error and how much: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def mse_per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample of (B, C, h, w), as (B,) in fp32 whatever the inputs' format is."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def masked_mse_per_sample(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error (B,) fp32 of each sample of (B, C, h, w), weighted in space by `weights` (B, 1, h, w) >= 0.

    Restricts the loss to a region, the masked diffusion loss of Break-A-Scene (Avrahami et al. 2023, arXiv:2305.16311), and
    divides by the region's own area: sum(w e) / sum(w). Without that, a subject on a tenth of the picture would get a
    tenth of the gradient. Weights of one everywhere give `mse_per_sample`; all zeros have no loss, and must not come.
    """
    errors = (prediction.float() - target.float()).square().mean(dim=1, keepdim=True)
    return (errors * weights).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1)


def mask_weights(mask: Tensor, unmasked_weight: float) -> Tensor:
    """Weights (B, 1, h, w) of masks in [0, 1]: 1 where the mask is white, `unmasked_weight` where it is black."""
    return mask + (1.0 - mask) * unmasked_weight


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights (B,) that keep nearly clean timesteps from ruling: Hang et al. 2023, arXiv:2303.09556, section 3.

    `snr` (B,) is the signal-to-noise ratio of each sample's timestep. Noise prediction weighs min(snr, gamma) / snr,
    which goes to 1 where there is no signal left; velocity prediction weighs min(snr, gamma) / (snr + 1).
    """
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        # 0/0 at zero terminal SNR: the limit is 1, because min(snr, gamma) is snr itself there.
        return torch.where(snr > 0, clipped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))
    if prediction_type == "v_prediction":
        return clipped / (snr + 1.0)
    raise ValueError(f"The prediction type is {prediction_type!r}. Known: epsilon, v_prediction.")
