"""Prepares a run as it would be, takes some steps on its largest pictures, and throws them away: what it will need.

The pictures and captions that it encodes stay in the cache, so nothing of this is done twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer import events
from trainer.config.schema import SampleConfig
from trainer.dataset.batches import Sample
from trainer.device import autocast, peak_memory
from trainer.loop import save
from trainer.memory.fitting import base_bytes
from trainer.memory.recovery import within_memory
from trainer.randomness import derive_seed
from trainer.sampling import draw, drawn_together, evaluation
from trainer.saving import settle
from trainer.setup import Emit, Run
from trainer.step import train_step
from trainer.step_inputs import condition
from trainer.validation import picture_losses

SLOW_STEP_SECONDS = 20.0
"""A step that takes longer is measured once; others three times."""
PROBE_PICTURES = 8
LIKE_NOISE, UNLIKE_NOISE, LEAST_DEVIATION = 0.8, 0.5, 0.1
"""Cosine of an answer and the noise over or under which it is told what the base predicts; and how large it has to be."""


@dataclass
class Measurements:
    """What a dry run found. Seconds and bytes. `steps`: (area in pixels of a batch, seconds of a step); `num_measured`: pictures
    of a measurement of the held-out loss.
    """

    steps: list[tuple[float, float]] = field(default_factory=list)
    mean_area: float = 0.0
    sample_seconds: float = 0.0
    validation_seconds: float = 0.0
    save_seconds: float = 0.0
    checkpoint_bytes: int = 0
    lora_bytes: int = 0
    sample_bytes: int = 0
    memory_parts: dict[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    memory_total: int = 0
    loss: float = 0.0
    num_measured: int = 0


@dataclass(frozen=True)
class _Repeated:
    """A plan that has one batch only."""

    samples: list[Sample]

    def batch(self, number: int) -> list[Sample]:
        """The batch, whatever its number."""
        return self.samples


def measure(run: Run, emit: Emit, report: Callable[[str], None]) -> Measurements:
    """Steps, samples, a look at held-out pictures and a save of a prepared run, timed. Spoils the run for training.

    Raises Diverged when a step gives no usable numbers, and torch's OutOfMemoryError.
    """
    found = Measurements(num_measured=_num_measured(run))
    plan = run.plan
    batches = _batches_of_an_epoch(run)
    areas = [_area(run, samples) for samples in batches]
    found.mean_area = statistics.fmean(areas)
    report("Trying a step on the largest pictures")
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    for number in dict.fromkeys((areas.index(max(areas)), areas.index(min(areas)))):
        run.plan = _Repeated(batches[number])  # type: ignore[assignment]
        seconds, found.loss = _time_steps(run, emit)
        found.steps.append((areas[number], seconds))
    run.plan = plan
    report("Trying to save and to draw")
    found.sample_seconds, found.sample_bytes = _time_sample(run)
    found.validation_seconds = _time_look(run)
    _time_save(run, emit, found)
    found.memory_parts = memory_parts(run)
    found.memory_bytes, found.memory_total = peak_memory(run.device)
    rest = found.memory_bytes - sum(found.memory_parts.values())
    found.memory_parts["activations and the rest"] = max(0, rest)
    return found


def _num_measured(run: Run) -> int:
    """Pictures of a measurement of the held-out loss, training pictures that are measured alike among them."""
    held_out = len(run.held_out.placed)
    return held_out + min(run.config.validation.train_pictures, len(run.pictures.placed)) if held_out else 0


def _batches_of_an_epoch(run: Run) -> list[list[Sample]]:
    return [run.plan.batch(number) for number in range(max(1, round(run.plan.batches_per_epoch)))]


def _area(run: Run, samples: Sequence[Sample]) -> float:
    width, height = run.pictures.placed[samples[0].index].placement.bucket
    return float(width * height * len(samples))


def _time_steps(run: Run, emit: Emit) -> tuple[float, float]:
    """Seconds of a step after the first one, which warms up; and the loss."""
    times = []
    loss = 0.0
    for number in range(4):
        _wait(run.device)
        began = time.perf_counter()
        loss = within_memory(run, emit, lambda: train_step(run)).loss
        _wait(run.device)
        times.append(time.perf_counter() - began)
        if number > 0 and times[-1] > SLOW_STEP_SECONDS:
            break
    return statistics.median(times[1:]), loss


def _time_sample(run: Run) -> tuple[float, int]:
    """Seconds and bytes of one sample, from drawings of one batch in one and in three inference steps."""
    settings = run.config.sample
    if not settings.prompts:
        return 0.0, 0
    run.components.vae.to(run.device)
    prompts = run.prompts.of_samples(settings)
    short, long = (_time_drawing(run, replace_steps(settings, steps), prompts) for steps in (1, 3))
    run.components.vae.to("cpu")
    each = max(0.0, (long - short) / 2)
    seconds = short + each * (settings.num_inference_steps - 1)
    return seconds / len(drawn_together(settings)[0]), 3 * settings.width * settings.height


def replace_steps(settings: SampleConfig, steps: int) -> SampleConfig:
    """The same drawing with another number of inference steps."""
    return settings.model_copy(update={"num_inference_steps": steps})


def _time_drawing(run: Run, settings: SampleConfig, prompts: Any) -> float:
    _wait(run.device)
    began = time.perf_counter()
    draw(run.family, run.components, run.noise_schedule, settings, prompts, indices=drawn_together(settings)[0])
    _wait(run.device)
    return time.perf_counter() - began


def _time_look(run: Run) -> float:
    """Seconds of a measurement of one picture."""
    times = []
    for _ in range(2):
        _wait(run.device)
        began = time.perf_counter()
        picture_losses(run, run.pictures, [0])
        _wait(run.device)
        times.append(time.perf_counter() - began)
    return times[-1]


def _time_save(run: Run, emit: Emit, found: Measurements) -> None:
    def noted(event: events.Event) -> None:
        if isinstance(event, events.LoraSaved):
            found.lora_bytes += event.num_bytes
        emit(event)

    began = time.perf_counter()
    save(run, noted, stem="check", beside=True)
    found.save_seconds = time.perf_counter() - began
    settle(run, noted)
    found.checkpoint_bytes = sum(
        path.stat().st_size for path in run.folder.checkpoints_dir.rglob("*") if path.is_file()
    )


def memory_parts(run: Run) -> dict[str, int]:
    """Bytes of what stays in the memory of the device while a run trains."""
    adapter = sum(parameter.nbytes for parameter in run.parameters)
    state = _tensor_bytes(run.optimizer.state_dict())
    parts = {
        "base model": base_bytes(run),
        "what is trained": adapter,
        "its gradients": adapter,
        "the optimizer's state": state,
    }
    return parts | ({"the checkpoint being saved": adapter + state} if run.saves_beside_steps else {})


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def probe_prediction(run: Run) -> str:
    """What the base's own answers look like, "epsilon" or "v_prediction"; "" when it can't be told clearly.

    The adapter has to be untrained. At the last timestep there is next to nothing but noise: a base that predicts noise
    answers with its input, one that predicts velocity (Salimans and Ho 2022, arXiv:2202.00512) with the picture that it
    expects, taken negatively, which has nothing to do with that noise. So no picture is needed, and none is.
    """
    likeness, size = 0.0, 0.0
    number = min(PROBE_PICTURES, len(run.pictures.placed))
    with evaluation([run.components.denoiser]), torch.no_grad():
        for index in range(number):
            latents, noise, _, conditioning = _probe_inputs(run, index)
            last = torch.tensor([run.noise_schedule.num_train_timesteps - 1], device=run.device)
            noise = noise.to(run.device)
            noisy = run.noise_schedule.add_noise(torch.zeros_like(latents).to(run.device), noise, last)
            with autocast(run.device, run.dtype):
                answer = run.family.predict(run.components.denoiser, noisy, last, conditioning.to(run.device)).float()
            likeness += float(torch.cosine_similarity(answer.flatten(), noise.flatten(), dim=0)) / number
            size += float(answer.std()) / number
    if likeness > LIKE_NOISE:
        return "epsilon"
    return "v_prediction" if abs(likeness) < UNLIKE_NOISE and size > LEAST_DEVIATION else ""


def _probe_inputs(run: Run, index: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    latents = run.pictures.latents[index, False]
    generator = torch.Generator().manual_seed(derive_seed(run.config.training.seed, "probe", index))
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([run.noise_schedule.num_train_timesteps // 2])
    conditioning = condition(run, run.pictures, [index], [False], [run.pictures.placed[index].picture.caption])
    return latents, noise, timesteps, conditioning


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
