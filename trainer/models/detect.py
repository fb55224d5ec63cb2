"""Tells what a model file or folder is, by the names and shapes of its tensors and its JSON files. Imports no torch.

File names say nothing: people rename files. What is not supported is named, with what to use instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from security.configs import read_json
from security.errors import RefusedFile
from security.repos import check_diffusers_folder
from security.weights import WeightsHeader, check_safetensors, refuse_pickle

UNET = "model.diffusion_model."
_SD2_CONTEXT_WIDTH = 1024
"""Width of the prompt in SD 2.x, whose text encoder is OpenCLIP's ViT-H."""
_LATENT_CHANNELS = 4


class UnsupportedModel(RefusedFile):
    """A sound file that is not a base model that can be trained. The message says what it is."""


@dataclass(frozen=True)
class Detected:
    """What a model is. `prediction_type`: "epsilon" or "v_prediction"."""

    kind: Literal["folder", "single_file"]
    family: str
    prediction_type: str
    zero_terminal_snr: bool


def detect(path: Path) -> Detected:
    """Checks a model and says what it is. Reads JSON files and headers only, which takes milliseconds.

    Raises RefusedFile for damaged or dangerous files, UnsupportedModel for everything that can't be trained.
    """
    if path.is_dir():
        return _detect_folder(path)
    if path.suffix.lower() != ".safetensors":
        refuse_pickle(path)
    return _detect_single_file(path.name, check_safetensors(path))


_PIPELINES: dict[str, str] = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}
_OTHER_PIPELINES: dict[str, str] = {
    "StableDiffusion3Pipeline": "a Stable Diffusion 3 model",
    "FluxPipeline": "a FLUX.1 model",
    "Flux2Pipeline": "a FLUX.2 model",
    "Flux2KleinPipeline": "a FLUX.2 klein model",
    "ChromaPipeline": "a Chroma model",
    "QwenImagePipeline": "a Qwen-Image model",
    "ZImagePipeline": "a Z-Image model",
    "Lumina2Pipeline": "a Lumina 2 model",
    "PixArtAlphaPipeline": "a PixArt model",
    "PixArtSigmaPipeline": "a PixArt model",
    "SanaPipeline": "a Sana model",
    "AuraFlowPipeline": "an AuraFlow model",
    "KandinskyV22Pipeline": "a Kandinsky model",
    "StableDiffusionXLImg2ImgPipeline": "the SDXL refiner or an image-to-image model",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "StableDiffusionInstructPix2PixPipeline": "an image editing model",
}


