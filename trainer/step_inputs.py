"""What a step is computed from, as a function of (seed, step, sample): latents, noise, captions, sizes and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.dataset.batches import Sample
from trainer.dataset.captions import training_caption
from trainer.families.base import Conditioning
from trainer.noise import Noise, draw_noise
from trainer.randomness import derive_random

if TYPE_CHECKING:
    from trainer.setup import PictureSet, Run


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Inputs of B samples, on the CPU. `latents` (B, C, h, w) fp32; `weights` (B, 1, h, w) where a picture has a mask;
    `priors` (B,) where a picture is there for regularisation, what its loss is weighted by.

    `conditioning`: the captions as the denoiser is told them, with the sizes `time_ids` where the family knows them; None
    for captions that are encoded in the step.
    """

    latents: Tensor
    noise: Noise
    captions: list[str]
    time_ids: Tensor | None
    conditioning: Conditioning | None
    weights: Tensor | None
    priors: Tensor | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        """The same with `change` made to every tensor."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        told = self.conditioning
        return dataclasses.replace(
            self,
            latents=change(self.latents),
            noise=Noise(change(self.noise.target), change(self.noise.mixed), change(self.noise.timesteps)),
            time_ids=of(self.time_ids),
            conditioning=told and Conditioning(**{key: change(one) for key, one in told.to_tensors().items()}),
            weights=of(self.weights),
            priors=of(self.priors),
        )


def make_inputs(run: Run, step: int, samples: Sequence[Sample]) -> StepInputs:
    """The inputs of samples in the step after `step` others. Uses no network and draws from no common random state, so
    that another thread can do it."""
    seed, dataset = run.config.training.seed, run.config.dataset
    flips = [
        dataset.flip_augmentation and derive_random(seed, "flip", step, sample.sample_id).random() < 0.5
        for sample in samples
    ]
    latents = torch.cat([run.pictures.latents[sample.index, flip] for sample, flip in zip(samples, flips, strict=True)])
    keys = [(seed, step, sample.sample_id) for sample in samples]
    shown = [run.pictures.placed[sample.index] for sample in samples]
    captions = [
        training_caption(one.picture.prepared, dataset, seed, step, sample.sample_id, one.picture.trigger_word)
        for one, sample in zip(shown, samples, strict=True)
    ]
    indices = [sample.index for sample in samples]
    sizes = time_ids(run, run.pictures, indices, flips)
    priors = None
    if any(one.is_prior for one in shown):
        # lambda in equation 2 of DreamBooth (Ruiz et al. 2022, arXiv:2208.12242)
        priors = torch.tensor([run.config.loss.prior_loss_weight if one.is_prior else 1.0 for one in shown])
    return StepInputs(
        latents=latents,
        noise=draw_noise(run.config.noise, run.noise_schedule, latents, keys),
        captions=captions,
        time_ids=sizes,
        conditioning=run.prompts.encode(captions).with_time_ids(sizes) if run.prompts.knows(captions) else None,
        weights=mask_batch(run.pictures, indices, flips),
        priors=priors,
    )


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
    return run.prompts.encode(captions).with_time_ids(time_ids(run, pictures, indices, flips))


def time_ids(run: Run, pictures: PictureSet, indices: list[int], flips: list[bool]) -> Tensor | None:
    """True sizes and crops (B, 6) of pictures; None for a family that is not told them."""
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
    return None if sizes[0] is None else torch.cat(sizes)
