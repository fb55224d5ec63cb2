"""Everything a run encodes once: pictures to latents, prompts to conditioning. Encoders are freed when they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.config.schema import SampleConfig, TrainConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.cache import TensorCache, cached, latents_key, load_mask, load_pixels, mask_key, text_key
from trainer.families.base import Components, Conditioning, ModelFamily, UnusableLatents
from trainer.losses import mask_weights
from trainer.sampling import SamplePrompts, evaluation

Report = Callable[[int, int], None]
"""Called with (done, total) after each item; may raise to end the work."""


def encode_pictures(
    family: ModelFamily,
    components: Components,
    placed: Sequence[PlacedPicture],
    *,
    flips: tuple[bool, ...],
    cache: TensorCache | None,
    report: Report,
) -> dict[tuple[int, bool], Tensor]:
    """Latents (1, C, h, w) fp32 on the CPU by (index, flipped). Flipped pictures are encoded, not mirrored latents.

    One picture at a time, so that a picture's latents never depend on which others were cached already.
    """
    fingerprint = components.model_files.fingerprint
    latents = {}
    for index, one in enumerate(placed):
        for flip in flips:
            pixels = _PixelsToLatents(family, components, one, flip)
            latents[index, flip] = cached(cache, latents_key(one, fingerprint, flip=flip), pixels)["latents"]
            if not torch.isfinite(latents[index, flip]).all():
                raise SafelightError(
                    f"What the cache has of {one.picture.name} holds NaN or Inf, so the disk may be failing. Empty the "
                    "cache of latents and start again."
                )
        report(index + 1, len(placed))
    return latents


def encode_masks(
    placed: Sequence[PlacedPicture],
    latents: Mapping[tuple[int, bool], Tensor],
    *,
    unmasked_weight: float,
    cache: TensorCache | None,
) -> dict[tuple[int, bool], Tensor]:
    """Weights (1, 1, h, w) fp32 on the CPU by (index, flipped), for pictures that have a mask.

    Raises SafelightError for a mask that leaves nothing to learn.
    """
    weights = {}
    for (index, flip), latent in latents.items():
        one = placed[index]
        if one.picture.mask is None:
            continue
        size = (latent.shape[-2], latent.shape[-1])
        mask = cached(cache, mask_key(one, size, flip=flip), _MaskOf(one, size, flip))["mask"]
        weights[index, flip] = mask_weights(mask, unmasked_weight)
        if not weights[index, flip].any():
            raise SafelightError(
                f"The mask of {one.picture.name} is black in all of the part that is trained, so nothing of it would be "
                "learned. Paint what to learn in white, remove the mask, or raise loss.unmasked_weight."
            )
    return weights


@dataclass(frozen=True)
class _MaskOf:
    placed: PlacedPicture
    size: tuple[int, int]
    flip: bool

    def __call__(self) -> dict[str, Tensor]:
        assert self.placed.picture.mask is not None, "only pictures with a mask are asked"
        return {"mask": load_mask(self.placed.picture.mask, self.placed.placement, self.size, flip=self.flip)}


@dataclass(frozen=True)
class _PixelsToLatents:
    family: ModelFamily
    components: Components
    placed: PlacedPicture
    flip: bool

    def __call__(self) -> dict[str, Tensor]:
        pixels = load_pixels(self.placed.picture.path, self.placed.placement, flip=self.flip)
        try:
            return {"latents": self.family.encode_images(self.components, pixels)}
        except UnusableLatents as error:
            raise error.of_picture(self.placed.picture.name) from None


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."


@dataclass
class Prompts:
    """Prompts as the denoiser hears them: looked up when they were encoded before, else encoded now.

    `live`: the text encoder learns, so nothing may be kept and gradients must flow.
    """

    family: ModelFamily
    components: Components
    config: TrainConfig
    live: bool
    cache: TensorCache | None
    known: dict[str, Conditioning] = field(default_factory=dict)

    def prepare(self, prompts: Iterable[str], report: Report) -> None:
        """Encodes prompts once and keeps them; does nothing when the text encoder learns."""
        todo = sorted(set(prompts) - self.known.keys()) if not self.live else []
        for done, prompt in enumerate(todo, start=1):
            self.known[prompt] = self._encode_once(prompt)
            report(done, len(todo))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of a batch, on the device of the denoiser or the CPU; without time ids."""
        if self.live:
            return self._encode(prompts)
        return Conditioning.cat([self.known.get(prompt) or self._encode_frozen(prompt) for prompt in prompts])

    def of_samples(self, settings: SampleConfig) -> SamplePrompts:
        """The sample prompts as the model hears them now, encoded in evaluation mode and without gradients."""
        encoders = [encoder for encoder in self.components.text_encoders if encoder is not None]
        with evaluation(encoders), torch.no_grad():
            return SamplePrompts(
                tuple(self.encode([prompt]) for prompt in settings.prompts), self.encode([settings.negative_prompt])
            )

    def _encode_frozen(self, prompt: str) -> Conditioning:
        with torch.no_grad():  # a shuffled caption comes only once, so keeping it would only fill the disk
            return self._encode([prompt])

    def _encode_once(self, prompt: str) -> Conditioning:
        model, dataset = self.config.model, self.config.dataset
        key = text_key(
            prompt,
            self.components.model_files.fingerprint,
            clip_skip=model.clip_skip,
            max_token_length=dataset.max_token_length,
            dtype=self.components.text_encoders[0].dtype,
        )
        with torch.no_grad():
            found = cached(self.cache, key, lambda: self._encode([prompt]).to_tensors())
        if not all(torch.isfinite(tensor).all() for tensor in found.values()):
            raise SafelightError(
                f"The text encoder gave no usable numbers (NaN or Inf) for {_shortened(prompt)!r}: the base model is "
                "broken, or model.precision is too narrow for it. Set it to fp32, or use another model."
            )
        return Conditioning.from_tensors(found)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.family.encode_prompts(
            self.components,
            prompts,
            clip_skip=self.config.model.clip_skip,
            max_token_length=self.config.dataset.max_token_length,
        )
