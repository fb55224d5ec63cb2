"""A file of any adapter gives back what was trained, and loads with no key left over where it is said to load."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from security.weights import check_safetensors
from tests import tiny
from tests.trainer.adapted import ALPHA, RANK, adapted, outputs
from tests.trainer.comfyui import apply_file
from trainer.adapters.layer import AdaptedLayer, adapted_layers
from trainer.adapters.table import ADAPTERS
from trainer.config.choices import AdapterName
from trainer.config.schema import KeyFormat, SavePrecision
from trainer.families.base import Components, ModelFamily
from trainer.lora_files.by_diffusers import loaded_by_diffusers
from trainer.lora_files.exporting import save_lora, trained_file, verify_export, written_formats
from trainer.lora_files.names import module_in
from trainer.lora_files.programs import told_in_words
from trainer.lora_files.reading import read_lora
from trainer.lora_files.writing import LOADS_ENTRY, DamagedExport, Unwritable

FORMATS = [KeyFormat.KOHYA, KeyFormat.DIFFUSERS]
TOLERANCES = {SavePrecision.FP16: 1e-3, SavePrecision.FP32: 1e-5}
EVERY_KIND = [r"^(down_blocks\\.[01]|mid_block|time_embedding|add_embedding|up_blocks\\.0\\.upsamplers)"]
"""Layers of every kind, but not each of them, so that seven adapters take seconds."""
EVERYTHING = {"targets": "all", "conv_rank": 3, "conv_alpha": 2.0}
"""All layers, with a rank and alpha of their own for convolutions."""


@pytest.fixture(scope="module")
def fresh(folder: Path, family: ModelFamily) -> Components:
    """The model as it is before any training; tests change copies."""
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    """A trained model: a LoRA with alpha unlike rank on every layer of the denoiser and the text encoders, none zero."""
    return adapted(family, folder)


def save(
    components: Components, family: ModelFamily, path: Path, key_format: KeyFormat, precision: SavePrecision
) -> Path:
    size = save_lora(components, family, path, key_format=key_format, precision=precision, metadata={"x": "y"})
    assert size == path.stat().st_size
    return path


def num_layers(components: Components) -> int:
    return sum(len(adapted_layers(part)) for part in components.modules().values())


@pytest.fixture
def diffusers_warnings() -> Iterator[list[str]]:
    """What diffusers and peft complain about, which is how they tell of unmatched keys."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


# ---- every adapter ----


