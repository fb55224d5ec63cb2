"""What the file says about itself: kohya's entries, the modelspec standard, and nothing that is private."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from security.weights import check_safetensors
from tests.trainer.adapted import ALPHA, RANK, adapted
from trainer.config.schema import KeyFormat, ModelConfig, SavePrecision, TrainConfig
from trainer.families import FAMILIES
from trainer.families.base import Components, ModelFamily
from trainer.lora_files.exporting import save_lora
from trainer.metadata import ExportFacts, build_metadata


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    """A model with a trained LoRA."""
    return adapted(family, folder)


def facts(**changes: Any) -> ExportFacts:
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
    return ExportFacts(**(values | changes))


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
    entries = build_metadata(config(), facts())
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
    entries = build_metadata(config(), facts(family=family_name))
    assert entries["modelspec.architecture"] == f"{FAMILIES[family_name].architecture}/lora"
    assert ("modelspec.encoder_layer" in entries) is FAMILIES[family_name].has_clip_skip
    assert entries["ss_clip_skip"] == ("2" if FAMILIES[family_name].has_clip_skip else "None")


def test_captions_are_private_unless_asked_for_and_paths_always() -> None:
    silent = build_metadata(config(), facts())
    assert "rabbit" not in str(silent) and "someone" not in str(silent)
    told = build_metadata(config(save={"save_captions": True}), facts())
    assert json.loads(told["ss_tag_frequency"]) == {"ink pictures": {"rabbit": 3}}
    assert "someone" not in str(told)


def test_the_header_holds_metadata_and_the_tensors_hash(
    family: ModelFamily, components: Components, tmp_path: Path
) -> None:
    for key_format, implementation in ((KeyFormat.KOHYA, "Stability-AI"), (KeyFormat.DIFFUSERS, "diffusers")):
        path = tmp_path / f"{key_format}.safetensors"
        save_lora(
            components,
            family,
            path,
            key_format=key_format,
            precision=SavePrecision.FP16,
            metadata={"ss_output_name": "x"},
        )
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
    trained = [name for name, _ in components.text_encoders[0].named_modules() if name.endswith("adapter")]
    names = [name.removesuffix(".adapter").removeprefix("text_model.") for name in trained]
    assert adapter["text_encoder.target_modules"] == sorted(names)


def test_the_schedule_of_a_loaded_pipeline_is_the_models(family: ModelFamily, components: Components) -> None:
    schedule = family.schedule(components, ModelConfig())
    scheduler = family.build_pipeline(components, schedule).scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod)
    assert scheduler.config.prediction_type == schedule.prediction_type
