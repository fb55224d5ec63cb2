"""Loss on held-out pictures, with the same noise every time, so that only the LoRA changes it."""

from __future__ import annotations

import torch

from trainer.randomness import derive_seed
from trainer.sampling import evaluation
from trainer.setup import Run
from trainer.step import condition, denoising_losses, mask_batch


def held_out_loss(run: Run) -> float:
    """Mean unweighted loss over all held-out pictures at evenly spread timesteps. Touches no random state of training.

    The timesteps are the quantiles (i + 1/2) / n of the uniform law that training draws from.
    """
    count = run.config.validation.num_timesteps
    total = run.noise_schedule.num_train_timesteps
    timesteps = [int((number + 0.5) / count * total) for number in range(count)]
    losses = []
    with evaluation(list(run.adapted.values())), torch.no_grad():
        for index, one in enumerate(run.held_out.placed):
            latents = run.held_out.latents[index, False]
            conditioning = condition(run, run.held_out, [index], [False], [one.picture.caption])
            weights = mask_batch(run.held_out, [index], [False])
            for timestep in timesteps:
                seed = derive_seed(run.config.training.seed, "held-out", one.picture.content_hash, timestep)
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
                losses.append(denoising_losses(run, latents, noise, torch.tensor([timestep]), conditioning, weights))
    return float(torch.cat(losses).mean())
