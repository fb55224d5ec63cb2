"""Checking a dataset's quality, mending what is found with a click, and making a version of it, as a person does."""

from __future__ import annotations

from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageFilter, ImageOps
from playwright.sync_api import Locator, Page, expect

from security.images import open_image
from tests.browser.conftest import Watch, Watcher
from tests.messy import encoded, photo
from tests.ui.served import Served

HOSTILE = "<img src=x onerror=window.hacked=1>.png"


def make(server: Served, name: str) -> Path:
    """Two sound photos, a copy, a blurred one, one with a frame, one that is cut off, under names that are markup."""
    folder = server.workspace / "datasets" / name
    folder.mkdir(parents=True)
    cup = photo("coffee.png").resize((300, 200))
    pictures: dict[str, Image.Image] = {
        "cup.png": cup,
        "cup small.png": cup.resize((150, 100)),
        HOSTILE: photo("chelsea.png").filter(ImageFilter.GaussianBlur(12)),
        "cat.png": photo("chelsea.png").crop((0, 0, 240, 200)),
        "framed.png": ImageOps.expand(photo("flower.jpg").resize((300, 200)), 20, "black"),
        "cut.png": photo("china.jpg"),
    }
    for picture, image in pictures.items():
        (folder / picture).write_bytes(encoded(image))
        (folder / picture).with_suffix(".txt").write_text(f"a caption of {picture[:3]}", encoding="utf-8")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:9000])
    return folder


def open_set(watched: Watch, server: Served, name: str, panel: str, **looks: int | bool) -> Page:
    page = watched(f"{server.address}/?tab=dataset&dataset={name}", **looks)
    expect(page.locator("#dataset-choice")).to_have_value(name)
    page.locator(".sl-cell").first.wait_for()
    page.locator(f"#studio-open-{panel}").click()
    return page


def finding(page: Page, kind: str) -> Locator:
    return page.locator(f'.sl-finding[data-kind="{kind}"]')


def faults(page: Page, where: str) -> list[str]:
    """What axe calls serious there, and targets that are too small for a finger."""
    found = Axe().run(page, context=where).response["violations"]
    serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
    controls = f"{where} :is(button, select, input:not([type=checkbox]), summary)"
    small = page.locator(controls).evaluate_all(
        "all => all.filter((one) => one.offsetParent && one.offsetHeight < 44).map((one) => one.outerHTML)"
    )
    return [*serious, *small]


def test_what_is_found_is_mended_with_one_click_and_comes_back(
    watched: Watch, server: Served, watcher: Watcher
) -> None:
    watcher.forgives = ("status of 404",)  # there is no thumbnail of a picture that is cut off
    folder = make(server, "quality")
    page = open_set(watched, server, "quality", "quality")
    page.evaluate("safelight.studio.set_training({...safelight.studio.training, 'dataset.resolution': 64})")
    page.get_by_role("button", name="Check all pictures and captions").click()
    expect(page.locator("#studio-quality-summary")).to_contain_text("of 6 pictures.", timeout=60_000)
    for kind, number in (("unreadable", 1), ("duplicate", 2), ("blurred", 1), ("border", 1)):
        expect(finding(page, kind)).to_contain_text(f"{number} picture")
    finding(page, "duplicate").get_by_text("Which ones").click()
    expect(finding(page, "duplicate")).to_contain_text("cup small.png: the same as cup.png")
    told = page.evaluate("name => safelight.studio.problems.get(name)", HOSTILE)  # which the grid writes on its cards
    assert len(told) == 1 and told[0].startswith("blurred")
    finding(page, "blurred").get_by_role("button", name="Select the pictures: Blurred").click()
    assert page.evaluate("[...safelight.studio.selection]") == [HOSTILE]
    assert not faults(page, "#studio-quality")

    finding(page, "blurred").get_by_role("button", name="Blurred: Take them out").click()
    expect(finding(page, "blurred")).to_have_count(0, timeout=60_000)
    assert not (folder / HOSTILE).exists()
    finding(page, "border").get_by_role("button", name="Border: Cut the border off").click()
    expect(finding(page, "border")).to_have_count(0, timeout=60_000)
    assert open_image(folder / "framed.png").size == (300, 200)
    page.get_by_role("button", name="The same picture more than once: Keep the largest").click()
    expect(finding(page, "duplicate")).to_have_count(0, timeout=60_000)
    assert (folder / "cup.png").exists() and not (folder / "cup small.png").exists()
    page.reload()
    page.locator("#studio-open-quality").click()
    expect(finding(page, "unreadable")).to_be_visible()
    for _ in range(3):
        revision = page.evaluate("safelight.studio.revision")
        page.keyboard.press("Control+z")
        page.wait_for_function(f"safelight.studio.revision > {revision}")
    assert (folder / HOSTILE).exists() and (folder / "cup small.png").exists()
    expect(page.locator("#studio-quality-summary")).to_contain_text("check again")
    assert page.evaluate("window.hacked") is None


def test_a_version_is_prepared_on_a_phone(watched: Watch, server: Served, watcher: Watcher) -> None:
    watcher.forgives = ("status of 404",)
    folder = make(server, "phone set")
    page = open_set(watched, server, "phone set", "prepare", width=390, dark=True)
    expect(page.get_by_label("Name of the new dataset")).to_have_value("phone set-2")
    page.get_by_label("Crop", exact=True).select_option("square")
    page.get_by_label("Longest side (pixels)").fill("100")
    page.get_by_label("Mirror", exact=True).select_option("add")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not faults(page, "#studio-prepare")
    page.get_by_role("button", name="Make the new dataset").click()
    expect(page.locator("#sl-notices")).to_contain_text("10 pictures from phone set. 1 left out.", timeout=60_000)
    expect(page.locator("#dataset-choice")).to_have_value("phone set-2")
    new = folder.with_name("phone set-2")
    pictures = sorted(path.name for path in new.glob("*.png"))
    assert len(pictures) == 10 and "cat-mirrored.png" in pictures and "cut.png" not in pictures
    assert {open_image(new / name).size for name in pictures} == {(100, 100)}
