"""The page as Gradio describes it to browsers: private events, labels, ids, constant templates, nothing personal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.ui.conftest import make_services
from ui.app import TABS, build_app
from ui.form import SETTINGS, element_id
from ui.widgets import SCRIPTS, page_head

LABELLED = {"textbox", "number", "dropdown", "checkbox", "radio", "file", "slider"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    services = make_services(tmp_path_factory.mktemp("page"))
    return {**build_app(services).get_config_file(), "workspace": str(services.workspace.path)}


def components(config: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    return [entry for entry in config["components"] if entry["type"] in kinds]


def test_every_event_is_private(config: dict[str, Any]) -> None:
    assert config["dependencies"]
    assert {entry["api_visibility"] for entry in config["dependencies"]} == {"private"}


def test_every_input_has_a_label(config: dict[str, Any]) -> None:
    inputs = components(config, *LABELLED)
    assert len(inputs) > len(SETTINGS)
    for entry in inputs:
        assert entry["props"].get("label", "").strip(), entry["props"]
        assert entry["props"].get("show_label", True), entry["props"]


def test_every_button_has_words(config: dict[str, Any]) -> None:
    for entry in components(config, "button", "uploadbutton"):
        assert (entry["props"].get("value") or entry["props"].get("label") or "").strip(), entry["props"]


def test_ids_are_unique(config: dict[str, Any]) -> None:
    ids = [entry["props"]["elem_id"] for entry in config["components"] if entry["props"].get("elem_id")]
    assert len(ids) == len(set(ids))


def test_every_setting_is_on_the_page_with_its_help(config: dict[str, Any]) -> None:
    by_id = {entry["props"].get("elem_id"): entry["props"] for entry in config["components"]}
    for name, setting in SETTINGS.items():
        assert setting.help in by_id[element_id(name)]["info"], name
        assert by_id[element_id(name)]["interactive"] is True, name


def test_the_tabs_are_those_of_the_table(config: dict[str, Any]) -> None:
    tabs = components(config, "tabitem")
    assert [entry["props"]["label"] for entry in tabs] == [tab.label for tab in TABS]
    assert [entry["props"]["elem_id"] for entry in tabs] == [f"panel-{tab.id}" for tab in TABS]


def test_views_have_constant_markup(config: dict[str, Any]) -> None:
    """Gradio runs a template as code, and a value in it is code too."""
    views = components(config, "html")
    assert len(views) >= 6
    for view in views:
        assert view["props"]["html_template"] == ""
        assert view["props"]["css_template"] == ""


def test_nothing_personal_is_in_the_page_that_anyone_could_see(config: dict[str, Any]) -> None:
    assert config["workspace"] not in json.dumps({**config, "workspace": ""}, default=str)
    assert not [entry for entry in config["components"] if entry["props"].get("type") == "password"]


STUDIO_PARTS = (
    "studio",
    "studio_filter",
    "studio_networks",
    "studio_captions",
    "studio_card",
    "studio_viewer",
    "studio_complete",
    "studio_paint",
)
"""Scripts of the Dataset tab that draw no view of their own."""


def test_scripts_never_write_html() -> None:
    head = page_head()
    for name in SCRIPTS:
        assert f'define("{name}"' in head or name in ("page", "chart", "samples", "rates", *STUDIO_PARTS)
    for banned in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "http://",
        "https://",
    ):
        found = head.replace("http://www.w3.org/2000/svg", "")  # a name, not an address: nothing is fetched from there
        assert banned not in found, banned
    assert head.count("</script>") == 1


def test_an_open_page_holds_no_connection(config: dict[str, Any]) -> None:
    """A browser has six for a host; a state, an unload event or a stream would keep one of them per page for good."""
    assert config["connect_heartbeat"] is False
    assert not components(config, "state", "timer")


def test_no_event_covers_the_fields_it_fills(config: dict[str, Any]) -> None:
    """Gradio lays its progress, and "Error" after a refusal, over every output: the message in the corner is enough."""
    covering = [entry["outputs"] for entry in config["dependencies"] if entry["show_progress"] == "full"]
    assert not [outputs for outputs in covering if outputs]
