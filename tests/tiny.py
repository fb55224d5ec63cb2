"""Real model classes at sizes that a test can build, train and sample in a second; pictures with captions likewise.

Everything is made from a seed: the same call gives the same bytes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from trainer.families.base import Components, Conditioning, ModelFamily
from trainer.families.single_file import TOKENIZER_DIR
from trainer.models.files import ModelFiles

torch.set_num_threads(1)  # at these sizes threads wait for each other three times as long as they compute

NUM_MERGES = 1000
"""Of CLIP's 48,894: enough that usual words are a few tokens long."""
LATENT_FACTOR = 8
"""Pixels per latent of the tiny VAE, as of the real one."""
COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "bar", "frame")


def tiny_sd15(
    folder: Path, *, prediction_type: str = "epsilon", ztsnr: bool = False, full_vocabulary: bool = False, seed: int = 0
) -> Path:
    """Writes a Stable Diffusion 1.x model as a diffusers folder and returns it. Pictures: multiples of 32 pixels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        sample_size=8,
    )
    _save(
        folder,
        "StableDiffusionPipeline",
        unet,
        prediction_type,
        ztsnr,
        [_text_encoder(32, full_vocabulary)],
        full_vocabulary,
    )
    return folder


def tiny_sdxl(
    folder: Path, *, prediction_type: str = "epsilon", ztsnr: bool = False, full_vocabulary: bool = False, seed: int = 0
) -> Path:
    """Writes an SDXL model with the real one's block layout as a diffusers folder. Pictures: multiples of 32 pixels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    text_encoders = [_text_encoder(32, full_vocabulary), _text_encoder(64, full_vocabulary, projection=24)]
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + 64,
        attention_head_dim=(1, 1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        sample_size=8,
    )
    _save(folder, "StableDiffusionXLPipeline", unet, prediction_type, ztsnr, text_encoders, full_vocabulary)
    return folder


def tiny_dataset(folder: Path, n: int = 4, *, size: tuple[int, int] = (96, 96), seed: int = 0) -> Path:
    """Writes n PNG pictures of coloured shapes, (width, height) in pixels, each with a .txt caption."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    for index in range(n):
        color, shape = list(COLORS)[index % len(COLORS)], SHAPES[index // len(COLORS) % len(SHAPES)]
        picture = Image.fromarray(numbers.integers(200, 256, (size[1], size[0], 3), dtype=np.uint8))
        draw = ImageDraw.Draw(picture)
        box = [size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4]
        draw_shape = {"circle": draw.ellipse, "square": draw.rectangle, "bar": draw.rectangle, "frame": draw.rectangle}[
            shape
        ]
        draw_shape(box, outline=COLORS[color], width=4, fill=None if shape == "frame" else COLORS[color])
        picture.save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"{color} {shape}, simple background", encoding="utf-8")
    return folder


def as_single_file(folder: Path, *, text_model_prefix: bool = True, markers: bool = True) -> Path:
    """Writes a diffusers folder's weights under their original (LDM, OpenCLIP) names; returns the .safetensors file.

    It lies in a folder of its own, `<folder>-file/`, with the tokenizers that a small vocabulary needs beside it.
    `text_model_prefix`: as in SD 1.x files. `markers`: the empty tensors `v_pred` and `ztsnr`, where they are true.
    """
    from safetensors.torch import save_file

    unet, vae = _state(folder / "unet"), _state(folder / "vae")
    tensors = {"model.diffusion_model." + key: value for key, value in ldm_unet(unet).items()}
    tensors |= {"first_stage_model." + key: value for key, value in ldm_vae(vae).items()}
    inner = "text_model." if text_model_prefix else ""
    first = {inner + key.removeprefix("text_model."): value for key, value in _state(folder / "text_encoder").items()}
    if (folder / "text_encoder_2").is_dir():
        tensors |= {"conditioner.embedders.0.transformer." + key: value for key, value in first.items()}
        second = open_clip(_state(folder / "text_encoder_2"))
        tensors |= {"conditioner.embedders.1.model." + key: value for key, value in second.items()}
    else:
        tensors |= {"cond_stage_model.transformer." + key: value for key, value in first.items()}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if markers and scheduler["prediction_type"] == "v_prediction":
        tensors["v_pred"] = torch.tensor([])
    if markers and scheduler.get("rescale_betas_zero_snr"):
        tensors["ztsnr"] = torch.tensor([])
    target = folder.with_name(folder.name + "-file")
    target.mkdir()
    for tokenizer in folder.glob("tokenizer*"):
        if len(json.loads((tokenizer / "vocab.json").read_text())) != 49408:
            shutil.copytree(tokenizer, target / tokenizer.name)
    path = target / f"{folder.name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def ldm_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's tensors under the names of the original latent diffusion code."""
    per_level = (
        1 + max(int(match[1]) for key in state if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)", key))) + 1
    )
    renamed = {}
    for key, value in state.items():
        name = _replaced(key, _UNET_TOP)
        if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            number = 1 + int(match[1]) * per_level + int(match[3])
            name = f"input_blocks.{number}.{_inner(match[2], match[4])}"
        elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
            name = f"input_blocks.{(int(match[1]) + 1) * per_level}.0.op.{match[2]}"
        elif match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            name = f"output_blocks.{int(match[1]) * per_level + int(match[3])}.{_inner(match[2], match[4])}"
        elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", key):
            position = 2 if any(one.startswith(f"up_blocks.{match[1]}.attentions") for one in state) else 1
            name = f"output_blocks.{(int(match[1]) + 1) * per_level - 1}.{position}.conv.{match[2]}"
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
            number = 1 if match[1] == "attentions" else int(match[2]) * 2
            name = f"middle_block.{number}.{_inner(match[1], match[3]).split('.', 1)[1]}"
        renamed[name] = value
    return renamed


