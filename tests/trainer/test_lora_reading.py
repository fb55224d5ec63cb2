"""Every naming of LoRA files is read to the same layers; files that are none, or damaged, are refused with the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from security.errors import RefusedFile
from tests.trainer.lora_tensors import SD15_CONTEXT, SDXL_CONTEXT, lora, numbers, product
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Decomposed, Hadamard, LowRank
from trainer.lora_files.names import Place
from trainer.lora_files.reading import read_lora

State = dict[str, Tensor]


def written(folder: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    path = folder / "x.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


# ---- names ----

KEYS = "attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = KEYS.replace(".", "_")
NAMINGS: list[tuple[str, str, FileFormat, str]] = [
    # family, stem of the key, format, module
    ("sdxl", f"lora_unet_input_blocks_4_1_{FLAT[13:]}", FileFormat.KOHYA, f"down_blocks.1.{KEYS}"),
    ("sdxl", f"lora_unet_output_blocks_4_1_{FLAT[13:]}", FileFormat.KOHYA, f"up_blocks.1.attentions.1.{KEYS[13:]}"),
    ("sdxl", f"lora_unet_down_blocks_1_{FLAT}", FileFormat.KOHYA_RENUMBERED, f"down_blocks.1.{KEYS}"),
    ("sdxl", f"diffusion_model.output_blocks.0.1.{KEYS[13:]}", FileFormat.COMFYUI, f"up_blocks.0.{KEYS}"),
    ("sdxl", f"lycoris_mid_block_{FLAT}", FileFormat.LYCORIS, f"mid_block.{KEYS}"),
    ("sdxl", f"unet.up_blocks.1.{KEYS}", FileFormat.DIFFUSERS, f"up_blocks.1.{KEYS}"),
    ("sd15", f"lora_unet_down_blocks_1_{FLAT}", FileFormat.KOHYA, f"down_blocks.1.{KEYS}"),
    ("sd15", f"lora_unet_input_blocks_4_1_{FLAT[13:]}", FileFormat.KOHYA_RENUMBERED, f"down_blocks.1.{KEYS}"),
    ("sd15", f"base_model.model.down_blocks.1.{KEYS}", FileFormat.DIFFUSERS, f"down_blocks.1.{KEYS}"),
    ("sd15", f"base_model.model.unet.down_blocks.1.{KEYS}", FileFormat.DIFFUSERS, f"down_blocks.1.{KEYS}"),
]
ENDINGS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "peft's training": (".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers 0.20": (".lora.down.weight", ".lora.up.weight"),
    "text encoders": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


@pytest.mark.parametrize(("family", "stem", "file_format", "module"), NAMINGS)
def test_a_naming_is_read_and_tells_the_family(
    tmp_path: Path, family: str, stem: str, file_format: FileFormat, module: str
) -> None:
    state = lora(stem, inputs={"sdxl": SDXL_CONTEXT, "sd15": SD15_CONTEXT}[family])
    file = read_lora(written(tmp_path, state))
    assert (file.family, file.file_format, file.unmatched) == (family, file_format, {})
    torch.testing.assert_close(file.layers[Place("unet", module)].delta(), product(state, stem))


@pytest.mark.parametrize("endings", ENDINGS.values(), ids=ENDINGS)
def test_all_words_for_up_and_down_mean_the_same(tmp_path: Path, endings: tuple[str, str]) -> None:
    state = lora("x", inputs=SDXL_CONTEXT, alpha=None)
    stem = f"unet.up_blocks.1.{KEYS}"
    renamed = {stem + endings[0]: state["x.lora_down.weight"], stem + endings[1]: state["x.lora_up.weight"]}
    file = read_lora(written(tmp_path, renamed))
    torch.testing.assert_close(file.layers[Place("unet", f"up_blocks.1.{KEYS}")].delta(), product(state, "x"))


@pytest.mark.parametrize("prefix", ["unet.", ""])
@pytest.mark.parametrize(("leaf", "module"), [("to_k_lora", "to_k"), ("to_out_lora", "to_out.0")])
def test_diffusers_first_files_name_attention_processors(tmp_path: Path, prefix: str, leaf: str, module: str) -> None:
    stem = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn1.processor.{leaf}"
    state = {f"{stem}.down.weight": numbers(2, 8), f"{stem}.up.weight": numbers(6, 2)}
    file = read_lora(written(tmp_path, state), "sd15")
    assert list(file.layers) == [Place("unet", f"mid_block.attentions.0.transformer_blocks.0.attn1.{module}")]


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", "text_encoder_2"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder"),
        ("text_encoder_2.encoder.layers.3.self_attn.q_proj", "text_encoder_2"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder_2"),
    ],
)
def test_text_encoders_are_named_with_text_model_whatever_the_file_has(tmp_path: Path, stem: str, part: str) -> None:
    file = read_lora(written(tmp_path, lora(stem)), "sdxl")
    assert list(file.layers) == [Place(part, "text_model.encoder.layers.3.self_attn.q_proj")]
    assert file.text_encoders == (part,) and file.part(part).keys() == {"text_model.encoder.layers.3.self_attn.q_proj"}


def test_a_trained_word_without_a_name_is_left_out_and_told(tmp_path: Path) -> None:
    state = lora("lora_te_text_model_encoder_layers_0_mlp_fc1")
    nameless = {"bundle_emb..string_to_param.*": torch.ones(2, 8), "bundle_emb.x": torch.ones(2, 8)}
    file = read_lora(written(tmp_path, {**state, **nameless, "bundle_emb.mira.string_to_param.*": torch.ones(2, 8)}))
    assert list(file.embeddings) == ["mira"] and file.unmatched.keys() == nameless.keys()


# ---- families ----


def test_the_family_is_told_by_names_where_sizes_do_not(tmp_path: Path) -> None:
    told = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "sdxl",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "sdxl",
        "lora_te_text_model_encoder_layers_0_mlp_fc1": "sd15",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": "sdxl",
        "unet.add_embedding.linear_1": "sdxl",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "sd15",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_q": "sd15",
    }
    for stem, family in told.items():
        assert read_lora(written(tmp_path, lora(stem))).family == family, stem


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
    ],
)
def test_the_family_is_told_by_the_files_own_words_where_nothing_else_does(
    tmp_path: Path, metadata: dict[str, str], family: str
) -> None:
    assert read_lora(written(tmp_path, lora("lora_unet_conv_in", 6, 4), metadata)).family == family


def test_a_file_that_tells_no_family_says_what_it_lacks(tmp_path: Path) -> None:
    path = written(tmp_path, lora("lora_unet_conv_in", 6, 4))
    with pytest.raises(RefusedFile, match=r"Stable Diffusion XL alike.*Export it again"):
        read_lora(path)
    assert read_lora(path, "sdxl").family == "sdxl"


def test_words_and_names_that_disagree_are_refused(tmp_path: Path) -> None:
    state = lora("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    with pytest.raises(RefusedFile, match=r"says that it is for sd15, its layers are sdxl's"):
        read_lora(written(tmp_path, state, {"ss_base_model_version": "sd_v1"}))


@pytest.mark.parametrize(
    ("state", "meaning"),
    [
        (lora(f"lora_unet_down_blocks_1_{FLAT}", inputs=1024), "Stable Diffusion 2.x"),
        (lora(f"lora_unet_down_blocks_1_{FLAT}", inputs=1280), "refiner"),
        (lora("lora_unet_double_blocks_0_img_attn_qkv"), "FLUX"),
        (lora("transformer.single_transformer_blocks.0.attn.to_q"), "FLUX"),
        (lora("lora_transformer_joint_blocks_0_attn_to_q"), "transformer"),
        ({"model.diffusion_model.input_blocks.0.0.weight": numbers(4, 4, 3, 3)}, "a whole checkpoint"),
        ({"clip_l": numbers(2, 8), "clip_g": numbers(2, 8)}, "textual inversion"),
        ({"conv_in.weight": numbers(4, 4, 3, 3)}, "the U-Net of a whole model"),
        ({"something.else": numbers(2, 2)}, "no keys of a LoRA"),
    ],
)
def test_files_for_something_else_are_told_apart(tmp_path: Path, state: State, meaning: str) -> None:
    with pytest.raises(RefusedFile, match=meaning):
        read_lora(written(tmp_path, state))


# ---- scale ----


def test_without_an_alpha_the_scale_is_one(tmp_path: Path) -> None:
    state = lora("lora_te_text_model_encoder_layers_0_mlp_fc1", alpha=None)
    (layer,) = read_lora(written(tmp_path, state)).layers.values()
    assert isinstance(layer, LowRank) and layer.alpha == 2 and layer.scale == 1


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.r": 2, "unet.lora_alpha": 8}, 4.0),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"^up_blocks.1.{KEYS}": 6}}, 3.0),
        ({"text_encoder.r": 2, "text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_pefts_settings_in_the_header_scale_its_layers(
    tmp_path: Path, settings: dict[str, object], scale: float
) -> None:
    stem = f"unet.up_blocks.1.{KEYS}"
    state = {f"{stem}.lora_A.weight": numbers(2, SDXL_CONTEXT), f"{stem}.lora_B.weight": numbers(6, 2)}
    path = written(tmp_path, state, {"lora_adapter_metadata": json.dumps(settings)})
    (layer,) = read_lora(path).layers.values()
    assert isinstance(layer, LowRank) and layer.scale == pytest.approx(scale)


@pytest.mark.parametrize(
    "text",
    ["no json", "[1]", '{"unet.lora_alpha": "8"}', '{"unet.lora_alpha": true}', '{"unet.alpha_pattern": {"a": null}}'],
)
def test_broken_settings_of_peft_are_refused(tmp_path: Path, text: str) -> None:
    state = {"unet.conv_in.lora_A.weight": numbers(2, 4), "unet.conv_in.lora_B.weight": numbers(6, 2)}
    with pytest.raises(RefusedFile, match="lora_adapter_metadata"):
        read_lora(written(tmp_path, state, {"lora_adapter_metadata": text}), "sdxl")


# ---- kinds ----

STEM = "lora_unet_middle_block_0_in_layers_2"
CONV = Place("unet", "mid_block.resnets.0.conv1")


def test_a_kernel_is_known_by_the_name_where_the_tensors_are_flat(tmp_path: Path) -> None:
    parts = {"w1_a": numbers(6, 2), "w1_b": numbers(2, 36), "w2_a": numbers(6, 2), "w2_b": numbers(2, 36)}
    state = {f"{STEM}.hada_{name}": tensor for name, tensor in parts.items()} | {f"{STEM}.alpha": torch.tensor(1.0)}
    layer = read_lora(written(tmp_path, state), "sdxl").layers[CONV]
    assert isinstance(layer, Hadamard) and layer.delta().shape == (6, 4, 3, 3)


def test_differences_of_biases_and_trained_words_are_kept_beside_the_layers(tmp_path: Path) -> None:
    state = lora(STEM, 6, 4) | {
        f"{STEM}.diff_b": numbers(6),
        "lora_unet_middle_block_0_in_layers_0.w_norm": numbers(4),
        "lora_unet_middle_block_0_in_layers_0.b_norm": numbers(4),
        "bundle_emb.mira.clip_l": numbers(2, 8),
        "bundle_emb.mira.clip_g": numbers(2, 8),
    }
    file = read_lora(written(tmp_path, state), "sdxl")
    assert file.biases.keys() == {CONV, Place("unet", "mid_block.resnets.0.norm1")} and file.unmatched == {}
    assert file.kinds == ("lora", "norm") and file.embeddings["mira"].keys() == {"clip_l", "clip_g"}


def test_pefts_dora_is_read_with_a_length_for_each_output(tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.proj_in"
    state = {
        f"{stem}.lora_A.weight": numbers(2, 6),
        f"{stem}.lora_B.weight": numbers(6, 2),
        f"{stem}.lora_magnitude_vector": numbers(6),
    }
    (layer,) = read_lora(written(tmp_path, state), "sdxl").layers.values()
    assert isinstance(layer, Decomposed) and layer.on_output_axis(numbers(6, 6))


def test_what_is_not_understood_is_listed_with_the_reason(tmp_path: Path) -> None:
    extra = [
        "lora_unet_conv_in.on_input",
        "lora_unet_conv_in.a1.weight",
        "lora_unet_mid_block_attentions_7_made_up.alpha",
    ]
    state = lora(STEM, 6, 4) | {key: torch.ones(1) for key in extra} | {"lora_unet_conv_out.alpha": torch.ones(())}
    file = read_lora(written(tmp_path, state), "sdxl")
    assert file.unmatched.keys() == {*extra, "lora_unet_conv_out.alpha"}
    assert "GLoRA" in file.unmatched[extra[1]] and "does not have" in file.unmatched["lora_unet_conv_out.alpha"]


# ---- damage ----


def changed(**tensors: Tensor | None) -> Callable[[State], State]:
    """A pair with tensors added, replaced or taken out; names with two underscores stand for a dot."""

    def change(state: State) -> State:
        result = dict(state)
        for name, tensor in tensors.items():
            key = f"{STEM}.{name.replace('__', '.')}"
            result.pop(key, None)
            if tensor is not None:
                result[key] = tensor
        return result

    return change


def only(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: changed(**tensors)({})


PAIR = dict.fromkeys(("lora_up__weight", "lora_down__weight", "alpha"))
DAMAGED: dict[str, tuple[Callable[[State], State], str, str]] = {
    "no up": (changed(lora_up__weight=None), "lora_down.weight", "other half, lora_up.weight, is missing"),
    "no down": (changed(lora_down__weight=None), "lora_up.weight", "other half, lora_down.weight, is missing"),
    "rank 0": (changed(lora_up__weight=numbers(6, 0), lora_down__weight=numbers(0, 4)), "", "rank of 0"),
    "unlike ranks": (changed(lora_up__weight=numbers(6, 3)), "lora_up.weight", r"\(6, 3\) does not fit rank 2"),
    "a kernel in up": (changed(lora_up__weight=numbers(6, 2, 3, 3)), "lora_up.weight", "does not fit rank"),
    "three dimensions": (changed(lora_down__weight=numbers(2, 4, 3)), "lora_down.weight", "its shape is"),
    "an empty side": (changed(lora_down__weight=numbers(2, 0)), "lora_down.weight", "it is empty"),
    "two kinds": (changed(lokr_w1=numbers(2, 2)), "lokr_w1", "another kind of layer"),
    "whole numbers": (changed(lora_up__weight=torch.ones(6, 2, dtype=torch.int32)), "lora_up.weight", "int32"),
    "NaN": (changed(lora_up__weight=torch.full((6, 2), float("nan"))), "lora_up.weight", "no numbers"),
    "infinity": (changed(alpha=torch.tensor(float("inf"))), "alpha", "no numbers"),
    "many alphas": (changed(alpha=torch.ones(3)), "alpha", "instead of one number"),
    "a core of another rank": (changed(lora_mid__weight=numbers(3, 3, 3, 3)), "lora_mid.weight", "its shape"),
    "a core in a kernel": (
        changed(lora_mid__weight=numbers(2, 2, 3, 3), lora_down__weight=numbers(2, 4, 3, 3)),
        "lora_mid.weight",
        "its shape",
    ),
    "an impossible size": (
        changed(lora_up__weight=numbers(1 << 14, 1), lora_down__weight=numbers(1, 1 << 14)),
        "lora_up.weight",
        "no model has such a one",
    ),
    "lengths of another weight": (changed(dora_scale=numbers(5, 1)), "dora_scale", "fits no weight"),
    "lengths of a square": (changed(dora_scale=numbers(2, 3)), "dora_scale", "fits no weight"),
    "half a core": (
        only(
            **{f"hada_{name}": numbers(2, 2) for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
            hada_t1=numbers(2, 2, 3, 3),
        ),
        "hada_t1",
        "other one of hada_t1 and hada_t2",
    ),
    "unlike halves": (
        only(hada_w1_a=numbers(4, 2), hada_w1_b=numbers(2, 9), hada_w2_a=numbers(6, 2), hada_w2_b=numbers(2, 9)),
        "hada_w2_a",
        r"makes a weight of \(6, 9\)",
    ),
    "columns without a kernel": (
        only(hada_w1_a=numbers(4, 2), hada_w1_b=numbers(2, 7), hada_w2_a=numbers(4, 2), hada_w2_b=numbers(2, 7)),
        "hada_w1_b",
        "7 columns don't hold",
    ),
    "a factor too many": (
        only(lokr_w1=numbers(2, 2), lokr_w2=numbers(2, 9), lokr_w2_a=numbers(2, 2), lokr_w2_b=numbers(2, 9)),
        "lokr_w2",
        "whole and also in parts",
    ),
    "a factor too few": (only(lokr_w1=numbers(2, 2)), "lokr_w1", "lokr_w2_a, is missing"),
    "half a factor": (only(lokr_w1=numbers(2, 2), lokr_w2_a=numbers(2, 2)), "lokr_w", "lokr_w2_b, is missing"),
    "blocks that are not square": (
        only(oft_blocks=numbers(2, 3, 4)),
        "oft_blocks",
        "no row of square blocks|not a row",
    ),
    "blocks in a plane": (only(oft_blocks=numbers(3, 3)), "oft_blocks", "not a row of square blocks"),
    "an odd butterfly": (only(oft_blocks=numbers(2, 4, 3, 3)), "oft_blocks", "2 stages of blocks of 3"),
    "a butterfly too deep": (only(oft_blocks=numbers(4, 2, 4, 4)), "oft_blocks", "4 stages of blocks of 4"),
    "a negative limit": (only(oft_blocks=numbers(2, 4, 4), alpha=torch.tensor(-1.0)), "alpha", "limit can't be -1"),
    "scales of other outputs": (only(oft_blocks=numbers(2, 4, 4), rescale=numbers(7, 1)), "rescale", "8 outputs"),
    "scales alone": (only(rescale=numbers(8, 1)), "rescale", "oft_blocks, is missing"),
    "lengths of a rotation": (only(oft_blocks=numbers(2, 4, 4), dora_scale=numbers(8, 1)), "dora_scale", "go with oft"),
    "a difference of three dimensions": (only(diff=numbers(2, 2, 2)), "diff", "its shape is"),
    "a norm of two": (only(w_norm=numbers(2, 2)), "w_norm", "its shape is"),
    "a bias of two": (changed(diff_b=numbers(2, 2)), "diff_b", "a bias is a row of numbers"),
}


@pytest.mark.parametrize(("change", "key", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_what_makes_no_layer_is_refused_with_its_key(
    tmp_path: Path, change: Callable[[State], State], key: str, reason: str
) -> None:
    good = lora(STEM, 6, 4)
    assert read_lora(written(tmp_path, good), "sdxl").layers.keys() == {CONV}
    with pytest.raises(RefusedFile, match=reason) as refusal:
        read_lora(written(tmp_path, change(good)), "sdxl")
    assert f"{STEM}.{key}" in str(refusal.value)


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    state = lora("lora_unet_conv_in", 6, 4) | lora("lora_unet_input_blocks_0_0", 6, 4)
    with pytest.raises(RefusedFile, match="which name the same weights"):
        read_lora(written(tmp_path, state), "sdxl")


def test_a_file_with_biases_alone_has_no_layers(tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match="no LoRA layers"):
        read_lora(written(tmp_path, {f"{STEM}.diff_b": numbers(6)}), "sdxl")


def test_pickles_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lora(STEM, 6, 4))
    pickled = tmp_path / "x.pt"
    pickled.write_bytes(path.read_bytes())
    with pytest.raises(RefusedFile, match=r"\.pt file"):
        read_lora(pickled, "sdxl")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RefusedFile, match="cut off"):
        read_lora(path, "sdxl")


def test_a_checkpoint_is_refused_before_its_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, {"model.diffusion_model.out.2.weight": numbers(4, 4)})
    monkeypatch.setattr("trainer.lora_files.reading.check_finite", lambda path: pytest.fail("it was read"))
    with pytest.raises(RefusedFile, match="a whole checkpoint"):
        read_lora(path)
