"""An exported LoRA loads in diffusers with no key left over and does what the trained model does, at any scale."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from security.weights import check_safetensors
from tests import tiny
from trainer import export
from trainer.config.schema import KeyFormat, LoraTargets, ModelConfig, SavePrecision, TrainConfig
from trainer.families import FAMILIES
from trainer.families.base import Components, ModelFamily

RANK, ALPHA = 4, 0.7
FORMATS = [KeyFormat.KOHYA, KeyFormat.DIFFUSERS]
TOLERANCES = {SavePrecision.FP16: 1e-3, SavePrecision.FP32: 1e-5}


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    """A trained model: a LoRA with alpha unlike rank on every layer of the denoiser and the text encoders, none zero."""
    return adapted(family, folder)


def adapted(family: ModelFamily, folder: Path) -> Components:
    from peft import LoraConfig, inject_adapter_in_model

    components = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)
    torch.manual_seed(7)
    parts = {id(components.denoiser): family.lora_targets(LoraTargets.ATTENTION_FEED_FORWARD_PROJECTION)}
    for part in (components.denoiser, *components.text_encoders):
        targets = parts.get(id(part), family.text_encoder_targets())
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), part)
        for name, parameter in part.named_parameters():
            if ".lora_" in name:
                # Large enough to change the picture, small enough that fp16 has room.
                torch.nn.init.normal_(parameter, std=0.14)
        part.eval()
    return components


def save(
    components: Components, family: ModelFamily, path: Path, key_format: KeyFormat, precision: SavePrecision
) -> Path:
    size = export.save_lora(
        components, family, path, key_format=key_format, precision=precision, metadata={"ss_output_name": "x"}
    )
    assert size == path.stat().st_size
    return path


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


def outputs(family: ModelFamily, unet: Any, text_encoders: list[Any]) -> dict[str, Tensor]:
    """What each adapted network says to a fixed input."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 12, generator=generator)
    width = unet.config.cross_attention_dim
    states = torch.randn(2, 77, width, generator=generator)
    added = {
        "text_embeds": torch.randn(2, 24, generator=generator),
        "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2),
    }
    ids = torch.randint(0, 1500, (2, 77), generator=generator)
    ids[:, 20:] = 1513
    with torch.no_grad():
        found = {"unet": unet(latents, torch.tensor([5, 900]), states, added_cond_kwargs=added, return_dict=False)[0]}
        for number, encoder in enumerate(text_encoders):
            found[f"text {number}"] = encoder(ids, output_hidden_states=True).hidden_states[-1]
    return found


def encoders_of(pipeline: Any) -> list[Any]:
    return [pipeline.text_encoder, *([pipeline.text_encoder_2] if hasattr(pipeline, "text_encoder_2") else [])]


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("key_format", FORMATS)
def test_a_file_loads_in_diffusers_and_does_the_same(
    folder: Path,
    family: ModelFamily,
    components: Components,
    tmp_path: Path,
    diffusers_warnings: list[str],
    key_format: KeyFormat,
    precision: SavePrecision,
) -> None:
    from peft.tuners.lora import LoraLayer

    path = save(components, family, tmp_path / "lora.safetensors", key_format, precision)
    pipeline = family.pipeline_class().from_pretrained(folder, local_files_only=True, safety_checker=None)
    before = outputs(family, pipeline.unet, encoders_of(pipeline))
    diffusers_warnings.clear()
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert diffusers_warnings == []

    num_pairs = 0
    for trained, loaded in zip(
        [components.denoiser, *components.text_encoders], [pipeline.unet, *encoders_of(pipeline)], strict=True
    ):
        names = {name for name, module in loaded.named_modules() if isinstance(module, LoraLayer)}
        assert names == export.lora_layers(trained).keys() and names
        num_pairs += len(names)
    keys = [key for key in load_file(path) if not key.endswith(".alpha")]
    assert len(keys) == 2 * num_pairs

    expected = outputs(family, components.denoiser, components.text_encoders)
    found = outputs(family, pipeline.unet, encoders_of(pipeline))
    for name, value in expected.items():
        assert (value - before[name]).abs().max() > 0.05, (
            f"the LoRA must change {name} for the comparison to mean anything"
        )
        assert (value - found[name]).abs().max() <= TOLERANCES[precision], name


@pytest.mark.parametrize("precision", SavePrecision)
@pytest.mark.parametrize("key_format", FORMATS)
def test_every_export_verifies(
    family: ModelFamily, components: Components, tmp_path: Path, key_format: KeyFormat, precision: SavePrecision
) -> None:
    path = save(components, family, tmp_path / "lora.safetensors", key_format, precision)
    layers = sum(len(export.lora_layers(part)) for part in components.modules().values())
    assert export.verify_export(path, components, family, precision) == layers
    check_safetensors(path)


