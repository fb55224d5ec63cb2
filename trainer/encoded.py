"""What else a run encodes once: masks to weights, prompts to conditioning. Encoders are freed when they are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.at_once import AtOnce
from trainer.config.schema import SampleConfig, TrainConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.cache import TensorCache, cached, load_mask, mask_key, text_key
from trainer.families.base import Components, Conditioning, ModelFamily
from trainer.latents import Key, Report
from trainer.losses import mask_weights
from trainer.sampling import SamplePrompts, evaluation


def encode_masks(
    placed: Sequence[PlacedPicture],
    latents: Mapping[Key, Tensor],
    *,
    unmasked_weight: float,
    cache: TensorCache | None,
) -> dict[Key, Tensor]:
    """Weights (1, 1, h, w) fp32 on the CPU by (index, flipped), for pictures that have a mask.

    Raises SafelightError for a mask that leaves nothing to learn.
    """
    weights = {}
    for index, flip in latents:
        one = placed[index]
        if one.picture.mask is None:
            continue
        height, width = latents[index, flip].shape[-2:]
        size = (height, width)
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
    at_once: AtOnce
    known: dict[str, Conditioning] = field(default_factory=dict)

    def prepare(self, prompts: Iterable[str], report: Report) -> None:
        """Encodes prompts once and keeps them; does nothing when the text encoder learns."""
        todo = sorted(set(prompts) - self.known.keys()) if not self.live else []
        missing: list[str] = []
        for place, prompt in enumerate(todo, start=1):
            found = self.cache.get(self._key(prompt)) if self.cache is not None else None
            if found is None:
                missing.append(prompt)
            else:
                self._keep(prompt, found)
                report(place - len(missing), len(todo))
        while missing:
            some, missing = missing[: self.at_once.size], missing[self.at_once.size :]
            for prompt, made in zip(some, self.at_once.encode(some, self._encode_once), strict=True):
                self._keep(prompt, made)
                if self.cache is not None:
                    self.cache.put(self._key(prompt), made)
            report(len(todo) - len(missing), len(todo))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of a batch, on the device of the denoiser or the CPU; without time ids."""
        if self.live:
            return self._encode(prompts)
        return Conditioning.cat([self.known.get(prompt) or self._encode_frozen(prompt) for prompt in prompts])

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether these need no text encoder any more."""
        return not self.live and all(prompt in self.known for prompt in prompts)

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

    def _key(self, prompt: str) -> str:
        return text_key(
            prompt,
            self.components.model_files.fingerprint,
            clip_skip=self.config.model.clip_skip,
            max_token_length=self.config.dataset.max_token_length,
            dtype=self.components.text_encoders[0].dtype,
        )

    def _encode_once(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """The tensors of each prompt, on the CPU."""
        with torch.no_grad():
            encoded = self._encode(prompts).to("cpu")
        return [encoded.row(place).to_tensors() for place in range(len(prompts))]

    def _keep(self, prompt: str, tensors: dict[str, Tensor]) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise SafelightError(
                f"The text encoder gave no usable numbers (NaN or Inf) for {_shortened(prompt)!r}: the base model is "
                "broken, or model.precision is too narrow for it. Set it to fp32, or use another model."
            )
        self.known[prompt] = Conditioning.from_tensors(tensors)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.family.encode_prompts(
            self.components,
            prompts,
            clip_skip=self.config.model.clip_skip,
            max_token_length=self.config.dataset.max_token_length,
        )
