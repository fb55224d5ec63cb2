"""The noising mathematics agrees with diffusers' own, for every kind of schedule and prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as diffusers_rescale
from diffusers.training_utils import compute_snr

from security.errors import SafelightError
from trainer import diffusion
from trainer.families.base import NoiseSchedule

CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal snr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "few": {"num_train_timesteps": 50, "beta_end": 0.02},
}
TIMESTEPS = torch.tensor([0, 1, 250, 613, 998, 999])


def _config(name: str) -> dict[str, Any]:
    return {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012} | CONFIGS[name]


def _timesteps(schedule: NoiseSchedule) -> torch.Tensor:
    return TIMESTEPS.clamp(max=schedule.num_train_timesteps - 1)


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[NoiseSchedule, DDPMScheduler]:
    config = _config(request.param)
    return NoiseSchedule.from_config(config), DDPMScheduler(**config)


def test_tables_are_diffusers(pair: tuple[NoiseSchedule, DDPMScheduler]) -> None:
    ours, reference = pair
    assert ours.alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(ours.alphas_cumprod, reference.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_add_noise_and_velocity_are_diffusers(pair: tuple[NoiseSchedule, DDPMScheduler]) -> None:
    ours, reference = pair
    latents, noise = torch.randn(2, len(TIMESTEPS), 4, 8, 6).unbind()
    timesteps = _timesteps(ours)
    expected = reference.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(ours.add_noise(latents, noise, timesteps), expected, rtol=0, atol=1e-5)
    velocity = reference.get_velocity(latents, noise, timesteps)
    expected = noise if ours.prediction_type == "epsilon" else velocity
    torch.testing.assert_close(ours.target(latents, noise, timesteps), expected, rtol=0, atol=1e-5)


def test_snr_is_diffusers(pair: tuple[NoiseSchedule, DDPMScheduler]) -> None:
    ours, reference = pair
    timesteps = _timesteps(ours)
    torch.testing.assert_close(ours.snr(timesteps), compute_snr(reference, timesteps), rtol=1e-4, atol=1e-6)


def test_zero_terminal_snr_is_diffusers_and_ends_in_pure_noise() -> None:
    betas = diffusion.make_betas("scaled_linear", 1000, 0.00085, 0.012)
    torch.testing.assert_close(diffusion.rescale_zero_terminal_snr(betas), diffusers_rescale(betas), rtol=0, atol=1e-6)
    rescaled = NoiseSchedule.from_config(_config("v, zero terminal snr"))
    assert rescaled.snr(torch.tensor([999])).item() == 0.0
    assert NoiseSchedule.from_config(_config("v")).snr(torch.tensor([999])).item() > 0.004
    # The first level is kept, all others move: the SNR table must come from the changed betas.
    plain = NoiseSchedule.from_config(_config("v"))
    assert torch.isclose(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (rescaled.alphas_cumprod[1:] < plain.alphas_cumprod[1:]).all()


def test_noise_prediction_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(SafelightError, match=r"v-prediction.*model\.zero_terminal_snr to off"):
        NoiseSchedule.from_config(_config("epsilon"), zero_terminal_snr=True)


def test_settings_win_over_the_scheduler_config() -> None:
    changed = NoiseSchedule.from_config(
        _config("v, zero terminal snr"), prediction_type="epsilon", zero_terminal_snr=False
    )
    assert (changed.prediction_type, changed.zero_terminal_snr) == ("epsilon", False)
    torch.testing.assert_close(changed.alphas_cumprod, NoiseSchedule.from_config(_config("epsilon")).alphas_cumprod)


@pytest.mark.parametrize("wrong", [{"beta_schedule": "sigmoid"}, {"prediction_type": "flow"}])
def test_unknown_schedules_are_refused_by_name(wrong: dict[str, str]) -> None:
    with pytest.raises(SafelightError, match=next(iter(wrong.values()))):
        NoiseSchedule.from_config(wrong)


def test_trained_betas_are_used() -> None:
    betas = [0.01, 0.02, 0.5]
    table = NoiseSchedule.from_config({"trained_betas": betas}).alphas_cumprod
    torch.testing.assert_close(table, torch.tensor([0.99, 0.99 * 0.98, 0.99 * 0.98 * 0.5]))


def test_half_precision_latents_are_noised_with_exact_factors() -> None:
    ours = NoiseSchedule.from_config(_config("epsilon"))
    latents = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    noisy = ours.add_noise(latents, torch.ones_like(latents), torch.tensor([0]))
    assert noisy.dtype == torch.bfloat16
    # 1 - alpha-bar is 0.00085 at the first level; bf16 arithmetic would make it 0 or 0.0039.
    assert noisy.item() == pytest.approx(0.00085**0.5, rel=5e-3)


def test_noise_offset_shifts_each_channel_as_a_whole() -> None:
    noise, offsets = torch.randn(2, 4, 8, 8), torch.randn(2, 4)
    shifted = diffusion.noise_offset(noise, offsets, 0.1)
    torch.testing.assert_close((shifted - noise).mean(dim=(2, 3)), 0.1 * offsets, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((shifted - noise).std(dim=(2, 3)), torch.zeros(2, 4), rtol=0, atol=1e-6)
    assert torch.equal(diffusion.noise_offset(noise, offsets, 0.0), noise)


def test_timesteps_of_one_batch_are_noised_apart() -> None:
    ours = NoiseSchedule.from_config(_config("epsilon"))
    latents, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    timesteps = torch.tensor([3, 500, 900])
    together = ours.add_noise(latents, noise, timesteps)
    for index in range(3):
        row = slice(index, index + 1)
        assert torch.equal(together[row], ours.add_noise(latents[row], noise[row], timesteps[row]))
