"""A run as files for sd-scripts: read back it is the same run, but for what the list says that they cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from security.errors import RefusedConfig
from tests.trainer.test_every_setting import CHANGES
from trainer.config.files import ConfigError, iter_settings, parse_config
from trainer.config.foreign.reading import read_settings
from trainer.config.foreign.sd_scripts_export import OPTIMIZERS, REASONS, Exported, export_sd_scripts
from trainer.config.foreign.taking import flat, nested
from trainer.config.schema import OptimizerName, TrainConfig

DEFAULTS = flat(TrainConfig())


def written(tmp_path: Path, exported: Exported) -> list[Path]:
    paths = []
    for name, text in exported.files.items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text)
    return paths


def lost_on_the_way(tmp_path: Path, config: TrainConfig, exported: Exported) -> set[str]:
    """Settings that are different after the files were read again from the disk."""
    back, ours = flat(read_settings(written(tmp_path, exported)).config), flat(config)
    return {name for name in ours if ours[name] != back[name]}


def config_of(values: dict[str, Any]) -> TrainConfig | None:
    try:
        return parse_config(nested({**DEFAULTS, **values}))
    except ConfigError:
        return None


BUSY: dict[str, Any] = {
    "name": "busy", "model.base": "/m/base.safetensors", "model.prediction_type": "v_prediction", "model.zero_terminal_snr": "on",
    "model.precision": "bf16", "model.clip_skip": 2, "dataset.folder": "/d/a", "dataset.more": ["0.5 /d/b", "2 /d/c"],
    "dataset.repeats": 2, "dataset.regularisation": ["/d/r"], "dataset.resolution": 1024, "dataset.more_resolutions": [768, 512],
    "dataset.shuffle_tags": True, "dataset.keep_tokens": 1, "dataset.caption_dropout_rate": 0.05, "dataset.tag_dropout_rate": 0.1,
    "dataset.flip_augmentation": True, "dataset.max_aspect_ratio": 4.0,
    "dataset.caption_prefix": "a", "dataset.caption_suffix": "b",
    "dataset.wildcards": True, "dataset.keep_tokens_separator": "|||", "dataset.max_token_length": 225,
    "lora.adapter": "locon", "lora.rank": 32, "lora.alpha": 8.0, "lora.conv_rank": 8, "lora.conv_alpha": 4.0, "lora.dropout": 0.1,
    "lora.rank_dropout": 0.1, "lora.module_dropout": 0.05, "lora.train_text_encoder": True,
    "lora.merge_first": ["0.5 /l/x.safetensors"],
    "lora.continue_from": "/l/y.safetensors", "optimizer.lora_plus_ratio": 8.0,
    "optimizer.learning_rate": 3e-4, "optimizer.text_encoder_learning_rate": 1e-5, "optimizer.schedule": "cosine_with_restarts",
    "optimizer.num_cycles": 3, "optimizer.warmup_steps": 40, "optimizer.beta2": 0.99, "optimizer.weight_decay": 0.1,
    "training.max_train_steps": 1500, "training.batch_size": 3, "training.gradient_accumulation_steps": 2,
    "memory.checkpointing": "blocks", "training.seed": 7, "training.max_grad_norm": 0.5, "training.max_weight_norm": 1.0,
    "loss.type": "huber", "loss.huber_delta": 0.2, "loss.huber_schedule": "constant", "loss.min_snr_gamma": 5.0,
    "loss.prior_loss_weight": 0.5, "noise.offset": 0.05, "noise.adaptive_offset": 0.01, "noise.input_perturbation": 0.05,
    "noise.min_timestep": 20, "noise.max_timestep": 900, "sample.prompts": ["one", "two, three"],
    "sample.negative_prompt": "blurry",
    "sample.width": 768, "sample.height": 640, "sample.seed": 5, "sample.num_inference_steps": 25, "sample.guidance_scale": 6.5,
    "sample.every_n_steps": 100, "save.every_n_steps": 250, "save.keep_last_loras": 2, "save.precision": "bf16",
    "validation.split": 0.1, "validation.every_n_steps": 50,
}  # fmt: skip


def test_a_run_with_everything_comes_back(tmp_path: Path) -> None:
    config = parse_config(nested({**DEFAULTS, **BUSY}))
    exported = export_sd_scripts(config, is_sdxl=True)
    assert set(exported.files) == {"busy.toml", "busy_dataset.toml", "busy_prompts.txt"}
    assert exported.command == "accelerate launch sdxl_train_network.py --config_file busy.toml"
    lost = {entry.setting for entry in exported.lost}
    assert lost == lost_on_the_way(tmp_path, config, exported)
    assert not lost


@pytest.mark.parametrize("adapter", ["lora", "locon", "dora", "loha", "lokr", "oft", "boft"])
def test_every_adapter_comes_back(tmp_path: Path, adapter: str) -> None:
    extra = {"lokr": {"lora.lokr_factor": 8}, "oft": {"lora.block_size": 16}, "boft": {"lora.block_size": 16}}
    config = config_of({"lora.adapter": adapter, "lora.targets": "attention+ff+proj", **extra.get(adapter, {})})
    assert config is not None
    exported = export_sd_scripts(config)
    lost = {entry.setting for entry in exported.lost}
    assert lost == lost_on_the_way(tmp_path, config, exported) <= {"lora.conv_rank", "lora.conv_alpha"}
    assert config.lora.adapter == read_settings(written(tmp_path, exported)).config.lora.adapter


@pytest.mark.parametrize("name", list(OptimizerName))
def test_every_optimizer_comes_back(tmp_path: Path, name: OptimizerName) -> None:
    assert name in OPTIMIZERS
    config = config_of(
        {"optimizer.name": name.value, "optimizer.learning_rate": 1e-3, "optimizer.text_encoder_learning_rate": 1e-3}
    )
    assert config is not None
    exported = export_sd_scripts(config)
    assert read_settings(written(tmp_path, exported)).config.optimizer.name is name
    assert {entry.setting for entry in exported.lost} == lost_on_the_way(tmp_path, config, exported)


def test_every_setting_comes_back_or_is_on_the_list_with_a_reason(tmp_path: Path) -> None:
    """Each setting changed alone, as the test does that proves that it changes the run."""
    tried = 0
    for setting in iter_settings():
        possible = [config for config in map(config_of, _changed(setting.name)) if config is not None]
        tried += bool(possible)
        for config in possible[: None if setting.choices else 1]:
            exported = export_sd_scripts(config)
            lost = {entry.setting for entry in exported.lost}
            assert lost == lost_on_the_way(tmp_path, config, exported), setting.name
            assert all(entry.reason and entry.value != entry.becomes for entry in exported.lost), setting.name
    assert tried > 0.8 * len(list(iter_settings()))


def _changed(name: str) -> list[dict[str, Any]]:
    """Values for one setting, with what it needs beside it."""
    setting = next(setting for setting in iter_settings() if setting.name == name)
    if setting.choices:
        return [{name: choice} for choice in setting.choices]
    if isinstance(setting.default, bool):
        return [{name: not setting.default}]
    values: list[dict[str, Any]] = []
    if isinstance(setting.default, int | float):
        low = setting.minimum if setting.minimum is not None else setting.above
        step = setting.multiple_of or 1
        values = [{name: setting.default + step}, {name: setting.default * 2}, {name: setting.default / 2}, {name: low}]
    return [*values, {name: "text"}, {name: ["line"]}, {name: ["0.5 line"]}, {name: [640]}, {name: ".cap"}]


def test_reasons_are_of_settings_that_are_there() -> None:
    assert REASONS.keys() <= {setting.name for setting in iter_settings()}
    assert CHANGES, "the table of the other test is what proves that settings work"


def test_names_of_the_library_become_paths(tmp_path: Path) -> None:
    config = config_of({"model.base": "noob", "dataset.folder": "mira", "dataset.more": ["0.5 extra"]})
    assert config is not None
    paths = {"noob": "/w/models/noob.safetensors", "mira": "/w/datasets/mira", "extra": "/w/datasets/extra"}
    exported = export_sd_scripts(config, paths)
    assert 'pretrained_model_name_or_path = "/w/models/noob.safetensors"' in exported.files["lora.toml"]
    assert "/w/datasets/extra" in exported.files["lora_dataset.toml"]
    assert {entry.setting for entry in exported.lost} == {"dataset.repeats"}
    assert not any("must be replaced" in note for note in exported.notes)
    assert any("demo and ink must be replaced" in note for note in export_sd_scripts(TrainConfig()).notes)


def test_a_token_in_a_text_is_not_written() -> None:
    config = config_of({"sample.prompts": ["a photo, hf_" + "a" * 34]})
    assert config is not None
    with pytest.raises(RefusedConfig):
        export_sd_scripts(config)
