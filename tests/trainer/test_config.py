"""Settings: read, refused with the way out, written back without loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.errors import SafelightError
from tests.trainer.test_every_setting import CHANGES, put
from trainer.config.files import (
    ConfigError,
    apply_flags,
    config_values,
    dump_config,
    iter_settings,
    load_config,
    parse_config,
    parse_text,
)
from trainer.config.migrate import MOVED
from trainer.config.schema import TrainConfig

SETTINGS = {setting.name: setting for setting in iter_settings()}


def test_every_setting_has_a_help_sentence() -> None:
    for setting in SETTINGS.values():
        assert setting.help.endswith("."), setting.name
        assert len(setting.help) > 20, setting.name


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_survives_being_written_and_read(name: str, tmp_path) -> None:
    context, value = CHANGES[name]
    values = config_values(TrainConfig())
    for setting, given in [*context.items(), (name, value)]:
        put(values, setting, given)
    config = parse_config(values)
    assert config != TrainConfig()
    path = tmp_path / "run.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    section, _, field = name.rpartition(".")
    reread = config_values(load_config(path))
    assert (reread[section] if section else reread)[field] == value


def test_odd_texts_survive_being_written_and_read(tmp_path) -> None:
    lines = ["a cat", 'quotes " and \\ and ünicode', "# no comment", "it's"]
    config = parse_config({"sample": {"prompts": lines, "negative_prompt": lines[1]}})
    path = tmp_path / "run.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path).sample.prompts == tuple(lines)
    assert load_config(path) == config


def test_the_written_file_explains_each_setting() -> None:
    text = dump_config(TrainConfig())
    for setting in SETTINGS.values():
        assert f"# {setting.help}" in text


def test_all_faults_come_at_once_with_value_and_range() -> None:
    values = {"lora": {"rank": 0, "rnak": 3}, "optimizer": {"learning_rate": "fast"}, "trainig": {}}
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    text = str(caught.value)
    assert "lora.rank is 0" in text and "1 to 256" in text
    assert "lora.rnak is not a setting. Did you mean lora.rank?" in text
    assert 'optimizer.learning_rate is "fast"' in text
    assert "trainig is not a setting" in text
    assert {fault.setting for fault in caught.value.faults} >= {"lora.rank", "optimizer.learning_rate"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora.rnak", "lora.rank"),
        ("lora.alhpa", "lora.alpha"),
        ("lroa.rank", "lora.rank"),
        ("optimzer.learning_rat", "optimizer.learning_rate"),
        ("training.max_steps", "training.max_train_steps"),
        ("save.every", "save.every_n_steps"),
        ("nmae", "name"),
        ("lora.nosuch", ""),
        ("training.nonsense", ""),
        ("optimizer.lr", ""),
        ("lora.x", ""),
    ],
)
def test_only_a_name_that_is_near_is_offered(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refused:
        apply_flags({}, [f"--{typed}", "1"])
    assert str(refused.value).endswith(f"Did you mean {meant}?" if meant else "--help` for all of them.")


def test_a_setting_in_the_wrong_section_is_found() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean training\.max_train_steps\?"):
        parse_config({"optimizer": {"max_train_steps": 3}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sample": {"every_n_steps": 50}}, "sample.every_n_steps is 50 but sample.prompts is empty"),
        ({"validation": {"every_n_steps": 5}}, "validation.every_n_steps is 5 but validation.folder is empty"),
        ({"optimizer": {"warmup_steps": 1000}}, "optimizer.warmup_steps is 1000"),
        ({"model": {"zero_terminal_snr": "on", "prediction_type": "epsilon"}}, "zero_terminal_snr is on"),
        ({"dataset": {"keep_tokens": 2}}, "dataset.keep_tokens is 2"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(values)


def test_flags_lie_over_the_file() -> None:
    values = apply_flags(
        {"lora": {"rank": 4}},
        [
            "--lora.rank",
            "8",
            "--dataset.shuffle_tags=yes",
            "--sample.prompts",
            "a",
            "--sample.prompts",
            "b",
            "--name",
            "x",
        ],
    )
    config = parse_config(values)
    assert (config.lora.rank, config.dataset.shuffle_tags, config.sample.prompts, config.name) == (
        8,
        True,
        ("a", "b"),
        "x",
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora.rnk", "8"], "Did you mean"),
        (["--lora.rank", "eight"], "not a whole number"),
        (["--lora.rank"], "needs a value"),
        (["lora.rank", "3"], "is not a setting"),
        (["--training.gradient_checkpointing", "true"], r"It is memory\.checkpointing now"),
        (["--dataset.shuffle_tags", "perhaps"], "not on or off"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply_flags({}, flags)


def test_the_file_of_before_is_not_changed_by_flags() -> None:
    before = {"lora": {"rank": 4}}
    apply_flags(before, ["--lora.rank", "8"])
    assert before == {"lora": {"rank": 4}}


def test_broken_files_are_refused(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("lora = [", encoding="utf-8")
    with pytest.raises(SafelightError, match=r"run\.toml"):
        load_config(path)


def test_typed_text_becomes_the_settings_type() -> None:
    assert parse_text(SETTINGS["optimizer.learning_rate"], "1e-4") == 1e-4
    assert parse_text(SETTINGS["sample.prompts"], " a \n\n b ") == ["a", "b"]
    assert parse_text(SETTINGS["training.skip_spikes"], "Off") is False


def test_settings_of_older_files_are_read_under_their_new_names(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text('name = "x"\n[loss]\nnoise_offset = 0.05\nmin_snr_gamma = 5.0\n', encoding="utf-8")
    config = load_config(path)
    assert (config.noise.offset, config.loss.min_snr_gamma) == (0.05, 5.0)
    path.write_text("[loss]\nnoise_offset = 0.05\n[noise]\noffset = 0.1\n", encoding="utf-8")
    assert load_config(path).noise.offset == 0.1
    path.write_text("loss = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)


def test_moved_settings_are_gone_from_their_old_places_and_there_in_the_new() -> None:
    names = {setting.name for setting in iter_settings()}
    assert not set(MOVED) & names and set(MOVED.values()) <= names
