"""Noise and timesteps: each law and ingredient against its closed form, and every draw a function of its key alone."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from security.errors import SafelightError
from trainer import diffusion
from trainer.config.schema import NoiseConfig
from trainer.families.base import NoiseSchedule
from trainer.noise import draw_noise, draw_timestep, timestep_quantiles

SCHEDULE = NoiseSchedule.from_config({})
LATENTS = torch.zeros(1, 4, 16, 16)


def settings(**values: object) -> NoiseConfig:
    return NoiseConfig.model_validate(values)


def drawn(noise: NoiseConfig, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [draw_timestep(noise, SCHEDULE, generator) for _ in range(count)]


# --- timesteps ---

LAWS = {
    "uniform": settings(),
    "uniform in a range": settings(min_timestep=200, max_timestep=300),
    "sigmoid": settings(timestep_law="sigmoid", timestep_scale=0.5),
    "logit-normal": settings(timestep_law="logit_normal", timestep_mean=1.0, timestep_scale=0.7),
    "logit-normal in a range": settings(timestep_law="logit_normal", timestep_mean=-2.0, max_timestep=500),
}


def distribution(noise: NoiseConfig, timestep: int) -> float:
    """The chance that a drawn timestep is at most `timestep`: the normal distribution of the logit of its place."""
    place = (timestep + 1 - noise.min_timestep) / (noise.max_timestep - noise.min_timestep)
    if not 0 < place < 1:
        return float(place >= 1)
    if noise.timestep_law == "uniform":
        return place
    mean = noise.timestep_mean if noise.timestep_law == "logit_normal" else 0.0
    return statistics.NormalDist(mean, noise.timestep_scale).cdf(math.log(place / (1 - place)))


@pytest.mark.parametrize("name", LAWS)
def test_timesteps_are_drawn_by_their_law(name: str) -> None:
    noise, count = LAWS[name], 4000
    found = drawn(noise, count)
    assert min(found) >= noise.min_timestep and max(found) < noise.max_timestep
    # Kolmogorov-Smirnov: a right sample of 4000 is further off than 1.95 / sqrt(n) once in a thousand times.
    furthest = max(
        abs(sum(one <= step for one in found) / count - distribution(noise, step)) for step in range(0, 1000, 7)
    )
    assert furthest < 1.95 / count**0.5


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_cut_the_law_into_equal_parts(name: str) -> None:
    noise = LAWS[name]
    found = timestep_quantiles(noise, SCHEDULE, 8)
    assert found == sorted(found)
    for number, timestep in enumerate(found):
        share = (number + 0.5) / 8
        assert distribution(noise, timestep - 1) <= share + 1e-6 <= distribution(noise, timestep) + 2e-6


def test_quantiles_of_the_usual_law_are_evenly_spread() -> None:
    assert timestep_quantiles(settings(), SCHEDULE, 4) == [125, 375, 625, 875]
    assert timestep_quantiles(settings(min_timestep=500), SCHEDULE, 2) == [625, 875]
    assert timestep_quantiles(settings(timestep_law="sigmoid"), SCHEDULE, 1) == [500]


def test_the_usual_timestep_is_the_one_of_torchs_own_draw() -> None:
    """So that runs of before give the same numbers."""
    expected = torch.Generator().manual_seed(3)
    ours = torch.Generator().manual_seed(3)
    for _ in range(50):
        assert draw_timestep(settings(), SCHEDULE, ours) == int(torch.randint(1000, (1,), generator=expected))


def test_logit_normal_draws_are_diffusers() -> None:
    theirs = torch.Generator().manual_seed(4)
    ours = torch.Generator().manual_seed(4)
    noise = settings(timestep_law="logit_normal", timestep_mean=0.5, timestep_scale=1.5)
    for _ in range(50):
        share = compute_density_for_timestep_sampling("logit_normal", 1, 0.5, 1.5, generator=theirs)
        assert draw_timestep(noise, SCHEDULE, ours) == int(share * 1000)


def test_sigmoid_is_logit_normal_around_the_middle() -> None:
    sigmoid = drawn(settings(timestep_law="sigmoid", timestep_scale=0.8, timestep_mean=3.0), 50)
    assert sigmoid == drawn(settings(timestep_law="logit_normal", timestep_scale=0.8), 50)


def test_a_draw_at_the_very_end_stays_in_the_range() -> None:
    noise = settings(timestep_law="logit_normal", timestep_mean=5.0, timestep_scale=10.0, max_timestep=40)
    assert max(drawn(noise, 500)) == 39
    assert timestep_quantiles(noise, SCHEDULE, 100)[-1] == 39


def test_a_range_that_the_model_does_not_have_is_refused() -> None:
    short = NoiseSchedule.from_config({"num_train_timesteps": 100})
    assert max(timestep_quantiles(settings(), short, 50)) == 99
    with pytest.raises(SafelightError, match=r"noise\.min_timestep is 200.*0 to 99"):
        timestep_quantiles(settings(min_timestep=200), short, 4)


# --- noise ---


def test_noise_is_a_function_of_its_key_alone() -> None:
    everything = settings(offset=0.1, offset_random_strength=True, adaptive_offset=0.05, input_perturbation=0.1)
    latents = torch.randn(3, 4, 16, 16)
    keys = [(1, 2, "a"), (1, 2, "b"), (1, 3, "a")]
    together = draw_noise(everything, SCHEDULE, latents, keys)
    for index, key in enumerate(keys):
        torch.manual_seed(index)  # what else is random changes nothing
        alone = draw_noise(everything, SCHEDULE, latents[index : index + 1], [key])
        assert torch.equal(alone.target[0], together.target[index])
        assert torch.equal(alone.mixed[0], together.mixed[index])
        assert torch.equal(alone.timesteps[0], together.timesteps[index])
    assert len({float(one.sum()) for one in together.target}) == 3


@pytest.mark.parametrize(
    "values",
    [{"offset": 0.1}, {"adaptive_offset": 0.1}, {"pyramid_iterations": 6}, {"input_perturbation": 0.1}],
    ids=lambda values: next(iter(values)),
)
def test_switching_one_ingredient_on_leaves_the_others_draws(values: dict[str, float]) -> None:
    plain = draw_noise(settings(), SCHEDULE, LATENTS + 1, [(1, 2, "a")])
    other = draw_noise(settings(**values), SCHEDULE, LATENTS + 1, [(1, 2, "a")])
    assert torch.equal(plain.timesteps, other.timesteps)
    assert torch.equal(plain.target, other.target) == ("input_perturbation" in values)
    assert not torch.equal(plain.mixed, other.mixed)


def test_offset_noise_has_its_variance_between_channels() -> None:
    """The mean over a channel is N(0, offset^2 + 1 / (h w))."""
    keys = [(0, step, "a") for step in range(500)]
    for strength in (0.0, 0.3):
        noise = draw_noise(settings(offset=strength), SCHEDULE, LATENTS.expand(500, -1, -1, -1), keys).target
        assert float(noise.mean(dim=(2, 3)).var()) == pytest.approx(strength**2 + 1 / 256, rel=0.1)


def test_random_strength_is_even_between_nothing_and_the_offset() -> None:
    """The mean square of a uniform strength is a third of the largest one's."""
    keys = [(0, step, "a") for step in range(500)]
    noise = draw_noise(
        settings(offset=0.6, offset_random_strength=True), SCHEDULE, LATENTS.expand(500, -1, -1, -1), keys
    ).target
    assert float(noise.mean(dim=(2, 3)).var()) == pytest.approx(0.36 / 3 + 1 / 256, rel=0.15)


