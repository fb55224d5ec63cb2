"""One optimizer step: which samples, which noise, the loss, the update. Everything is a function of (seed, step, sample)."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer import events, losses
from trainer.dataset.batches import Sample
from trainer.dataset.captions import training_caption
from trainer.device import autocast
from trainer.diffusion import noise_offset
from trainer.families.base import Conditioning
from trainer.randomness import derive_random, derive_seed
from trainer.schedules import learning_rate_factor
from trainer.setup import PictureSet, Run


class Diverged(SafelightError):
    """The loss or the gradient is no number any more."""


def train_step(run: Run) -> events.StepDone:
    """Trains on one window of micro-batches. The loss is the mean over the window's samples.

    Raises Diverged when loss or gradient are not finite; the weights then still are those of the step before.
    """
    began = time.perf_counter()
    training = run.config.training
    learning_rate = _set_learning_rates(run)
    first = run.step * training.gradient_accumulation_steps
    window = [run.plan.batch(first + number) for number in range(training.gradient_accumulation_steps)]
    num_samples = sum(len(samples) for samples in window)
    total = torch.zeros((), device=run.device)
    for number, samples in enumerate(window):
        torch.manual_seed(derive_seed(training.seed, "dropout", run.step, number))  # for the LoRA's dropout layers
        loss = window_losses(run, samples).sum() / num_samples
        run.scaler.scale(loss).backward()
        total += loss.detach()
    gradient_norm = _update(run, float(total))
    run.step += 1
    run.images_seen += num_samples
    return events.StepDone(
        step=run.step,
        loss=float(total),
        learning_rate=learning_rate,
        gradient_norm=gradient_norm,
        images_seen=run.images_seen,
        seconds=time.perf_counter() - began,
    )


def _set_learning_rates(run: Run) -> float:
    factor = learning_rate_factor(run.step, run.config.training.max_train_steps, run.config.optimizer)
    for group, base in zip(run.optimizer.param_groups, run.base_learning_rates, strict=True):
        group["lr"] = base * factor
    return run.base_learning_rates[0] * factor


def _update(run: Run, loss: float) -> float | None:
    """Clips and steps; returns the gradient's norm before clipping, None for a step that fp16's loss scaler skipped."""
    run.scaler.unscale_(run.optimizer)
    limit = run.config.training.max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(run.parameters, limit if limit > 0 else math.inf))
    if not math.isfinite(loss) or not (math.isfinite(norm) or run.scaler.is_enabled()):
        run.optimizer.zero_grad(set_to_none=True)
        raise Diverged(
            f"The loss became {loss} (gradient {norm}) at step {run.step + 1}. The learning rate "
            f"{run.config.optimizer.learning_rate:g} is probably too high: start again with a third of it."
        )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return norm if math.isfinite(norm) else None


def window_losses(run: Run, samples: list[Sample]) -> Tensor:
    """Weighted losses (B,) fp32 of one micro-batch at the run's present step."""
    seed, step = run.config.training.seed, run.step
    dataset = run.config.dataset
    flips = [
        dataset.flip_augmentation and derive_random(seed, "flip", step, sample.sample_id).random() < 0.5
        for sample in samples
    ]
    latents = torch.cat([run.pictures.latents[sample.index, flip] for sample, flip in zip(samples, flips, strict=True)])
    noise, timesteps = draw_noise(run, latents.shape[1:], [(seed, step, sample.sample_id) for sample in samples])
    shown = [run.pictures.placed[sample.index] for sample in samples]
    captions = [
        training_caption(one.picture.caption, dataset, seed, step, sample.sample_id, one.picture.trigger_word)
        for one, sample in zip(shown, samples, strict=True)
    ]
    indices = [sample.index for sample in samples]
    conditioning = condition(run, run.pictures, indices, flips, captions)
    weights = mask_batch(run.pictures, indices, flips)
    result = denoising_losses(run, latents, noise, timesteps, conditioning, weights)
    if any(one.is_prior for one in shown):
        # lambda in equation 2 of DreamBooth (Ruiz et al. 2022, arXiv:2208.12242)
        prior = run.config.loss.prior_loss_weight
        result = result * torch.tensor([prior if one.is_prior else 1.0 for one in shown], device=run.device)
    gamma = run.config.loss.min_snr_gamma
    if gamma == 0:
        return result
    snr = run.noise_schedule.snr(timesteps.to(run.device))
    return result * losses.min_snr_weights(snr, gamma, run.noise_schedule.prediction_type)


def mask_batch(pictures: PictureSet, indices: list[int], flips: list[bool]) -> Tensor | None:
    """Weights (B, 1, h, w) in space, ones for a picture without a mask; None when no picture of the batch has one."""
    keys = list(zip(indices, flips, strict=True))
    if not any(key in pictures.masks for key in keys):
        return None
    whole = torch.ones(1, 1, *pictures.latents[keys[0]].shape[-2:])
    return torch.cat([pictures.masks.get(key, whole) for key in keys])


def draw_noise(run: Run, shape: torch.Size, keys: list[tuple[int, int, str]]) -> tuple[Tensor, Tensor]:
    """Noise (B, C, h, w) fp32 and timesteps (B,), each sample's drawn on the CPU from its own (seed, step, sample id)."""
    noises, timesteps = [], []
    for seed, step, sample_id in keys:
        generator = torch.Generator().manual_seed(derive_seed(seed, "noise", step, sample_id))
        noise = torch.randn(1, *shape, generator=generator)
        offsets = torch.randn(1, shape[0], generator=generator)
        noises.append(noise_offset(noise, offsets, run.config.loss.noise_offset))
        timesteps.append(torch.randint(run.noise_schedule.num_train_timesteps, (1,), generator=generator))
    return torch.cat(noises), torch.cat(timesteps)


def condition(
    run: Run, pictures: PictureSet, indices: list[int], flips: list[bool], captions: list[str]
) -> Conditioning:
    """Encoded captions, with the true sizes and crops of the pictures where the family is told them."""
    sizes = []
    for index, flip in zip(indices, flips, strict=True):
        placement = pictures.placed[index].placement
        placement = placement.mirrored() if flip else placement
        (width, height), (bucket_width, bucket_height) = placement.original, placement.bucket
        sizes.append(
            run.family.size_conditioning(
                (height, width), (placement.top, placement.left), (bucket_height, bucket_width)
            )
        )
    time_ids = None if sizes[0] is None else torch.cat(sizes)
    return run.prompts.encode(captions).with_time_ids(time_ids)


def denoising_losses(
    run: Run,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error (B,) fp32 of the denoiser's answers, weighted in space by `weights` (B, 1, h, w) if given.

    All inputs may lie on the CPU.
    """
    latents, noise, timesteps = latents.to(run.device), noise.to(run.device), timesteps.to(run.device)
    noisy_latents = run.noise_schedule.add_noise(latents, noise, timesteps)
    target = run.noise_schedule.target(latents, noise, timesteps)
    with autocast(run.device, run.dtype):
        prediction = run.family.predict(run.components.denoiser, noisy_latents, timesteps, conditioning.to(run.device))
    if weights is None:
        return losses.mse_per_sample(prediction, target)
    return losses.masked_mse_per_sample(prediction, target, weights.to(run.device))
