"""What counts as an error and how much: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config.schema import HuberSchedule, LossType


def elementwise_errors(
    prediction: Tensor, target: Tensor, kind: LossType = LossType.L2, delta: Tensor | None = None
) -> Tensor:
    """The error at each place of (B, C, h, w), in fp32 whatever the inputs' format is.

    `delta` (B,) is needed by huber and smooth_l1: the border between small errors, which are squared, and large ones,
    which are not. Both are pseudo-Huber losses (Charbonnier et al. 1997), smooth everywhere: with r = sqrt(e^2 + d^2) - d
    huber is 2 d r, which is e^2 for small errors, and smooth_l1 is 2 r, which is 2 |e| for large ones.
    """
    assert (delta is None) == (kind in (LossType.L2, LossType.L1)), (
        "huber and smooth_l1 need a delta, the others have none"
    )
    border = torch.zeros(()) if delta is None else delta[:, None, None, None].float()
    return _ERRORS[kind](prediction.float() - target.float(), border)


def _beyond(error: Tensor, border: Tensor) -> Tensor:
    # e^2 / (sqrt(e^2 + d^2) + d) is sqrt(e^2 + d^2) - d without the digits that the difference would lose.
    squared = error.square()
    return squared / ((squared + border.square()).sqrt() + border)


_ERRORS: dict[LossType, Callable[[Tensor, Tensor], Tensor]] = {
    LossType.L2: lambda error, border: error.square(),
    LossType.L1: lambda error, border: error.abs(),
    LossType.HUBER: lambda error, border: 2.0 * border * _beyond(error, border),
    LossType.SMOOTH_L1: lambda error, border: 2.0 * _beyond(error, border),
}


def huber_deltas(
    schedule: HuberSchedule, delta: float, snr: Tensor, timesteps: Tensor, num_train_timesteps: int
) -> Tensor:
    """The border (B,) of each sample for `elementwise_errors`, from 1 at a clean picture down to `delta` at pure noise.

    Khrapov et al. 2024, arXiv:2403.16728: outliers do harm where there is much noise, details need the squared error where
    there is little. `exponential` is delta^(t / T); `snr` is delta + (1 - delta) / (1 + sigma)^2 with sigma^2 = 1 / SNR.
    `snr` and `timesteps` are (B,).
    """
    if schedule is HuberSchedule.EXPONENTIAL:
        return delta ** (timesteps.to(snr) / num_train_timesteps)
    if schedule is HuberSchedule.SNR:
        return delta + (1.0 - delta) / (1.0 + snr.rsqrt()) ** 2
    return torch.full_like(snr, delta)


def mean_per_sample(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean (B,) of the errors (B, C, h, w) of each sample, weighted in space by `weights` (B, 1, h, w) >= 0 if given.

    Weights restrict the loss to a region, the masked diffusion loss of Break-A-Scene (Avrahami et al. 2023,
    arXiv:2305.16311), and the sum is divided by the region's own area: sum(w e) / sum(w). Without that, a subject on a
    tenth of the picture would get a tenth of the gradient. All zeros have no loss, and must not come.
    """
    if weights is None:
        return errors.flatten(1).mean(dim=1)
    by_place = errors.mean(dim=1, keepdim=True)
    return (by_place * weights).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1)


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


def debiased_weights(snr: Tensor, prediction_type: str) -> Tensor:
    """Weights (B,) of debiased estimation: Yu et al. 2023, arXiv:2310.08442. `snr` (B,) as above.

    The paper weighs the error of noise prediction by 1 / sqrt(SNR), halfway to weighing the error of the picture itself.
    It has no velocity prediction. A wrong velocity is a wrong noise as well, whose square is SNR / (SNR + 1) times the
    velocity's, so the same objective is sqrt(SNR) / (SNR + 1) there, as Min-SNR is turned above. The tools do not agree:
    sd-scripts takes 1 / (SNR + 1), which weighs the picture's error alone, and OneTrainer 1 / sqrt(SNR + 1).
    """
    if prediction_type == "epsilon":
        return snr.rsqrt()
    if prediction_type == "v_prediction":
        return snr.sqrt() / (snr + 1.0)
    raise ValueError(f"The prediction type is {prediction_type!r}. Known: epsilon, v_prediction.")
