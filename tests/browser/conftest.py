"""Real Chromium on the served page. A request to any other host and any console error fail the test they happen in."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright

from tests.ui.served import Served, served

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
Watch = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Closed after the last browser test: its event loop would stand in the way of other tests."""
    path = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        reason = f"no browser: none of {', '.join(NAMES)} is on the PATH and CHROMIUM is not set"
        if os.environ.get("SAFELIGHT_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page that most tests share."""
    with served(tmp_path_factory.mktemp("browser") / "workspace") as running:
        yield running


class Watcher:
    """Collects what a page must not do."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.forgives: tuple[str, ...] = ()

    def console(self, message: ConsoleMessage) -> None:
        # A 422 is how Gradio's validator says no; the browser writes every such answer to its console. The abort is what
        # Gradio writes when a page is left or reloaded in the middle of an answer.
        forgiven = ("status of 422", "AbortError: signal is aborted", *self.forgives)
        if message.type == "error" and not any(text in message.text for text in forgiven):
            self.faults.append(f"console: {message.text} {message.location}")

    def error(self, error: Any) -> None:
        self.faults.append(f"script: {error}")

    def request(self, route: Route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.faults.append(f"outside request: {url}")
            route.abort()


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watching = Watcher()
    yield watching
    assert watching.faults == []


@pytest.fixture
def watched(browser: Browser, watcher: Watcher) -> Iterator[Watch]:
    """Opens pages in browsers of their own: `watched(address, width=390, dark=True)`."""
    with contextlib.ExitStack() as contexts:

        def open_page(address: str, *, width: int = 1180, height: int = 850, dark: bool = False) -> Page:
            context: BrowserContext = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                has_touch=width < 600,
                accept_downloads=True,
                reduced_motion="reduce",
            )
            contexts.callback(context.close)
            context.route("**/*", watcher.request)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("console", watcher.console)
            page.on("pageerror", watcher.error)
            page.goto(address)
            page.locator(".sl-strip .sl-chip:not(:empty)").wait_for()
            return page

        yield open_page


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the settings of a run that is as short as one can be."""

    def write(name: str, steps: int, **sections: str) -> Path:
        path = tmp_path / f"{name}.toml"
        extra = "\n".join(f"[{section}]\n{lines}" for section, lines in sections.items())
        path.write_text(
            f'name = "{name}"\n[model]\nbase = "demo"\n[dataset]\nfolder = "ink"\nresolution = 64\n'
            f"[lora]\nrank = 4\n[training]\nmax_train_steps = {steps}\n{extra}\n",
            encoding="utf-8",
        )
        return path

    return write
