"""What a model family is: the Protocol that the training loop speaks, and the values that pass between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from security.errors import SafelightError
from trainer import diffusion
from trainer.config.schema import LoraTargets, ModelConfig, PredictionType, Switch
from trainer.device import sent
from trainer.models.files import ModelFiles

__all__ = [
    "Components",
    "Conditioning",
    "ModelFamily",
    "ModelFiles",
    "NoiseSchedule",
    "UnusableLatents",
    "UnusableModel",
]


class UnusableModel(SafelightError):
    """The model's files can't be loaded: a part is missing, has the wrong shape, or is of an unsupported kind."""


class UnusableLatents(SafelightError):
    """The VAE gave NaN or Inf. `indices` are the pictures of the batch that it happened to."""

    def __init__(self, indices: Sequence[int], dtype: torch.dtype) -> None:
        self.indices, self.dtype = list(indices), dtype
        super().__init__(self._text(f"picture {', '.join(str(index) for index in indices)} of the batch"))

    def of_picture(self, name: str) -> UnusableLatents:
        """The same fault of the one picture of that name."""
        named = UnusableLatents(self.indices, self.dtype)
        named.args = (self._text(name),)
        return named

    def _text(self, what: str) -> str:
        return (
            f"The VAE gave no usable numbers (NaN or Inf) for {what} (computed in "
            f"{str(self.dtype).removeprefix('torch.')}). The picture file or the model's VAE is damaged: "
            "replace the picture, or use a model with a working VAE."
        )


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How a model was noised while it learned. `alphas_cumprod`: (num_train_timesteps,) fp32, `betas` unscaled."""

    prediction_type: str
    zero_terminal_snr: bool
    betas: Tensor
    alphas_cumprod: Tensor

    @property
    def num_train_timesteps(self) -> int:
        """How many noise levels there are."""
        return len(self.alphas_cumprod)

    @classmethod
    def from_config(
        cls,
        scheduler_config: Mapping[str, Any],
        *,
        prediction_type: str | None = None,
        zero_terminal_snr: bool | None = None,
    ) -> Self:
        """The schedule of a diffusers `scheduler_config.json`; the keywords win over what it says.

        Raises UnusableModel for an unknown shape or prediction type, or for zero terminal SNR with noise prediction:
        the last timestep then holds nothing but the noise that is asked for, so nothing can be learned there.
        """
        kind = prediction_type or scheduler_config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise UnusableModel(f"The model predicts {kind!r}. Known: epsilon, v_prediction.")
        rescale = (
            scheduler_config.get("rescale_betas_zero_snr", False) if zero_terminal_snr is None else zero_terminal_snr
        )
        if rescale and kind == "epsilon":
            raise UnusableModel(
                "Zero terminal SNR needs a v-prediction model, and this one predicts noise (epsilon). "
                "Set model.zero_terminal_snr to off, or model.prediction_type to v_prediction if you know better."
            )
        betas = _betas_of(scheduler_config)
        # Rescaled before any table is made of it: SNR weights from the unscaled table would be wrong at every step.
        used = diffusion.rescale_zero_terminal_snr(betas) if rescale else betas
        return cls(kind, bool(rescale), betas, diffusion.cumulative_alphas(used))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, h, w) at timesteps (B,)."""
        return diffusion.add_noise(latents, noise, timesteps, self.alphas_cumprod)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict, (B, C, h, w)."""
        return diffusion.target(self.prediction_type, latents, noise, timesteps, self.alphas_cumprod)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at timesteps (B,), fp32."""
        return diffusion.snr(timesteps, self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Self:
        """The same schedule with its tables on `device`."""
        return dataclasses.replace(self, betas=self.betas.to(device), alphas_cumprod=self.alphas_cumprod.to(device))

    def sampler_config(self) -> dict[str, Any]:
        """Settings that give a diffusers scheduler the same noise levels and prediction type as in training."""
        return {
            "num_train_timesteps": self.num_train_timesteps,
            "trained_betas": self.betas.cpu().numpy(),
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.zero_terminal_snr,
            # Starts at the last timestep, as a model with zero terminal SNR must (Lin et al. 2023, section 3.3).
            "timestep_spacing": "trailing",
            "steps_offset": 1,  # without effect on trailing steps; anything else makes diffusers warn
        }


def _betas_of(scheduler_config: Mapping[str, Any]) -> Tensor:
    trained = scheduler_config.get("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float32)
    try:
        return diffusion.make_betas(
            scheduler_config.get("beta_schedule", "scaled_linear"),
            int(scheduler_config.get("num_train_timesteps", 1000)),
            float(scheduler_config.get("beta_start", 0.00085)),
            float(scheduler_config.get("beta_end", 0.012)),
        )
    except ValueError as error:
        raise UnusableModel(f"The model's scheduler_config.json can't be used: {error}") from error


@dataclass
class Components:
    """The parts of a loaded base model. `vae` and the text encoders become None when they are freed.

    `model_files` is what they were loaded from, `scheduler_config` its noise schedule in diffusers' words.
    """

    model_files: ModelFiles
    denoiser: nn.Module
    text_encoders: list[Any]
    tokenizers: list[Any]
    vae: Any
    scheduler_config: dict[str, Any]

    def modules(self) -> dict[str, nn.Module]:
        """The networks that are in memory, under diffusers' names: unet, text_encoder, text_encoder_2, vae."""
        names = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, len(self.text_encoders) + 1))]
        parts = {"unet": self.denoiser, **dict(zip(names, self.text_encoders, strict=True)), "vae": self.vae}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the denoiser is told besides the picture.

    `hidden_states`: (B, T, D) of the text encoders. `pooled`: (B, P) or None. `time_ids`: (B, 6) fp32 or None, the true
    picture sizes of SDXL; they stay fp32 until they are embedded, because bf16 turns 1021 into 1020.
    """

    hidden_states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """On `device`; hidden states and pooled in `dtype`, time ids in fp32."""
        there = torch.device(device)
        return Conditioning(
            sent(self.hidden_states, there, dtype),
            None if self.pooled is None else sent(self.pooled, there, dtype),
            None if self.time_ids is None else sent(self.time_ids, there),
        )

    def row(self, index: int) -> Conditioning:
        """Sample `index` alone, as a batch of one that owns its memory."""
        return Conditioning(**{key: value[index : index + 1].clone() for key, value in self.to_tensors().items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Several batches as one. All must have the same fields and lengths."""
        tensors = [part.to_tensors() for part in parts]
        assert all(one.keys() == tensors[0].keys() for one in tensors), "conditionings with different fields"
        return Conditioning(**{key: torch.cat([one[key] for one in tensors]) for key in tensors[0]})

    def with_time_ids(self, time_ids: Tensor | None) -> Conditioning:
        """The same with the sizes (B, 6) of the pictures of this batch."""
        return dataclasses.replace(self, time_ids=None if time_ids is None else time_ids.float())

    def to_tensors(self) -> dict[str, Tensor]:
        """Its tensors by field name, without the missing ones: what a cache stores."""
        fields = {"hidden_states": self.hidden_states, "pooled": self.pooled, "time_ids": self.time_ids}
        return {key: value for key, value in fields.items() if value is not None}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Conditioning:
        """The reverse of `to_tensors`."""
        return Conditioning(**tensors)


