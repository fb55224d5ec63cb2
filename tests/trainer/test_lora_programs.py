"""Each program's rules for keys, key by key, against the real models' own module names and hand-written examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.trainer.lora_tensors import numbers
from trainer.families.single_file import CONFIGS_DIR
from trainer.lora_files.building import build_layer
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat, parse_key, write_key
from trainer.lora_files.layers import Decomposed, Layer, LowRank, Rotation
from trainer.lora_files.layouts import LAYOUTS, text_modules, unet_modules
from trainer.lora_files.names import FAMILY_NAMES, Place, from_original, to_original, unet_module
from trainer.lora_files.programs import A1111, COMFYUI, DIFFUSERS, FORGE, OWN_LAYOUT, PROGRAMS, loads_in, told_in_words
from trainer.lora_files.writing import file_tensors


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def name(request: pytest.FixtureRequest) -> str:
    """Each family that LoRA files are known of."""
    family: str = request.param
    return family


@pytest.fixture(scope="module")
def unet(name: str) -> nn.Module:
    """The published model's U-Net without its weights."""
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS_DIR / name / "unet" / "config.json").read_text())
    sizes = {
        "sd15": {
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "sdxl": {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
    }[name]
    values = {key: value for key, value in (config | sizes).items() if not key.startswith("_")}
    with torch.device("meta"):
        made: nn.Module = UNet2DConditionModel(**values)
    return made


def test_the_layouts_are_those_of_the_published_models(name: str, unet: nn.Module) -> None:
    """All modules with weights, and their original names from a table that the tests keep for themselves."""
    present = {key.removesuffix(".weight") for key in unet.state_dict() if key.endswith(".weight")}
    listed = unet_modules(LAYOUTS[name])
    # A residual block has a shortcut only where the number of channels changes.
    assert present <= listed.keys() and all("conv_shortcut" in one for one in listed.keys() - present)
    keys = {f"{module}.weight": torch.empty(0) for module in listed}
    original = dict(zip(keys, tiny.ldm_unet(keys), strict=True))
    assert {f"{module}.weight": f"{one}.weight" for module, one in listed.items()} == original


def test_names_go_to_the_original_numbering_and_back(name: str) -> None:
    for module, original in unet_modules(LAYOUTS[name]).items():
        assert to_original(module, name) == original and from_original(original) == module
        assert unet_module(module) == unet_module(module.replace(".", "_")) == (module, False)
        same = module == original  # no name is the same in both
        assert not same and unet_module(original.replace(".", "_")) == (module, True)


@pytest.mark.parametrize("file_format", FileFormat)
def test_what_is_written_in_a_format_is_read_as_the_same_module(name: str, file_format: FileFormat) -> None:
    names = FAMILY_NAMES[name]
    places = [Place("unet", module) for module in unet_modules(LAYOUTS[name])]
    for part, depth in zip(("text_encoder", "text_encoder_2"), LAYOUTS[name].text_layers, strict=False):
        places += [Place(part, module) for module in text_modules(depth)]
    for place in places:
        if file_format is FileFormat.LYCORIS and place.part != "unet":
            with pytest.raises(ValueError, match="text encoders"):
                write_key(place, "alpha", name, file_format)
            continue
        key = parse_key(write_key(place, "lora_up.weight", name, file_format), names.original_numbering)
        assert key is not None and key.place == place and key.suffix == "lora_up.weight"
        renumberable = file_format in (FileFormat.KOHYA, FileFormat.KOHYA_RENUMBERED)
        if not renumberable or place.part == "unet":
            assert key.file_format is file_format, place


EVERYWHERE, NOWHERE = {COMFYUI, A1111, FORGE, DIFFUSERS}, set[str]()
COMFY_KIND = {COMFYUI, FORGE}
READ_BY: list[tuple[str, str, set[str]]] = [
    # SD 1.x: kohya's names are diffusers' with underscores
    ("sd15", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", EVERYWHERE),
    ("sd15", "lora_unet_up_blocks_0_upsamplers_0_conv.lora_up.weight", EVERYWHERE),
    ("sd15", "lora_unet_up_blocks_1_upsamplers_0_conv.lora_up.weight", EVERYWHERE),
    ("sd15", "lora_unet_mid_block_resnets_1_time_emb_proj.lora_down.weight", EVERYWHERE),
    ("sd15", "lora_unet_time_embedding_linear_1.lora_down.weight", EVERYWHERE),
    ("sd15", "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight", EVERYWHERE),
    ("sd15", "lora_te1_text_model_encoder_layers_11_mlp_fc1.lora_down.weight", EVERYWHERE),
    ("sd15", "lora_te_text_model_encoder_layers_12_mlp_fc1.lora_down.weight", NOWHERE),
    ("sd15", "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", NOWHERE),
    ("sd15", "lora_unet_input_blocks_1_1_proj_in.lora_up.weight", {COMFYUI, A1111, FORGE}),
    ("sd15", "lora_unet_down_blocks_3_attentions_0_proj_in.lora_up.weight", NOWHERE),
    ("sd15", "lora_unet_add_embedding_linear_1.lora_up.weight", NOWHERE),
    # SDXL: kohya's names are the original ones
    ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight", EVERYWHERE),
    ("sdxl", "lora_unet_output_blocks_2_2_conv.lora_up.weight", EVERYWHERE),
    ("sdxl", "lora_unet_output_blocks_2_1_conv.lora_up.weight", NOWHERE),
    ("sdxl", "lora_unet_label_emb_0_0.lora_up.weight", EVERYWHERE),
    ("sdxl", "lora_unet_input_blocks_1_1_proj_in.lora_up.weight", NOWHERE),
    ("sdxl", "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight", EVERYWHERE),
    ("sdxl", "lora_unet_up_blocks_0_upsamplers_0_conv.lora_up.weight", {COMFYUI, FORGE, DIFFUSERS}),
    ("sdxl", "lora_unet_add_embedding_linear_1.lora_up.weight", COMFY_KIND),
    ("sdxl", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha", EVERYWHERE),
    ("sdxl", "lora_te2_text_model_encoder_layers_31_self_attn_q_proj.alpha", EVERYWHERE),
    ("sdxl", "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha", {COMFYUI, FORGE, DIFFUSERS}),
    # names of diffusers and peft
    ("sdxl", "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight", {COMFYUI, FORGE, DIFFUSERS}),
    ("sdxl", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", {DIFFUSERS}),
    ("sdxl", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight", {DIFFUSERS}),
    (
        "sdxl",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        {*COMFY_KIND, DIFFUSERS},
    ),
    (
        "sdxl",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
        {*COMFY_KIND, DIFFUSERS},
    ),
    ("sdxl", "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", COMFY_KIND),
    ("sdxl", "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight", NOWHERE),
    ("sdxl", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", {*COMFY_KIND, DIFFUSERS}),
    (
        "sdxl",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        {*COMFY_KIND, DIFFUSERS},
    ),
    ("sdxl", "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", {DIFFUSERS}),
    # ComfyUI's own names and LyCORIS'
    ("sdxl", "diffusion_model.middle_block.1.proj_in.lora_up.weight", COMFY_KIND),
    ("sdxl", "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", {COMFYUI}),
    ("sdxl", "lycoris_mid_block_attentions_0_proj_in.lokr_w1", COMFY_KIND),
    # kinds
    ("sdxl", "lora_unet_middle_block_1_proj_in.hada_w1_a", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.lokr_w2_b", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.oft_blocks", {COMFYUI, A1111}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.dora_scale", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.lora_mid.weight", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.diff", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_0_in_layers_0.w_norm", {COMFYUI, A1111, FORGE}),
    ("sdxl", "lora_unet_middle_block_1_proj_in.made_up", NOWHERE),
    ("sdxl", "bundle_emb.mira.clip_l", {A1111}),
]


@pytest.mark.parametrize(("family", "key", "readers"), READ_BY)
def test_who_reads_a_key(family: str, key: str, readers: set[str]) -> None:
    assert {one.name for one in PROGRAMS.values() if one.reads(key, family)} == readers


@pytest.mark.parametrize("file_format", [FileFormat.KOHYA, FileFormat.KOHYA_RENUMBERED, FileFormat.DIFFUSERS])
def test_diffusers_itself_agrees_about_every_module_of_the_real_models(
    name: str, unet: nn.Module, file_format: FileFormat
) -> None:
    """All names that are said to be read come out of diffusers' own renaming as modules of the real U-Net."""
    import diffusers
    from diffusers.utils import convert_unet_state_dict_to_peft

    modules = [
        module
        for module, one in unet.named_modules()
        if isinstance(one, nn.Linear | nn.Conv2d) and PROGRAMS[DIFFUSERS].reads(f"unet.{module}.lora_A.weight", name)
    ]
    keys = {module: write_key(Place("unet", module), "lora_down.weight", name, file_format) for module in modules}
    modules = [module for module, key in keys.items() if PROGRAMS[DIFFUSERS].reads(key, name)]
    if (name, file_format) == ("sd15", FileFormat.KOHYA_RENUMBERED):
        assert not modules
        return
    assert len(modules) > 200 and len(keys) - len(modules) <= 2
    state: dict[str, Tensor] = {}
    for module in modules:
        for suffix in ("lora_down.weight", "lora_up.weight"):
            state[write_key(Place("unet", module), suffix, name, file_format)] = torch.zeros(1, 1)
    pipeline = {"sd15": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[name]
    found, _ = pipeline.lora_state_dict(dict(state), unet_config=unet.config)
    renamed = convert_unet_state_dict_to_peft({key.removeprefix("unet."): one for key, one in found.items()})
    assert {key.rsplit(".lora_", 1)[0] for key in renamed} == set(modules)


def file_with(
    layers: Mapping[str, Layer], family: str = "sdxl", file_format: FileFormat = FileFormat.KOHYA
) -> LoraFile:
    file = LoraFile(family, {Place("unet", module): layer for module, layer in layers.items()})
    shapes = {key: tuple(one.shape) for key, one in file_tensors(file, file_format).items()}
    return LoraFile(family, file.layers, shapes=shapes)


def pair(alpha: float = 1.0, out: int = 8) -> LowRank:
    return LowRank(numbers(2, 6), numbers(out, 2), alpha)


PROJ, QUERY, KEY = (
    "mid_block.attentions.0.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
)
JUDGED: list[tuple[str, dict[str, Layer], dict[str, str]]] = [
    ("a plain LoRA", {PROJ: pair()}, {}),
    ("OFT", {PROJ: Rotation(numbers(2, 4, 4))}, {FORGE: "no reader", DIFFUSERS: "no reader"}),
    (
        "OFT with a limit",
        {PROJ: Rotation(numbers(2, 4, 4), constraint=0.1)},
        {COMFYUI: "limit of a rotation", FORGE: "", DIFFUSERS: ""},
    ),
    (
        "OFT with scales",
        {PROJ: Rotation(numbers(2, 4, 4), rescale=numbers(8, 1))},
        {COMFYUI: "scales", FORGE: "", DIFFUSERS: ""},
    ),
    ("DoRA for each input", {PROJ: Decomposed(pair(), numbers(1, 6))}, {DIFFUSERS: "drops DoRA's lengths"}),
    (
        "DoRA for each output",
        {PROJ: Decomposed(pair(), numbers(8, 1))},
        {COMFYUI: "base weight alone", FORGE: "base weight alone", A1111: "for each input", DIFFUSERS: ""},
    ),
    (
        "DoRA for each output of a square weight",
        {PROJ: Decomposed(pair(out=6), numbers(6, 1))},
        {COMFYUI: "base weight alone", FORGE: "", A1111: "for each input", DIFFUSERS: ""},
    ),
    (
        "DoRA for each input of a square weight",
        {PROJ: Decomposed(pair(out=6), numbers(1, 6))},
        {DIFFUSERS: "drops DoRA's lengths"},
    ),
    ("several alphas in attention", {QUERY: pair(), KEY: pair(3.0), PROJ: pair()}, {DIFFUSERS: "another strength"}),
    ("several alphas beside attention", {QUERY: pair(), KEY: pair(), PROJ: pair(3.0)}, {}),
]


@pytest.mark.parametrize(("layers", "faults"), [row[1:] for row in JUDGED], ids=[row[0] for row in JUDGED])
def test_who_loads_a_file_as_it_is_meant(layers: dict[str, Layer], faults: dict[str, str]) -> None:
    told = loads_in(file_with(layers))
    assert list(told) == [COMFYUI, A1111, FORGE, DIFFUSERS]
    assert {program for program, fault in told.items() if fault} == faults.keys()
    for program, words in faults.items():
        assert words in told[program] and told[program].endswith("."), told[program]


def test_forge_leaves_out_a_whole_file_for_more_than_twelve_unknown_keys() -> None:
    plain = {PROJ: pair(), "conv_in": pair(), "conv_out": pair()}
    few = file_with(plain)
    for number in range(12):
        few.shapes[f"bundle_emb.{number}.clip_l"] = (1, 768)
    assert "leaves out 12 of 21" in loads_in(few)[FORGE]
    few.shapes["bundle_emb.13.clip_l"] = (1, 768)
    assert "refuses the file for 13 of 22" in loads_in(few)[FORGE]


def test_a_file_with_peft_names_is_told_apart_layer_by_layer() -> None:
    told = loads_in(file_with({PROJ: pair(), QUERY: pair()}, file_format=FileFormat.DIFFUSERS))
    assert told[DIFFUSERS] == "" and "leaves out 2 of 4" in told[COMFYUI] and "none" in told[A1111]
    words = told_in_words(told)
    assert words.startswith("Loads whole in diffusers. ComfyUI leaves out 2 of 4 tensors, unet.mid_block")
    assert told_in_words({}) == "" and told_in_words(dict.fromkeys(told, "No.")) == "No."


def test_a_base_of_another_layout_is_told_in_one_sentence() -> None:
    own = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # SD 1.x has no attention there
    told = loads_in(file_with({own: pair()}, "sd15"))
    assert told[DIFFUSERS] == "" and {told[COMFYUI], told[A1111]} == {OWN_LAYOUT}
    assert told_in_words(told) == f"Loads whole in diffusers. {OWN_LAYOUT}"


def test_a_layer_is_built_of_what_a_program_would_find(name: str) -> None:
    """The reader and the programs' rules agree on what a key belongs to."""
    place = Place("unet", "conv_in")
    tensors: dict[str, Any] = {"lora_up.weight": numbers(8, 2, 1, 1), "lora_down.weight": numbers(2, 4, 3, 3)}
    layer = build_layer(place, tensors, {suffix: suffix for suffix in tensors}, None)
    assert layer is not None and layer.kind == "locon"
    assert loads_in(file_with({"conv_in": layer}, name)) == dict.fromkeys(PROGRAMS, "")
