"""The loss and its weights, against the formulas as diffusers writes them and by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from trainer.losses import min_snr_weights, mse_per_sample

GAMMA = 5.0
TIMESTEPS = torch.tensor([0, 10, 100, 400, 700, 999])


def test_mean_squared_error_of_each_sample_in_fp32() -> None:
    prediction, target = torch.randn(2, 3, 4, 8, 8).unbind()
    losses = mse_per_sample(prediction, target)
    assert losses.shape == (3,) and losses.dtype == torch.float32
    for index, loss in enumerate(losses):
        torch.testing.assert_close(loss, torch.nn.functional.mse_loss(prediction[index], target[index]))
    half = mse_per_sample(prediction.half() * 300, target.half() * 300)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()  # the squares alone overflow fp16


def _reference(prediction_type: str, rescaled: bool) -> torch.Tensor:
    """The weights as diffusers' train_text_to_image.py has them (its dreambooth script adds 1 to them for velocity)."""
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=rescaled
    )
    snr = compute_snr(scheduler, TIMESTEPS)
    least = torch.stack([snr, GAMMA * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return least / snr if prediction_type == "epsilon" else least / (snr + 1)


@pytest.mark.parametrize(
    ("prediction_type", "rescaled"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_min_snr_weights_are_diffusers(prediction_type: str, rescaled: bool) -> None:
    from trainer.families.base import NoiseSchedule

    schedule = NoiseSchedule.from_config({}, prediction_type=prediction_type, zero_terminal_snr=rescaled)
    weights = min_snr_weights(schedule.snr(TIMESTEPS), GAMMA, prediction_type)
    torch.testing.assert_close(weights, _reference(prediction_type, rescaled), rtol=1e-4, atol=1e-6)


def test_min_snr_weights_by_hand() -> None:
    snr = torch.tensor([0.0, 1.0, 5.0, 20.0])
    assert min_snr_weights(snr, GAMMA, "epsilon").tolist() == [1.0, 1.0, 1.0, 0.25]
    assert min_snr_weights(snr, GAMMA, "v_prediction").tolist() == pytest.approx([0.0, 0.5, 5 / 6, 5 / 21])


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="sample"):
        min_snr_weights(torch.ones(1), GAMMA, "sample")
