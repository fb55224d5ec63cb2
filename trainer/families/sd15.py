"""Stable Diffusion 1.x: one CLIP text encoder, a U-Net on 4-channel latents (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.schema import LoraTargets, ModelConfig
from trainer.families import clip, loading, shapes, unet
from trainer.families.base import Components, Conditioning, ModelFiles, NoiseSchedule, resolve_schedule
from trainer.families.single_file import Layout, TextEncoderLayout

_TEXT_ENCODER = TextEncoderLayout("text_encoder", "tokenizer", "cond_stage_model.transformer.")
_HEADS = 8
"""Attention heads at every level of the U-Net, whatever its width."""


def _sizes(tensor_shapes: shapes.Shapes) -> dict[str, dict[str, Any]]:
    return {
        "unet": shapes.unet_sizes(tensor_shapes, heads=_HEADS),
        "vae": shapes.vae_sizes(tensor_shapes),
        "text_encoder": shapes.clip_sizes(tensor_shapes, _TEXT_ENCODER.prefix),
    }


_LAYOUT = Layout("sd15", (_TEXT_ENCODER,), _sizes)


class StableDiffusion1:
    """Any model of the SD 1.x architecture, whatever its sizes."""

    name = "sd15"

    def load(self, files: ModelFiles, device: torch.device | str, dtype: torch.dtype) -> Components:
        """All parts from a diffusers folder or a single file. Raises UnusableModel."""
        return loading.load_components(files, _LAYOUT, device, dtype)

    def schedule(self, components: Components, model: ModelConfig) -> NoiseSchedule:
        """The noise schedule: the settings where they say something, else what the model's files say."""
        return resolve_schedule(components, model)

    def bucket_step(self, components: Components) -> int:
        """64 pixels at the usual sizes."""
        return unet.bucket_step(components)

    def latent_shape(self, components: Components, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture."""
        return unet.latent_shape(components, width, height)

    def encode_images(self, components: Components, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/8, W/8) in fp32. Raises UnusableLatents."""
        return unet.encode_images(components.vae, pixels)

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pixels (B, 3, H, W) in [-1, 1], fp32."""
        return unet.decode_latents(components.vae, latents)

    def count_tokens(self, components: Components, prompt: str) -> int:
        """Tokens of a prompt without the two that mark its ends."""
        return clip.count_tokens(components.tokenizers, prompt)

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> Conditioning:
        """Hidden states (B, pieces * 77, 768) of the `clip_skip`-th last layer, through the final norm."""
        text_encoder, tokenizer = components.text_encoders[0], components.tokenizers[0]
        ids = clip.tokenize(tokenizer, prompts, max_token_length // clip.PIECE_LENGTH).to(text_encoder.device)
        return Conditioning(clip.encode_skipping(text_encoder, ids, clip_skip))

    def size_conditioning(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int]
    ) -> Tensor | None:
        """None: this family is not told picture sizes."""
        return None

    def predict(
        self, denoiser: nn.Module, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Predicted noise or velocity (B, 4, h, w)."""
        dtype = unet.compute_dtype(denoiser)
        hidden_states = conditioning.hidden_states.to(dtype)
        prediction: Tensor = denoiser(noisy_latents.to(dtype), timesteps, hidden_states, return_dict=False)[0]
        return prediction

    def lora_targets(self, targets: LoraTargets) -> list[str]:
        """Endings of the U-Net's module names."""
        return unet.LORA_TARGETS[targets]

    def convolution_targets(self) -> list[str]:
        """Endings of the U-Net's residual blocks' and samplers' module names."""
        return unet.CONVOLUTION_TARGETS

    def text_encoder_targets(self) -> list[str]:
        """Endings of the text encoder's module names."""
        return clip.TEXT_ENCODER_TARGETS

    def pipeline_class(self) -> Any:
        """diffusers' StableDiffusionPipeline."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    def build_pipeline(self, components: Components, noise_schedule: NoiseSchedule) -> Any:
        """A StableDiffusionPipeline over the same parts."""
        from diffusers import DPMSolverMultistepScheduler

        return self.pipeline_class()(
            vae=components.vae,
            text_encoder=components.text_encoders[0],
            tokenizer=components.tokenizers[0],
            unet=components.denoiser,
            scheduler=DPMSolverMultistepScheduler(**noise_schedule.sampler_config()),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


FAMILY = StableDiffusion1()
