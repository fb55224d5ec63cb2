"""Who can't see or can't use a mouse: axe on every tab, the keyboard alone, and a page behind a login."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from security.interfaces import network_addresses
from tests.browser.conftest import Watch, Watcher
from tests.browser.steps import fill_form_from, open_tab, wait_for_state
from tests.ui.runs_on_disk import run_folder
from tests.ui.served import Served, served
from trainer.workspace import Workspace
from ui.app import TABS
from ui.qr import picture_code


def serious_findings(page: Page, **options: object) -> list[str]:
    """What axe calls serious or critical, in words."""
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def look_at(page: Page, place: str) -> list[str]:
    """Findings in light and dark; only colours differ between the two."""
    page.evaluate("window.safelight.set_theme('light')")
    light = serious_findings(page)
    page.evaluate("window.safelight.set_theme('dark')")
    dark = serious_findings(page, runOnly=["color-contrast"])
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    return [f"{place}: {fault}" for fault in [*light, *dark, *(["wider than the screen"] if wide else [])]]


@pytest.mark.parametrize("width", [1180, 390])
def test_axe_finds_nothing_serious_in_light_and_dark(watched: Watch, server: Served, width: int) -> None:
    if not (server.workspace / "runs" / "axe").exists():
        run_folder(Workspace.open(server.workspace), "axe", steps=15, total=20)
    page = watched(server.address + "/?run=axe", width=width)
    faults = []
    for tab in TABS:
        open_tab(page, tab.label)
        page.wait_for_function(f"document.querySelector('#panel-{tab.id}')?.innerText.length > 100")
        if tab.id == "train":
            page.locator(".sl-fold").click()
        faults += look_at(page, tab.id)
        if tab.id == "runs":
            for part in ("samples", "files", "log", "settings"):
                page.locator(f"#run-tab-{part}").click()
                faults += look_at(page, part)
    assert faults == []


def test_the_keyboard_alone_leads_to_a_run_that_a_screen_reader_hears(
    watched: Watch, server: Served, settings_file: Callable[..., Path]
) -> None:
    page = watched(server.address)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.locator("#panel-start-button").focus()
    page.keyboard.press("End")
    expect(page.locator("#panel-settings-button")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#panel-train-button")).to_have_attribute("aria-selected", "true")
    fill_form_from(page, settings_file("by_keys", 3))
    page.locator("#set-name input").focus()
    page.keyboard.press("Control+Enter")
    expect(page).to_have_url(re.compile("tab=runs"))
    told = page.locator(".sl-strip [role=status]")
    expect(told).to_contain_text("by_keys")
    wait_for_state(page, "Finished")
    expect(told).to_contain_text("Finished by_keys")
    page.locator("#run-tab-live").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#run-tab-samples")).to_be_focused()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("guarded") / "workspace", "--listen") as running:
        yield running


def test_behind_a_login_the_link_opens_the_page_and_nothing_else_does(
    browser: object, watched: Watch, watcher: Watcher, guarded: Served
) -> None:
    page = watched(guarded.link, width=390)
    assert "key=" not in page.url
    wait_for_state(page, "Idle", timeout=30_000)
    open_tab(page, "Dataset")
    expect(page.locator(".sl-picture img").first).to_have_js_property("naturalWidth", 256)
    watcher.forgives = ("status of 401",)
    stranger = page.context.browser.new_context()  # type: ignore[union-attr]
    try:
        answer = stranger.new_page().goto(guarded.address)
        assert answer is not None
        assert answer.status == 401
        picture = stranger.new_page().goto(guarded.address + "/safelight/datasets/ink/01.png")
        assert picture is not None
        assert picture.status == 401
    finally:
        stranger.close()


def log_in(context: BrowserContext, link: str) -> Page:
    """Another device of the owner's, on its Settings tab."""
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(link)
    wait_for_state(page, "Idle", timeout=60_000)
    open_tab(page, "Settings")
    expect(page.locator(".sl-logins tbody tr").first).to_be_visible()
    return page


