"""What the tabs' handlers do, called as Gradio and the page's scripts call them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from tests.ui.runs_on_disk import run_folder
from trainer.demo import BASE_DIR
from ui.monitor import RunMonitor
from ui.services import Services
from ui.tabs.access import access_tab
from ui.tabs.dataset import dataset_tab
from ui.tabs.models import models_tab
from ui.tabs.settings import settings_tab
from ui.tabs.start import start_tab


def drawn(tab: Callable[[Services], Any], services: Services) -> Any:
    with gr.Blocks():
        return tab(services)


class Built:
    """A tab inside a page of its own, with the functions of its buttons."""

    def __init__(self, build: Callable[[Services], Any], services: Services) -> None:
        with gr.Blocks() as self.page:
            self.parts = build(services)

    def click(self, button: gr.Button, *inputs: Any) -> Any:
        found = [fn.fn for fn in self.page.fns.values() if (button._id, "click") in fn.targets]
        assert len(found) == 1
        return found[0](*inputs)  # type: ignore[misc]


def test_the_start_tab_knows_where_things_stand(services: Services) -> None:
    view = drawn(start_tab, services)
    state = view.start_state(None)
    assert [step["title"] for step in state["steps"]] == ["Model", "Dataset", "Train"]
    assert [step["done"] for step in state["steps"]] == [False, False, False]
    assert state["last"] is None
    run_folder(services.workspace, "old")
    state = view.start_state(None)
    assert state["last"]["id"] == "old"
    assert state["steps"][2]["done"] is True


def test_runs_are_listed_and_one_is_shown_with_what_is_new(services: Services) -> None:
    run_folder(services.workspace, "first")
    run_folder(services.workspace, "second", steps=12, total=20)
    with gr.Blocks():
        view = RunMonitor(services).view
    answer = view.runs_state({"run": None, "shown": "", "lines": 0, "drawn": "", "config": False})
    assert {row["id"] for row in answer["runs"]} == {"first", "second"}
    assert answer["run"]["id"] == answer["runs"][0]["id"]
    answer = view.runs_state({"run": "first", "shown": "", "lines": 0})
    assert answer["lines"][0][0] == 0
    assert answer["config"].count("max_train_steps = 20") == 1
    assert answer["curve"]["points"][-1][0] == 20
    seen = {"shown": "first", "lines": answer["lines"][-1][0] + 1, "config": True, "drawn": answer["drawn"]}
    again = view.runs_state({"run": "first", **seen})
    assert again["lines"] == []
    assert not {"config", "curve"} & set(again)
    assert "error" in view.runs_state({"run": "gone"})
    assert view.runs_state("nonsense")["run"] is not None


def test_actions_do_what_they_say_and_refuse_what_is_over(services: Services) -> None:
    run_folder(services.workspace, "old")
    with gr.Blocks():
        view = RunMonitor(services).view
    assert "not training" in view.run_action({"run": "old", "action": "stop"})["error"]
    assert "finished" in view.run_action({"run": "old", "action": "resume"})["error"]
    assert "no action" in view.run_action({"run": "old", "action": "__class__"})["error"]
    assert view.run_action({"run": "old", "action": "delete"})["text"] == "old is deleted."
    assert not (services.workspace.runs_dir / "old").exists()
    assert "error" in view.run_action({"run": "../..", "action": "delete"})


def test_a_model_is_imported_listed_and_removed(services: Services) -> None:
    tab = Built(models_tab, services)
    told = tab.click(tab.parts.import_button, str(BASE_DIR), "mine", False)
    assert told["tone"] == "good", told
    rows = {row["name"]: row for row in tab.parts.view.models_state(None)["models"]}
    assert rows["demo"]["builtin"] is True
    assert rows["mine"]["builtin"] is False
    assert "error" in tab.parts.view.remove({"name": "demo"})
    assert tab.parts.view.remove({"name": "mine"}) == {"text": "mine is removed."}
    assert "mine" not in {row["name"] for row in tab.parts.view.models_state(None)["models"]}


def test_a_model_that_may_hold_code_is_refused_in_words(services: Services, tmp_path: Path) -> None:
    tab = Built(models_tab, services)
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    told = tab.click(tab.parts.import_button, str(path), "", False)
    assert told["tone"] == "bad"
    assert "model.ckpt" in told["text"] and "converted in a sandbox" in told["text"]
    assert tab.click(tab.parts.import_button, str(path), "", True)["tone"] == "bad"
    assert tab.click(tab.parts.import_button, "", None, False)["tone"] == "bad"
    assert tab.click(tab.parts.import_button, "https://example.com/x.safetensors", "", False)["tone"] == "bad"


def test_captions_of_a_dataset_can_be_changed_but_not_the_embedded_ones(services: Services) -> None:
    services.studio.copy("ink", "copy")
    view = drawn(dataset_tab, services).view
    picture = view.studio_rows({"dataset": "copy"})["rows"][0]
    changed = {"dataset": "copy", "picture": picture["name"], "text": "  new\ncaption ", "before": picture["caption"]}
    assert view.save_caption(changed)["caption"] == "new caption"
    assert view.studio_rows({"dataset": "copy"})["rows"][0]["caption"] == "new caption"
    ink = view.studio_rows({"dataset": "ink"})["rows"][0]
    assert "embedded" in view.save_caption({**changed, "dataset": "ink", "before": ink["caption"]})["error"]
    for wrong in ({}, {**changed, "text": 5}, {**changed, "picture": "../x.png"}, {**changed, "dataset": ".."}):
        assert "error" in view.save_caption(wrong)


def picture_bytes(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_a_name_that_is_no_utf8_does_not_hide_the_other_pictures(services: Services) -> None:
    folder = services.workspace.datasets_dir / "cat"
    folder.mkdir()
    for name in (b"good.png", b"bad\xff.png"):
        (folder / "new.png").write_bytes(picture_bytes())
        os.rename(folder / "new.png", os.path.join(os.fsencode(folder), name))  # noqa: PTH104, PTH118 - bytes
    other = os.path.join(os.fsencode(services.workspace.datasets_dir), b"dir\xff")  # noqa: PTH118
    os.mkdir(other)  # noqa: PTH102
    view = drawn(dataset_tab, services).view
    state = view.studio_rows({"dataset": "cat"})
    assert {row["name"] for row in state["rows"]} == {"good.png", "bad\\udcff.png"}
    assert "cat" in {row["name"] for row in view.studio_look({"dataset": "cat"})["datasets"]}
    assert json.dumps(state, ensure_ascii=False).encode()


def test_a_shared_page_reaches_only_its_import_folder(shared_services: Services) -> None:
    services = shared_services
    models = Built(models_tab, services)
    assert models.click(models.parts.import_button, str(BASE_DIR), "stolen", False)["tone"] == "bad"


@pytest.mark.parametrize(
    "setting",
    [
        *("model.base", "dataset.folder", "dataset.more", "dataset.regularisation", "validation.folder"),
        *("lora.continue_from", "lora.merge_first"),
    ],
)
def test_a_shared_page_trains_only_what_is_in_the_library(shared_services: Services, setting: str) -> None:
    from security.errors import RefusedPath
    from trainer.config.files import parse_config
    from trainer.demo import demo_config
    from ui.form import flat, nested

    shared_services.refuse_paths(demo_config())
    place = str(BASE_DIR.parent)
    lines = {"dataset.more": [f"0.5 {place}"], "dataset.regularisation": [place], "lora.merge_first": [f"1 {place}"]}
    values = {**flat(demo_config()), setting: lines.get(setting, place)}
    if setting == "validation.folder":
        values["validation.split"] = 0.0
    config = parse_config(nested(values))
    with pytest.raises(RefusedPath, match=re.escape(setting)):
        shared_services.refuse_paths(config)


def test_settings_tell_a_visitor_no_path(services: Services, shared_services: Services) -> None:
    assert drawn(settings_tab, services).settings_state(None)["workspace"] == str(services.workspace.path)
    told = drawn(settings_tab, shared_services).settings_state(None)
    assert str(shared_services.workspace.path.parent) not in str(told)
    assert str(shared_services.workspace.path.parent) not in str(drawn(access_tab, shared_services).access_state(None))


def test_the_page_is_built_without_the_libraries_of_training() -> None:
    code = (
        "import sys; import ui.app, ui.server, ui.downloads; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