def test_adaptive_strength_by_hand() -> None:
    latents = torch.tensor([0.5, -2.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = diffusion.adaptive_offset_strength(latents, 0.1, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.1 + 0.1, 0.1 + 0.4, 0.1]]))
    less = diffusion.adaptive_offset_strength(latents, 0.1, -0.2)
    torch.testing.assert_close(less, torch.tensor([[0.0, 0.0, 0.1]]))


def test_adaptive_offset_follows_each_channel_of_the_picture() -> None:
    latents = torch.tensor([0.0, 1.0, 3.0, -3.0]).reshape(1, 4, 1, 1).expand(1, 4, 8, 8)
    plain, moved = (
        draw_noise(settings(adaptive_offset=one), SCHEDULE, latents, [(0, 0, "a")]).target for one in (0.0, 0.5)
    )
    shift = (moved - plain).mean(dim=(2, 3))[0]
    torch.testing.assert_close(moved - plain, shift[None, :, None, None].expand_as(moved), atol=1e-5, rtol=0)
    assert float(shift[0]) == pytest.approx(0, abs=1e-6) and all(abs(one) > 1e-3 for one in shift[1:])


def test_pyramid_sizes_by_hand() -> None:
    assert diffusion.pyramid_sizes((64, 32), [2.0, 2.0, 4.0, 3.0]) == [(64, 32), (32, 16), (4, 2), (2, 1)]
    assert diffusion.pyramid_sizes((64, 32), [2.0] * 10)[-1] == (2, 1)  # nothing coarser follows


def test_pyramid_noise_by_hand() -> None:
    """A layer of one place is a constant: the sum is noise + d^0 * level 0 + d^1 * constant, at unit variance."""
    noise, level = torch.randn(2, 2, 4, 8, 8).unbind()
    constant = torch.tensor([3.0, -1.0]).reshape(2, 1, 1, 1).expand(2, 4, 1, 1)
    found = diffusion.pyramid_noise(noise, [level, constant], 0.5)
    total = noise + level + 0.5 * constant
    for index in range(2):
        torch.testing.assert_close(found[index], total[index] / total[index].std())
    torch.testing.assert_close(found.flatten(1).std(dim=1), torch.ones(2))


def test_pyramid_noise_is_coarser_than_plain_noise() -> None:
    """Neighbours agree with each other, as white noise's don't; the distance decides how much."""
    keys = [(0, step, "a") for step in range(100)]
    wide = torch.zeros(100, 4, 32, 32)
    agreement = {}
    for discount in (0.1, 0.8):
        noise = draw_noise(settings(pyramid_iterations=8, pyramid_discount=discount), SCHEDULE, wide, keys).target
        agreement[discount] = float((noise[..., 1:] * noise[..., :-1]).mean())
        assert float(noise.flatten(1).std(dim=1).sub(1).abs().max()) < 1e-4
    plain = draw_noise(settings(), SCHEDULE, wide, keys).target
    assert abs(float((plain[..., 1:] * plain[..., :-1]).mean())) < 0.01 < agreement[0.1] + 0.01 < agreement[0.8]
    assert agreement[0.8] > 0.2


def test_input_perturbation_disturbs_what_is_seen_and_not_what_is_asked() -> None:
    keys = [(0, step, "a") for step in range(200)]
    latents = LATENTS.expand(200, -1, -1, -1)
    noise = draw_noise(settings(input_perturbation=0.2), SCHEDULE, latents, keys)
    assert torch.equal(noise.target, draw_noise(settings(), SCHEDULE, latents, keys).target)
    disturbance = noise.mixed - noise.target
    assert float(disturbance.std()) == pytest.approx(0.2, rel=0.01)
    assert abs(float((disturbance * noise.target).mean())) < 0.01  # independent of it
