"""Tags and masks as a person works on them: autocomplete, operations with a preview, painting with mouse, keys, fingers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch
from tests.ui.served import Served
from trainer.dataset.masks import read_mask
from trainer.dataset.studio import Dataset, Studio
from trainer.workspace import Workspace

HOSTILE = '<img src=x onerror="window.hacked=1">'


def make(server: Served, name: str, captions: list[str], size: tuple[int, int] = (96, 64)) -> Dataset:
    """A dataset on the disk, its pictures numbered from 0."""
    dataset = Studio(Workspace.open(server.workspace)).create(name)
    for number, caption in enumerate(captions):
        path = dataset.path / f"{number}.png"
        Image.new("RGB", size, (40 * number, 90, 90)).save(path)
        Path(path.with_suffix(".txt")).write_text(caption, encoding="utf-8")
    return dataset


def open_set(watched: Watch, server: Served, name: str, **looks: int | bool) -> Page:
    page = watched(f"{server.address}/?tab=dataset&dataset={name}", **looks)
    page.locator(".sl-cell").first.wait_for()
    return page


def axe_faults(page: Page, where: str) -> list[str]:
    found = Axe().run(page, context=where)
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_tags_are_renamed_with_a_preview_and_taken_back(watched: Watch, server: Served) -> None:
    dataset = make(server, "tagged", ["mira, long hair, hat", "mira, hat, smile", f"{HOSTILE}, smile"])
    page = open_set(watched, server, "tagged")
    page.locator("#studio-open-tags").click()
    box = page.get_by_role("checkbox", name="long hair")
    box.check()
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.locator("#studio-edit-tags")).to_have_value("long hair")
    expect(page.locator("#studio-edit-text")).to_be_focused()
    page.keyboard.type("ha")
    page.keyboard.press("ArrowDown")  # the list of this dataset's tags; hat is the first with these letters
    page.keyboard.press("Enter")
    expect(page.locator("#studio-edit-text")).to_have_value("hat")
    page.locator("#studio-edit-text").fill("short hair")
    apply = page.locator(".sl-edit button.sl-primary:visible")
    expect(apply).to_have_text("Change 1 caption")
    expect(page.locator(".sl-examples del")).to_contain_text("long hair")
    expect(page.locator(".sl-examples ins")).to_contain_text("short hair")
    assert dataset.captions()["0.png"] == "mira, long hair, hat"
    apply.click()
    expect(page.locator('.sl-cell[data-picture="0.png"] textarea')).to_have_value("mira, short hair, hat")
    assert dataset.captions()["0.png"] == "mira, short hair, hat"
    expect(page.get_by_role("checkbox", name="short hair")).to_be_visible()
    page.locator("#studio-open-tags").focus()
    page.keyboard.press("Control+z")
    expect(page.locator('.sl-cell[data-picture="0.png"] textarea')).to_have_value("mira, long hair, hat")
    page.locator("#studio-operation").select_option("regex")
    page.locator("#studio-edit-find").fill("(smile")
    expect(page.locator("#studio-edit-fault, .sl-edit .sl-bad:visible")).to_contain_text("can't be read")
    expect(apply).to_be_disabled()
    assert axe_faults(page, "#studio-tags") == []
    assert page.evaluate("window.hacked") is None


def test_what_the_filter_shows_is_what_is_changed(watched: Watch, server: Served) -> None:
    dataset = make(server, "scoped", ["a, cat", "b, cat", "c, dog"])
    page = open_set(watched, server, "scoped", width=390, dark=True)
    page.locator("#studio-open-tags").click()
    page.get_by_role("checkbox", name="cat").check()
    page.get_by_role("button", name="Show their pictures").click()
    expect(page.locator("#dataset-find")).to_have_value('tag:"cat"')
    page.locator("#studio-operation").select_option("add")
    page.locator("#studio-edit-tags").fill("pet")
    apply = page.locator("#studio-tags .sl-edit button.sl-primary")
    expect(apply).to_have_text("Change 2 captions")
    apply.click()
    expect(page.locator('.sl-cell[data-picture="0.png"] textarea')).to_have_value("a, cat, pet")
    assert dataset.captions() == {"0.png": "a, cat, pet", "1.png": "b, cat, pet", "2.png": "c, dog"}
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert axe_faults(page, "#studio-tags") == []


def test_a_caption_box_completes_tags_and_enter_still_goes_on(watched: Watch, server: Served) -> None:
    dataset = make(server, "completed", ["blue eyes, smile", ""])
    page = open_set(watched, server, "completed")
    box = page.locator('.sl-cell[data-picture="1.png"] textarea')
    page.wait_for_function("safelight.studio.tags?.length === 2")
    box.click()
    page.keyboard.type("eye")  # a later word of the tag
    suggestions = page.locator("#studio-suggestions")
    expect(suggestions).to_contain_text("blue eyes")
    page.keyboard.press("Escape")
    expect(suggestions).to_be_hidden()
    expect(box).to_be_focused()
    page.keyboard.type("s")
    suggestions.get_by_role("option").first.click()
    expect(box).to_have_value("blue eyes, ")
    page.keyboard.type("smi")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(box).to_have_value("blue eyes, smile, ")
    page.keyboard.type("x")
    page.keyboard.press("Enter")
    expect(page.locator('.sl-cell[data-picture="1.png"]')).to_contain_text("Saved")
    assert dataset.captions()["1.png"] == "blue eyes, smile, x"


def test_a_mask_is_painted_with_mouse_and_keys(watched: Watch, server: Served) -> None:
    dataset = make(server, "masked", ["a", "b"], (400, 200))
    page = open_set(watched, server, "masked")
    page.locator('.sl-cell[data-picture="0.png"] .sl-thumb').click()
    page.get_by_role("button", name="Mask", exact=True).click()
    canvas = page.locator(".sl-paint")
    expect(page.locator(".sl-look-tool")).to_contain_text("Everything is learned so far.")
    place = canvas.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2, steps=5)
    page.mouse.up()
    expect(page.locator(".sl-look-tool")).to_contain_text("Saved", timeout=15_000)
    mask = read_mask(dataset, "0.png")
    assert mask is not None
    levels = np.asarray(mask)
    assert levels.shape == (200, 400)
    assert levels[100, 10:190].max() == 0
    assert levels[100, 230:].min() == levels[:60].min() == 255
    page.keyboard.press("Control+z")
    page.get_by_role("button", name="Leave all out").click()
    page.get_by_role("radio", name="what to learn").check()
    canvas.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.get_by_role("button", name="Invert", exact=True).last.click()
    page.get_by_role("button", name="Next picture (right arrow)").click()  # leaving the picture saves it
    page.wait_for_function("safelight.studio.row('0.png').mask")
    page.wait_for_function("!document.querySelector('.sl-paint')")
    levels = wait_for_mask(page, dataset, "0.png")
    assert levels[100, 10] == 255, "inverted: what was left out is learned"
    assert (levels == 0).any()
    assert axe_faults(page, ".sl-look") == []


def wait_for_mask(page: Page, dataset: Dataset, picture: str) -> np.ndarray:
    for _ in range(50):
        mask = read_mask(dataset, picture)
        if mask is not None and np.asarray(mask)[100, 10] == 255:
            break
        page.wait_for_timeout(100)
    assert mask is not None
    return np.asarray(mask)


def test_masks_are_made_from_transparency_and_painted_with_a_finger(watched: Watch, server: Served) -> None:
    dataset = make(server, "cut", ["a", "b"])
    half = Image.new("RGBA", (96, 64), (200, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 48, 64))
    half.save(dataset.path / "0.png")
    page = open_set(watched, server, "cut", width=390)
    page.locator("#studio-open-masks").click()
    page.locator("#studio-make-masks").click()
    expect(page.locator(".sl-task")).to_contain_text("1 mask written.")
    expect(page.locator("#studio-masks")).to_contain_text("1 of all 2 pictures has a mask.")
    assert dataset.masks() == {"0.png"}
    assert axe_faults(page, "#studio-masks") == []
    page.locator('.sl-cell[data-picture="1.png"] .sl-thumb').tap()
    page.get_by_role("button", name="Mask", exact=True).tap()
    expect(page.locator(".sl-look-tool")).to_contain_text("Everything is learned so far.")
    page.locator(".sl-paint").tap()
    expect(page.locator(".sl-look-tool")).to_contain_text("Saved", timeout=15_000)
    mask = read_mask(dataset, "1.png")
    assert mask is not None
    assert np.asarray(mask)[32, 48] == 0
