"""A run lives in the program, not in the page: reloads, second browsers, phones, a killed program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Watch, Watcher
from tests.browser.steps import log_lines, start_run, strip, wait_for_state, wait_for_step
from tests.ui.served import Served, start


def test_a_run_is_seen_from_everywhere_and_stopped_from_a_phone(
    watched: Watch, server: Served, settings_file: Callable[..., Path]
) -> None:
    page = watched(server.address)
    start_run(page, settings_file("everywhere", 5000))
    wait_for_step(page, 2)

    page.reload()
    wait_for_step(page, 3)
    assert "tab=runs" in page.url
    expect(page.locator(".sl-run-name")).to_have_text("everywhere")
    assert re.search(r"^\d+% everywhere", page.title())
    assert "run everywhere created" in log_lines(page)[0]

    other = watched(server.address)
    expect(other.locator(".sl-run-name")).to_have_text("everywhere")
    assert "run everywhere created" in log_lines(other)[0]

    phone = watched(server.address, width=390, height=844)
    wait_for_step(phone, 3)
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    stop = phone.locator(".sl-strip").get_by_role("button", name="Stop and save")
    box = stop.bounding_box()
    assert box is not None
    assert box["height"] >= 44
    stop.click()
    for viewer in (phone, page, other):
        wait_for_state(viewer, "Stopped")
    page.get_by_role("tab", name="Files").click()
    expect(page.get_by_role("link", name="Download everywhere.safetensors")).to_be_visible()
    assert (server.workspace / "runs" / "everywhere" / "everywhere.safetensors").is_file()

    page.get_by_role("button", name="Go on to another number of steps").click()
    dialog = page.locator("dialog[open]")
    done = re.search(r"Step (\d+) of 5000 is done", dialog.inner_text())
    assert done
    for bad in ("1", "", "2.5", "-3"):
        dialog.get_by_label("Steps in all").fill(bad)
        dialog.get_by_role("button", name="Go on", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("The number of steps is")
    dialog.get_by_label("Steps in all").fill(str(int(done[1]) + 2))
    dialog.get_by_role("button", name="Go on", exact=True).click()
    expect(dialog).to_have_count(0)
    wait_for_state(page, "Finished")
    assert any(f"step {int(done[1]) + 2}/{int(done[1]) + 2}" in line for line in log_lines(page))
    expect(page.get_by_role("button", name="Go on to another number of steps")).to_be_visible()


def test_a_second_run_waits_and_can_be_taken_back(
    watched: Watch, server: Served, settings_file: Callable[..., Path]
) -> None:
    page = watched(server.address)
    start_run(page, settings_file("first", 5000))
    wait_for_step(page, 1)
    page.locator("#tabs > .tab-wrapper").get_by_role("tab", name="Train", exact=True).click()
    expect(page.locator("#start-training")).to_have_text("Add to queue (1 running or waiting)")
    start_run(page, settings_file("second", 3))
    expect(page.locator(".sl-run-name")).to_have_text("second")
    expect(page.locator(".sl-strip")).to_contain_text("1 waiting")
    page.get_by_role("button", name="Remove from the queue: second").click()
    expect(page.locator(".sl-run-row", has_text="second")).to_have_count(0)
    page.locator(".sl-strip").get_by_role("button", name="Pause first").click()
    wait_for_state(page, "Paused")
    page.locator(".sl-run-row", has_text="first").click()
    page.get_by_role("button", name="Delete: first").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete: first").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".sl-run-row", has_text="first")).to_have_count(0)
    assert not (server.workspace / "runs" / "first").exists()


def test_settings_of_a_run_come_back_into_the_form(
    watched: Watch, server: Served, settings_file: Callable[..., Path]
) -> None:
    page = watched(server.address)
    start_run(page, settings_file("again", 2, sample='prompts = ["inkstyle, fox"]\nwidth = 64\nheight = 64'))
    wait_for_state(page, "Finished")
    page.locator("#run-tab-settings").click()
    expect(page.locator("#run-settings .sl-code")).to_contain_text('name = "again"')
    page.get_by_role("button", name="Train again with these settings").click()
    expect(page.locator("#set-name input")).to_have_value("again")
    expect(page.locator("#set-sample-prompts textarea")).to_have_value("inkstyle, fox")
    expect(page.locator("#set-training-max-train-steps input")).to_have_value("2")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Served]:
    running = start(tmp_path / "workspace")
    yield running
    if running.process.poll() is None:
        running.kill()


def test_a_killed_program_is_noticed_and_its_run_goes_on(
    watched: Watch, watcher: Watcher, own_server: Served, settings_file: Callable[..., Path]
) -> None:
    watcher.forgives = (
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED",
        "ERR_EMPTY_RESPONSE",
        "ERR_CONNECTION_RESET",
        "fetch",
    )
    page = watched(own_server.address)
    start_run(page, settings_file("killed", 5000, save="every_n_steps = 3"))
    wait_for_step(page, 5)
    own_server.kill()
    expect(page.locator(".sl-strip .sl-chip")).to_have_text("Lost contact", timeout=30_000)
    assert "Stop and save" not in strip(page)

    revived = start(own_server.workspace, port=own_server.port)
    try:
        wait_for_state(page, "Interrupted", timeout=60_000)
        page.reload()
        wait_for_state(page, "Interrupted", timeout=60_000)
        page.locator("#tabs > .tab-wrapper").get_by_role("tab", name="Start", exact=True).click()
        page.locator(".sl-last").get_by_role("button", name=re.compile("Continue from step")).click()
        wait_for_state(page, "Training")
        wait_for_step(page, 7)
        lines = log_lines(page)
        assert "run killed created" in lines[0]
        expect(page.locator(".sl-log")).to_contain_text("going on from step")  # with the next poll at the latest
        page.locator(".sl-strip").get_by_role("button", name="Stop and save").click()
        wait_for_state(page, "Stopped")
        assert revived.end() == 0
    finally:
        if revived.process.poll() is None:
            revived.kill()


def test_eight_open_pages_do_not_stand_in_each_others_way(watched: Watch, server: Served) -> None:
    first = watched(server.address)
    pages = [first, *(first.context.new_page() for _ in range(7))]
    for page in pages:
        page.goto(server.address)
    for page in pages:
        expect(page.locator(".sl-strip .sl-chip")).not_to_be_empty(timeout=60_000)
    pages[-1].locator("#tabs > .tab-wrapper").get_by_role("tab", name="Models", exact=True).click()
    expect(pages[-1].locator("#view-models table").first).to_contain_text("demo")
