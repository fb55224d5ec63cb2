"""The command `settings`, and what the Train tab makes of purposes, presets and files of other programs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from security.errors import SafelightError
from tests.trainer.test_foreign import FLAT_PRESET, KOHYA, SD_DATASET, SD_SCRIPTS
from tests.ui.conftest import make_services
from tests.ui.test_form import typed
from trainer.config.files import dump_config, load_config
from trainer.config.foreign.reading import read_settings
from trainer.config.presets import Purpose, save_preset, shipped_preset
from trainer.config.schema import TrainConfig
from trainer.demo import BASE_DIR
from trainer.models.library import ModelInfo
from trainer.workspace import Workspace
from ui.cli import main
from ui.form import SETTINGS, flat
from ui.recipes import LOOKS, Start, changes, recipe
from ui.services import Access, Services
from ui.settings_files import surroundings
from ui.tabs.train import TrainTab

SDXL = ModelInfo("noob", Path("/m/noob"), "sdxl", "SDXL", 0, "epsilon", builtin=False)


def by_name(shown: list[Any]) -> dict[str, Any]:
    return dict(zip(SETTINGS, shown, strict=False))


def tab_with_model(tmp_path: Path, access: Access | None = None) -> TrainTab:
    """The tab over a workspace that has one base model, `small`, besides the embedded one."""
    services = make_services(tmp_path, access)
    shutil.copytree(BASE_DIR, services.workspace.models_dir / "small")
    with gr.Blocks():
        return TrainTab(services)


def at_start(tab: TrainTab, start: Start, **values: Any) -> dict[Any, Any]:
    """What gradio hands over when the form shows the recipe of `small` for a start, and `values` typed over it."""
    shown = {**recipe(tab.services.library.models(), "small", start), "model.base": "small", **values}
    choice = dict(zip(tab.chooser.fields, (start.purpose, start.memory, start.own), strict=True))
    return {**typed(tab.form, **shown), **choice}


def test_a_purpose_is_laid_over_what_fits_the_model() -> None:
    start = Start("style", 8)
    values = recipe([SDXL], "noob", start)
    assert values["dataset.resolution"] == 1024 and values["lora.rank"] == 8
    assert {**values, **shipped_preset(Purpose.STYLE, "sdxl", 8).values} == values
    assert recipe([replace(SDXL, prediction_type="v_prediction")], "noob", start)["loss.min_snr_gamma"] == 0.0
    assert recipe([SDXL], "noob", replace(start, own="x", values={"lora.rank": 3}))["lora.rank"] == 3
    assert recipe([SDXL], "gone", start) == recipe([SDXL], "gone"), "a model that is not known has no preset"


def test_the_form_follows_the_purpose_and_counts_changes_from_it(tmp_path: Path) -> None:
    tab = tab_with_model(tmp_path)
    before = at_start(tab, Start(), **{"lora.dropout": 0.2})
    _, draft = tab.look(before)
    choice = dict(zip(tab.chooser.fields, ("style", 12, ""), strict=True))
    moved = by_name(tab.follow_model({**before, **choice, tab.draft: draft}))
    assert moved["lora.rank"] == 32 and moved["training.batch_size"] == 4
    assert moved["lora.dropout"] == gr.skip(), "what was typed stays"
    after = at_start(tab, Start("style", 12), **{"lora.dropout": 0.2})
    told, draft = tab.look(after)
    assert [change["name"] for change in told["changed"]] == ["lora.dropout"]
    assert "A style is in all layers" in told["start"] and "Four pictures" in told["start"]
    assert draft["start"] == {"purpose": "style", "memory": 12, "own": ""}
    reset = by_name(
        tab.reset({**after, **typed(tab.form, **{"model.base": "small"})} | after, SimpleNamespace(name="lora.rank"))
    )
    assert reset["lora.rank"] == 32, "reset goes back to the preset"
    assert tab.restore_all(draft)[-3:-1] == ["style", 12]
    back = by_name(
        tab.follow_model({**after, **dict(zip(tab.chooser.fields, ("", 0, ""), strict=True)), tab.draft: draft})
    )
    assert back["lora.rank"] == TrainConfig().lora.rank and back["training.batch_size"] == 1


def test_odd_drafts_and_choices_start_from_nothing(tmp_path: Path) -> None:
    tab = tab_with_model(tmp_path)
    for odd in (
        {},
        None,
        {"start": 3},
        {"start": {"purpose": "x", "memory": "8", "own": 7}},
        {"start": {"own": "../a", "memory": 7}},
    ):
        assert tab.chooser.drafted(odd) == Start("", 0, "") or tab.chooser.machine_level()
        assert len(tab.restore_all(odd)) == len(SETTINGS) + 3


def test_a_preset_of_ones_own_is_kept_and_brings_all_its_settings(tmp_path: Path) -> None:
    tab = tab_with_model(tmp_path)
    values = at_start(tab, Start("character"), **{"lora.rank": 24, "optimizer.learning_rate": 5e-5})
    told, dropdown = tab.save_preset(values, SimpleNamespace(name="face", reason="for faces"))
    assert told == {"saved": "face"} and ("face", "face") in dropdown.choices
    listed = tab.chooser.list_own(None)
    assert [preset["name"] for preset in listed["presets"]] == ["face"]
    with pytest.raises(gr.Error, match="already"):
        tab.save_preset(values, SimpleNamespace(name="face", reason=""))
    plain = at_start(tab, Start(), **{"lora.rank": 99})
    _, draft = tab.look(plain)
    choice = dict(zip(tab.chooser.fields, ("", 0, "face"), strict=True))
    moved = by_name(tab.follow_model({**plain, **choice, tab.draft: draft}))
    assert moved["lora.rank"] == 24 and moved["optimizer.schedule"] == "cosine", "also over what was typed"
    assert moved["model.base"] == gr.skip() and moved["name"] == gr.skip()
    assert tab.chooser.rename_own({"name": "face", "new": "faces"})["text"] == "Renamed to faces."
    assert tab.chooser.refresh("face").value == ""
    tab.chooser.delete_own("faces")
    assert tab.chooser.list_own(None)["presets"] == []
    with pytest.raises(gr.Error, match="nothing to keep"):
        tab.save_preset(at_start(tab, Start()), SimpleNamespace(name="empty", reason=""))


def test_a_name_that_cannot_be_kept_is_refused_before_the_dialog_closes(tmp_path: Path) -> None:
    chooser = tab_with_model(tmp_path).chooser
    save_preset(chooser.services.workspace.path, "face", {"lora.rank": 24})
    assert chooser.may_save_own({"name": "a" * 64, "reason": "r" * 500}) == {}
    for name, reason, told in (
        ("face", "", "There is a preset face already"),
        ("a" * 65, "", "The name has 65 characters; 64 are allowed"),
        ("ü" * 200, "", "The name has 200 characters; 64 are allowed"),
        ("a/b", "", "it has the character /"),
        (" ", "", "it is empty"),
        ("b", "r" * 501, "The reason has 501 characters; 500 are allowed"),
    ):
        with pytest.raises(SafelightError) as refused:
            chooser.may_save_own({"name": name, "reason": reason})
        assert told in str(refused.value)
    with pytest.raises(SafelightError, match="65 characters; 64 are allowed"):
        chooser.rename_own({"name": "face", "new": "a" * 65})


def upload(tab: TrainTab, *paths: Path, **values: Any) -> list[Any]:
    return tab.import_files({**typed(tab.form, **values), tab.load: [str(path) for path in paths]})


def test_files_of_other_programs_fill_the_form_and_are_told(tmp_path: Path) -> None:
    tab = tab_with_model(tmp_path)
    (tmp_path / "run.toml").write_text(SD_SCRIPTS)
    (tmp_path / "data.toml").write_text(SD_DATASET)
    *shown, told = upload(tab, tmp_path / "run.toml", tmp_path / "data.toml")
    assert by_name(shown)["lora.rank"] == 32 and by_name(shown)["optimizer.name"] == "adamw_8bit"
    report = told["foreign"]
    assert report["summary"].startswith("Settings of sd-scripts: ")
    assert [group["title"].partition(" (")[0] for group in report["groups"]] == [
        *("Not taken", "Changed", "Taken as it is", "Without effect here"),
    ]
    assert "0123456789abcdef" not in json.dumps(told)
    (tmp_path / "kohya.json").write_text(json.dumps({key: KOHYA[key] for key in KOHYA if key != "train_data_dir"}))
    *shown, _ = upload(tab, tmp_path / "kohya.json", **{"model.base": "small", "dataset.folder": "ink"})
    assert by_name(shown)["lora.adapter"] == "lokr"
    stays = [by_name(shown)[name] for name in ("model.base", "dataset.folder", "name")]
    assert stays == [gr.skip()] * 3, "what is trained stays when the file does not say it"
    (tmp_path / "preset.json").write_text(json.dumps(FLAT_PRESET))
    *shown, told = upload(tab, tmp_path / "preset.json", **{"dataset.folder": "ink", "training.batch_size": 2})
    assert by_name(shown)["lora.adapter"] == "loha" and by_name(shown)["name"] == gr.skip()
    assert by_name(shown)["training.max_train_steps"] == 300, "20 epochs of the 30 pictures that the form names"
    mine = tmp_path / "mine.toml"
    mine.write_text(dump_config(TrainConfig().model_copy(update={"name": "mine"})))
    *shown, told = upload(tab, mine)
    assert by_name(shown)["name"] == "mine" and told == gr.skip()
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(gr.Error, match="no program whose settings are known"):
        upload(tab, tmp_path / "odd.json")


def test_a_page_that_others_can_reach_makes_no_length_of_a_folder_outside_the_library(tmp_path: Path) -> None:
    shutil.copytree(Path("trainer/demo/ink").resolve(), tmp_path / "secret")
    looks = next(iter(LOOKS))
    alone, shared = tab_with_model(tmp_path / "a"), tab_with_model(tmp_path / "b", Access(listen=True))
    outside = {"dataset.folder": str(tmp_path / "secret")}
    assert alone.set_length({**typed(alone.form, **outside), alone.length: looks}) > 0
    with pytest.raises(gr.Error, match="only what the library has"):
        shared.set_length({**typed(shared.form, **outside), shared.length: looks})
    emptied = typed(shared.form, **{"training.max_train_steps": None})
    assert shared.set_length({**emptied, shared.length: looks}) > 0, "the steps are what is asked for"


def test_a_held_out_folder_outside_the_library_is_not_looked_for_either(tmp_path: Path) -> None:
    shutil.copytree(Path("trainer/demo/ink").resolve(), tmp_path / "secret")
    services = make_services(tmp_path)
    values = {**flat(TrainConfig()), "validation.folder": str(tmp_path / "secret")}
    asked = {is_open: surroundings(services.workspace, [], library_only=is_open).samples for is_open in (True, False)}
    assert asked[True] is not None and asked[True](values) is None
    assert asked[False] is not None and asked[False](values)


def test_a_folder_of_another_machine_is_told_at_the_import(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for access, here, away in (
        (None, "Taken as it is", "is not on this machine; choose a dataset"),
        (Access(listen=True), "Changed", "is not among the datasets here; choose one"),
    ):
        tab = tab_with_model(tmp_path / str(access is None), access)
        for folder, title in (
            ("D:\\pics\\10_mira", "Changed"),
            (str(tmp_path / "here"), here),
            ("ink", "Taken as it is"),
        ):
            (tmp_path / "kohya.json").write_text(json.dumps({**KOHYA, "train_data_dir": folder}))
            groups = upload(tab, tmp_path / "kohya.json")[-1]["foreign"]["groups"]
            ((told, entry),) = [
                (group["title"], entry)
                for group in groups
                for entry in group["entries"]
                if entry["ours"].startswith("dataset.folder")
            ]
            assert told.startswith(title) and entry["reason"] == (away if title == "Changed" else "")
            assert entry["ours"] == f'dataset.folder = "{folder}"'


def test_a_page_that_others_can_reach_counts_no_folders_and_tells_no_paths(tmp_path: Path) -> None:
    tab = tab_with_model(tmp_path, Access(listen=True))
    secret = tmp_path / "secret"
    shutil.copytree(Path("trainer/demo/ink").resolve(), secret)
    (tmp_path / "run.toml").write_text(SD_SCRIPTS.replace("[training]", f'train_data_dir = "{secret}"\n[training]'))
    told = upload(tab, tmp_path / "run.toml")[-1]["foreign"]
    assert any("the dataset isn't here" in entry["reason"] for entry in told["groups"][0]["entries"])
    files = tab.export_for_others(typed(tab.form, **{"dataset.folder": "ink", "model.base": "small"}))["files"]
    assert str(tmp_path) not in json.dumps(files) and "must be replaced" in json.dumps(files)
    alone = tab_with_model(tmp_path / "alone")
    files = alone.export_for_others(typed(alone.form, **{"dataset.folder": "ink", "model.base": "small"}))["files"]
    assert str(tmp_path) in json.dumps(files) and [file["name"] for file in files["files"]] == [
        "lora.toml",
        "lora_dataset.toml",
    ]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["settings", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", str(tmp_path / "w"))
    Workspace.open(tmp_path / "w")
    (tmp_path / "run.json").write_text(json.dumps({**KOHYA, "train_data_dir": "ink"}))
    out = tmp_path / "out.toml"
    code, told, _ = run(capsys, "import", str(tmp_path / "run.json"), "--out", str(out), "--preset", "kohya", *place)
    assert code == 0 and "Not taken (" in told and "Kept as the preset kohya" in told
    assert load_config(out).training.max_train_steps == 40, (
        "5 epochs of 30 pictures in batches of 4: the last is not full"
    )
    assert (
        load_config(out) == read_settings([tmp_path / "run.json"], surroundings(Workspace.open(tmp_path / "w"))).config
    )
    code, _, fault = run(capsys, "import", str(tmp_path / "run.json"), "--out", str(out), *place)
    assert code == 2 and "is there already" in fault
    code, told, _ = run(capsys, "import", str(tmp_path / "run.json"), "--json", *place)
    assert json.loads(told)["values"]["lora.adapter"] == "lokr"
    code, told, _ = run(capsys, "export", str(out), "--out", str(tmp_path / "sd"), *place)
    assert code == 0 and "accelerate launch train_network.py" in told
    assert {path.name for path in (tmp_path / "sd").iterdir()} == {"lora.toml", "lora_dataset.toml"}
    code, told, _ = run(capsys, "export", str(out), "--json", *place)
    assert {"files", "lost", "command", "notes"} == json.loads(told).keys()
    code, told, _ = run(capsys, "presets", *place)
    assert "character-sdxl-12gb: A person or character, 12 GB" in told and "kohya" in told
    code, told, _ = run(capsys, "presets", "style-sd15-8gb", "--out", str(tmp_path / "style.toml"), *place)
    assert load_config(tmp_path / "style.toml").lora.rank == 32 and "lora.rank = 32" in told
    assert run(capsys, "presets", "--rename", "kohya", "mine", *place)[1] == "Renamed to mine.\n"
    assert run(capsys, "presets", "--delete", "mine", *place)[0] == 0
    code, _, fault = run(capsys, "presets", "mine", *place)
    assert code == 2 and "There is no preset mine" in fault
    code, _, fault = run(capsys, "import", str(tmp_path / "nothing.toml"), *place)
    assert code == 2 and "There is no file" in fault


def test_presets_survive_the_workspace_of_the_page(services: Services) -> None:
    save_preset(services.workspace.path, "kept", {"lora.rank": 8})
    with gr.Blocks():
        tab = TrainTab(services)
    assert ("kept", "kept") in tab.chooser.own.choices
    assert not changes(flat(TrainConfig()), flat(TrainConfig()))
