"""The form is the schema: each setting can be typed in, comes back as it was, and is told about at its own field."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from tests.trainer.test_every_setting import CHANGES
from tests.ui.conftest import make_services
from trainer.config.files import ConfigError, config_values, parse_config
from trainer.config.schema import TrainConfig
from trainer.demo import demo_config
from ui.form import SETTINGS, ConfigForm, flat, plain
from ui.services import Services
from ui.tabs.train import TrainTab


@pytest.fixture(scope="module")
def form() -> ConfigForm:
    made = ConfigForm()
    with gr.Blocks():
        for name in SETTINGS:
            made.place(name)
    return made


def typed(form: ConfigForm, **values: Any) -> dict[Any, Any]:
    """What gradio hands to a handler when the form shows the defaults and `values`."""
    flat_values = {**flat(TrainConfig()), **values}
    shown = form.show_some(flat_values)
    return {field: field.preprocess(value) for field, value in zip(form.outputs, shown, strict=True)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_survives_the_form(form: ConfigForm, name: str) -> None:
    wanted = {**CHANGES[name][0], name: CHANGES[name][1]}
    config = form.read(typed(form, **wanted))
    assert flat(config)[name] == wanted[name]
    others = {key: value for key, value in flat(config).items() if key not in wanted}
    assert others == {key: value for key, value in flat(TrainConfig()).items() if key not in wanted}


def test_a_whole_config_comes_back_equal(form: ConfigForm) -> None:
    odd = ["a cat, sitting", "a <b>dog</b>", 'quo"ted \\ ü']
    for config in (demo_config(), parse_config({"sample": {"prompts": odd}})):
        shown = dict(zip(form.outputs, form.show(config), strict=True))
        assert config_values(form.read(shown)) == config_values(config)


def test_zero_and_off_are_values_like_others(form: ConfigForm) -> None:
    off = {"optimizer.weight_decay": 0.0, "dataset.cache_latents": False, "training.max_grad_norm": 0}
    config = form.read(typed(form, **off))
    assert config.optimizer.weight_decay == 0.0
    assert config.dataset.cache_latents is False
    assert config.training.max_grad_norm == 0.0


def test_half_a_step_is_refused_and_not_rounded(form: ConfigForm) -> None:
    with pytest.raises(ConfigError) as refused:
        form.read(typed(form, **{"training.batch_size": 1.5}))
    assert [fault.setting for fault in refused.value.faults] == ["training.batch_size"]


def test_faults_come_all_at_once_and_at_their_fields(form: ConfigForm) -> None:
    values = typed(form, **{"name": "bad name!", "lora.rank": 9999, "training.batch_size": None})
    answers = form.faults(values)
    fields = sorted(form.inputs, key=lambda field: field._id)
    wrong = {field: answer["message"] for field, answer in zip(fields, answers, strict=True) if not answer["is_valid"]}
    assert set(wrong) == {form.fields[name] for name in ("name", "lora.rank", "training.batch_size")}
    assert "9999" in wrong[form.fields["lora.rank"]]


def test_settings_that_do_not_fit_together_are_told_at_one_of_them(form: ConfigForm) -> None:
    answers = form.faults(typed(form, **{"sample.every_n_steps": 5}))
    fields = sorted(form.inputs, key=lambda field: field._id)
    wrong = [field for field, answer in zip(fields, answers, strict=True) if not answer["is_valid"]]
    assert wrong == [form.fields["sample.every_n_steps"]]


def test_prompts_are_lines_and_empty_lines_are_none(form: ConfigForm) -> None:
    assert plain(SETTINGS["sample.prompts"], " a cat \n\n  a dog\n") == ["a cat", "a dog"]
    assert plain(SETTINGS["sample.prompts"], None) == []


def train_tab(services: Services) -> TrainTab:
    with gr.Blocks():
        return TrainTab(services)


def test_a_draft_comes_back_and_nonsense_in_it_is_left_out(tmp_path: Any) -> None:
    tab = train_tab(make_services(tmp_path))
    draft = {
        "values": {
            "name": "kept",
            "lora.rank": "no number",
            "dataset.shuffle_tags": 1,
            "sample.prompts": ["x"],
            "unknown": 1,
        },
    }
    by_name = dict(zip(SETTINGS, tab.restore(draft), strict=True))
    assert by_name["name"] == "kept"
    assert by_name["sample.prompts"] == "x"
    assert by_name["lora.rank"] == gr.skip()
    assert by_name["dataset.shuffle_tags"] == gr.skip()
    for nothing in ({}, None, "text", {"values": []}):
        assert tab.restore(nothing) == [gr.skip()] * len(SETTINGS)


def test_export_and_import_give_the_same_form(tmp_path: Any) -> None:
    tab = train_tab(make_services(tmp_path))
    values = typed(tab.form, **{"name": "twice", "lora.rank": 7, "sample.prompts": ["a cat", 'quo"ted']})
    told = tab.export_text(values)["export"]
    assert told["command"] == "python launch.py train twice.toml"
    path = tmp_path / told["name"]
    path.write_text(told["text"], encoding="utf-8")
    *shown, _ = tab.import_file(str(path))
    assert tab.form.read(dict(zip(tab.form.outputs, shown, strict=True))) == tab.form.read(values)


def test_a_bad_file_is_refused_in_words(tmp_path: Any) -> None:
    tab = train_tab(make_services(tmp_path))
    path = tmp_path / "bad.toml"
    path.write_text('lorra = 1\n[lora]\nrank = "many"\n', encoding="utf-8")
    with pytest.raises(gr.Error) as refused:
        tab.import_file(str(path))
    assert "lora.rank" in refused.value.message


def test_a_new_model_brings_its_settings_but_not_over_those_that_were_touched(tmp_path: Any) -> None:
    tab = train_tab(make_services(tmp_path))
    before = {**flat(demo_config()), "lora.rank": 99}
    values = {**typed(tab.form, **{**before, "model.base": "unknown"}), tab.draft: {"values": before}}
    by_name = dict(zip(SETTINGS, tab.follow_model(values), strict=True))
    assert by_name["dataset.resolution"] == TrainConfig().dataset.resolution
    assert by_name["lora.rank"] == gr.skip()
    assert by_name["dataset.folder"] == gr.skip()


def test_settings_without_effect_are_told_at_their_fields(tmp_path: Any) -> None:
    tab = train_tab(make_services(tmp_path))
    told, _ = tab.look(typed(tab.form, **{"optimizer.power": 2.0, "dataset.folder": "ink"}))
    assert set(told["inactive"]) == {"optimizer.power"}
    assert "optimizer.schedule" in told["inactive"]["optimizer.power"]
    faulty, _ = tab.look(typed(tab.form, **{"optimizer.power": 2.0, "lora.rank": 0}))
    assert faulty["inactive"] is None  # the page keeps the notes that it has


def test_every_adapter_and_optimizer_is_told_in_words() -> None:
    from trainer.config.choices import AdapterName, OptimizerName
    from ui.form import about_choices

    told = [about_choices({"lora.adapter": one, "optimizer.name": "adamw"})["lora.adapter"] for one in AdapterName]
    assert len(set(told)) == len(AdapterName) and all("Loads in ComfyUI" in text for text in told)
    assert "diffusers" in told[0] and "diffusers" not in told[-1]
    rates = [about_choices({"lora.adapter": "lora", "optimizer.name": one})["optimizer.name"] for one in OptimizerName]
    assert len(set(rates)) == len(OptimizerName) and all("Usual learning rate" in text for text in rates)
    assert about_choices({"lora.adapter": None, "optimizer.name": "nothing"}) == {}
