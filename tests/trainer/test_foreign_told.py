"""What an import tells of prompts, folders, epochs and models: the key and the value of the file, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_foreign import AI_TOOLKIT, HUNDRED, KOHYA, ONETRAINER, check, outcomes, write
from trainer.config.foreign.reading import read_settings
from trainer.config.foreign.report import Outcome
from trainer.config.foreign.taking import Surroundings


def test_options_of_prompts_that_differ_by_line_are_told_as_changed(tmp_path: Path) -> None:
    text = "a fox --w 512 --s 20 --d 3\na dog --n bad --s 20\na cat --s 20 --w 640"
    result = read_settings([write(tmp_path, "run.toml", f"network_dim = 4\nsample_prompts = {json.dumps(text)}\n")])
    check(
        result,
        {
            "sample.prompts": ["a fox", "a dog", "a cat"], "sample.negative_prompt": "bad", "sample.width": 512,
            "sample.num_inference_steps": 20, "sample.seed": 3,
        },
    )  # fmt: skip
    changed = {key: why for key, why in outcomes(result, Outcome.CHANGED).items() if key.startswith("sample_prompts")}
    assert changed.keys() == {f"sample_prompts: {name}" for name in ("width", "seed", "negative_prompt")}
    assert all("here one value holds for all prompts" in why for why in changed.values())
    assert "sample_prompts: num_inference_steps" in outcomes(result, Outcome.TAKEN), "all lines have the same"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.toml", 'network_dim = 4\ntrain_data_dir = "D:\\\\pics\\\\10_mira"\n'),
        ("data.toml", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "D:\\\\pics\\\\10_mira"\n'),
        ("run.json", {**KOHYA, "train_data_dir": "D:\\pics\\10_mira"}),
        ("one.json", {**ONETRAINER, "concepts": [{"path": "D:\\pics\\10_mira"}]}),
        ("ai.yaml", AI_TOOLKIT.replace("/data/mira", "D:\\pics\\10_mira")),
    ],
)
def test_a_folder_that_is_not_here_is_told(tmp_path: Path, name: str, content: Any) -> None:
    around = Surroundings(folder_fault=lambda name: f"{name} is gone")
    result = read_settings([write(tmp_path, name, content)], around)
    (entry,) = [one for one in result.report.entries if one.ours == "dataset.folder"]
    assert (entry.outcome, entry.reason) == (Outcome.CHANGED, "D:\\pics\\10_mira is gone")
    assert entry.our_value == '"D:\\pics\\10_mira"', "as it was typed, without a doubled backslash"
    assert read_settings([tmp_path / name]).values["dataset.folder"] == "D:\\pics\\10_mira"


@pytest.mark.parametrize("nothing", ["0", 0, 0.0])
def test_the_epoch_of_kohya_ss_counts_when_the_steps_are_nothing(tmp_path: Path, nothing: Any) -> None:
    values = {**KOHYA, "max_train_steps": nothing, "max_train_epochs": nothing}
    result = read_settings([write(tmp_path, "run.json", values)], HUNDRED)
    check(result, {"training.max_train_steps": 125})
    assert "epoch" in outcomes(result, Outcome.CHANGED)
    assert outcomes(result, Outcome.NO_EFFECT)["max_train_steps"] == "is 0 there, so epoch counts"
    for key, other in (("max_train_steps", "max_train_epochs"), ("max_train_epochs", "max_train_steps")):
        result = read_settings([write(tmp_path, "run.json", {**values, key: 7, other: nothing})], HUNDRED)
        assert outcomes(result, Outcome.NO_EFFECT)["epoch"] == f"{key} comes before it"


def test_a_base_that_can_be_fetched_is_told_with_both_ways(tmp_path: Path) -> None:
    content = 'network_dim = 4\npretrained_model_name_or_path = "some/model"\n'
    reason = outcomes(read_settings([write(tmp_path, "run.toml", content)]), Outcome.CHANGED)[
        "pretrained_model_name_or_path"
    ]
    assert "on the Models tab or with `python launch.py fetch some/model`" in reason
