"""What counts as an error and how much: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def mse_per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample of (B, C, h, w), as (B,) in fp32 whatever the inputs' format is."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


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
