"""The Tools tab as a person uses it: files are sent, looked at, made smaller, merged and edited, on a phone too."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from security.weights import check_safetensors
from tests.browser.conftest import Watch
from tests.trainer.test_lora_made import layers, write
from tests.ui.served import Served
from trainer.lora_files.reading import read_lora

HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def loras(server: Served) -> Path:
    """Two files in workspace/loras, one of which says hostile things about itself."""
    folder = server.workspace / "loras"
    write(folder / "mira.safetensors", layers(6), words=HOSTILE)
    write(folder / "ink.safetensors", layers(4, seed=50))
    return folder


def open_tools(watched: Watch, server: Served, **looks: int | bool) -> Page:
    page = watched(f"{server.address}/?tab=tools", **looks)
    page.locator("#tools-open-merge").wait_for()
    return page


def done(page: Page, title: str) -> None:
    card = page.locator("#tools-tasks .sl-task", has_text=title).first
    expect(card).to_have_attribute("data-state", "done", timeout=120_000)


def test_a_file_is_sent_made_smaller_and_taken_away(
    watched: Watch, server: Served, loras: Path, tmp_path: Path
) -> None:
    page = open_tools(watched, server)
    page.locator("#tools-open-resize").click()
    page.get_by_text("Bring in a file").click()
    sent = write(tmp_path / "sent one.safetensors", layers(5, seed=9)).path
    with page.expect_file_chooser() as chooser:
        page.locator("#tools-choose").click()
    chooser.value.set_files(sent)
    expect(page.locator("#tools-resize-lora")).to_have_value("sent one")
    expect(page.locator("#tools-resize-name")).to_have_value("sent one-small")
    expect(page.locator("#tools-resize-amount")).to_be_hidden()
    page.select_option("#tools-resize-keep", "energy")
    page.locator("#tools-start").click()
    expect(page.locator("#tools-panel [role=alert]")).to_contain_text("type how much to keep")
    page.fill("#tools-resize-amount", "0.9")
    page.fill("#tools-resize-rank", "4")
    page.fill("#tools-resize-conv-rank", "2")
    page.locator("#tools-start").click()
    done(page, "Resize sent one")
    with page.expect_download() as download:
        page.locator("#tools-tasks").get_by_role("link", name="Download sent one-small").click()
    made = read_lora(download.value.path(), "sd15")
    assert all(layer.rank is not None and layer.rank <= 4 for layer in made.layers.values())
    page.locator("#tools-tasks summary", has_text="3 layers").click()
    expect(page.locator("#tools-tasks .sl-layers tbody tr")).to_have_count(3)
    page.get_by_role("button", name="Delete sent one-small").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Delete sent one-small")).to_have_count(0)
    assert not (loras / "sent one-small.safetensors").exists()


def test_metadata_is_shown_as_text_and_edited(watched: Watch, server: Served, loras: Path) -> None:
    page = open_tools(watched, server)
    page.get_by_role("button", name="Inspect mira").click()
    expect(page.locator("dialog .sl-facts").first).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    page.locator("#tools-open-edit").press("Enter")
    page.select_option("#tools-edit-lora", "mira")
    expect(page.locator("#tools-edit-trigger-words")).to_have_value(HOSTILE)
    page.fill("#tools-edit-trigger-words", "mira, red hair")
    page.locator("#tools-edit-in-place").check()
    expect(page.locator("#tools-edit-name")).to_be_hidden()
    page.locator("#tools-start").click()
    done(page, "Edit mira")
    metadata = check_safetensors(loras / "mira.safetensors").metadata
    assert metadata["modelspec.trigger_phrase"] == "mira, red hair" and metadata["ss_network_dim"] == "9"
    assert page.evaluate("window.hacked") is None


def test_only_the_newest_result_is_open(watched: Watch, server: Served, loras: Path) -> None:
    page = open_tools(watched, server)
    page.locator("#tools-open-verify").click()
    for name in ("mira", "ink"):
        page.select_option("#tools-verify-lora", name)
        page.locator("#tools-start").click()
        done(page, f"Verify {name}")
    newest, older = (page.locator("#tools-tasks .sl-task", has_text=f"Verify {name}").first for name in ("ink", "mira"))
    expect(newest.locator(".sl-facts")).to_be_visible()
    expect(older.locator(".sl-facts")).to_have_count(0)
    older.locator("summary").first.click()
    expect(older.locator(".sl-facts")).to_be_visible()
    page.get_by_role("button", name="Dismiss all").click()
    expect(page.locator("#tools-tasks .sl-task")).to_have_count(0)
    expect(page.locator("#tools-dismiss-all")).to_be_hidden()
    assert (loras / "mira.safetensors").exists()


@pytest.mark.parametrize("dark", [False, True])
def test_merging_on_a_phone(watched: Watch, server: Served, loras: Path, dark: bool) -> None:
    page = open_tools(watched, server, width=390, height=844, dark=dark)
    page.locator("#tools-open-merge").click()
    rows = page.locator(".sl-weighted")
    rows.nth(0).locator("select").select_option("mira")
    rows.nth(1).locator("select").select_option("ink")
    rows.nth(1).locator("input").fill("-0.5")
    name = page.locator("#tools-merge-name").input_value()
    assert name.startswith("mira+ink")
    page.locator("#tools-start").click()
    done(page, f"{name} is 1 x mira")
    merged, one, two = (read_lora(loras / f"{one}.safetensors", "sd15").layers for one in (name, "mira", "ink"))
    for place, layer in merged.items():
        difference = one[place].delta() - 0.5 * two[place].delta() - layer.delta()
        assert float(difference.abs().max()) < 1e-4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = Axe().run(page, context="#view-tools").response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    controls = "#view-tools :is(button, select, summary, a, input:not([type=checkbox], [type=file]))"
    small = page.locator(controls).evaluate_all(
        "all => all.filter((one) => one.offsetParent && one.offsetHeight < 44).map((one) => one.outerHTML)"
    )
    assert small == []
