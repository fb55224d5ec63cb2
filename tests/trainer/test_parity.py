"""Step by step the loss is that of diffusers' own training scripts: same pictures, same noise, same timesteps.

The reference is written with diffusers' schedulers, pipelines and training functions, as its text-to-image scripts (and,
for Huber losses, the research project of the paper's authors there) put them together.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_dataset, tiny_sd15, tiny_sdxl
from tests.trainer.test_training import make_config, prepared, shake
from trainer.config.schema import LossConfig, NoiseConfig
from trainer.dataset.batches import Sample
from trainer.randomness import derive_seed
from trainer.setup import Run
from trainer.step import window_losses
from trainer.workspace import Workspace

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "eps": (tiny_sd15, {}),
    "v": (tiny_sd15, {"prediction_type": "v_prediction"}),
    "v-ztsnr": (tiny_sd15, {"prediction_type": "v_prediction", "ztsnr": True}),
    "xl": (tiny_sdxl, {}),
    "xl-v-ztsnr": (tiny_sdxl, {"prediction_type": "v_prediction", "ztsnr": True}),
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "min-SNR": ({"min_snr_gamma": 5.0}, {}),
    "offset": ({}, {"offset": 0.1}),
    "input perturbation": ({}, {"input_perturbation": 0.1}),
    "offset and input perturbation": ({"min_snr_gamma": 5.0}, {"offset": 0.1, "input_perturbation": 0.1}),
    "Huber by SNR": ({"type": "huber"}, {}),
    "smooth L1, exponential": ({"type": "smooth_l1", "huber_schedule": "exponential", "huber_delta": 0.3}, {}),
    "L1": ({"type": "l1"}, {}),
    "logit-normal": ({}, {"timestep_law": "logit_normal", "timestep_mean": 0.5, "timestep_scale": 1.2}),
    "a range": ({}, {"min_timestep": 100, "max_timestep": 300}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each model whose LoRA has learned something; pictures are cropped, so that sizes say something."""
    folder = tmp_path_factory.mktemp("parity")
    pictures = tiny_dataset(folder / "wide", 6, size=(150, 90))
    made = {}
    for name, (build, options) in MODELS.items():
        config = make_config(
            build(folder / name, **options),
            pictures,
            dataset={"max_aspect_ratio": 1.2},
            lora={"train_text_encoder": True},
        )
        made[name] = prepared(config, Workspace.open(folder / f"{name}-space"))
        shake(made[name])
    return made


def configured(run: Run, option: str) -> Run:
    """The run with other settings of its loss and noise."""
    loss, noise = OPTIONS[option]
    sections = {"loss": LossConfig.model_validate(loss), "noise": NoiseConfig.model_validate(noise)}
    run.config = run.config.model_copy(update=sections)
    return run