def test_a_login_that_another_one_ends_says_so_and_finds_back(
    watched: Watch, watcher: Watcher, guarded: Served
) -> None:
    watcher.forgives = ("status of 401",)
    page = watched(guarded.link)
    open_tab(page, "Settings")
    phone = page.context.browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")  # type: ignore[union-attr]
    try:
        other = log_in(phone, guarded.link)
        own = page.locator(".sl-logins tbody tr", has_text="(this one)")
        expect(own).to_have_count(1)
        others = page.locator(".sl-logins button[aria-label^='Log out the login']")
        expect(others.first).to_be_visible()
        while others.count():
            count = others.count()
            others.first.click()
            expect(others).to_have_count(count - 1)
        ended = other.locator("#sl-ended")
        expect(ended).to_contain_text("Your login has ended")
        expect(other.locator(".sl-strip .sl-chip")).to_have_text("Logged out")
        assert look_at(other, "ended") == []
        asked: list[str] = []
        other.on("request", lambda request: asked.append(request.url))
        other.wait_for_timeout(2500)
        assert asked == [], "a page without a login goes on asking"
        answer = phone.new_page().goto(guarded.link)  # logging in on another tab brings this one back too
        assert answer is not None and answer.status == 200
        other.bring_to_front()
        other.evaluate("window.dispatchEvent(new Event('focus'))")
        expect(ended).to_have_count(0)
        wait_for_state(other, "Idle", timeout=60_000)
    finally:
        phone.close()
    expect(page.locator(".sl-strip .sl-chip")).to_have_text("Idle")


def test_logging_out_ends_on_the_login_page_and_the_password_opens_it_again(
    watched: Watch, watcher: Watcher, guarded: Served
) -> None:
    watcher.forgives = ("status of 401",)
    page = watched(guarded.link, width=390)
    open_tab(page, "Settings")
    page.locator(".sl-logins").get_by_role("button", name="Log out", exact=True).click()
    page.wait_for_url(re.compile("/login$"))
    assert page.context.cookies() == []
    answer = page.goto(guarded.address)
    assert answer is not None and answer.status == 401
    password = next(line for line in guarded.output if line.startswith("Password: ")).removeprefix("Password: ")
    page.get_by_label("Password").fill(password.strip())
    page.get_by_role("button", name="Log in").click()
    wait_for_state(page, "Idle", timeout=60_000)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["domain"]) == (True, "Strict", "127.0.0.1")


def test_the_link_is_shown_with_its_code_and_opens_the_page_elsewhere(watched: Watch, guarded: Served) -> None:
    if not network_addresses():
        pytest.skip("this machine is in no network, so there is no link for others")
    page = watched(guarded.link, width=390)
    open_tab(page, "Settings")
    assert look_at(page, "settings") == []
    page.get_by_role("button", name="Show the link and its QR code").click()
    expect(page.locator(".sl-way .sl-link").first).to_be_visible()
    links = page.locator(".sl-way .sl-link").all_inner_texts()
    pictures = [picture.get_attribute("src") for picture in page.locator(".sl-way img").all()]
    assert pictures == [picture_code(link) for link in links]
    expect(page.locator(".sl-way img").first).to_have_js_property("complete", True)
    assert page.locator(".sl-way img").first.evaluate("image => image.naturalWidth") > 100
    assert look_at(page, "link") == []
    elsewhere = page.context.browser.new_context()  # type: ignore[union-attr]
    try:
        log_in(elsewhere, links[0])
    finally:
        elsewhere.close()


def test_a_link_on_another_site_opens_the_page_without_asking_twice(
    watched: Watch, watcher: Watcher, guarded: Served
) -> None:
    """The cookie is a strict one; "localhost" and "127.0.0.1" are two sites to a browser."""
    watcher.forgives = ("status of 401",)
    page = watched(guarded.link)
    elsewhere = guarded.address.replace("127.0.0.1", "localhost") + "/login"
    context = page.context
    context.unroute("**/*")
    for target in (guarded.address + "/?tab=settings", guarded.link):
        page.goto(elsewhere)
        page.evaluate("address => { window.location.href = address; }", target)
        wait_for_state(page, "Idle", timeout=60_000)
        assert page.url.startswith(guarded.address + "/")
        assert "key=" not in page.url