@pytest.mark.parametrize("key_format", FORMATS)
def test_the_tiny_numbers_of_an_early_step_verify_in_fp16(
    family: ModelFamily, folder: Path, tmp_path: Path, key_format: KeyFormat
) -> None:
    """fp16 has only a few digits left below 6e-5; that is rounding, not damage."""
    components = adapted(family, folder)
    for name, parameter in components.denoiser.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=1e-7 if "attn1" in name else 0.0)
    path = save(components, family, tmp_path / "lora.safetensors", key_format, SavePrecision.FP16)
    assert export.verify_export(path, components, family, SavePrecision.FP16) > 0


@pytest.mark.parametrize("key_format", FORMATS)
def test_adapters_kept_in_bf16_are_exported_exactly(
    family: ModelFamily, folder: Path, tmp_path: Path, key_format: KeyFormat
) -> None:
    components = adapted(family, folder)
    for part in components.modules().values():
        part.to(torch.bfloat16)
    path = save(components, family, tmp_path / "lora.safetensors", key_format, SavePrecision.FP32)
    assert export.verify_export(path, components, family, SavePrecision.FP32) > 0


def test_kohya_names_are_those_of_the_original_networks(family: ModelFamily, components: Components) -> None:
    """SDXL's by the original U-Net's numbering (from an independent table), SD 1.x's by diffusers' own names."""
    names = list(export.lora_layers(components.denoiser))
    if family.name == "sdxl":
        base = {key.replace(".base_layer", ""): key for key in components.denoiser.state_dict() if ".lora_" not in key}
        original = dict(zip(base, tiny.ldm_unet({key: torch.empty(0) for key in base}), strict=True))
        names = [original[f"{name}.weight"].removesuffix(".weight") for name in names]
    expected = {f"lora_unet_{name.replace('.', '_')}" for name in names}
    for prefix, encoder in zip(family.key_naming.text_encoders, components.text_encoders, strict=True):
        layers = [name.removeprefix("text_model.") for name in export.lora_layers(encoder)]
        expected |= {f"{prefix}_text_model_{name.replace('.', '_')}" for name in layers}
    state = export.to_kohya(components, family)
    assert {key.split(".", 1)[0] for key in state} == expected
    assert {key.split(".", 1)[1] for key in state} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {round(value.item(), 6) for key, value in state.items() if key.endswith("alpha")} == {ALPHA}


KNOWN_NAMES = {
    "sd15": [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ],
    "sdxl": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_1_ff_net_0_proj",
        "lora_unet_output_blocks_2_1_proj_out",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_2_self_attn_out_proj",
    ],
}


def test_names_that_every_tool_knows(family: ModelFamily, components: Components) -> None:
    state = export.to_kohya(components, family)
    for name in KNOWN_NAMES[family.name]:
        assert f"{name}.lora_down.weight" in state, name


def test_one_by_one_convolutions_keep_their_shape(family: ModelFamily, components: Components) -> None:
    state = export.to_kohya(components, family)
    for name, value in state.items():
        convolution = family.name == "sd15" and ("proj_in" in name or "proj_out" in name)
        if name.endswith("lora_down.weight"):
            assert value.ndim == (4 if convolution else 2) and len(value) == RANK, name


def test_the_file_of_a_denoiser_alone_loads_too(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    components = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)
    targets = family.lora_targets(LoraTargets.ATTENTION)
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), components.denoiser
    )
    for key_format in FORMATS:
        path = save(components, family, tmp_path / f"{key_format}.safetensors", key_format, SavePrecision.FP16)
        assert export.verify_export(path, components, family, SavePrecision.FP16) == len(
            export.lora_layers(components.denoiser)
        )


def test_a_text_encoder_that_was_freed_is_left_out(family: ModelFamily, components: Components, tmp_path: Path) -> None:
    freed = dataclasses.replace(components, text_encoders=[None] * len(components.text_encoders), vae=None)
    path = save(freed, family, tmp_path / "lora.safetensors", KeyFormat.KOHYA, SavePrecision.FP32)
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    assert export.verify_export(path, freed, family, SavePrecision.FP32) == len(export.lora_layers(components.denoiser))


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
        tensors = {key.replace(stem, stem.replace("to_q", "to_v")): value for key, value in tensors.items()}
    elif fault == "a wrong scale":
        tensors = {
            key: value * 2 if key.endswith((".alpha", "lora_B.weight")) else value for key, value in tensors.items()
        }
    else:
        tensors[next(key for key in layer if key.endswith(("up.weight", "B.weight")))][0, 0] += 0.01
    save_file(tensors, path, metadata)
    with pytest.raises(export.DamagedExport):
        export.verify_export(path, components, family, SavePrecision.FP32)


