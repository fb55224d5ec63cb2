"""One optimizer step: which samples, which noise, the loss, the update. Everything is a function of (seed, step, sample)."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer import events, losses
from trainer.adapters.groups import stop_learning
from trainer.adapters.layer import adapted_layers
from trainer.adapters.norms import limit_norms
from trainer.adapters.targets import DENOISER
from trainer.config.schema import LossType
from trainer.dataset.batches import Sample
from trainer.dataset.captions import training_caption
from trainer.device import autocast
from trainer.embeddings import stop_word
from trainer.families.base import Conditioning
from trainer.noise import Noise, draw_noise
from trainer.optimizers import effective_rate
from trainer.randomness import derive_random, derive_seed
from trainer.schedules import learning_rate_factor
from trainer.setup import PictureSet, Run
from trainer.spikes import LossWatch

SMALLEST_SCALE = 2.0**-10
"""fp16's loss scaler halves its factor for every gradient that is too large; so far down, none is small enough."""


class Diverged(SafelightError):
    """The loss or the gradient (its norm) is no number any more."""

    def __init__(self, message: str, loss: float, norm: float) -> None:
        self.loss, self.norm = loss, norm
        super().__init__(message)


def train_step(run: Run) -> events.StepDone:
    """Trains on one window of micro-batches. The loss is the mean over the window's samples.

    Raises Diverged when loss or gradient are not finite; the weights then still are those of the step before.
    """
    began = time.perf_counter()
    _stop_text_encoder(run)
    if 0 < run.config.embedding.stop_step <= run.step:
        stop_word(run.components)
    learning_rate = _set_learning_rates(run)
    batches = window(run)
    num_samples = sum(len(samples) for samples in batches)
    total = torch.zeros((), device=run.device)
    for number, samples in enumerate(batches):
        seed_dropout(run, number)
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


def window(run: Run) -> list[list[Sample]]:
    """The micro-batches of the run's next step."""
    count = run.config.training.gradient_accumulation_steps
    return [run.plan.batch(run.step * count + number) for number in range(count)]


def seed_dropout(run: Run, number: int) -> None:
    """Sets what the LoRA's dropout layers draw from, for micro-batch `number` of the run's next step."""
    torch.manual_seed(derive_seed(run.config.training.seed, "dropout", run.step, number))


def loss_watch(run: Run) -> LossWatch:
    """What the run remembers of its last losses."""
    return LossWatch.of(run.memory)


def _stop_text_encoder(run: Run) -> None:
    """Ends the text encoder's learning once its last step is done, whether this process did that step or an earlier one."""
    last = run.config.lora.text_encoder_stop_step
    if 0 < last <= run.step and not run.text_encoder_stopped:
        stop_learning({name: part for name, part in run.adapted.items() if name != DENOISER})
        run.text_encoder_stopped = True


def _set_learning_rates(run: Run) -> float:
    factor = learning_rate_factor(run.step, run.config.training.max_train_steps, run.config.optimizer)
    for group, base in zip(run.optimizer.param_groups, run.base_learning_rates, strict=True):
        group["lr"] = base * factor
    return effective_rate(run.optimizer.param_groups[0])


def _update(run: Run, loss: float) -> float | None:
    """Clips and steps; returns the gradient's norm before clipping, None for a step that was left out: by fp16's loss
    scaler, or as a spike."""
    run.scaler.unscale_(run.optimizer)
    limit = run.config.training.max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(run.parameters, limit if limit > 0 else math.inf))
    scaled = run.scaler.is_enabled() and run.scaler.get_scale() > SMALLEST_SCALE
    if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
        run.optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"The loss of step {run.step + 1} is {loss}, the gradient's length {norm}.", loss, norm)
    training = run.config.training
    left_out = training.skip_spikes and loss_watch(run).is_spike(loss, training.spike_factor)
    if not left_out:
        run.scaler.step(run.optimizer)
        if training.max_weight_norm > 0:
            for part in run.adapted.values():
                limit_norms(adapted_layers(part).values(), training.max_weight_norm)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return norm if math.isfinite(norm) and not left_out else None


