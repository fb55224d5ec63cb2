"""Every naming of LoRA files is read to the same layers; files that are none, or damaged, are refused with the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from security.errors import RefusedFile
from tests.trainer.lora_tensors import SD15_CONTEXT, SDXL_CONTEXT, lora, numbers, product
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.names import Place
from trainer.lora_files.reading import read_lora


def written(folder: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "x.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


KEYS = "attentions.0.transformer_blocks.0.attn2.to_k"
NAMINGS: list[tuple[str, str, FileFormat, str, str]] = [
    # family, stem of the key, format, part, module
    (
        "sdxl",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        FileFormat.KOHYA,
        "unet",
        f"down_blocks.1.{KEYS}",
    ),
    (
        "sdxl",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        FileFormat.KOHYA_RENUMBERED,
        "unet",
        f"down_blocks.1.{KEYS}",
    ),
    (
        "sdxl",
        "diffusion_model.output_blocks.0.1.transformer_blocks.0.attn2.to_k",
        FileFormat.COMFYUI,
        "unet",
        f"up_blocks.0.{KEYS}",
    ),
    (
        "sdxl",
        "lycoris_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        FileFormat.LYCORIS,
        "unet",
        f"mid_block.{KEYS}",
    ),
    ("sdxl", f"unet.up_blocks.1.{KEYS}", FileFormat.DIFFUSERS, "unet", f"up_blocks.1.{KEYS}"),
    (
        "sd15",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        FileFormat.KOHYA,
        "unet",
        f"down_blocks.1.{KEYS}",
    ),
    (
        "sd15",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        FileFormat.KOHYA_RENUMBERED,
        "unet",
        f"down_blocks.1.{KEYS}",
    ),
    ("sd15", f"base_model.model.down_blocks.1.{KEYS}", FileFormat.DIFFUSERS, "unet", f"down_blocks.1.{KEYS}"),
]


@pytest.mark.parametrize(("family", "stem", "file_format", "part", "module"), NAMINGS)
def test_a_naming_is_read_and_tells_the_family(
    tmp_path: Path, family: str, stem: str, file_format: FileFormat, part: str, module: str
) -> None:
    width = {"sdxl": SDXL_CONTEXT, "sd15": SD15_CONTEXT}[family]
    state = lora(stem, inputs=width)
    file = read_lora(written(tmp_path, state))
    assert (file.family, file.file_format, file.unmatched) == (family, file_format, {})
    torch.testing.assert_close(file.layers[Place(part, module)].delta(), product(state, stem))


def test_a_rank_of_zero_is_refused(tmp_path: Path) -> None:
    state = lora("lora_unet_conv_in", inputs=3) | lora("lora_te_text_model_encoder_layers_0_mlp_fc1")
    state["lora_unet_conv_in.lora_down.weight"] = numbers(0, 3)
    state["lora_unet_conv_in.lora_up.weight"] = numbers(6, 0)
    with pytest.raises(RefusedFile, match=r"lora_unet_conv_in\.lora_.* rank of 0"):
        read_lora(written(tmp_path, state))
