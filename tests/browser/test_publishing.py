"""A dataset is published from the page to a hub on loopback, and captioners are offered with their prompts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch
from tests.hubs.upload_hub import TOKEN, UploadHub, upload_hub
from tests.ui.served import Served, served
from trainer.demo import DATASETS

CONTROLS = "input:not([type=checkbox]), select, textarea, button.sl-primary"


@pytest.fixture(scope="module")
def hub() -> Iterator[UploadHub]:
    with upload_hub() as running:
        yield running


@pytest.fixture(scope="module")
def site(hub: UploadHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    workspace = tmp_path_factory.mktemp("publishing") / "workspace"
    (workspace / "datasets").mkdir(parents=True, mode=0o700)
    shutil.copytree(DATASETS["ink"], workspace / "datasets" / "mira")
    with served(workspace, "--hf-endpoint", hub.endpoint, "--send-tokens-to-mirror") as running:
        yield running


@pytest.fixture
def studio(watched: Watch, site: Served) -> Page:
    page = watched(f"{site.address}/?tab=dataset&dataset=mira")
    expect(page.locator("#dataset-choice")).to_have_value("mira")
    page.locator(".sl-cell").first.wait_for()
    return page


def test_a_dataset_is_published_with_the_keyboard(studio: Page, hub: UploadHub) -> None:
    studio.locator("#studio-open-publish").focus()
    studio.keyboard.press("Enter")
    expect(studio.locator("#publish-go")).to_be_disabled()
    studio.get_by_label("Dataset on Hugging Face").fill("me/mira")
    studio.locator("#publish-licence").select_option("cc-by-4.0")
    studio.get_by_role("textbox", name="Description").fill("Ink icons, <b>black</b>.")
    studio.get_by_label("Token that may write").fill(TOKEN)
    expect(studio.locator("#publish-go")).to_have_text("Publish 30 pictures privately")
    studio.locator("#publish-go").press("Enter")
    expect(studio.get_by_text("30 pictures are on")).to_be_visible(timeout=60_000)
    assert hub.repos["me/mira"].private and len(hub.repos["me/mira"].files) == 62
    rows = [json.loads(line) for line in hub.repos["me/mira"].files["metadata.jsonl"].decode().splitlines()]
    assert len(rows) == 30 and all(row["text"].startswith("inkstyle") for row in rows)
    expect(studio.get_by_label("Token that may write")).to_have_value("")
    assert TOKEN not in studio.content() and TOKEN not in studio.evaluate("JSON.stringify(window.localStorage)")


def test_public_asks_once_more_and_a_refusal_keeps_what_was_typed(studio: Page, hub: UploadHub) -> None:
    studio.locator("#studio-open-publish").click()
    studio.get_by_label("Dataset on Hugging Face").fill("not a name")
    studio.get_by_label("Token that may write").fill(TOKEN)
    studio.get_by_label("Everybody may see it").check()
    studio.locator("#publish-go").click()
    dialog = studio.get_by_role("alertdialog")
    expect(dialog).to_contain_text("Everybody will see the 30 pictures of mira")
    before = len(hub.seen)
    dialog.get_by_role("button", name="Cancel").click()
    studio.locator("#publish-go").click()
    dialog.get_by_role("button", name="Publish").click()
    expect(studio.get_by_text("is no name for a dataset")).to_be_visible()
    expect(studio.get_by_label("Token that may write")).to_have_value(TOKEN)
    assert len(hub.seen) == before


def test_captioners_offer_their_prompts(studio: Page) -> None:
    studio.locator("#studio-open-tagging").click()
    chosen, prompts, box = (
        studio.locator("#studio-tagger"),
        studio.locator("#studio-tagging-prompts"),
        studio.locator("#studio-tagging-prompt"),
    )
    chosen.select_option("florence-2-base")
    expect(prompts).to_have_value("<MORE_DETAILED_CAPTION>")
    expect(box).to_be_hidden()
    prompts.select_option(label="One sentence")
    chosen.select_option("qwen3-vl-4b")
    expect(box).to_be_visible()
    expect(box).to_have_value("")
    prompts.select_option(label="Tags")
    expect(box).to_have_value(re.compile("^List what is in this picture as short tags"))
    box.fill("My own question?")
    box.blur()
    expect(prompts).to_have_value("own prompt")
    chosen.select_option("wd-vit-tagger-v3")
    expect(prompts).to_be_hidden()


def test_the_panel_fits_a_phone(studio: Page, tmp_path: Path) -> None:
    studio.set_viewport_size({"width": 390, "height": 800})
    studio.locator("#studio-open-publish").click()
    wide = studio.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    for control in (
        studio.locator("#studio-publish")
        .locator("input:not([type=checkbox]), select, textarea, button.sl-primary")
        .all()
    ):
        box = control.bounding_box()
        assert box is not None and box["height"] >= 43.5 and box["x"] >= 0 and box["x"] + box["width"] <= 390