class ModelFamily(Protocol):
    """What the loop asks of a family. Stateless: everything that is loaded is in `Components`."""

    name: str

    def load(self, files: ModelFiles, device: torch.device | str, dtype: torch.dtype) -> Components:
        """Loads all parts without a network, frozen and in evaluation mode. Raises UnusableModel."""
        ...

    def schedule(self, components: Components, model: ModelConfig) -> NoiseSchedule:
        """The noise schedule: the settings where they say something, else what the model's files say."""
        ...

    def bucket_step(self, components: Components) -> int:
        """Picture sides are multiples of this many pixels."""
        ...

    def latent_shape(self, components: Components, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of that many pixels. Raises UnusableModel where they don't fit."""
        ...

    def encode_images(self, components: Components, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w) in fp32. Raises UnusableLatents."""
        ...

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], fp32."""
        ...

    def count_tokens(self, components: Components, prompt: str) -> int:
        """Tokens of a prompt without the two that mark its ends: more than max_token_length are cut off."""
        ...

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> Conditioning:
        """Prompts -> Conditioning without time ids. Keeps gradients: the caller decides with `torch.no_grad`."""
        ...

    def size_conditioning(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int]
    ) -> Tensor | None:
        """A picture's (height, width), crop (top, left) and trained (height, width) as (1, 6) fp32, or None."""
        ...

    def predict(
        self, denoiser: nn.Module, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The denoiser's answer (B, C, h, w) for noisy latents at timesteps (B,)."""
        ...

    def lora_targets(self, targets: LoraTargets) -> list[str]:
        """Endings of the denoiser's module names that get an adapter."""
        ...

    def convolution_targets(self) -> list[str]:
        """Endings of the names of what is added when convolutions are trained."""
        ...

    def text_encoder_targets(self) -> list[str]:
        """The same for the text encoders."""
        ...

    def pipeline_class(self) -> Any:
        """The diffusers pipeline class of this family."""
        ...

    def build_pipeline(self, components: Components, noise_schedule: NoiseSchedule) -> Any:
        """A diffusers pipeline over the same parts: the reference that exports are checked against."""
        ...


def resolve_schedule(components: Components, model: ModelConfig) -> NoiseSchedule:
    """The schedule of a family that predicts noise or velocity: settings first, `auto` from the model's files."""
    files = components.model_files
    kind = files.prediction_type if model.prediction_type is PredictionType.AUTO else model.prediction_type.value
    said = {Switch.ON: True, Switch.OFF: False, Switch.AUTO: files.zero_terminal_snr}
    rescale = said[model.zero_terminal_snr]
    return NoiseSchedule.from_config(components.scheduler_config, prediction_type=kind, zero_terminal_snr=rescale)