def ldm_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under the original names, its attention as 1x1 convolutions."""
    last = max(int(match[1]) for key in state if (match := re.match(r"encoder\.down_blocks\.(\d+)", key)))
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = _replaced(name, _VAE_NAMES)
        if ".attn_1." in name and ".norm." not in name and name.endswith("weight"):
            value = value[:, :, None, None]
        renamed[name] = value
    return renamed


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection's tensors under OpenCLIP's names: q, k, v in one matrix, the projection turned."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("text_model.")
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[key.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")]
            renamed[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            renamed[_replaced(name, _OPEN_CLIP_NAMES)] = value.T if name == "text_projection.weight" else value
    return renamed


_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_NAMES = {
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
_OPEN_CLIP_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}


def _inner(kind: str, rest: str) -> str:
    return f"0.{_replaced(rest, _RESNET)}" if kind == "resnets" else f"1.{rest}"


def _replaced(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def _state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def _vocabulary(full: bool) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges, of CLIP or of its first NUM_MERGES merges."""
    vocabulary = list(json.loads((TOKENIZER_DIR / "vocab.json").read_text(encoding="utf-8")))
    merges = (TOKENIZER_DIR / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    if full:
        return vocabulary, merges
    return vocabulary[: 512 + NUM_MERGES] + vocabulary[-2:], merges[:NUM_MERGES]


def _save_tokenizer(folder: Path, full: bool, pad_token: str) -> None:
    vocabulary, merges = _vocabulary(full)
    folder.mkdir(parents=True)
    ids = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _text_encoder(width: int, full_vocabulary: bool, projection: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    num_tokens = len(_vocabulary(full_vocabulary)[0])
    config = CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=1,
        max_position_embeddings=77,
        projection_dim=projection or width,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=num_tokens - 2,
        eos_token_id=num_tokens - 1,
        pad_token_id=0 if projection else num_tokens - 1,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    # CLIP starts with very small weights, in which a wrong layer would hardly show.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def _save(
    folder: Path, pipeline: str, unet: Any, prediction_type: str, ztsnr: bool, text_encoders: list[Any], full: bool
) -> None:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler

    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.13025 if len(text_encoders) > 1 else 0.18215,
        sample_size=64,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=ztsnr,
        timestep_spacing="trailing" if ztsnr else "leading",
        steps_offset=1,
    )
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": scheduler}
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    for number, text_encoder in enumerate(text_encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        parts["text_encoder" + suffix] = text_encoder
        index["tokenizer" + suffix] = ["transformers", "CLIPTokenizer"]
        _save_tokenizer(folder / ("tokenizer" + suffix), full, "<|endoftext|>" if number == 1 else "!")
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers" if "text" in name else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def tiny_lora(base: Path, path: Path, *, family: str = "sd15", seed: int = 0, **settings: Any) -> Path:
    """Writes a LoRA file with some effect for the denoiser of a tiny model, in fp32 under kohya's names; rank 4 if not told."""
    from trainer.adapters.layer import adapted_layers
    from trainer.adapters.place import add_adapter
    from trainer.config.schema import KeyFormat, LoraConfig, SavePrecision
    from trainer.families import get_family
    from trainer.lora_files.exporting import save_lora

    chosen = LoraConfig.model_validate({"rank": 4, "alpha": 4.0} | settings)
    components = get_family(family).load(model_files(base, family), "cpu", torch.float32)
    add_adapter(components.denoiser, chosen, get_family(family).lora_targets(chosen.targets), seed=seed)
    torch.manual_seed(seed)
    for layer in adapted_layers(components.denoiser).values():
        for parameter in layer.adapter.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    options: Any = {"key_format": KeyFormat.KOHYA, "precision": SavePrecision.FP32, "metadata": {}}
    save_lora(components, get_family(family), path, **options)
    return path


BUILDERS = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}
"""The builder of each family's tiny model; a new family is tested the day that it has one."""


def model_files(path: Path, family: str, **facts: Any) -> ModelFiles:
    """The description of a tiny model as the library would give it, without looking at the files."""
    kind = "folder" if path.is_dir() else "single_file"
    values = {"prediction_type": "epsilon", "zero_terminal_snr": False, "num_bytes": 1, "fingerprint": "0" * 64} | facts
    return ModelFiles(name=path.stem, path=path, kind=kind, family=family, **values)


def encode(family: ModelFamily, components: Components, prompts: list[str], **options: int) -> Conditioning:
    """Prompts as the family encodes them, without gradients; clip_skip is 1 and max_token_length 75 unless given."""
    with torch.no_grad():
        return family.encode_prompts(components, prompts, **({"clip_skip": 1, "max_token_length": 75} | options))


def with_sizes(family: ModelFamily, conditioning: Conditioning, *sizes: int) -> Conditioning:
    """The conditioning with picture sizes where the family has them: `sizes` (or 64x96) shown at 64x96 pixels."""
    one = family.size_conditioning((sizes or (64, 96))[:2], (0, 0), (64, 96))
    return conditioning.with_time_ids(None if one is None else one.repeat(len(conditioning), 1))