def _detect_folder(path: Path) -> Detected:
    index_path = path / "model_index.json"
    if not index_path.is_file():
        raise UnsupportedModel(
            f"{path.name} is a folder without model_index.json, so it is no diffusers model. "
            "Choose the folder that has one, or a .safetensors file."
        )
    pipeline = str(read_json(index_path).get("_class_name"))
    if pipeline not in _PIPELINES:
        what = _OTHER_PIPELINES.get(pipeline, f"a model of the unknown kind {pipeline[:60]!r}")
        raise UnsupportedModel(_cannot_train(path.name, what))
    check_diffusers_folder(path)
    unet = read_json(path / "unet" / "config.json")
    if unet.get("in_channels", _LATENT_CHANNELS) != _LATENT_CHANNELS:
        raise UnsupportedModel(_cannot_train(path.name, "an inpainting or image editing model"))
    if _PIPELINES[pipeline] == "sd15" and unet.get("cross_attention_dim") == _SD2_CONTEXT_WIDTH:
        raise UnsupportedModel(_cannot_train(path.name, "a Stable Diffusion 2.x model"))
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    prediction = str(scheduler.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction"):
        raise UnsupportedModel(_cannot_train(path.name, f"a model that predicts {prediction[:40]!r}"))
    rescaled = scheduler.get("rescale_betas_zero_snr", False) is True
    return Detected("folder", _PIPELINES[pipeline], prediction, rescaled)


def _detect_single_file(name: str, header: WeightsHeader) -> Detected:
    keys = header.tensors.keys()
    for what, belongs in _OTHER_FILES:
        if belongs(header):
            raise UnsupportedModel(_cannot_train(name, what))
    for family, needed in _SINGLE_FILES.items():
        if all(any(key.startswith(prefix) for key in keys) for prefix in needed):
            prediction, rescaled = _prediction(header)
            return Detected("single_file", family, prediction, rescaled)
    if f"{UNET}input_blocks.0.0.weight" in keys:
        missing = "a VAE" if not _has(header, "first_stage_model.") else "text encoders"
        raise UnsupportedModel(
            f"{name} is a Stable Diffusion checkpoint without {missing}. Use one that has all parts built in."
        )
    raise UnsupportedModel(
        f"{name} is of an unknown kind; its first tensor is {next(iter(keys))[:80]!r}. "
        "Use a Stable Diffusion 1.x or SDXL checkpoint."
    )


def _prediction(header: WeightsHeader) -> tuple[str, bool]:
    """What a single file predicts, and whether its schedule ends in pure noise: by marker tensors, then by modelspec.

    Zero terminal SNR alone means velocity: a model that predicts noise can't have it (Lin et al. 2023, section 3.1).
    """
    rescaled = "ztsnr" in header.tensors
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    velocity = "v_pred" in header.tensors or rescaled or said in ("v", "v_prediction", "v-prediction")
    return "v_prediction" if velocity else "epsilon", rescaled


_SINGLE_FILES: dict[str, tuple[str, ...]] = {
    "sdxl": (
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.1.model.",
        "first_stage_model.",
    ),
    "sd15": (f"{UNET}input_blocks.0.0.weight", "cond_stage_model.transformer.", "first_stage_model."),
}
"""What every checkpoint of a family has: beginnings of tensor names. The more particular family first."""


def _has(header: WeightsHeader, *beginnings: str) -> bool:
    return any(key.startswith(beginnings) for key in header.tensors)


def _holds(header: WeightsHeader, *parts: str) -> bool:
    return any(part in key for key in header.tensors for part in parts)


def _shape(header: WeightsHeader, key: str) -> tuple[int, ...]:
    return tuple(header.tensors[key].shape) if key in header.tensors else ()


def _is_stable_diffusion_2(header: WeightsHeader) -> bool:
    context = _shape(header, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    return _has(header, "cond_stage_model.model.") or context[1:] == (_SD2_CONTEXT_WIDTH,)


def _is_inpainting(header: WeightsHeader) -> bool:
    shape = _shape(header, f"{UNET}input_blocks.0.0.weight")
    return len(shape) > 1 and shape[1] != _LATENT_CHANNELS


_VAE_BEGINNINGS = ("encoder.conv_in.", "decoder.conv_in.", "encoder.down.", "first_stage_model.")
_TEXT_BEGINNINGS = ("text_model.", "encoder.block.", "cond_stage_model.", "model.layers.")
_ADAPTER_PARTS = (
    "lora_down",
    "lora_up",
    "lora_A",
    "lora_B",
    ".lora.down",
    "lora_unet_",
    "hada_w1",
    "lokr_w1",
    "oft_blocks",
)
_Test = Callable[[WeightsHeader], bool]
_OTHER_FILES: tuple[tuple[str, _Test], ...] = (
    ("a LoRA, not a base model", lambda header: _holds(header, *_ADAPTER_PARTS)),
    ("a ControlNet", lambda header: _has(header, "control_model.", "controlnet_", "input_hint_block.")),
    ("a textual inversion embedding", lambda header: _has(header, "emb_params", "clip_g", "clip_l", "string_to_param")),
    ("a Chroma model", lambda header: _holds(header, "distilled_guidance_layer.")),
    ("a FLUX.2 model", lambda header: _holds(header, "double_stream_modulation_img.")),
    ("a FLUX.1 model", lambda header: _holds(header, "double_blocks.0.img_attn.", "single_transformer_blocks.0.attn.")),
    (
        "a Stable Diffusion 3 model",
        lambda header: _holds(header, "joint_blocks.0.", "transformer_blocks.0.attn.add_q_"),
    ),
    ("a model with EDM noise, such as CosXL or Playground 2.5", lambda header: _has(header, "edm_")),
    ("a Stable Diffusion 2.x model", lambda header: _is_stable_diffusion_2(header)),
    ("the SDXL refiner", lambda header: _has(header, "conditioner.embedders.0.model.")),
    ("an inpainting or image editing model", lambda header: _is_inpainting(header)),
    ("the U-Net of a diffusers folder without the other parts", lambda header: _has(header, "down_blocks.0.resnets.")),
    ("a VAE, not a base model", lambda header: not _has(header, UNET) and _has(header, *_VAE_BEGINNINGS)),
    ("a text encoder, not a base model", lambda header: not _has(header, UNET) and _has(header, *_TEXT_BEGINNINGS)),
)
"""What other files are, with how to tell. The first that fits names the file."""


def _cannot_train(name: str, what: str) -> str:
    return f"{name} is {what}. This version trains Stable Diffusion 1.x and SDXL base models: use one of these."
