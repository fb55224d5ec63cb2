"""One optimizer step: which samples, which noise, the loss, the update. Everything is a function of (seed, step, sample)."""

from __future__ import annotations

import math
import time
from functools import partial

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
from trainer.device import autocast, memory_now, processor_share, sent
from trainer.embeddings import stop_word
from trainer.families.base import Conditioning
from trainer.noise import Noise
from trainer.optimizers import effective_rate
from trainer.randomness import derive_seed
from trainer.schedules import learning_rate_factor
from trainer.setup import Run
from trainer.speed.late import Unread
from trainer.spikes import LossWatch
from trainer.step_inputs import StepInputs, make_inputs

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
    step = _computed(run)
    waiting = time.perf_counter()
    loss = float(step.loss)
    step.waited = time.perf_counter() - waiting if run.device.type != "cpu" else 0.0
    norm = _update(run, loss)
    run.step, run.images_seen = step.step, step.images_seen
    return _done(run, step, loss, norm)


def train_step_late(run: Run) -> events.StepDone | None:
    """The same, without waiting for its numbers: returns what the step before it came to, None if that is known already.

    A step whose loss or gradient is not finite changes nothing, and Diverged is raised when its numbers are read.
    """
    step = _computed(run)
    before = _read(run)
    training = run.config.training
    limit = training.max_grad_norm if training.max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(run.parameters, limit)
    is_bad = ~(torch.isfinite(step.loss) & torch.isfinite(norm))
    # AdamW in one operation looks at it on the device, as it does for torch's loss scaler
    run.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
    try:
        run.optimizer.step()
    finally:
        del run.optimizer.found_inf  # type: ignore[attr-defined]
    run.optimizer.zero_grad(set_to_none=True)
    step.launched(norm)
    run.unread = step
    run.step, run.images_seen = step.step, step.images_seen
    return before


def read_last_step(run: Run) -> events.StepDone | None:
    """What the last step came to, if its numbers were not read yet. Raises Diverged as `train_step` does."""
    done = _read(run)
    run.unread = None
    return done


def _computed(run: Run) -> Unread:
    """Forward and backward of the run's next step: the gradients are there, or on their way."""
    run.input_seconds = 0.0
    step = Unread(step=run.step + 1)
    _stop_text_encoder(run)
    if 0 < run.config.embedding.stop_step <= run.step:
        stop_word(run.components)
    step.learning_rate = _set_learning_rates(run)
    batches = window(run)
    num_samples = sum(len(samples) for samples in batches)
    step.images_seen, step.num_samples = run.images_seen + num_samples, num_samples
    shares = run.workers.share(batches)
    inputs = [_inputs(run, share.samples) for share in shares]
    if run.ahead is not None and step.step < run.config.training.max_train_steps:
        following = run.workers.share(window(run, step.step))
        run.ahead.order(step.step, [share.samples for share in following])
    total = torch.zeros((), device=run.device)
    for share, own in zip(shares, inputs, strict=True):
        seed_dropout(run, share.number, share.part)
        with run.computing():
            loss = losses_of(run, own).sum() * share.counts / num_samples
            run.scaler.scale(loss).backward()
        total += loss.detach()
    step.loss = run.workers.reduce(run.parameters, total)
    step.input_seconds = run.input_seconds
    return step


def _read(run: Run) -> events.StepDone | None:
    """What the unread step came to. Raises Diverged where it was none, and takes it back."""
    step = run.unread
    if step is None:
        return None
    loss, norm = step.read()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        run.optimizer.zero_grad(set_to_none=True)
        run.unread = None
        run.step, run.images_seen = step.step - 1, step.images_seen - step.num_samples
        raise _diverged(step.step, loss, norm)
    return _done(run, step, loss, norm)


def _done(run: Run, step: Unread, loss: float, norm: float | None) -> events.StepDone:
    seconds, processor_seconds = run.clock.since(step.began)
    used, there_is = memory_now(run.device)
    return events.StepDone(
        step=step.step,
        loss=loss,
        learning_rate=step.learning_rate,
        gradient_norm=norm,
        images_seen=step.images_seen,
        seconds=seconds,
        input_seconds=step.input_seconds,
        wait_seconds=step.waited,
        processor_share=processor_share(run.device, processor_seconds, seconds),
        memory_bytes=used,
        memory_total=there_is,
    )


def _diverged(step: int, loss: float, norm: float) -> Diverged:
    return Diverged(f"The loss of step {step} is {loss}, the gradient's length {norm}.", loss, norm)


def window(run: Run, step: int | None = None) -> list[list[Sample]]:
    """The micro-batches of the step after `step` others; of the run's next step without it."""
    count = run.config.training.gradient_accumulation_steps
    before = run.step if step is None else step
    return [run.plan.batch(before * count + number) for number in range(count)]


def seed_dropout(run: Run, number: int, part: int = 0) -> None:
    """Sets what the LoRA's dropout layers draw from, for a part of micro-batch `number` of the run's next step."""
    parts = (part,) if part else ()  # else the parts of a batch that is split would all drop the same
    torch.manual_seed(derive_seed(run.config.training.seed, "dropout", run.step, number, *parts))


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
        raise _diverged(run.step + 1, loss, norm)
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
    return losses_of(run, make_inputs(run, run.step, samples))


def _inputs(run: Run, samples: list[Sample]) -> StepInputs:
    began = time.perf_counter()
    inputs = make_inputs(run, run.step, samples) if run.ahead is None else run.ahead.take(run.step, samples)
    run.input_seconds += time.perf_counter() - began
    return inputs


def losses_of(run: Run, inputs: StepInputs) -> Tensor:
    """Weighted losses (B,) fp32 of samples, as their inputs say."""
    conditioning = inputs.conditioning
    if conditioning is None:
        conditioning = run.prompts.encode(inputs.captions).with_time_ids(inputs.time_ids)
    prediction, target = denoise(run, inputs.latents, inputs.noise, conditioning)
    timesteps = sent(inputs.noise.timesteps, run.device)
    result = _counted(run, prediction, target, timesteps, inputs.weights)
    return result if inputs.priors is None else result * sent(inputs.priors, run.device)


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
    result = losses.mean_per_sample(errors, None if weights is None else sent(weights, run.device))
    if settings.min_snr_gamma > 0:
        result = result * losses.min_snr_weights(snr, settings.min_snr_gamma, schedule.prediction_type)
    if settings.debiased_estimation:
        result = result * losses.debiased_weights(snr, schedule.prediction_type)
    return result


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
    return losses.mean_per_sample(errors, None if weights is None else sent(weights, run.device))


def denoise(run: Run, latents: Tensor, noise: Noise, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """The denoiser's answers and what they should be, both (B, C, h, w). All inputs may lie on the CPU."""
    there = partial(sent, device=run.device)
    latents, timesteps = there(latents), there(noise.timesteps)
    noisy_latents = run.noise_schedule.add_noise(latents, there(noise.mixed), timesteps)
    target = run.noise_schedule.target(latents, there(noise.target), timesteps)
    with autocast(run.device, run.dtype), run.keeping.saving():
        prediction = run.family.predict(run.components.denoiser, noisy_latents, timesteps, conditioning.to(run.device))
    return prediction, target