def window_losses(run: Run, samples: list[Sample]) -> Tensor:
    """Weighted losses (B,) fp32 of one micro-batch at the run's present step."""
    seed, step = run.config.training.seed, run.step
    dataset = run.config.dataset
    flips = [
        dataset.flip_augmentation and derive_random(seed, "flip", step, sample.sample_id).random() < 0.5
        for sample in samples
    ]
    latents = torch.cat([run.pictures.latents[sample.index, flip] for sample, flip in zip(samples, flips, strict=True)])
    keys = [(seed, step, sample.sample_id) for sample in samples]
    noise = draw_noise(run.config.noise, run.noise_schedule, latents, keys)
    shown = [run.pictures.placed[sample.index] for sample in samples]
    captions = [
        training_caption(one.picture.prepared, dataset, seed, step, sample.sample_id, one.picture.trigger_word)
        for one, sample in zip(shown, samples, strict=True)
    ]
    indices = [sample.index for sample in samples]
    conditioning = condition(run, run.pictures, indices, flips, captions)
    weights = mask_batch(run.pictures, indices, flips)
    prediction, target = denoise(run, latents, noise, conditioning)
    result = _counted(run, prediction, target, noise.timesteps.to(run.device), weights)
    if any(one.is_prior for one in shown):
        # lambda in equation 2 of DreamBooth (Ruiz et al. 2022, arXiv:2208.12242)
        prior = run.config.loss.prior_loss_weight
        result = result * torch.tensor([prior if one.is_prior else 1.0 for one in shown], device=run.device)
    return result


def _counted(run: Run, prediction: Tensor, target: Tensor, timesteps: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (B,) as the settings count and weigh them; the timesteps (B,) lie on the run's device."""
    settings, schedule = run.config.loss, run.noise_schedule
    snr = schedule.snr(timesteps)
    delta = None
    if settings.type in (LossType.HUBER, LossType.SMOOTH_L1):
        delta = losses.huber_deltas(
            settings.huber_schedule, settings.huber_delta, snr, timesteps, schedule.num_train_timesteps
        )
    errors = losses.elementwise_errors(prediction, target, settings.type, delta)
    result = losses.mean_per_sample(errors, None if weights is None else weights.to(run.device))
    if settings.min_snr_gamma > 0:
        result = result * losses.min_snr_weights(snr, settings.min_snr_gamma, schedule.prediction_type)
    if settings.debiased_estimation:
        result = result * losses.debiased_weights(snr, schedule.prediction_type)
    return result


def mask_batch(pictures: PictureSet, indices: list[int], flips: list[bool]) -> Tensor | None:
    """Weights (B, 1, h, w) in space, ones for a picture without a mask; None when no picture of the batch has one."""
    keys = list(zip(indices, flips, strict=True))
    if not any(key in pictures.masks for key in keys):
        return None
    whole = torch.ones(1, 1, *pictures.latents[keys[0]].shape[-2:])
    return torch.cat([pictures.masks.get(key, whole) for key in keys])


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

    The measure that all runs share, whatever loss they learn by. All inputs may lie on the CPU.
    """
    prediction, target = denoise(run, latents, Noise(noise, noise, timesteps), conditioning)
    errors = losses.elementwise_errors(prediction, target)
    return losses.mean_per_sample(errors, None if weights is None else weights.to(run.device))


def denoise(run: Run, latents: Tensor, noise: Noise, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """The denoiser's answers and what they should be, both (B, C, h, w). All inputs may lie on the CPU."""
    latents, timesteps = latents.to(run.device), noise.timesteps.to(run.device)
    noisy_latents = run.noise_schedule.add_noise(latents, noise.mixed.to(run.device), timesteps)
    target = run.noise_schedule.target(latents, noise.target.to(run.device), timesteps)
    with autocast(run.device, run.dtype):
        prediction = run.family.predict(run.components.denoiser, noisy_latents, timesteps, conditioning.to(run.device))
    return prediction, target
