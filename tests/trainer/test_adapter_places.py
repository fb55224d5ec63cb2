"""Which layers get an adapter, with which rank and rate, and what is said when a line chooses nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from security.errors import SafelightError
from tests import tiny
from trainer.adapters.groups import parameter_groups
from trainer.adapters.layer import adapted_layers
from trainer.adapters.place import adapt, add_adapter, learning_parts
from trainer.adapters.targets import LayerPlan, plan_layers
from trainer.config.choices import LoraTargets
from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import LoraConfig
from trainer.families.base import Components, ModelFamily
from trainer.metadata import ExportFacts, build_metadata


@pytest.fixture(scope="module")
def base(folder: Path, family: ModelFamily) -> Components:
    """For tests that only plan."""
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


@pytest.fixture
def components(folder: Path, family: ModelFamily) -> Components:
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


def settings(**changes: Any) -> LoraConfig:
    return LoraConfig.model_validate({"rank": 4, "alpha": 2.0} | changes)


def plans(family: ModelFamily, components: Components, **changes: Any) -> dict[str, dict[str, LayerPlan]]:
    chosen = settings(**changes)
    return plan_layers(learning_parts(chosen, family, components), chosen)


def every_layer(module: nn.Module) -> set[str]:
    return {name for name, one in module.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}


def test_presets_contain_each_other_and_all_is_every_layer(family: ModelFamily, base: Components) -> None:
    chosen = [set(plans(family, base, targets=target)["unet"]) for target in LoraTargets]
    for smaller, larger in itertools.pairwise(chosen):
        assert smaller < larger
    assert chosen[-1] == every_layer(base.denoiser)
    assert all("attn2" in name for name in chosen[0])


def test_convolutions_come_with_their_rank_or_with_locon(family: ModelFamily, base: Components) -> None:
    plain = plans(family, base)["unet"]
    convolutions = {name for name, one in base.denoiser.named_modules() if isinstance(one, nn.Conv2d)}
    large = {name for name in convolutions if max(base.denoiser.get_submodule(name).kernel_size) > 1}
    assert not large & plain.keys()
    for changes in ({"conv_rank": 2, "conv_alpha": 6.0}, {"adapter": "locon"}):
        more = plans(family, base, **changes)["unet"]
        added = more.keys() - plain.keys()
        assert added >= large - {"conv_in", "conv_out"}
        for name, one in more.items():
            expected = (2, 3.0) if name in large and "conv_rank" in changes else (4, 0.5)
            assert (one.options.rank, one.options.scale) == expected, name


def test_the_scale_of_rs_lora_falls_with_the_root_of_the_rank(family: ModelFamily, base: Components) -> None:
    plan = plans(family, base, rank=16, alpha=8.0, rs_lora=True)["unet"]
    assert {one.options.scale for one in plan.values()} == {2.0}


def test_patterns_choose_and_leave_out(family: ModelFamily, base: Components) -> None:
    chosen = plans(
        family, base, target_patterns=["attn1", r"up_blocks\.\d\.resnets"], exclude_patterns=["to_v$", "conv1"]
    )["unet"]
    expected = {name for name in every_layer(base.denoiser) if "attn1" in name or ("up_" in name and "resnets" in name)}
    expected = {name for name in expected if not name.endswith("to_v") and "conv1" not in name}
    assert chosen.keys() == expected


def test_the_first_line_that_matches_counts(family: ModelFamily, base: Components) -> None:
    plan = plans(
        family,
        base,
        block_ranks=[r"mid_block.*attn1 2 6", "mid_block 1", "up_blocks 0"],
        block_learning_rates=["to_q 0.25", "mid_block 0"],
    )["unet"]
    assert not any(name.startswith("up_blocks") for name in plan)
    for name, one in plan.items():
        expected = (
            (2, 3.0) if "mid_block" in name and "attn1" in name else (1, 2.0) if "mid_block" in name else (4, 0.5)
        )
        assert (one.options.rank, one.options.scale) == expected, name
        assert one.rate == (0.25 if "to_q" in name else 0.0 if "mid_block" in name else 1.0), name


def test_text_encoders_are_addressed_by_their_name(family: ModelFamily, base: Components) -> None:
    both = plans(family, base, train_text_encoder=True)
    assert list(both) == ["unet", *(name for name in base.modules() if name.startswith("text"))]
    # Patterns of targets choose the denoiser's layers only; the others are for all parts.
    changed = plans(
        family,
        base,
        train_text_encoder=True,
        target_patterns=["attn2"],
        exclude_patterns=[r"^text_encoder\..*fc1"],
        block_ranks=["^text_encoder 2"],
    )
    assert changed["text_encoder"].keys() == {name for name in both["text_encoder"] if "fc1" not in name}
    assert {one.options.rank for one in changed["text_encoder"].values()} == {2}
    assert {one.options.rank for one in changed["unet"].values()} == {4}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target_patterns": ["attn9"]}, r"lora\.target_patterns has the line 'attn9'.*Names are such as .*attn"),
        ({"exclude_patterns": ["attn1", "^zzz"]}, r"lora\.exclude_patterns has the line '\^zzz'.*down_blocks\."),
        ({"block_ranks": ["dwn_blocks.0 4"]}, r"lora\.block_ranks has the line 'dwn_blocks\.0 4'"),
        ({"block_learning_rates": ["a1 1", "a2 1"]}, r"block_learning_rates .*\(1 more lines match nothing either\)"),
        ({"exclude_patterns": ["."]}, "No layer is left to train"),
        # Cross-attention's own names are no text encoder's, so this line is of no use while that does not learn.
        ({"block_ranks": ["^text_encoder 2"]}, r"lora\.block_ranks has the line '\^text_encoder 2'"),
    ],
)
def test_a_line_that_matches_nothing_is_refused_with_the_names_there_are(
    family: ModelFamily, base: Components, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(SafelightError, match=told):
        plans(family, base, **changes)


def test_an_endless_pattern_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.adapters.patterns.MAX_LAYER_PATTERN_SECONDS", 0.1)
    model = nn.ModuleDict({"a" * 60: nn.Linear(4, 4)})
    with pytest.raises(SafelightError, match="took over"):
        add_adapter(model, settings(exclude_patterns=["(a|aa|aaa)+$x|(a|aa)+b"]), ["x"], seed=1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": {"target_patterns": ["(attn"]}}, r"lora\.target_patterns has the line '\(attn'.*can't be read"),
        ({"lora": {"block_ranks": ["[x 4"]}}, r"lora\.block_ranks has the line '\[x 4'"),
        ({"lora": {"block_ranks": ["up 300"]}}, "256 at most"),
        ({"lora": {"block_ranks": ["up four"]}}, r"lora\.block_ranks is .*PATTERN RANK"),
        ({"lora": {"block_learning_rates": ["up -1"]}}, r"lora\.block_learning_rates is .*PATTERN FACTOR"),
        ({"lora": {"merge_first": ["style"]}}, r"lora\.merge_first is .*WEIGHT FILE"),
        ({"lora": {"merge_first": ["0 style"]}}, "weight 0"),
        ({"lora": {"train_denoiser": False}}, "nothing would be trained"),
        (
            {"lora": {"train_denoiser": False, "train_text_encoder": True, "text_encoder_stop_step": 5}},
            "nothing would be trained after it",
        ),
        ({"lora": {"adapter": "oft", "init": "gaussian"}}, "oft, which can't begin so"),
        ({"lora": {"adapter": "dora", "init": "pissa"}}, "dora, which can't begin so"),
        ({"lora": {"init": "pissa", "rank_dropout": 0.1}}, "pissa moves a part of the base"),
        ({"lora": {"init": "pissa", "continue_from": "x"}}, "names a LoRA to begin with"),
        ({"optimizer": {"name": "prodigy", "lora_plus_ratio": 4.0}}, "one step size for everything"),
        ({"optimizer": {"name": "prodigy"}, "lora": {"block_learning_rates": ["up 0.5"]}}, "Only the factor 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(changes)


# --- groups ---


def config(**sections: Any) -> Any:
    values = {"optimizer": {"learning_rate": 1e-3, "text_encoder_learning_rate": 1e-4}, "lora": {"rank": 4}}
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return parse_config(values)


def test_one_group_for_each_part_and_all_parameters_in_their_layers_order(
    family: ModelFamily, components: Components
) -> None:
    adapted = adapt(config(lora={"train_text_encoder": True}), family, components)
    assert [(group["name"], group["lr"]) for group in adapted.groups] == [("unet", 1e-3), ("text_encoder", 1e-4)]
    learning = [one for part in adapted.parts.values() for one in part.parameters() if one.requires_grad]
    grouped = [one for group in adapted.groups for one in group["params"]]
    assert [id(one) for one in grouped] == [id(one) for one in learning]


def test_lora_plus_trains_the_up_matrices_faster(family: ModelFamily, components: Components) -> None:
    changes: dict[str, Any] = {"lora": {"train_text_encoder": True}, "optimizer": {"lora_plus_ratio": 16.0}}
    adapted = adapt(config(**changes), family, components)
    rates = {group["name"]: group["lr"] for group in adapted.groups}
    assert rates == pytest.approx({"unet": 1e-3, "unet up": 1.6e-2, "text_encoder": 1e-4, "text_encoder up": 1.6e-3})
    layers = adapted_layers(components.denoiser).values()
    ups = {id(layer.adapter.up.weight) for layer in layers}  # type: ignore[union-attr]
    assert {id(one) for one in next(group for group in adapted.groups if group["name"] == "unet up")["params"]} == ups


def test_factors_make_groups_and_zero_freezes(family: ModelFamily, components: Components) -> None:
    lines = ["down_blocks 0.5", "mid_block 0"]
    adapted = adapt(config(lora={"block_learning_rates": lines}), family, components)
    rates = {group["name"]: group["lr"] for group in adapted.groups}
    assert rates == pytest.approx({"unet": 1e-3, "unet x0.5": 5e-4})
    for name, parameter in components.denoiser.named_parameters():
        if ".adapter." in name:
            assert parameter.requires_grad is not name.startswith("mid_block"), name
    half = {id(one) for one in next(group for group in adapted.groups if group["name"] == "unet x0.5")["params"]}
    assert half == {
        id(one)
        for name, one in components.denoiser.named_parameters()
        if ".adapter." in name and name.startswith("down")
    }


def test_freezing_everything_is_refused(family: ModelFamily, components: Components) -> None:
    with pytest.raises(SafelightError, match="freezes every layer"):
        adapt(config(lora={"block_learning_rates": [". 0"]}), family, components)


def test_dora_magnitudes_learn_at_the_plain_rate(family: ModelFamily, components: Components) -> None:
    layers = add_adapter(components.denoiser, settings(adapter="dora"), ["to_q"], seed=1)
    groups = parameter_groups("unet", [(layer, 1.0) for layer in layers], learning_rate=1.0, lora_plus_ratio=4.0)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 2 * len(layers)), (4.0, len(layers))]


def test_the_start_depends_on_its_seed_alone(family: ModelFamily, folder: Path) -> None:
    starts = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        components = family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        layers = add_adapter(components.denoiser, settings(), ["to_q", "conv1"], seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's randomness is touched
        starts.append(torch.cat([layer.tensors()["lora_down.weight"].flatten() for layer in layers]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


# --- what a file says of it ---


def test_metadata_tells_the_adapter_in_kohyas_words_and_no_paths() -> None:
    facts = ExportFacts("sd15", "demo", "ab", "epsilon", False, 3, 1, 0.0, 1.0)
    plain = build_metadata(config(), facts)
    assert plain["ss_network_module"] == "networks.lora" and plain["safelight_merged_first"] == "None"
    assert json.loads(plain["ss_network_args"]) == {"targets": "attention+ff+proj"}
    lora = {
        "adapter": "lokr",
        "conv_rank": 4,
        "lokr_factor": 8,
        "merge_first": ["0.8 /home/someone/private/style.safetensors", "1 other"],
        "train_denoiser": False,
        "train_text_encoder": True,
    }
    told = build_metadata(config(lora=lora), facts)
    assert told["ss_network_module"] == "lycoris.kohya" and told["ss_unet_lr"] == "None"
    arguments = json.loads(told["ss_network_args"])
    assert arguments == {
        "algo": "lokr",
        "factor": "8",
        "conv_dim": "4",
        "conv_alpha": "16.0",
        "targets": "attention+ff+proj",
    }
    assert told["safelight_merged_first"] == "0.8 style.safetensors; 1 other"
    assert "someone" not in str(told)
    dora = json.loads(build_metadata(config(lora={"adapter": "dora"}), facts)["ss_network_args"])
    assert dora == {"algo": "locon", "dora_wd": "True", "targets": "attention+ff+proj"}
