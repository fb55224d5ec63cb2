"""The chooser of the Train tab and an import of another program's file, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Watch
from tests.browser.steps import open_tab
from tests.trainer.test_foreign import KOHYA
from tests.ui.served import Served, served
from trainer.demo import BASE_DIR

PICTURES = os.environ.get("SETTINGS_PICTURES")
"""Folder to put pictures of the page in, for looking at them."""
STORED = """name => JSON.parse(localStorage.getItem("safelight-train-form") || "{}").start?.own === name"""


@pytest.fixture
def with_model(tmp_path: Path) -> Iterator[Served]:
    """A page with one base model besides the embedded one, which has settings of its own for every purpose."""
    shutil.copytree(BASE_DIR, tmp_path / "workspace" / "models" / "presets-base")
    with served(tmp_path / "workspace") as running:
        yield running


def test_a_purpose_a_preset_and_a_foreign_file(watched: Watch, with_model: Served, tmp_path: Path) -> None:
    page = watched(with_model.address + "/?tab=train")
    open_tab(page, "Train")
    page.locator("#set-model-base input").fill("presets-base")
    page.keyboard.press("Enter")
    expect(page.locator("#view-form .sl-message").first).to_contain_text("batch 1 =")  # the model's own settings are in
    page.locator("#purpose").get_by_text("A style").click()
    rank = page.locator("#set-lora-rank input")
    expect(rank).to_have_value("32")
    expect(page.locator("#start-reason")).to_contain_text("A style is in all layers")
    expect(page.locator(".sl-changes")).to_have_count(0)
    page.locator(".sl-fold").click()
    rank.fill("24")
    expect(page.locator(".sl-changes")).to_contain_text("32 → 24")
    page.get_by_role("button", name="Save as preset").click()
    asked, fault = page.locator("#preset-name"), page.locator("dialog [role=alert]:visible")
    asked.fill("n" * 65)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(fault).to_have_text("The name has 65 characters; 64 are allowed. Shorten it.")
    expect(asked).to_have_value("n" * 65)
    expect(asked).to_be_focused()
    asked.fill("ink style")
    page.keyboard.press("Enter")
    expect(page.locator("#sl-notices")).to_contain_text("Kept as the preset ink style")
    page.get_by_role("button", name="Reset Rank").click()
    expect(rank).to_have_value("32")
    page.locator("#own-preset input").click()
    page.get_by_role("option", name="ink style").click()
    expect(rank).to_have_value("24")
    expect(page.locator("#start-reason")).to_contain_text("Your preset ink style is laid over it.")
    expect(page.locator(".sl-changes")).to_have_count(0)
    page.wait_for_function(STORED, arg="ink style")
    page.reload()
    expect(page.locator("#own-preset input")).to_have_value("ink style")
    expect(page.locator("#purpose input:checked")).to_have_value("style")
    (file := tmp_path / "kohya.json").write_text(json.dumps(KOHYA))
    with page.expect_file_chooser() as chooser:
        page.locator("#import-config").click()
    chooser.value.set_files(file)
    report = page.locator("#import-report")
    expect(report).to_contain_text("Settings of kohya_ss:")
    expect(report).to_contain_text("256 is the highest rank")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/import-{width}.png")
    page.keyboard.press("Escape")
    expect(rank).to_have_value("256")
    page.get_by_role("button", name="Your presets").click()
    renamed = page.get_by_label("New name of ink style")
    for name, told in (("a/b", "it has the character /"), ("n" * 70, "The name has 70 characters; 64 are allowed")):
        renamed.fill(name)
        page.keyboard.press("Enter")
        expect(fault).to_contain_text(told)
        expect(renamed).to_have_value(name)
    renamed.fill("ink")
    page.keyboard.press("Enter")
    expect(page.locator("#own-presets strong")).to_have_text("ink")
    page.get_by_label("New name of ink").fill("ink style")
    page.keyboard.press("Enter")
    expect(page.locator("#own-presets strong")).to_have_text("ink style")
    page.get_by_role("button", name="Delete ink style").click()
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/delete-390.png")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#own-presets")).to_contain_text("None yet")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Export for sd-scripts").click()
    expect(page.locator("#exported-files")).to_contain_text("accelerate launch train_network.py")
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/export-390.png")
    page.keyboard.press("Escape")
    if PICTURES:
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 1400})
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=f"{PICTURES}/train-{width}.png")
