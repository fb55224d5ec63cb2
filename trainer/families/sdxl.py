"""Stable Diffusion XL: two text encoders, a pooled prompt and picture sizes (Podell et al. 2023, arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.schema import LoraTargets, ModelConfig
from trainer.families import clip, loading, shapes, unet
from trainer.families.base import Components, Conditioning, ModelFiles, NoiseSchedule, resolve_schedule
from trainer.families.single_file import Layout, TextEncoderLayout

_FIRST_ENCODER = TextEncoderLayout("text_encoder", "tokenizer", "conditioner.embedders.0.transformer.")
_SECOND_ENCODER = TextEncoderLayout("text_encoder_2", "tokenizer_2", "conditioner.embedders.1.model.", open_clip=True)


def _sizes(tensor_shapes: shapes.Shapes) -> dict[str, dict[str, Any]]:
    second = shapes.open_clip_sizes(tensor_shapes, _SECOND_ENCODER.prefix)
    added = shapes.added_embedding_sizes(tensor_shapes, second["projection_dim"])
    return {
        "unet": shapes.unet_sizes(tensor_shapes, heads=None) | added,
        "vae": shapes.vae_sizes(tensor_shapes),
        "text_encoder": shapes.clip_sizes(tensor_shapes, _FIRST_ENCODER.prefix),
        "text_encoder_2": second,
    }


_LAYOUT = Layout("sdxl", (_FIRST_ENCODER, _SECOND_ENCODER), _sizes)


class StableDiffusionXL:
    """SDXL 1.0 and everything of its architecture: Illustrious, NoobAI, Pony, Animagine."""

    name = "sdxl"

    def load(self, files: ModelFiles, device: torch.device | str, dtype: torch.dtype) -> Components:
        """All parts from a diffusers folder or a single file. Raises UnusableModel."""
        return loading.load_components(files, _LAYOUT, device, dtype)

    def schedule(self, components: Components, model: ModelConfig) -> NoiseSchedule:
        """The noise schedule: the settings where they say something, else what the model's files say."""
        return resolve_schedule(components, model)

    def bucket_step(self, components: Components) -> int:
        """32 pixels at the usual sizes."""
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
        """Both encoders' hidden states (B, pieces * 77, 768 + 1280) and the second one's pooled vector (B, 1280).

        `clip_skip` changes nothing: SDXL was trained on the layer before the last, without the final norm.
        """
        num_pieces = max_token_length // clip.PIECE_LENGTH
        hidden_states, at_end = [], None
        for text_encoder, tokenizer in zip(components.text_encoders, components.tokenizers, strict=True):
            ids = clip.tokenize(tokenizer, prompts, num_pieces).to(text_encoder.device)
            states, at_end = clip.encode_penultimate(text_encoder, ids, tokenizer.eos_token_id)
            hidden_states.append(states)
        pooled = components.text_encoders[-1].text_projection(at_end)
        return Conditioning(torch.cat(hidden_states, dim=-1), pooled)

    def size_conditioning(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int]
    ) -> Tensor | None:
        """(1, 6) fp32: original (height, width), crop (top, left), target (height, width); paper, section 2.2."""
        return torch.tensor([[*original_size, *crop_top_left, *target_size]], dtype=torch.float32)

    def predict(
        self, denoiser: nn.Module, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Predicted noise or velocity (B, 4, h, w). Needs `pooled` and `time_ids`."""
        assert conditioning.pooled is not None and conditioning.time_ids is not None, "SDXL needs pooled and time_ids"
        dtype = unet.compute_dtype(denoiser)
        # time_ids stay fp32: the U-Net embeds them as sinusoids, and a size rounded to bf16 is another size.
        added = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.time_ids.float()}
        hidden_states = conditioning.hidden_states.to(dtype)
        prediction: Tensor = denoiser(
            noisy_latents.to(dtype), timesteps, hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def lora_targets(self, targets: LoraTargets) -> list[str]:
        """Endings of the U-Net's module names."""
        return unet.LORA_TARGETS[targets]

    def convolution_targets(self) -> list[str]:
        """Endings of the U-Net's residual blocks' and samplers' module names."""
        return unet.CONVOLUTION_TARGETS

    def text_encoder_targets(self) -> list[str]:
        """Endings of the text encoders' module names."""
        return clip.TEXT_ENCODER_TARGETS

    def pipeline_class(self) -> Any:
        """diffusers' StableDiffusionXLPipeline."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    def build_pipeline(self, components: Components, noise_schedule: NoiseSchedule) -> Any:
        """A StableDiffusionXLPipeline over the same parts."""
        from diffusers import DPMSolverMultistepScheduler

        return self.pipeline_class()(
            vae=components.vae,
            text_encoder=components.text_encoders[0],
            text_encoder_2=components.text_encoders[1],
            tokenizer=components.tokenizers[0],
            tokenizer_2=components.tokenizers[1],
            unet=components.denoiser,
            scheduler=DPMSolverMultistepScheduler(**noise_schedule.sampler_config()),
            add_watermarker=False,
        )


FAMILY = StableDiffusionXL()
