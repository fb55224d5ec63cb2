"""Loads a Stable Diffusion model's parts without a network, from a diffusers folder or a single .safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from security.configs import read_json
from security.environment import offline_environment
from trainer.families import clip, single_file
from trainer.families.base import Components, ModelFiles, UnusableModel
from trainer.families.single_file import Layout
from trainer.families.unet import freeze, vae_dtype


def load_components(files: ModelFiles, layout: Layout, device: torch.device | str, dtype: torch.dtype) -> Components:
    """All parts on `device`, frozen, in evaluation mode; the VAE in fp32 unless its config allows less.

    Checks the files first. Raises RefusedFile for a file that must not be opened, UnusableModel for one that can't be
    used.
    """
    offline_environment()
    _hide_progress_bars()
    load = _from_folder if files.kind == "folder" else single_file.load
    components = load(files, layout, dtype)
    components.denoiser = freeze(components.denoiser, device)
    components.text_encoders = [freeze(one, device) for one in components.text_encoders]
    components.vae = freeze(components.vae, device, vae_dtype(components.vae, dtype))
    _check(components)
    return components


def _hide_progress_bars() -> None:
    # The run's own events tell the progress; bars of two libraries would tear the log apart.
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _from_folder(files: ModelFiles, layout: Layout, dtype: torch.dtype) -> Components:
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from security.repos import check_diffusers_folder

    check_diffusers_folder(files.path)
    # The VAE's own numbers are kept: rounding them to bf16 on the way would lose what fp32 is for.
    vae = _load_part(AutoencoderKL, files.path / "vae", torch.float32)
    return Components(
        model_files=files,
        denoiser=_load_part(UNet2DConditionModel, files.path / "unet", dtype),
        text_encoders=[
            # Let through here so that the check below can name the tensor; transformers only writes it to the log.
            _load_part(
                getattr(transformers, one.class_name), files.path / one.folder, dtype, ignore_mismatched_sizes=True
            )
            for one in layout.text_encoders
        ],
        tokenizers=[
            transformers.CLIPTokenizer.from_pretrained(files.path / one.tokenizer, local_files_only=True)
            for one in layout.text_encoders
        ],
        vae=vae,
        scheduler_config=read_json(files.path / "scheduler" / "scheduler_config.json"),
    )


def _load_part(cls: Any, folder: Path, dtype: torch.dtype, **options: bool) -> nn.Module:
    """One network of a diffusers folder, with every tensor accounted for. Raises UnusableModel."""
    try:
        part, report = cls.from_pretrained(
            folder,
            dtype=dtype,
            variant=_variant(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # what the two libraries raise for unfit files
        reason = str(error).strip() or type(error).__name__
        raise UnusableModel(f"{folder.name} of {folder.parent.name} can't be loaded: {reason[:500]}") from error
    faults = [str(key) for key in report.get("missing_keys", ())]
    faults += [str(entry[0]) for entry in report.get("mismatched_keys", ())]
    if faults:
        raise UnusableModel(
            f"{folder.name} of {folder.parent.name} lacks {len(faults)} tensors or has them in another size, "
            f"{faults[0]} first. The download is incomplete or config.json belongs to another model: fetch it again."
        )
    network: nn.Module = part
    return network


def _variant(folder: Path) -> str | None:
    """`fp16` where a folder has only files like model.fp16.safetensors, as half-size downloads do."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _check(components: Components) -> None:
    """Raises UnusableModel where the parts don't fit together."""
    name, unet = components.model_files.name, components.denoiser.config
    if unet.in_channels != components.vae.config.latent_channels:
        raise UnusableModel(
            f"The U-Net of {name} takes {unet.in_channels} channels, its VAE makes {components.vae.config.latent_channels}. "
            "They belong to different models: fetch the model again."
        )
    width = sum(text_encoder.config.hidden_size for text_encoder in components.text_encoders)
    if unet.cross_attention_dim != width:
        raise UnusableModel(
            f"The U-Net of {name} reads prompts of width {unet.cross_attention_dim}, its text encoders make {width}. "
            "They belong to different models: fetch the model again."
        )
    for text_encoder, tokenizer in zip(components.text_encoders, components.tokenizers, strict=True):
        config = text_encoder.config
        if len(tokenizer) > config.vocab_size:
            raise UnusableModel(
                f"The tokenizer of {name} has {len(tokenizer)} tokens, its text encoder knows "
                f"{config.vocab_size}. They belong to different models: fetch the model again."
            )
        if config.max_position_embeddings < clip.CONTEXT_LENGTH:
            raise UnusableModel(
                f"The text encoder of {name} reads {config.max_position_embeddings} tokens at "
                f"once; {clip.CONTEXT_LENGTH} are needed. Use a model with a usual CLIP text encoder."
            )
