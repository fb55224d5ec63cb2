"""The loss and its weights, against the formulas as diffusers writes them and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from trainer.config.schema import HuberSchedule, LossType
from trainer.losses import (
    debiased_weights,
    elementwise_errors,
    huber_deltas,
    mask_weights,
    mean_per_sample,
    min_snr_weights,
)

GAMMA = 5.0
TIMESTEPS = torch.tensor([0, 10, 100, 400, 700, 999])


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return mean_per_sample(elementwise_errors(prediction, target))


def masked_mse(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return mean_per_sample(elementwise_errors(prediction, target), weights)


def test_mean_squared_error_of_each_sample_in_fp32() -> None:
    prediction, target = torch.randn(2, 3, 4, 8, 8).unbind()
    losses = mse(prediction, target)
    assert losses.shape == (3,) and losses.dtype == torch.float32
    for index, loss in enumerate(losses):
        torch.testing.assert_close(loss, torch.nn.functional.mse_loss(prediction[index], target[index]))
    half = mse(prediction.half() * 300, target.half() * 300)
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
    found = masked_mse(prediction, target, mask_weights(mask, 0.0))
    inside = torch.nn.functional.mse_loss(prediction[0, :, 2:5, 1:4], target[0, :, 2:5, 1:4])
    torch.testing.assert_close(found, torch.stack([inside, mse(prediction, target)[1]]))
    # A part that counts a quarter: the area-weighted mean of both parts' losses, by hand.
    part = masked_mse(prediction, target, mask_weights(mask, 0.25))[0]
    errors = (prediction[0] - target[0]).square().mean(dim=0)
    outside = (errors.sum() - errors[2:5, 1:4].sum()) / (64 - 9)
    torch.testing.assert_close(part, (9 * inside + 0.25 * 55 * outside) / (9 + 0.25 * 55))
    half = masked_mse(prediction.half() * 300, target.half() * 300, mask)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_a_small_region_has_as_long_a_gradient_as_the_same_picture_cut_to_it() -> None:
    """Without the division by the area, a tenth of the picture would learn ten times slower."""
    answer = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1.0
    masked_mse(answer, torch.zeros_like(answer), mask).sum().backward()
    cut = answer.detach()[..., :2, :2].clone().requires_grad_()
    mse(cut, torch.zeros_like(cut)).sum().backward()
    assert answer.grad is not None and cut.grad is not None
    torch.testing.assert_close(answer.grad[..., :2, :2], cut.grad)
    assert answer.grad.count_nonzero() == cut.grad.numel()


# --- errors that are not squared ---


def test_the_size_of_errors_by_hand() -> None:
    error = torch.tensor([0.0, 0.3, -0.4, 3.0]).reshape(1, 1, 2, 2)
    nothing, delta = torch.zeros_like(error), torch.tensor([0.4])
    assert elementwise_errors(error, nothing, LossType.L1).flatten().tolist() == pytest.approx([0.0, 0.3, 0.4, 3.0])
    beyond = [0.0, 0.5 - 0.4, 0.4 * 2**0.5 - 0.4, (9 + 0.16) ** 0.5 - 0.4]  # sqrt(e^2 + d^2) - d; 3, 4, 5 is one
    for kind, factor in ((LossType.HUBER, 2 * 0.4), (LossType.SMOOTH_L1, 2.0)):
        found = elementwise_errors(error, nothing, kind, delta).flatten()
        assert found.tolist() == pytest.approx([factor * one for one in beyond], rel=1e-5)


def test_huber_squares_small_errors_and_only_them() -> None:
    delta, nothing = torch.tensor([0.1]), torch.zeros(1, 1, 1, 1)
    small, large = torch.full((1, 1, 1, 1), 1e-4), torch.full((1, 1, 1, 1), 1e4)
    assert float(elementwise_errors(small, nothing, LossType.HUBER, delta)) == pytest.approx(1e-8, rel=1e-4)
    assert float(elementwise_errors(large, nothing, LossType.HUBER, delta)) == pytest.approx(2 * 0.1 * 1e4, rel=1e-4)
    assert float(elementwise_errors(large, nothing, LossType.SMOOTH_L1, delta)) == pytest.approx(2e4, rel=1e-4)


@pytest.mark.parametrize("kind", LossType)
def test_every_error_is_computed_in_fp32_and_has_a_gradient_even_at_zero(kind: LossType) -> None:
    delta = torch.tensor([0.1, 0.5]) if kind in (LossType.HUBER, LossType.SMOOTH_L1) else None
    prediction = torch.tensor([0.0, 300.0]).half().reshape(2, 1, 1, 1).requires_grad_()
    errors = elementwise_errors(prediction, torch.zeros_like(prediction), kind, delta)
    assert errors.dtype == torch.float32 and torch.isfinite(errors).all()
    errors.sum().backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()
    assert float(prediction.grad[0]) == 0 < float(prediction.grad[1])


def test_a_border_belongs_to_its_sample() -> None:
    prediction, target = torch.randn(2, 3, 4, 8, 8).unbind()
    together = elementwise_errors(prediction, target, LossType.HUBER, torch.tensor([0.1, 0.5, 0.9]))
    for index, delta in enumerate((0.1, 0.5, 0.9)):
        alone = elementwise_errors(
            prediction[index : index + 1], target[index : index + 1], LossType.HUBER, torch.tensor([delta])
        )
        assert torch.equal(together[index], alone[0])


def test_a_border_without_a_loss_that_has_one_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        elementwise_errors(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), LossType.HUBER)


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_border_moves_with_the_noise_as_in_the_papers_own_scripts(rescaled: bool) -> None:
    """The formulas of diffusers' research project of the paper's authors, sample by sample."""
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=rescaled
    )
    snr, least = compute_snr(scheduler, TIMESTEPS), 0.1
    exponential = [math.exp(math.log(least) / 1000 * int(timestep)) for timestep in TIMESTEPS]
    alphas = scheduler.alphas_cumprod[TIMESTEPS]
    sigmas = ((1.0 - alphas) / alphas) ** 0.5
    by_snr = (1 - least) / (1 + sigmas) ** 2 + least
    found = {one: huber_deltas(one, least, snr, TIMESTEPS, 1000) for one in HuberSchedule}
    torch.testing.assert_close(found[HuberSchedule.EXPONENTIAL], torch.tensor(exponential))
    torch.testing.assert_close(found[HuberSchedule.SNR], by_snr.float(), rtol=1e-4, atol=1e-6)
    assert found[HuberSchedule.CONSTANT].tolist() == [pytest.approx(least)] * len(TIMESTEPS)


def test_the_border_is_one_at_a_clean_picture_and_delta_at_pure_noise() -> None:
    ends, snr = torch.tensor([0, 1000]), torch.tensor([math.inf, 0.0])
    for schedule in (HuberSchedule.EXPONENTIAL, HuberSchedule.SNR):
        assert huber_deltas(schedule, 0.1, snr, ends, 1000).tolist() == pytest.approx([1.0, 0.1])


# --- debiased estimation ---


def test_debiased_weights_by_hand() -> None:
    snr = torch.tensor([0.25, 1.0, 4.0])
    assert debiased_weights(snr, "epsilon").tolist() == pytest.approx([2.0, 1.0, 0.5])
    assert debiased_weights(snr, "v_prediction").tolist() == pytest.approx([0.5 / 1.25, 0.5, 2.0 / 5.0])
    assert debiased_weights(torch.zeros(1), "v_prediction").tolist() == [0.0]  # nothing to see: nothing to learn
    with pytest.raises(ValueError, match="sample"):
        debiased_weights(snr, "sample")


WEIGHTINGS: dict[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "debiased": debiased_weights,
    "min-SNR": lambda snr, kind: min_snr_weights(snr, GAMMA, kind),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_means_the_same_whether_noise_or_velocity_is_predicted(name: str) -> None:
    """A velocity that is wrong by d is a noise that is wrong by sqrt(alpha-bar) d: both must cost the same."""
    from trainer.families.base import NoiseSchedule

    schedule = NoiseSchedule.from_config({})
    latents, noise, wrong = torch.randn(3, len(TIMESTEPS), 4, 8, 8).unbind()
    velocity = NoiseSchedule.from_config({}, prediction_type="v_prediction").target(latents, noise, TIMESTEPS)
    alpha = schedule.alphas_cumprod[TIMESTEPS][:, None, None, None]
    noisy = schedule.add_noise(latents, noise, TIMESTEPS)
    said_noise = (
        alpha.sqrt() * (velocity + wrong) + (1 - alpha).sqrt() * noisy
    )  # what a wrong velocity says of the noise
    snr = schedule.snr(TIMESTEPS)
    by_velocity = WEIGHTINGS[name](snr, "v_prediction") * mse(velocity + wrong, velocity)
    by_noise = WEIGHTINGS[name](snr, "epsilon") * mse(said_noise, noise)
    torch.testing.assert_close(by_noise, by_velocity, rtol=1e-3, atol=1e-7)
