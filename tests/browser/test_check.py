"""The check before training, in a real browser: from the button to the estimate and to the setting that it complains of."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Served, Watch


def test_a_run_is_checked_and_the_way_leads_to_the_setting(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.locator(".sl-fold").click()
    page.locator("#set-optimizer-learning-rate input").fill("0.01")
    page.locator(".sl-fold").click()
    page.locator("#check-run").click()
    result = page.locator("#check-result")
    expect(result.locator(".sl-estimate")).to_contain_text("Time", timeout=90_000)
    expect(result).to_contain_text("Ready to train: 1 warning.")
    warning = result.locator(".sl-finding[data-level=warning]")
    expect(warning).to_contain_text("optimizer.learning_rate is 0.01")
    expect(result.locator("summary")).to_contain_text("checks are fine")
    warning.get_by_role("button", name="Go to Learning rate").click()
    expect(page.locator("#set-optimizer-learning-rate input")).to_be_focused()

    page.locator("#set-optimizer-learning-rate input").fill("-1")
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)  # the page takes a field's value over a moment after it was typed
    page.locator("#check-run").click()
    expect(page.locator("#set-optimizer-learning-rate input")).to_have_attribute("aria-invalid", "true")
