"""The loss and its weights, against the formulas as diffusers writes them and by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from trainer.losses import mask_weights, masked_mse_per_sample, min_snr_weights, mse_per_sample

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


def test_a_masked_loss_is_the_mean_over_what_is_learned() -> None:
    prediction, target = torch.randn(2, 2, 4, 8, 8).unbind()
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 2:5, 1:4] = 1.0
    mask[1] = 1.0
    found = masked_mse_per_sample(prediction, target, mask_weights(mask, 0.0))
    inside = torch.nn.functional.mse_loss(prediction[0, :, 2:5, 1:4], target[0, :, 2:5, 1:4])
    torch.testing.assert_close(found, torch.stack([inside, mse_per_sample(prediction, target)[1]]))
    # A part that counts a quarter: the area-weighted mean of both parts' losses, by hand.
    part = masked_mse_per_sample(prediction, target, mask_weights(mask, 0.25))[0]
    errors = (prediction[0] - target[0]).square().mean(dim=0)
    outside = (errors.sum() - errors[2:5, 1:4].sum()) / (64 - 9)
    torch.testing.assert_close(part, (9 * inside + 0.25 * 55 * outside) / (9 + 0.25 * 55))
    half = masked_mse_per_sample(prediction.half() * 300, target.half() * 300, mask)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_a_small_region_has_as_long_a_gradient_as_the_same_picture_cut_to_it() -> None:
    """Without the division by the area, a tenth of the picture would learn ten times slower."""
    answer = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1.0
    masked_mse_per_sample(answer, torch.zeros_like(answer), mask).sum().backward()
    cut = answer.detach()[..., :2, :2].clone().requires_grad_()
    mse_per_sample(cut, torch.zeros_like(cut)).sum().backward()
    assert answer.grad is not None and cut.grad is not None
    torch.testing.assert_close(answer.grad[..., :2, :2], cut.grad)
    assert answer.grad.count_nonzero() == cut.grad.numel()