@pytest.mark.parametrize("adapter", [name for name in AdapterName if name is not AdapterName.LOCON])
def test_a_file_of_any_adapter_makes_of_the_base_what_was_trained(
    folder: Path, family: ModelFamily, fresh: Components, tmp_path: Path, adapter: AdapterName
) -> None:
    """The file as our reader has it, added to the weights of a fresh model, gives the trained model's outputs.

    So does the file itself by ComfyUI's rules, with no key left over.
    """
    ranks = {} if "oft" in adapter else {"block_ranks": ["mid_block 2"]}
    std = {"loha": 0.5, "lokr": 0.4}.get(adapter, 0.14)  # products of products are small otherwise
    components = adapted(family, folder, std=std, adapter=adapter, block_size=4, target_patterns=EVERY_KIND, **ranks)
    path = save(components, family, tmp_path / "x.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    told = verify_export(path, components, family, KeyFormat.KOHYA, SavePrecision.FP32)
    assert {name for name, fault in told.items() if not fault} == ADAPTERS[adapter].loads_in
    assert check_safetensors(path).metadata[LOADS_ENTRY] == told_in_words(told)

    before = outputs(fresh.denoiser, fresh.text_encoders)
    ours, other = copy.deepcopy(fresh), copy.deepcopy(fresh)
    file = read_lora(path, family.name)
    assert len(file.layers) == num_layers(components) and not file.unmatched
    parts = ours.modules()
    for place, layer in file.layers.items():
        modules = dict(parts[place.part].named_modules())
        module = modules[module_in(modules, place.module) or "missing"]
        assert isinstance(module, nn.Linear | nn.Conv2d)
        module.weight.data += layer.delta(module.weight.data)
    assert apply_file(load_file(path), other.denoiser, other.text_encoders) == set()
    expected = outputs(components.denoiser, components.text_encoders)
    for model in (ours, other):
        for name, found in outputs(model.denoiser, model.text_encoders).items():
            assert (expected[name] - before[name]).abs().max() > 0.01, f"{adapter} must change {name} to mean anything"
            assert (expected[name] - found).abs().max() <= 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize("adapter", AdapterName)
def test_diffusers_names_are_written_where_diffusers_reads_them(
    folder: Path, family: ModelFamily, tmp_path: Path, adapter: AdapterName
) -> None:
    components = adapted(family, folder, adapter=adapter, targets="cross-attention")
    path = tmp_path / "x.safetensors"
    if "diffusers" in ADAPTERS[adapter].loads_in:
        save(components, family, path, KeyFormat.DIFFUSERS, SavePrecision.FP32)
        told = verify_export(path, components, family, KeyFormat.DIFFUSERS, SavePrecision.FP32)
        assert told["diffusers"] == "" and told["comfyui"] and written_formats(KeyFormat.BOTH, adapter) == FORMATS
    else:
        with pytest.raises(Unwritable, match="diffusers"):
            save(components, family, path, KeyFormat.DIFFUSERS, SavePrecision.FP32)
        assert not path.exists() and written_formats(KeyFormat.BOTH, adapter) == [KeyFormat.KOHYA]


@pytest.mark.parametrize(
    ("key_format", "precision"), [(KeyFormat.KOHYA, SavePrecision.FP16), (KeyFormat.DIFFUSERS, SavePrecision.FP32)]
)
def test_a_file_loads_in_diffusers_and_does_the_same(
    folder: Path,
    family: ModelFamily,
    tmp_path: Path,
    diffusers_warnings: list[str],
    key_format: KeyFormat,
    precision: SavePrecision,
) -> None:
    """A LoCon on every layer, with several ranks and alphas."""
    from peft.tuners.lora import LoraLayer

    components = adapted(family, folder, std=0.08, adapter="locon", **EVERYTHING)
    path = save(components, family, tmp_path / "lora.safetensors", key_format, precision)
    pipeline = family.pipeline_class().from_pretrained(folder, local_files_only=True, safety_checker=None)
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if hasattr(pipeline, "text_encoder_2") else [])]
    before = outputs(pipeline.unet, encoders)
    diffusers_warnings.clear()
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert diffusers_warnings == []

    num_pairs = 0
    for trained, loaded in zip(
        [components.denoiser, *components.text_encoders], [pipeline.unet, *encoders], strict=True
    ):
        names = {name for name, module in loaded.named_modules() if isinstance(module, LoraLayer)}
        assert names == adapted_layers(trained).keys() and names
        num_pairs += len(names)
    keys = [key for key in load_file(path) if not key.endswith(".alpha")]
    assert len(keys) == 2 * num_pairs

    expected = outputs(components.denoiser, components.text_encoders)
    found = outputs(pipeline.unet, encoders)
    for name, value in expected.items():
        assert (value - before[name]).abs().max() > 0.05, f"the LoRA must change {name} to mean anything"
        assert (value - found[name]).abs().max() <= TOLERANCES[precision], name