def test_numbers_that_a_file_cannot_hold_are_refused(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    components = adapted(family, folder)
    weight = next(parameter for name, parameter in components.denoiser.named_parameters() if "lora_B" in name)
    weight.data[0, 0] = 1e6
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(export.DamagedExport, match=r"1 tensors .* NaN or Inf.*too narrow"):
        save(components, family, path, KeyFormat.KOHYA, SavePrecision.FP16)
    assert path.read_bytes() == b"old"
    save(components, family, path, KeyFormat.KOHYA, SavePrecision.FP32)
    weight.data[0, 0] = float("nan")
    with pytest.raises(export.DamagedExport, match="1 tensors"):
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


# ---- what the file says about itself ----


def facts(**changes: Any) -> export.ExportFacts:
    values = {
        "family": "sd15",
        "base_name": "demo",
        "base_fingerprint": "ab" * 32,
        "prediction_type": "v_prediction",
        "zero_terminal_snr": False,
        "num_train_images": 30,
        "step": 40,
        "started_at": 1e9,
        "finished_at": 1e9 + 60,
        "tag_frequency": {"ink pictures": {"rabbit": 3}},
    }
    return export.ExportFacts(**(values | changes))


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "name": "ink",
        "lora": {"rank": 8, "alpha": 4},
        "dataset": {"folder": "/home/someone/private/ink pictures/", "resolution": 64},
        "training": {"max_train_steps": 50},
        "model": {"base": "/home/someone/models/base.safetensors", "clip_skip": 2},
    }
    return TrainConfig.model_validate(values | changes)


def test_metadata_tells_what_other_tools_ask_for() -> None:
    entries = export.build_metadata(config(), facts())
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "ink",
        "ss_learning_rate": "0.0001",
        "ss_max_train_steps": "50",
        "ss_steps": "40",
        "ss_num_train_images": "30",
        "ss_resolution": "(64, 64)",
        "ss_clip_skip": "2",
        "ss_text_encoder_lr": "None",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "ink",
        "modelspec.date": "2001-09-09T01:47:40+00:00",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "v",
        "modelspec.encoder_layer": "2",
    }
    assert {key: entries.get(key) for key in expected} == expected
    assert all(isinstance(value, str) for value in entries.values())


@pytest.mark.parametrize("family_name", sorted(FAMILIES))
def test_every_family_names_its_architecture(family_name: str) -> None:
    entries = export.build_metadata(config(), facts(family=family_name))
    assert entries["modelspec.architecture"] == f"{FAMILIES[family_name].architecture}/lora"
    assert ("modelspec.encoder_layer" in entries) is FAMILIES[family_name].has_clip_skip
    assert entries["ss_clip_skip"] == ("2" if FAMILIES[family_name].has_clip_skip else "None")


def test_captions_are_private_unless_asked_for_and_paths_always() -> None:
    silent = export.build_metadata(config(), facts())
    assert "rabbit" not in str(silent) and "someone" not in str(silent)
    told = export.build_metadata(config(save={"save_captions": True}), facts())
    assert json.loads(told["ss_tag_frequency"]) == {"ink pictures": {"rabbit": 3}}
    assert "someone" not in str(told)


def test_the_header_holds_metadata_and_the_tensors_hash(
    family: ModelFamily, components: Components, tmp_path: Path
) -> None:
    for key_format, implementation in ((KeyFormat.KOHYA, "Stability-AI"), (KeyFormat.DIFFUSERS, "diffusers")):
        path = save(components, family, tmp_path / f"{key_format}.safetensors", key_format, SavePrecision.FP16)
        entries = check_safetensors(path).metadata
        data = path.read_bytes()
        digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
        assert entries["modelspec.hash_sha256"] == f"0x{digest}" and entries["sshs_model_hash"] == digest
        assert entries["ss_output_name"] == "x" and entries["format"] == "pt"
        assert implementation in entries["modelspec.implementation"]
        alphas = {round(value.item(), 6) for key, value in load_file(path).items() if key.endswith(".alpha")}
        # Exact to fp32 whatever the file's format is: 0.7 in fp16 would be 0.7002.
        assert alphas == ({ALPHA} if key_format is KeyFormat.KOHYA else set())
    adapter = json.loads(entries["lora_adapter_metadata"])
    assert adapter["unet.r"] == adapter["unet.lora_alpha"] == RANK
    assert adapter["text_encoder.target_modules"] == sorted(family.text_encoder_targets())


def test_the_schedule_of_a_loaded_pipeline_is_the_models(family: ModelFamily, components: Components) -> None:
    schedule = family.schedule(components, ModelConfig())
    scheduler = family.build_pipeline(components, schedule).scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod)
    assert scheduler.config.prediction_type == schedule.prediction_type
