"""What people do on the page, in one line each for the tests."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

RUN_SECONDS = 900_000
"""A whole run, in milliseconds, on a machine that is busy with other things."""


def open_tab(page: Page, label: str) -> None:
    page.locator("#tabs > .tab-wrapper").get_by_role("tab", name=label, exact=True).click()


def strip(page: Page) -> str:
    return page.locator(".sl-strip").inner_text()


def wait_for_state(page: Page, word: str, timeout: float = RUN_SECONDS) -> None:
    """Until the strip says this word."""
    expect(page.locator(".sl-strip .sl-chip")).to_have_text(word, timeout=timeout)


def wait_for_step(page: Page, step: int, timeout: float = RUN_SECONDS) -> None:
    """Until the strip's run is at this step or beyond."""
    page.wait_for_function(
        """step => {
            const found = document.querySelector('.sl-strip .sl-line')?.textContent.match(/step (\\d+) of/);
            return found && Number(found[1]) >= step;
        }""",
        arg=step,
        timeout=timeout,
    )


def fill_form_from(page: Page, settings: Path) -> None:
    """Imports a TOML file on the Train tab."""
    open_tab(page, "Train")
    with page.expect_file_chooser() as chooser:
        page.locator("#import-config").click()
    chooser.value.set_files(settings)
    expect(page.locator("#set-name input")).to_have_value(settings.stem)


def start_run(page: Page, settings: Path) -> None:
    """Imports the settings and presses Start."""
    fill_form_from(page, settings)
    page.locator("#start-training").click()
    expect(page).to_have_url(re.compile("tab=runs"))


def log_lines(page: Page) -> list[str]:
    """All lines of the Log view of the run that is shown."""
    page.get_by_role("tab", name="Log").click()
    page.locator(".sl-log > div").first.wait_for()
    return page.locator(".sl-log > div").all_inner_texts()