def test_attention_layers_with_an_alpha_of_their_own_are_told_of(
    folder: Path, family: ModelFamily, tmp_path: Path
) -> None:
    """diffusers gives them the others' alpha when it reads kohya's names; with its own names it is right."""
    components = adapted(
        family, folder, targets="cross-attention", block_ranks=["mid_block 2 5"], train_text_encoder=False
    )
    path = save(components, family, tmp_path / "x.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    told = verify_export(path, components, family, KeyFormat.KOHYA, SavePrecision.FP32)
    assert "another strength" in told["diffusers"] and "mid_block" in told["diffusers"] and not told["comfyui"]
    loaded = loaded_by_diffusers(path, components, family)
    meant = trained_file(components, family).layers
    wrong = [
        place for place, layer in loaded.items() if abs(layer.scale - meant[place].alpha / meant[place].rank) > 1e-6
    ]
    assert wrong and all("mid_block" in place.module for place in wrong)
    save(components, family, path, KeyFormat.DIFFUSERS, SavePrecision.FP32)
    assert verify_export(path, components, family, KeyFormat.DIFFUSERS, SavePrecision.FP32)["diffusers"] == ""


@pytest.mark.parametrize("precision", SavePrecision)
def test_every_precision_verifies(
    family: ModelFamily, components: Components, tmp_path: Path, precision: SavePrecision
) -> None:
    for key_format in FORMATS if precision is SavePrecision.BF16 else FORMATS[:1]:
        path = save(components, family, tmp_path / "lora.safetensors", key_format, precision)
        verify_export(path, components, family, key_format, precision)
        check_safetensors(path)


def test_a_start_in_the_weights_main_directions_verifies(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    components = adapted(family, folder, init="pissa", rs_lora=True, targets="cross-attention")
    path = save(components, family, tmp_path / "x.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    verify_export(path, components, family, KeyFormat.KOHYA, SavePrecision.FP32)
    assert {layer.rank for layer in read_lora(path, family.name).layers.values()} == {2 * RANK}


def test_the_tiny_numbers_of_an_early_step_verify_in_fp16(family: ModelFamily, folder: Path, tmp_path: Path) -> None:
    """fp16 has only a few digits left below 6e-5; that is rounding, not damage."""
    components = adapted(family, folder, targets="cross-attention", train_text_encoder=False)
    for name, layer in adapted_layers(components.denoiser).items():
        for parameter in layer.output_side():
            nn.init.normal_(parameter, std=1e-7 if "to_q" in name else 0.0)
    for key_format in FORMATS:
        path = save(components, family, tmp_path / "lora.safetensors", key_format, SavePrecision.FP16)
        verify_export(path, components, family, key_format, SavePrecision.FP16)


# ---- names ----


def test_kohya_names_are_those_of_the_original_networks(family: ModelFamily, folder: Path) -> None:
    """SDXL's by the original U-Net's numbering (from an independent table), SD 1.x's by diffusers' own names."""
    components = adapted(family, folder, **EVERYTHING)
    names = list(adapted_layers(components.denoiser))
    if family.name == "sdxl":
        fresh = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32).denoiser
        base = list(fresh.state_dict())
        original = dict(zip(base, tiny.ldm_unet({key: torch.empty(0) for key in base}), strict=True))
        names = [original[f"{name}.weight"].removesuffix(".weight") for name in names]
    expected = {f"lora_unet_{name.replace('.', '_')}" for name in names}
    prefixes = {"sd15": ["lora_te"], "sdxl": ["lora_te1", "lora_te2"]}[family.name]
    for prefix, encoder in zip(prefixes, components.text_encoders, strict=True):
        layers = [name.removeprefix("text_model.") for name in adapted_layers(encoder)]
        expected |= {f"{prefix}_text_model_{name.replace('.', '_')}" for name in layers}
    state = kohya_state(components, family)
    assert {key.split(".", 1)[0] for key in state} == expected
    assert {key.split(".", 1)[1] for key in state} == {"lora_down.weight", "lora_up.weight", "alpha"}
    alphas = {round(value.item(), 6) for key, value in state.items() if key.endswith("alpha")}
    assert alphas == {ALPHA, 2.0}


def kohya_state(components: Components, family: ModelFamily) -> dict[str, Any]:
    from trainer.lora_files.keys import FileFormat
    from trainer.lora_files.writing import file_tensors

    return file_tensors(trained_file(components, family), FileFormat.KOHYA)


KNOWN_NAMES = {
    "sd15": [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
    ],
    "sdxl": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_1_ff_net_0_proj",
        "lora_unet_output_blocks_2_1_proj_out",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_2_self_attn_out_proj",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_label_emb_0_0",
    ],
}


def test_names_that_every_tool_knows(family: ModelFamily, folder: Path) -> None:
    state = kohya_state(adapted(family, folder, **EVERYTHING), family)
    for name in KNOWN_NAMES[family.name]:
        assert f"{name}.lora_down.weight" in state, name


def test_one_by_one_convolutions_keep_their_shape(family: ModelFamily, components: Components) -> None:
    for name, value in kohya_state(components, family).items():
        convolution = family.name == "sd15" and ("proj_in" in name or "proj_out" in name)
        if name.endswith("lora_down.weight"):
            assert value.ndim == (4 if convolution else 2) and len(value) == RANK, name


# ---- parts of a model ----


def test_the_file_of_a_denoiser_alone_loads_too(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    components = adapted(family, folder, targets="cross-attention", train_text_encoder=False)
    for key_format in FORMATS:
        path = save(components, family, tmp_path / f"{key_format}.safetensors", key_format, SavePrecision.FP16)
        verify_export(path, components, family, key_format, SavePrecision.FP16)
        assert {place.part for place in read_lora(path, family.name).layers} == {"unet"}


def test_the_file_of_text_encoders_alone_loads_too(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    components = adapted(family, folder, train_denoiser=False)
    for key_format in FORMATS:
        path = save(components, family, tmp_path / f"{key_format}.safetensors", key_format, SavePrecision.FP16)
        verify_export(path, components, family, key_format, SavePrecision.FP16)
        parts = {place.part for place in read_lora(path, family.name).layers}
        assert parts == {"text_encoder", "text_encoder_2"} - ({"text_encoder_2"} if family.name == "sd15" else set())


def test_a_text_encoder_that_was_freed_is_left_out(family: ModelFamily, components: Components, tmp_path: Path) -> None:
    freed = dataclasses.replace(components, text_encoders=[None] * len(components.text_encoders), vae=None)
    path = save(freed, family, tmp_path / "lora.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    verify_export(path, freed, family, KeyFormat.KOHYA, SavePrecision.FP32)


# ---- damage ----


@pytest.mark.parametrize("key_format", FORMATS)
@pytest.mark.parametrize("fault", ["a layer lost", "a layer renamed", "a wrong scale", "a wrong number"])
def test_a_file_that_does_not_give_back_the_training_is_found_out(
    family: ModelFamily, components: Components, tmp_path: Path, key_format: KeyFormat, fault: str
) -> None:
    path = save(components, family, tmp_path / "lora.safetensors", key_format, SavePrecision.FP32)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    stem = next(key for key in tensors if "to_q" in key).rsplit(".", 2)[0]
    layer = {key: value for key, value in tensors.items() if key.startswith(stem + ".")}
    if fault == "a layer lost":
        tensors = {key: value for key, value in tensors.items() if key not in layer}
    elif fault == "a layer renamed":
        tensors = {key.replace(stem, stem.replace("to_q", "norm")): value for key, value in tensors.items()}
    elif fault == "a wrong scale":
        tensors = {
            key: value * 2 if key.endswith((".alpha", "lora_B.weight")) else value for key, value in tensors.items()
        }
    else:
        tensors[next(key for key in layer if key.endswith(("up.weight", "B.weight")))][0, 0] += 0.01
    save_file(tensors, path, metadata)
    with pytest.raises(DamagedExport):
        verify_export(path, components, family, key_format, SavePrecision.FP32)


@pytest.mark.parametrize("adapter", [AdapterName.DORA, AdapterName.LOHA, AdapterName.LOKR, AdapterName.BOFT])
def test_a_wrong_number_of_any_adapter_is_found_out(
    family: ModelFamily, folder: Path, tmp_path: Path, adapter: AdapterName
) -> None:
    components = adapted(family, folder, adapter=adapter, targets="cross-attention", train_text_encoder=False)
    path = save(components, family, tmp_path / "x.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(("dora_scale", "hada_w2_b", "lokr_w1", "oft_blocks")))
    tensors[key].flatten()[-1] *= 1.001
    save_file(tensors, path)
    with pytest.raises(DamagedExport, match="other numbers"):
        verify_export(path, components, family, KeyFormat.KOHYA, SavePrecision.FP32)


def test_a_file_that_would_not_do_what_was_trained_is_found_out(
    family: ModelFamily, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the trained network and the file's formula ever part, the numbers in the file still match: only this sees it."""
    components = adapted(family, folder, adapter="oft", targets="cross-attention", train_text_encoder=False)
    path = save(components, family, tmp_path / "x.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    right = AdaptedLayer.delta
    monkeypatch.setattr(AdaptedLayer, "delta", lambda layer: right(layer) * 1.01)
    with pytest.raises(DamagedExport, match="would not give what was trained"):
        verify_export(path, components, family, KeyFormat.KOHYA, SavePrecision.FP32)


def test_numbers_that_a_file_cannot_hold_are_refused(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    components = adapted(family, folder)
    weight = next(iter(adapted_layers(components.denoiser).values())).output_side()[0]
    weight.data[0, 0] = 1e6
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(DamagedExport, match=r"1 tensors .* NaN or Inf.*too narrow"):
        save(components, family, path, KeyFormat.KOHYA, SavePrecision.FP16)
    assert path.read_bytes() == b"old"
    save(components, family, path, KeyFormat.KOHYA, SavePrecision.FP32)
    weight.data[0, 0] = float("nan")
    with pytest.raises(DamagedExport, match="1 tensors"):
        save(components, family, path, KeyFormat.DIFFUSERS, SavePrecision.FP32)


def test_a_file_is_written_whole_or_not_at_all(
    family: ModelFamily, components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(components, family, path, KeyFormat.KOHYA, SavePrecision.FP16)
    assert [one.name for one in tmp_path.iterdir()] == ["lora.safetensors"] and path.read_bytes() == b"old"


def test_one_file_has_one_key_format(family: ModelFamily, components: Components, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Call this once per format"):
        save(components, family, tmp_path / "x.safetensors", KeyFormat.BOTH, SavePrecision.FP16)
