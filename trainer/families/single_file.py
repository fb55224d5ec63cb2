"""Loads a Stable Diffusion checkpoint in one .safetensors file: sizes from shapes, names by diffusers' converters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from security.configs import read_json
from security.repos import read_settings
from trainer.families import shapes
from trainer.families.base import Components, ModelFiles, UnusableModel
from trainer.families.clip import CONTEXT_LENGTH
from trainer.models.files import SIDECAR_SUFFIX, VOCABULARY_FILES

CONFIGS_DIR = Path(__file__).with_name("configs")
TOKENIZER_DIR = CONFIGS_DIR / "clip_tokenizer"
CLIP_VOCABULARY_SIZE = 49408

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TextEncoderLayout:
    """A text encoder: its folder, the folder of its tokenizer, and the prefix of its tensors in a single file.

    `open_clip`: a CLIPTextModelWithProjection, in a single file stored as OpenCLIP does; else a CLIPTextModel.
    """

    folder: str
    tokenizer: str
    prefix: str
    open_clip: bool = False

    @property
    def class_name(self) -> str:
        """Its class in transformers."""
        return "CLIPTextModelWithProjection" if self.open_clip else "CLIPTextModel"


@dataclass(frozen=True)
class Layout:
    """Which parts a family has. `config_name`: its folder in configs/. `sizes`: tensor shapes to settings by part."""

    config_name: str
    text_encoders: tuple[TextEncoderLayout, ...]
    sizes: Callable[[shapes.Shapes], dict[str, dict[str, Any]]]


def load(files: ModelFiles, layout: Layout, dtype: torch.dtype) -> Components:
    """The parts of a single file on the CPU, in `dtype` (the VAE in fp32). Raises RefusedFile or UnusableModel."""
    from safetensors.torch import load_file

    from security.weights import check_safetensors

    header = check_safetensors(files.path)
    config = part_configs(layout, {name: tuple(info.shape) for name, info in header.tensors.items()}, files.path)
    tokenizers = [_tokenizer(files.path, one, config[one.folder]) for one in layout.text_encoders]
    for one, tokenizer in zip(layout.text_encoders, tokenizers, strict=True):
        marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config[one.folder] |= marks | {"pad_token_id": tokenizer.pad_token_id}
    tensors = load_file(files.path)
    text_encoders = [_text_encoder(one, config[one.folder], tensors, dtype) for one in layout.text_encoders]
    return Components(
        model_files=files,
        denoiser=_unet(config["unet"], tensors, dtype),
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=_vae(config["vae"], tensors),
        scheduler_config=config["scheduler"],
    )


def part_configs(layout: Layout, tensor_shapes: shapes.Shapes, path: Path) -> dict[str, dict[str, Any]]:
    """Settings of each part: the family's own, then the file's sizes, then the sidecar. Raises UnusableModel."""
    config = {
        part: read_json(CONFIGS_DIR / layout.config_name / part / "config.json") | sizes
        for part, sizes in layout.sizes(tensor_shapes).items()
    }
    config["scheduler"] = read_json(CONFIGS_DIR / layout.config_name / "scheduler" / "scheduler_config.json")
    sidecar = path.with_name(path.stem + SIDECAR_SUFFIX)
    if sidecar.is_file():
        for part, values in read_settings(sidecar).items():
            if part not in config or not isinstance(values, dict):
                raise UnusableModel(f"{sidecar.name} sets {part!r}. It may set values of: {', '.join(config)}.")
            config[part] |= values
    _check_groups(config, sidecar.name)
    return config


def _check_groups(config: dict[str, dict[str, Any]], sidecar: str) -> None:
    for part in ("unet", "vae"):
        groups, channels = config[part]["norm_num_groups"], config[part]["block_out_channels"]
        if any(width % groups for width in channels):
            raise UnusableModel(
                f"The {part} has levels of {channels} channels, which don't divide into {groups} groups. "
                f'Say how many groups it has in {sidecar}: {{"{part}": {{"norm_num_groups": ...}}}}.'
            )


def _tokenizer(path: Path, layout: TextEncoderLayout, text_config: dict[str, Any]) -> Any:
    """CLIP's tokenizer, which comes with Safelight; another vocabulary needs its own folder beside the file."""
    from transformers import CLIPTokenizer

    folder = path.parent / layout.tokenizer
    if text_config["vocab_size"] == CLIP_VOCABULARY_SIZE:
        folder = TOKENIZER_DIR
    elif not all((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UnusableModel(
            f"{path.name} has a vocabulary of {text_config['vocab_size']} tokens instead of CLIP's "
            f"{CLIP_VOCABULARY_SIZE}. Put its {' and '.join(VOCABULARY_FILES)} into {folder.name}/ beside the file."
        )
    # The second encoder of SDXL was trained with "!" (id 0) as padding, the first with the end marker.
    padding = {"pad_token": "!"} if text_config["pad_token_id"] == 0 else {}
    # Made of the two tables alone: a tokenizer_config.json beside a model could name code to run.
    vocabulary, merges = (str(folder / name) for name in VOCABULARY_FILES)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH, **padding)


def _unet(config: dict[str, Any], tensors: Tensors, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = _taken(tensors, shapes.UNET_PREFIX)
    return _diffusers_part(UNet2DConditionModel, config, convert_ldm_unet_checkpoint(own, config), dtype)


def _vae(config: dict[str, Any], tensors: Tensors) -> nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    own = _taken(tensors, shapes.VAE_PREFIX)
    return _diffusers_part(AutoencoderKL, config, convert_ldm_vae_checkpoint(own, config), torch.float32)


def _taken(tensors: Tensors, prefix: str) -> Tensors:
    """Takes a part's tensors out of the file's, so that they are freed once they are converted.

    It also keeps diffusers' converters from other parts' tensors: they look for "down.0" anywhere in a name.
    """
    return {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _diffusers_part(cls: Any, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights():
        part: nn.Module = cls.from_config(config)
    expected = {key: tuple(value.shape) for key, value in part.state_dict().items()}
    _match(cls.__name__, expected, tensors)
    part.load_state_dict({key: tensors.pop(key).to(dtype) for key in expected}, assign=True)
    return part


def _text_encoder(layout: TextEncoderLayout, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype) -> nn.Module:
    import transformers
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    cls = getattr(transformers, layout.class_name)
    settings = transformers.CLIPTextConfig(**{key: value for key, value in config.items() if key != "architectures"})
    with torch.device("meta"):
        empty = cls(settings)
    if layout.open_clip:
        own = convert_open_clip_checkpoint(empty, tensors, prefix=layout.prefix)
    else:
        own = shapes.hugging_face_keys(tensors, layout.prefix)
    expected = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    _match(layout.folder, expected, own)
    network: nn.Module = cls.from_pretrained(None, config=settings, state_dict=own, dtype=dtype)
    return network


def _match(part: str, expected: dict[str, tuple[int, ...]], tensors: Tensors) -> None:
    """Raises UnusableModel unless the tensors are exactly those that the part needs."""
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    faults = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if faults:
        first = faults[0]
        raise UnusableModel(
            f"{len(faults)} tensors of {part} don't fit, {first} first: its shape is {found.get(first, 'missing')}, "
            f"expected {expected.get(first, 'none')}. The file is damaged or an unusual kind of model."
        )
