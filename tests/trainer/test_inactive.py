"""Settings without effect are told as such: they really do nothing, and no setting that counts is among them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.tiny import tiny_sdxl
from tests.trainer.test_every_setting import (  # noqa: F401 - `places` is a fixture
    CHANGES,
    SETTINGS,
    base_values,
    changed_parts,
    filled,
    observe,
    places,
    put,
)
from trainer import events
from trainer.config.files import parse_config
from trainer.config.inactive import ROWS, inactive_settings, inactive_warning
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.workspace import Workspace

# What applies (over the settings of `base_values`), and values that then do nothing; a few runs try all of the rows.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": (
        {},
        {
            "embedding.num_vectors": 3,
            "embedding.init_words": "red",
            "embedding.learning_rate": 0.5,
            "embedding.stop_step": 1,
            "optimizer.text_encoder_learning_rate": 1e-2,
            "optimizer.min_learning_rate_ratio": 0.5,
            "optimizer.num_cycles": 3,
            "optimizer.power": 2.0,
            "optimizer.beta3": 0.5,
            "optimizer.d_coefficient": 2.0,
            "loss.prior_loss_weight": 0.2,
            "loss.huber_delta": 0.9,
            "loss.huber_schedule": "constant",
            "training.shard_base": True,
            "speed.channels_last": "on",
            "noise.offset_random_strength": True,
            "noise.adaptive_offset": -0.5,
            "noise.pyramid_discount": 0.9,
            "noise.timestep_mean": 2.0,
            "noise.timestep_scale": 3.0,
            "validation.num_timesteps": 3,
            "validation.train_pictures": 3,
            "validation.keep_best": False,
            "validation.early_stop_delta": 0.2,
        },
    ),
    "another adapter and optimizer, without a GPU": (
        {"lora.adapter": "loha", "optimizer.name": "radam", "training.device": "cpu"},
        {
            "speed.fused_lora": False,
            "speed.packed_weights": "on",
            "speed.fused_optimizer": False,
            "speed.late_metrics": "on",
            "memory.offload": "both",
        },
    ),
    "squares without captions and guidance": (
        {
            "dataset.aspect_buckets": False,
            "dataset.caption_dropout_rate": 1.0,
            "lora.adapter": "dora",
            "sample.guidance_scale": 1.0,
            "training.spike_factor": 0.0,
        },
        {
            "dataset.max_aspect_ratio": 1.5,
            "dataset.min_bucket_pictures": 2,
            "dataset.shuffle_tags": True,
            "dataset.keep_tokens": 1,
            "dataset.tag_dropout_rate": 0.5,
            "save.keep_last_loras": 1,
            "training.skip_spikes": True,
            "training.max_weight_norm": 0.01,
            "sample.negative_prompt": "green",
        },
    ),
    "a plain LoRA": (
        {"lora.target_patterns": ["attn2"]},
        {"lora.targets": "all", "lora.lokr_factor": 4, "lora.block_size": 8, "lora.text_encoder_stop_step": 1},
    ),
    "nothing on the disk": ({"dataset.cache_latents": False}, {"speed.mapped_latents": "on"}),
    "something is dropped": ({"lora.dropout": 0.1}, {"speed.compile": "on"}),
    "no convolutions": ({}, {"lora.conv_alpha": 1.0}),
    "a rotation": (
        {"lora.adapter": "oft", "lora.conv_rank": 4},
        {
            "lora.rank": 8,
            "lora.alpha": 2.0,
            "lora.rs_lora": True,
            "lora.dropout": 0.5,
            "lora.conv_alpha": 2.0,
            "optimizer.lora_plus_ratio": 4.0,
        },
    ),
    "the text encoder alone": (
        {"lora.train_denoiser": False, "lora.train_text_encoder": True},
        {
            "optimizer.learning_rate": 0.5,
            "lora.targets": "all",
            "lora.conv_rank": 8,
            "lora.target_patterns": ["attn2"],
            "lora.text_encoder_stop_step": 7,
        },
    ),
    "an optimizer with few numbers": (
        {"optimizer.name": "adafactor"},
        {"optimizer.beta1": 0.5, "optimizer.beta2": 0.5, "optimizer.epsilon": 1e-3},
    ),
    "SDXL without masks and samples": (
        {"model.base": "XL", "dataset.folder": "MASKED", "loss.use_masks": False, "sample.prompts": []},
        {
            "loss.unmasked_weight": 0.9,
            "model.clip_skip": 2,
            "sample.negative_prompt": "green",
            "sample.num_inference_steps": 3,
            "sample.guidance_scale": 3.0,
            "sample.seed": 9,
        },
    ),
}


def test_every_row_is_tried_and_names_settings_that_exist() -> None:
    named = {name for row in ROWS for name in row.settings}
    assert named <= set(SETTINGS)
    assert {name for _, values in CASES.values() for name in values} == named


@pytest.mark.parametrize("case", CASES)
def test_a_setting_that_is_told_to_do_nothing_does_nothing(case: str, places, tmp_path) -> None:  # noqa: F811
    context, values = CASES[case]
    family = "sdxl" if "XL" in context.values() else "sd15"
    where = places | ({"XL": str(tiny_sdxl(tmp_path / "xl"))} if family == "sdxl" else {})
    before = base_values(where)
    put(before, "training.max_train_steps", 2)
    for name, value in context.items():
        put(before, name, filled(value, where))
    after = copy.deepcopy(before)
    for name, value in values.items():
        put(after, name, filled(value, where))
    assert set(inactive_settings(parse_config(after), family=family)) == set(values)
    assert changed_parts(observe(before, tmp_path / "before"), observe(after, tmp_path / "after")) == set()


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_changes_the_run_is_not_told_to_do_nothing(name: str, places) -> None:  # noqa: F811
    context, value = CHANGES[name]
    values = base_values(places)
    for setting, given in [*context.items(), (name, value)]:
        put(values, setting, filled(given, places))
    assert name not in inactive_settings(parse_config(values), family="sd15")


def test_defaults_are_never_told() -> None:
    assert inactive_settings(TrainConfig()) == {}
    assert inactive_settings(TrainConfig(), family="sdxl") == {}


def test_the_family_counts_only_where_it_is_known() -> None:
    config = parse_config({"model": {"clip_skip": 2}})
    assert inactive_settings(config) == {} == inactive_settings(config, family="sd15")
    assert set(inactive_settings(config, family="sdxl")) == {"model.clip_skip"}


def test_the_start_of_a_run_says_each_with_its_value(places, tmp_path) -> None:  # noqa: F811
    values = base_values(places)
    put(values, "optimizer.power", 2.0)
    put(values, "loss.prior_loss_weight", 0.5)
    config = parse_config(values)
    text = inactive_warning(config, "sd15")
    assert text.splitlines() == [
        "optimizer.power is 2.0. Does nothing unless optimizer.schedule is polynomial.",
        "loss.prior_loss_weight is 0.5. Does nothing without pictures in dataset.regularisation.",
    ]
    assert inactive_warning(parse_config(base_values(places)), "sd15") == ""
    workspace, seen = Workspace.open(tmp_path / "space"), []
    train(
        config, find_inputs(config, workspace), RunFolder.create(workspace, config), workspace, seen.append, Control()
    )
    assert text in [event.message for event in seen if isinstance(event, events.Warned)]
