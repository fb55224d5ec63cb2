"""The main job by clicking: from a cold start to a finished run with samples and a LoRA that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from security.weights import check_safetensors
from tests.browser.conftest import Watch
from tests.browser.steps import log_lines, wait_for_state
from tests.ui.served import Served


@pytest.mark.slow
def test_one_click_from_start_to_download(watched: Watch, server: Served, tmp_path: Path) -> None:
    page = watched(server.address)
    expect(page.locator("h1")).to_have_text("Safelight")
    page.get_by_role("button", name="Try with the sample set").click()
    wait_for_state(page, "Training")
    assert "tab=runs" in page.url
    wait_for_state(page, "Finished")
    assert page.title() == "✓ ink_demo - Safelight"
    expect(page.locator("#run-live svg.sl-chart")).to_be_visible()
    expect(page.locator("#run-live")).to_contain_text("Held-out loss")

    page.get_by_role("tab", name="Samples").click()
    first_row = page.locator(".sl-sample-row").first
    assert first_row.locator(".sl-sample").count() >= 3
    expect(first_row.locator("img").first).to_have_js_property("complete", True)
    assert first_row.locator("img").first.evaluate("image => image.naturalWidth") == 64
    first_row.locator(".sl-sample").first.click()
    expect(page.locator("dialog .sl-large")).to_be_visible()
    expect(page.locator("dialog")).to_contain_text("before training")
    page.keyboard.press("ArrowRight")
    expect(page.locator("dialog")).to_contain_text("step")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)

    page.get_by_role("tab", name="Files").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download ink_demo.safetensors").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert any("lora_down" in name for name in check_safetensors(saved).tensors)

    lines = log_lines(page)
    assert "created" in lines[0]
    assert "finished after 200 steps" in lines[-1]
