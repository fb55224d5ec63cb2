"""Importing in a real browser: folders that are dropped, connections that break, and a change of mind."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Watch, Watcher
from tests.ui.served import Served
from trainer.dataset.studio import Studio
from trainer.workspace import Workspace


def make_set(folder: Path) -> Path:
    """A dataset as people keep it: a repeat folder, captions, what a camera and an editor leave beside."""
    (folder / "10_mira").mkdir(parents=True)
    chance = random.Random(1)
    for number in range(6):
        image = Image.frombytes("RGB", (160, 120), chance.randbytes(160 * 120 * 3))
        image.save(folder / "10_mira" / f"p{number}.jpg", quality=95)
        (folder / "10_mira" / f"p{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    (folder / "cover.png").write_bytes((folder / "10_mira" / "p0.jpg").read_bytes())
    (folder / "cover.psd").write_bytes(b"8BPS")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def drop(page: Page, path: Path) -> None:
    """As a file manager does it, with a real folder."""
    box = page.locator("#studio").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 60, "y": box["y"] + 60, "data": data})


def staged(server: Served) -> list[Path]:
    return list((server.workspace / "cache" / "studio").iterdir())


def test_a_dropped_folder_comes_in_over_a_connection_that_breaks(
    watched: Watch, watcher: Watcher, server: Served, tmp_path: Path
) -> None:
    watcher.forgives = ("Failed to load resource",)
    folder = make_set(tmp_path / "my set")
    page = watched(server.address + "/?tab=dataset")
    expect(page.locator("#studio-open-import")).to_be_visible()
    asked = []

    def unreliable(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=413, body="too large for this proxy")
        elif len(asked) == 2:
            route.abort("connectionreset")
        elif len(asked) == 3:
            route.fulfill(status=502, body="bad gateway")
        else:
            route.continue_()

    page.route("**/safelight/upload?*", unreliable)
    drop(page, folder)
    expect(page.locator("#studio-import")).to_contain_text("7 pictures · 6 caption files")
    expect(page.locator("#studio-import")).to_contain_text("Left out here: 1 other file (.psd)")
    go = page.get_by_role("button", name="Import 13 files")
    expect(go).to_be_focused()
    page.get_by_label("Into the dataset").fill("")
    go.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Give the dataset a name first.")
    page.get_by_label("Into the dataset").fill("dropped")
    go.click()
    report = page.locator(".sl-task[data-task=import]", has_text="dropped")
    expect(report).to_contain_text("7 pictures added to dropped, 6 with a caption.")
    assert len(asked) == 13 + 3
    expect(page.locator("#dataset-choice")).to_have_value("dropped")
    expect(page.locator("#studio-import")).to_be_hidden()
    dataset = Studio(Workspace.open(server.workspace)).open("dropped")
    assert set(dataset.pictures()) == {f"10_mira/p{number}.jpg" for number in range(6)} | {"cover.jpg"}
    assert dataset.captions()["10_mira/p3.jpg"] == "picture 3"
    assert staged(server) == []
    page.locator("#studio").get_by_role("button", name="Undo").first.click()
    expect(page.locator("#dataset-choice")).to_contain_text("dropped (0 pictures)")


def test_sending_can_be_cancelled_and_what_did_not_come_sent_again(
    watched: Watch, watcher: Watcher, server: Served, tmp_path: Path
) -> None:
    watcher.forgives = ("Failed to load resource",)
    folder = make_set(tmp_path / "again")
    page = watched(server.address + "/?tab=dataset", width=390)
    held: list[Route] = []
    page.route("**/safelight/upload?*", lambda route: held.append(route) if len(held) < 3 else route.continue_())
    page.locator("#studio-open-import").click()
    page.get_by_label("Into the dataset").fill("again")
    page.locator("#studio-import-folder").set_input_files(folder)
    page.get_by_role("button", name="Import 13 files").click()
    page.locator("#studio-import").get_by_role("button", name="Cancel").click()
    expect(page.locator("#studio-import")).to_contain_text(
        "Cancelled. Nothing was imported; 13 files are still chosen."
    )
    page.unroute("**/safelight/upload?*")

    # one file is refused for good: the others can come in without it
    def refuse_one(route: Route) -> None:
        if "p4.jpg" in route.request.url:
            route.fulfill(status=415, json={"error": "not this one"})
        else:
            route.continue_()

    page.route("**/safelight/upload?*", refuse_one)
    page.get_by_role("button", name="Import 13 files").click()
    expect(page.locator("#studio-import .sl-skipped")).to_contain_text("p4.jpg: not this one")
    expect(page.get_by_role("button", name="Send 1 file again")).to_be_visible()
    page.get_by_role("button", name="Import without them").click()
    report = page.locator(".sl-task[data-task=import]", has_text="again")
    expect(report).to_contain_text("6 pictures added to again, 5 with a caption. 1 left out.")
    assert staged(server) == []


def test_what_is_wrong_is_told_beside_what_was_pressed(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=dataset", width=390, height=844)
    page.locator("#studio-open-import").click()
    page.get_by_label("Into the dataset").fill("wrong")
    told = page.locator("#studio-import [role=alert]")
    address = page.get_by_label("From Hugging Face, or a .zip by its address")
    address.fill("http://example.org/x.zip")
    address.press("Enter")
    expect(told).to_contain_text("Only https:// addresses are opened.")
    expect(told).to_be_in_viewport()
    path = page.locator("#studio-import-path")
    path.fill("not/whole")
    path.press("Enter")
    expect(told).to_contain_text("not/whole is not a whole path")
    expect(told).to_be_in_viewport()
    path.fill("")
    path.press("Enter")
    expect(told).to_have_text("Type or paste the folder's whole path first.")
    expect(path).to_be_focused()
