"""Loss on held-out pictures, and on some training pictures in the same way, with the same noise every time.

So only the LoRA changes it. Measuring leaves no trace in the training: noise comes from generators of its own, the global
random state and the mode of every layer are as before afterwards.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from trainer import events
from trainer.dataset.batches import PlacedPicture
from trainer.families.base import Conditioning
from trainer.measurements import Measurement, Measurements
from trainer.metadata import HeldOutFacts
from trainer.noise import timestep_quantiles
from trainer.randomness import derive_seed
from trainer.sampling import evaluation, untouched_random_state
from trainer.setup import PictureSet, Run
from trainer.step import denoising_losses
from trainer.step_inputs import condition, mask_batch

MEMORY = "measurements"
"""The name of the measurements among what a run remembers."""


def measure(run: Run) -> Measurement:
    """The loss of each held-out picture, and of validation.train_pictures training pictures, as the run stands."""
    return Measurement(
        run.step,
        picture_losses(run, run.held_out, range(len(run.held_out.placed))),
        picture_losses(run, run.pictures, measured_training_pictures(run)),
    )


def measurements_of(run: Run) -> Measurements:
    """All measurements of the run so far; those of other pictures, as before an edit of the settings, are left out."""
    text, key = run.memory.get(MEMORY), measured_key(run)
    return Measurements.from_text(text, key) if isinstance(text, str) else Measurements(key)


def remember(run: Run, measurements: Measurements) -> None:
    """Keeps them, so that checkpoints do and a run that goes on knows its best step as if it had never stopped."""
    run.memory[MEMORY] = measurements.to_text()


def held_out_loss(run: Run) -> float:
    """Mean unweighted loss over all held-out pictures."""
    return Measurement(run.step, picture_losses(run, run.held_out, range(len(run.held_out.placed)))).loss


def picture_losses(run: Run, pictures: PictureSet, indices: range | list[int]) -> tuple[float, ...]:
    """Mean unweighted loss of each of these pictures over the timesteps of `measured_timesteps`.

    Captions are whole and in their own order, pictures unmirrored, noise the same for a picture whenever and in whatever
    set it is measured: train and held-out loss differ by what was learned alone. As many timesteps at a time as training
    takes pictures.
    """
    timesteps, order = measured_timesteps(run), list(indices)
    losses = {}
    with evaluation(list(run.adapted.values())), untouched_random_state(), torch.no_grad():
        for place in run.workers.turn(len(order)):
            index = order[place]
            one = pictures.placed[index]
            latents = pictures.latents[index, False]
            conditioning = condition(run, pictures, [index], [False], [one.picture.caption])
            weights = mask_batch(pictures, [index], [False])
            own = []
            for first in range(0, len(timesteps), run.config.training.batch_size):
                some = timesteps[first : first + run.config.training.batch_size]
                noise = torch.cat([_noise(run, one, timestep, latents) for timestep in some])
                repeated = [
                    value.expand(len(some), *value.shape[1:]) for value in (latents, weights) if value is not None
                ]
                conditionings = Conditioning.cat([conditioning] * len(some))
                own.append(denoising_losses(run, repeated[0], noise, torch.tensor(some), conditionings, *repeated[1:]))
            losses[place] = float(torch.cat(own).double().mean())
    return run.workers.gathered(losses, len(order))


def _noise(run: Run, one: PlacedPicture, timestep: int, latents: Tensor) -> Tensor:
    """The noise (1, C, h, w) that a picture is measured with at a timestep."""
    seed = derive_seed(run.config.training.seed, "held-out", one.picture.content_hash, timestep)
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))


def validated(run: Run) -> events.Validated | events.Warned:
    """Measures, remembers it, and says what it means."""
    entry = measure(run)
    if not entry.is_finite:
        return events.Warned(
            f"The held-out loss at step {run.step} is {entry.loss}: the LoRA or the base gives no usable numbers."
        )
    measurements = measurements_of(run)
    measurements.add(entry)
    remember(run, measurements)
    return events.Validated(
        step=run.step,
        loss=entry.loss,
        spread=entry.spread,
        train_loss=entry.trained_loss,
        train_spread=entry.trained_spread,
        best=measurements.best is entry,
        notice=measurements.notice,
    )


def kept_steps(run: Run) -> set[int]:
    """The steps whose checkpoints stay, however old: the best one, where it is to be kept."""
    best = measurements_of(run).best if run.held_out.placed else None
    return {best.step} if best is not None and run.config.validation.keep_best else set()


def held_out_facts(run: Run) -> HeldOutFacts | None:
    """What a LoRA file saved now says of the measurements; None without held-out pictures."""
    if not run.held_out.placed:
        return None
    measurements = measurements_of(run)
    now, best = measurements.at(run.step), measurements.best
    return HeldOutFacts(
        num_pictures=len(run.held_out.placed),
        loss=now.loss if now else None,
        best_step=best.step if best else None,
        best_loss=best.loss if best else None,
    )


def early_end(run: Run) -> str:
    """Why the run should end before its last step, in a sentence; empty while it should go on."""
    settings = run.config.validation
    return measurements_of(run).early_end(settings.early_stop_patience, settings.early_stop_delta)


def measured_timesteps(run: Run) -> list[int]:
    """The quantiles (i + 1/2) / n of the law that training draws its timesteps from: each stands for as many steps."""
    return timestep_quantiles(run.config.noise, run.noise_schedule, run.config.validation.num_timesteps)


def measured_training_pictures(run: Run) -> list[int]:
    """Indices of the training pictures that are measured, each once: chosen by content and seed, no regularisation ones."""
    seed = run.config.training.seed
    own = [
        (derive_seed(seed, "measured", one.picture.content_hash, one.source), index)
        for index, one in enumerate(run.pictures.placed)
        if one.is_first and not one.is_prior
    ]
    return [index for _, index in sorted(own)[: run.config.validation.train_pictures]]


def measured_key(run: Run) -> str:
    """What is measured, as a hash: measurements with another one can't be compared."""
    placed = [*run.held_out.placed, *(run.pictures.placed[index] for index in measured_training_pictures(run))]
    parts: list[object] = [len(run.held_out.placed), run.config.training.seed, *measured_timesteps(run)]
    for one in placed:
        parts += [one.picture.content_hash, one.picture.caption, one.picture.mask_hash, one.placement]
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()
