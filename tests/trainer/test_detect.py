"""What a file is, is told by its tensors and JSON; what can't be trained is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from security.errors import RefusedFile
from tests import tiny
from trainer.models.detect import Detected, UnsupportedModel, detect

UNET = "model.diffusion_model."
SD15 = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 4),
}
SDXL = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "label_emb.0.0.weight": (8, 2816),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (8, 4),
    "conditioner.embedders.1.model.token_embedding.weight": (8, 4),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path, metadata)
    return path


def without(shapes: dict[str, tuple[int, ...]], beginning: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if not key.startswith(beginning)}


@pytest.mark.parametrize("name", sorted(tiny.BUILDERS))
@pytest.mark.parametrize(
    ("prediction_type", "rescaled"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_folders_and_files_tell_family_and_prediction(
    tmp_path: Path, name: str, prediction_type: str, rescaled: bool
) -> None:
    folder = tiny.BUILDERS[name](tmp_path / "renamed", prediction_type=prediction_type, ztsnr=rescaled)
    assert detect(folder) == Detected("folder", name, prediction_type, rescaled)
    assert detect(tiny.as_single_file(folder)) == Detected("single_file", name, prediction_type, rescaled)


@pytest.mark.parametrize("text", ["v", "v_prediction", "V-Prediction"])
def test_modelspec_tells_the_prediction(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.safetensors", SD15, {"modelspec.prediction_type": text})
    assert detect(path) == Detected("single_file", "sd15", "v_prediction", False)
    path = write(tmp_path / "b.safetensors", SDXL, {"modelspec.prediction_type": "epsilon"})
    assert detect(path) == Detected("single_file", "sdxl", "epsilon", False)


def test_zero_terminal_snr_alone_means_velocity(tmp_path: Path) -> None:
    assert detect(write(tmp_path / "a.safetensors", SDXL | {"ztsnr": (0,)})) == Detected(
        "single_file", "sdxl", "v_prediction", True
    )


OTHERS = {
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)},
    "a LoRA,": {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 8)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)},
    "a textual inversion": {"emb_params": (2, 768)},
    "a VAE": {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)},
    "a VAE, not": {"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)},
    "a text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 4)},
    "the U-Net of a diffusers folder": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "a Stable Diffusion 2.x": without(SD15, "cond_stage") | {"cond_stage_model.model.ln_final.weight": (8,)},
    "a Stable Diffusion 2.x model": SD15
    | {UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024)},
    "a Stable Diffusion 3": {UNET + "joint_blocks.0.x_block.attn.qkv.weight": (8, 4)},
    "a FLUX.1": {"double_blocks.0.img_attn.qkv.weight": (8, 4)},
    "a FLUX.1 model": {UNET + "double_blocks.0.img_attn.qkv.weight": (8, 4)},
    "a FLUX.2": {"double_stream_modulation_img.lin.weight": (8, 4), "double_blocks.0.img_attn.qkv.weight": (8, 4)},
    "a Chroma": {"distilled_guidance_layer.in_proj.weight": (8, 4), "double_blocks.0.img_attn.qkv.weight": (8, 4)},
    "the SDXL refiner": without(SDXL, "conditioner") | {"conditioner.embedders.0.model.ln_final.weight": (8,)},
    "a model with EDM noise": SDXL | {"edm_vpred.sigma_max": (1,)},
    "an inpainting": SD15 | {UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)},
    "without text encoders": without(SD15, "cond_stage"),
    "without a VAE": without(SD15, "first_stage"),
    "an unknown kind": {"blocks.0.something.weight": (8, 4)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_files_are_named_and_refused(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "sdxl_base_v1.safetensors", OTHERS[what])
    with pytest.raises(UnsupportedModel, match=what.replace(".", r"\.")) as caught:
        detect(path)
    message = str(caught.value)
    assert message.startswith("sdxl_base_v1.safetensors is ")
    assert "use " in message.lower(), "it must say what to do instead"


def test_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(RefusedFile, match="can run code"):
        detect(tmp_path / "model.ckpt")
    whole = write(tmp_path / "model.safetensors", SD15).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(RefusedFile, match="cut off"):
        detect(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        ("FluxPipeline", r"a FLUX\.1 model"),
        ("StableDiffusion3Pipeline", "a Stable Diffusion 3 model"),
        ("StableDiffusionInpaintPipeline", "an inpainting model"),
        ("SomethingNewPipeline", "the unknown kind 'SomethingNewPipeline'"),
    ],
)
def test_other_folders_are_named_and_refused(tmp_path: Path, pipeline: str, what: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(UnsupportedModel, match=what):
        detect(tmp_path)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("unet/config.json", {"in_channels": 9}, "an inpainting or image editing model"),
        ("unet/config.json", {"cross_attention_dim": 1024}, r"a Stable Diffusion 2\.x model"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_folders_of_the_right_class_but_another_kind_are_refused(
    sd15: Path, tmp_path: Path, part: str, change: dict[str, object], what: str
) -> None:
    folder = shutil.copytree(sd15, tmp_path / "sd15")
    (folder / part).write_text(json.dumps(json.loads((folder / part).read_text()) | change))
    with pytest.raises(UnsupportedModel, match=what):
        detect(folder)


def test_a_folder_that_brings_code_is_refused(sd15: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15, tmp_path / "sd15")
    (folder / "unet" / "modeling.py").write_text("print('hello')")
    with pytest.raises(RefusedFile, match="is a program"):
        detect(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"without model_index\.json"):
        detect(tmp_path)
