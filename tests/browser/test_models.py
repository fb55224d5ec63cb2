"""Fetching on the Models tab: what a link brings, progress, cancel, continue, a reload in the middle, and refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch
from tests.browser.steps import open_tab
from tests.browser.test_access import look_at
from tests.hubs.huggingface import HuggingFacePlayer
from tests.hubs.models import pickle_checkpoint, sdxl_checkpoint
from tests.hubs.server import Hubs, loopback_hubs
from tests.ui.served import Served, served

REPO = "someone/tiny-xl"
DATA = sdxl_checkpoint(filler=2_000_000)
HOSTILE = '<img src="http://elsewhere.example/x.png" onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def mirror() -> Iterator[Hubs]:
    with loopback_hubs(tls=False) as running:
        yield running


@pytest.fixture(scope="module")
def page_server(mirror: Hubs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page whose Hugging Face is the server on loopback."""
    workspace = tmp_path_factory.mktemp("models") / "workspace"
    with served(workspace, "--hf-endpoint", mirror.origin) as running:
        yield running


@pytest.fixture
def player(mirror: Hubs) -> HuggingFacePlayer:
    """A repository with one checkpoint, sent slowly enough to be watched."""
    mirror.clear()
    repository = HuggingFacePlayer(mirror, REPO, {"tiny.safetensors": DATA}, host="*", storage=None)
    repository.replies["tiny.safetensors"] = {"piece": 16_384, "pause": 0.2}
    return repository.publish()


def check(page: Page, text: str) -> None:
    page.locator("#model-link").fill(text)
    page.get_by_role("button", name="Check", exact=True).click()


def shot(page: Page, name: str) -> None:
    """A picture for those who want to look, where SAFELIGHT_SHOTS says."""
    folder = os.environ.get("SAFELIGHT_SHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_a_model_is_fetched_stopped_continued_and_used(
    watched: Watch, page_server: Served, player: HuggingFacePlayer
) -> None:
    page = watched(page_server.address + "/?tab=models")
    expect(page.locator("#model-catalog")).to_contain_text("Stable Diffusion XL base 1.0")
    shot(page, "models-empty")
    check(page, REPO)
    card = page.locator("#model-found .sl-card")
    expect(card).to_contain_text("tiny-xl: tiny.safetensors")
    expect(card).to_contain_text("openrail++")
    expect(card).to_contain_text("2.0 MB")
    expect(card).to_contain_text("Free on the disk after it")
    page.get_by_label("Name in the library", exact=True).fill("my base")
    assert look_at(page, "found") == []
    shot(page, "models-found")
    page.get_by_role("button", name="Download", exact=True).click()

    row = page.locator('[data-download="my base"]')
    expect(row.locator(".sl-chip")).to_have_text("Downloading")
    expect(page.locator(".sl-strip .sl-chip")).to_have_text("Downloading")
    expect(page.locator(".sl-strip")).to_contain_text("my base")
    expect(row).to_contain_text("2.0 MB")
    page.wait_for_function("document.title.match(/^[1-9]\\d?% my base/)")
    shot(page, "models-downloading")

    page.reload()
    expect(row.locator(".sl-chip")).to_have_text("Downloading")
    page.locator(".sl-strip").get_by_role("button", name="Cancel my base").click()
    expect(row.locator(".sl-chip")).to_have_text("Stopped")
    expect(row).to_contain_text("Continue goes on from there")
    expect(page.locator(".sl-strip .sl-chip")).to_have_text("Idle")
    shot(page, "models-stopped")

    player.replies.clear()
    player.publish()
    row.get_by_role("button", name="Continue my base").click()
    expect(row.locator(".sl-chip")).to_have_text("Done")
    here = page.locator("#view-models tr", has_text="my base")
    expect(here).to_contain_text("verified")
    expect(here).to_contain_text(REPO)
    shot(page, "models-done")
    row.get_by_role("button", name="Remove from this list my base").click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Use my base").click()
    expect(page.locator("#set-model-base input")).to_have_value("my base (Stable Diffusion XL)")
    open_tab(page, "Models")
    page.get_by_role("button", name="Remove my base").click()
    page.locator("dialog").get_by_role("button", name="Remove").click()
    expect(here).to_have_count(0)


def test_the_second_visitor_sees_the_same_download(
    watched: Watch, page_server: Served, player: HuggingFacePlayer
) -> None:
    page = watched(page_server.address + "/?tab=models")
    check(page, REPO)
    page.get_by_role("button", name="Download", exact=True).click()
    phone = watched(page_server.address + "/?tab=models", width=390)
    row = phone.locator('[data-download="tiny"]')
    expect(row.locator(".sl-chip")).to_have_text("Downloading")
    assert look_at(phone, "downloading on a phone") == []
    shot(phone, "models-phone")
    row.get_by_role("button", name="Cancel tiny").click()
    expect(page.locator('[data-download="tiny"] .sl-chip')).to_have_text("Stopped")
    row.get_by_role("button", name="Remove tiny").click()
    phone.locator("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


def test_refusals_name_the_check_and_the_way_out(
    watched: Watch, page_server: Served, player: HuggingFacePlayer
) -> None:
    page = watched(page_server.address + "/?tab=models")
    found = page.locator("#model-found")
    check(page, "https://evil.example/model.safetensors")
    expect(found.get_by_role("alert")).to_contain_text("evil.example is not a host that models are fetched from")
    check(page, "stable diffusion")
    expect(found.get_by_role("alert")).to_contain_text("Paste the address of the model's page")
    player.files = {"old.ckpt": pickle_checkpoint()}
    player.publish()
    check(page, REPO)
    page.get_by_role("button", name="Download", exact=True).click()
    expect(found.get_by_role("alert")).to_contain_text("can run code when opened")
    assert look_at(page, "refused") == []
    shot(page, "models-refused")
    player.files = {"a.safetensors": DATA, "b.safetensors": b"<html>log in</html>" * 50}
    player.publish()
    check(page, REPO)
    page.get_by_label("b.safetensors").check()
    page.get_by_role("button", name="Check this one").click()
    page.get_by_role("button", name="Download", exact=True).click()
    row = page.locator('[data-download="b"]')
    expect(row.locator(".sl-chip")).to_have_text("Failed")
    expect(row).to_contain_text("a web page")
    expect(page.locator("#view-models tr", has_text="b.safetensors")).to_have_count(0)


def test_texts_of_a_hub_are_only_text(watched: Watch, page_server: Served, player: HuggingFacePlayer) -> None:
    player.info["cardData"] = {"license": HOSTILE}
    player.files = {f"{HOSTILE.replace('/', '_')}.safetensors": DATA, "b.safetensors": DATA}
    player.publish()
    page = watched(page_server.address + "/?tab=models")
    check(page, REPO)
    expect(page.locator("#model-found")).to_contain_text("onerror")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#view-models img").count() == 0