def reference_draws(run: Run, samples: list[Sample], shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """The noise to find, the noise to mix in, and timesteps, as the scripts make them; from the samples' generators."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    settings = run.config.noise
    noises, disturbed, timesteps = [], [], []
    for sample in samples:
        key = (run.step, sample.sample_id)
        generator = torch.Generator().manual_seed(derive_seed(run.config.training.seed, "noise", *key))
        noise = torch.randn(1, *shape[1:], generator=generator)
        noise = noise + settings.offset * torch.randn((1, shape[1], 1, 1), generator=generator)
        if settings.timestep_law == "logit_normal":
            share = compute_density_for_timestep_sampling(
                "logit_normal", 1, settings.timestep_mean, settings.timestep_scale, generator=generator
            )
            timesteps.append((share * 1000).long())
        else:
            timesteps.append(torch.randint(settings.min_timestep, settings.max_timestep, (1,), generator=generator))
        other = torch.Generator().manual_seed(derive_seed(run.config.training.seed, "input perturbation", *key))
        noises.append(noise)
        disturbed.append(noise + settings.input_perturbation * torch.randn(noise.shape, generator=other))
    return torch.cat(noises), torch.cat(disturbed), torch.cat(timesteps)


def reference_prediction(run: Run, samples: list[Sample], noisy: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser says, asked through diffusers' own prompt encoding and size conditioning."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = run.family.build_pipeline(run.components, run.noise_schedule)
    captions = [run.pictures.placed[sample.index].picture.caption for sample in samples]
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        hidden, _ = pipeline.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)
        return run.components.denoiser(noisy, timesteps, hidden).sample
    hidden, _, pooled, _ = pipeline.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
    placements = [run.pictures.placed[sample.index].placement for sample in samples]
    time_ids = [
        pipeline._get_add_time_ids(
            one.original[::-1],
            (one.top, one.left),
            one.bucket[::-1],
            dtype=torch.float32,
            text_encoder_projection_dim=24,
        )
        for one in placements
    ]
    added = {"text_embeds": pooled, "time_ids": torch.cat(time_ids)}
    return run.components.denoiser(noisy, timesteps, hidden, added_cond_kwargs=added).sample


def reference_errors(run: Run, scheduler: Any, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
    """The error of each sample by the loss of the settings."""
    settings = run.config.loss
    functions = {"l2": torch.nn.functional.mse_loss, "l1": torch.nn.functional.l1_loss}
    if settings.type in functions:
        return functions[settings.type](prediction, target, reduction="none").mean(dim=(1, 2, 3))
    result = []
    for said, wanted, timestep in zip(prediction, target, timesteps.tolist(), strict=True):
        if settings.huber_schedule == "exponential":
            huber_c = math.exp(math.log(settings.huber_delta) / scheduler.config.num_train_timesteps * timestep)
        else:
            alphas = scheduler.alphas_cumprod[timestep]
            sigmas = ((1.0 - alphas) / alphas) ** 0.5
            huber_c = float((1 - settings.huber_delta) / (1 + sigmas) ** 2 + settings.huber_delta)
        factor = 2 * huber_c if settings.type == "huber" else 2
        result.append((factor * (torch.sqrt((said - wanted) ** 2 + huber_c**2) - huber_c)).mean())
    return torch.stack(result)


def reference_loss(run: Run, samples: list[Sample]) -> float:
    """The loss of a batch."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    latents = torch.cat([run.pictures.latents[sample.index, False] for sample in samples])
    noise, disturbed, timesteps = reference_draws(run, samples, latents.shape)
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=run.noise_schedule.prediction_type,
        rescale_betas_zero_snr=run.noise_schedule.zero_terminal_snr,
    )
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if is_v else noise
    with torch.no_grad():
        prediction = reference_prediction(run, samples, scheduler.add_noise(latents, disturbed, timesteps), timesteps)
    loss = reference_errors(run, scheduler, prediction.float(), target.float(), timesteps)
    if gamma := run.config.loss.min_snr_gamma:
        snr = compute_snr(scheduler, timesteps)
        base = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        loss = loss * (base / (snr + 1) if is_v else base / snr)
    return loss.mean().item()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_steps_loss_is_that_of_diffusers(name: str, option: str, runs: dict[str, Run]) -> None:
    run = configured(runs[name], option)
    for step in range(2 if option == "plain" else 1):
        run.step = step
        samples = run.plan.batch(step)
        with torch.no_grad():
            ours = window_losses(run, samples).mean().item()
        assert ours == pytest.approx(reference_loss(run, samples), rel=1e-5, abs=1e-6)


def test_every_option_makes_another_loss(runs: dict[str, Run]) -> None:
    """Otherwise the agreement above could be of two that do nothing."""
    found = set()
    for option in OPTIONS:
        run = configured(runs["eps"], option)
        run.step = 0
        found.add(round(reference_loss(run, run.plan.batch(0)), 6))
    assert len(found) == len(OPTIONS)


def test_the_reference_is_sensitive_to_the_lora(runs: dict[str, Run]) -> None:
    run = configured(runs["eps"], "plain")
    run.step = 0
    with_lora = reference_loss(run, run.plan.batch(0))
    before = [parameter.detach().clone() for parameter in run.parameters]
    for parameter in run.parameters:
        parameter.data.zero_()
    without = reference_loss(run, run.plan.batch(0))
    for parameter, old in zip(run.parameters, before, strict=True):
        parameter.data.copy_(old)
    assert abs(with_lora - without) > 1e-4
