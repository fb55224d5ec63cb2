"""The dataset studio as a person uses it: a grid of many pictures, captions, crops, undo; with mouse, keys and fingers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Watch
from tests.ui.served import Served
from trainer.dataset.buckets import fit
from trainer.dataset.settings import load_marks, load_settings
from trainer.dataset.studio import Studio
from trainer.dataset.tokens import count_tokens
from trainer.workspace import Workspace

HOSTILE = '<img src=x onerror="window.hacked=1"> ${window.hacked=2} {{constructor}}'


def make(server: Served, name: str, pictures: dict[str, str | None], size: tuple[int, int] = (96, 64)) -> Path:
    """A dataset on the disk: picture -> caption."""
    folder = server.workspace / "datasets" / name
    for picture, caption in pictures.items():
        path = folder / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(picture) * 7 % 255, hash(name) % 255, 90)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def open_set(watched: Watch, server: Served, name: str, **looks: int | bool) -> Page:
    page = watched(f"{server.address}/?tab=dataset&dataset={name}", **looks)
    expect(page.locator("#dataset-choice")).to_have_value(name)
    page.locator(".sl-cell").first.wait_for()
    return page


def card(page: Page, picture: str) -> Locator:
    return page.locator(f'.sl-cell[data-picture="{picture}"]')


def caption(page: Page, picture: str) -> Locator:
    return card(page, picture).locator("textarea")


def count(page: Page) -> Locator:
    return page.locator(".sl-studio-count")


def test_of_a_thousand_pictures_only_those_in_sight_are_in_the_page(watched: Watch, server: Served) -> None:
    make(server, "many", {f"{number:04d}.png": f"tag{number % 10}, common" for number in range(1000)}, (16, 16))
    page = open_set(watched, server, "many")
    expect(count(page)).to_contain_text("1,000 pictures · all with a caption")
    assert page.locator(".sl-cell").count() < 60
    card(page, "0000.png").locator(".sl-thumb").focus()
    page.keyboard.press("End")
    last = card(page, "0999.png")
    expect(last.locator(".sl-thumb")).to_be_focused()
    expect(last.locator("textarea")).to_be_in_viewport()
    expect(last).to_have_attribute("aria-posinset", "1000")
    assert page.locator(".sl-cell").count() < 60
    page.wait_for_function("[...document.querySelectorAll('.sl-cell img')].at(-1).naturalWidth > 0")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    columns = int(page.locator(".sl-wall").evaluate("wall => wall.style.getPropertyValue('--columns')"))
    expect(card(page, f"{998 - columns:04d}.png").locator(".sl-thumb")).to_be_focused()
    page.keyboard.press("Home")
    expect(card(page, "0000.png").locator(".sl-thumb")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("tag:tag3 -name:0003")
    expect(count(page)).to_contain_text("99 of 1,000 pictures")
    page.keyboard.press("Enter")
    expect(card(page, "0013.png").locator(".sl-thumb")).to_be_focused()
    page.keyboard.press("Control+a")
    expect(count(page)).to_contain_text("99 selected")
    assert page.evaluate("safelight.studio.scope().length") == 99


def test_captions_save_themselves_and_every_change_can_be_taken_back(watched: Watch, server: Served) -> None:
    folder = make(server, "words", {"a.png": "one", "b.png": None, "c.png": "three"})
    page = open_set(watched, server, "words")
    card(page, "a.png").locator(".sl-thumb").focus()
    page.keyboard.press("e")
    expect(caption(page, "a.png")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("a red square, night")
    page.keyboard.press("Enter")
    expect(caption(page, "b.png")).to_be_focused()
    expect(card(page, "a.png")).to_contain_text("Saved")
    expect(card(page, "a.png").locator(".sl-tokens")).to_have_text("5/75")
    page.keyboard.type(HOSTILE)
    page.keyboard.press("Control+ArrowUp")
    expect(caption(page, "a.png")).to_be_focused()
    expect(card(page, "b.png")).to_contain_text("Saved")
    assert (folder / "a.txt").read_text() == "a red square, night"
    assert (folder / "b.txt").read_text() == HOSTILE
    assert page.evaluate("window.hacked") is None

    page.keyboard.press("Escape")
    expect(card(page, "a.png").locator(".sl-thumb")).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator(".sl-notice")).to_contain_text("Every picture that is shown has a caption")
    expect(page.locator("#dataset-undo")).to_have_text("Undo: Caption of b.png")
    page.keyboard.press("Control+z")
    expect(caption(page, "b.png")).to_have_value("")
    page.keyboard.press("Control+z")
    expect(caption(page, "a.png")).to_have_value("one")
    assert (folder / "a.txt").read_text() == "one" and not (folder / "b.txt").exists()
    page.keyboard.press("Control+y")
    expect(caption(page, "a.png")).to_have_value("a red square, night")
    page.locator("#dataset-more").click()
    page.get_by_role("button", name="All changes …").click()
    expect(page.locator("dialog tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Undo Caption of a.png and everything after it").click()
    expect(caption(page, "a.png")).to_have_value("one")


def test_a_caption_that_was_changed_elsewhere_is_not_lost(watched: Watch, server: Served) -> None:
    folder = make(server, "shared", {"a.png": "one", "b.png": "two"})
    page = open_set(watched, server, "shared")
    caption(page, "a.png").fill("mine")
    Studio(Workspace.open(server.workspace)).open("shared").set_captions("theirs", {"a.png": "theirs", "b.png": "new"})
    expect(caption(page, "b.png")).to_have_value("new")  # a change of others arrives by itself
    expect(caption(page, "a.png")).to_have_value("mine")  # but never into a box that is typed in
    caption(page, "a.png").blur()
    dialog = page.get_by_role("alertdialog")
    expect(dialog).to_contain_text("was changed meanwhile to “theirs”")
    assert (folder / "a.txt").read_text() == "theirs"
    dialog.get_by_role("button", name="Use mine").click()
    expect(card(page, "a.png")).to_contain_text("Saved")
    assert (folder / "a.txt").read_text() == "mine"
    page.locator("#dataset-undo").click()
    expect(caption(page, "a.png")).to_have_value("theirs")


def test_pictures_are_selected_removed_and_brought_back(watched: Watch, server: Served) -> None:
    names = [f"{number}.png" for number in range(8)]
    folder = make(server, "chosen", dict.fromkeys(names, "tag") | {"10_hats/h.png": "hat"})
    before = {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    page = open_set(watched, server, "chosen")
    card(page, "6.png").get_by_role("checkbox").check()
    page.keyboard.press("Escape")
    card(page, "0.png").locator(".sl-thumb").focus()
    page.keyboard.press("Shift+ArrowRight")  # begins a new range, whatever was chosen before
    assert page.evaluate("safelight.studio.scope()") == ["0.png", "1.png"]
    page.keyboard.press("Escape")
    expect(count(page)).not_to_contain_text("selected")
    card(page, "1.png").get_by_role("checkbox").check()
    card(page, "4.png").locator(".sl-thumb").click(modifiers=["Shift"])
    expect(count(page)).to_contain_text("4 selected")
    card(page, "2.png").locator(".sl-thumb").click()  # with a selection, a click on a picture changes it
    expect(count(page)).to_contain_text("3 selected")
    page.keyboard.press("x")
    expect(count(page)).to_contain_text("4 selected")
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate("safelight.studio.scope()") == ["1.png", "2.png", "3.png", "4.png"]
    page.keyboard.press("Delete")
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel").click()
    page.keyboard.press("Delete")
    page.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
    expect(count(page)).to_contain_text("5 pictures")
    assert {path.name for path in folder.glob("*.png")} == {"0.png", "5.png", "6.png", "7.png"}
    page.locator("#dataset-find").fill("folder:10_hats")
    expect(count(page)).to_contain_text("1 of 5 pictures")
    page.locator("#dataset-undo").click()
    expect(count(page)).to_contain_text("1 of 9 pictures")
    assert {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.name in before} == before


def test_the_crop_that_training_uses_is_shown_and_chosen(watched: Watch, server: Served) -> None:
    folder = make(server, "crops", {"wide.png": "wide", "x.png": "next"}, (300, 100))
    page = open_set(watched, server, "crops")
    page.wait_for_function("safelight.studio.row('wide.png').bucket")
    card(page, "wide.png").locator(".sl-thumb").focus()
    page.keyboard.press("Space")
    frame = page.locator(".sl-crop")
    expect(frame).to_be_focused()
    expect(page.locator(".sl-crop-text")).to_contain_text("From the middle")

    def shares() -> list[float]:
        """The frame as shares of the picture, as the page draws it."""
        place = "(box, whole) => [(box.x - whole.x) / whole.width, (box.y - whole.y) / whole.height,"
        place += "box.width / whole.width, box.height / whole.height]"
        return page.evaluate(
            f"({place})(...['.sl-crop', '.sl-look-image'].map((one) => document.querySelector(one).getBoundingClientRect()))"
        )

    bucket = tuple(page.evaluate("safelight.studio.row('wide.png').bucket"))
    for drawn, trained in zip(shares(), fit((300, 100), bucket).frame, strict=True):
        assert abs(drawn - trained) < 0.01
    box = frame.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(2, box["y"] + box["height"] / 2, steps=5)  # farther than the frame can go
    page.mouse.up()
    page.wait_for_function("document.querySelector('.sl-crop').offsetLeft < 1")
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.wheel(0, -200)
    page.wait_for_function("Number(document.getElementById('sl-crop-zoom').value) >= 24")
    page.wait_for_timeout(1000)  # a turn of the wheel is not waited for
    expect(page.locator("#dataset-undo")).to_have_text("Undo: Crop of wide.png", timeout=10_000)
    page.evaluate("safelight.studio.flush().then(() => true)")
    mark = load_marks(folder)["wide.png"]
    assert mark.zoom > 1.5 and mark.focus[0] < 0.4  # the middle is 0.5
    for drawn, trained in zip(shares(), fit((300, 100), bucket, mark.focus, mark.zoom).frame, strict=True):
        assert abs(drawn - trained) < 0.01
    # A redraw while a change is being saved takes nothing back, and leaving waits for what is on its way.
    page.evaluate(
        """() => {
            const { studio } = safelight, call = studio.call;
            window.sent = 0;
            studio.call = async (name, ...rest) => {
                if (name === "set_mark") window.sent += 1, await new Promise((then) => setTimeout(then, 600));
                return call(name, ...rest);
            };
        }"""
    )
    page.keyboard.press("+")
    page.wait_for_function("window.sent === 1")
    page.evaluate("safelight.studio.emit('rows')")
    page.keyboard.press("+")
    page.evaluate("safelight.studio.flush().then(() => true)")
    nearer = load_marks(folder)["wide.png"]
    assert abs(nearer.zoom / mark.zoom - 1.1**2) < 0.01
    for drawn, trained in zip(shares(), fit((300, 100), bucket, nearer.focus, nearer.zoom).frame, strict=True):
        assert abs(drawn - trained) < 0.01
    page.keyboard.press("0")
    expect(page.locator(".sl-crop-text")).to_contain_text("From the middle")
    page.get_by_role("button", name="Next picture (right arrow)").click()
    expect(page.locator("#sl-look-title")).to_have_text("x.png")
    assert page.evaluate("safelight.studio.before_acting && safelight.studio.flush().then(() => true)")
    assert load_marks(folder) == {}
    page.keyboard.press("e")
    page.keyboard.type(" one")
    page.keyboard.press("Escape")
    expect(page.locator(".sl-look .sl-saved")).to_have_text("Saved")
    assert (folder / "x.txt").read_text() == "next one"
    page.keyboard.press("Escape")
    expect(page.locator(".sl-look")).to_have_count(0)
    expect(card(page, "x.png").locator(".sl-thumb")).to_be_focused()


def test_datasets_are_made_copied_renamed_deleted_and_trained(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=dataset&dataset=ink")
    expect(page.locator(".sl-locked")).to_contain_text("ink is built in and can't be changed")
    expect(page.locator(".sl-cell textarea").first).to_have_attribute("readonly", "")
    page.get_by_role("button", name="Copy it").click()
    page.get_by_label("Name", exact=True).fill("../up")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("dialog [role=alert]")).to_contain_text("up")  # refused in the dialog; what was typed stays
    page.get_by_label("Name", exact=True).fill("mine of ink")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#dataset-choice")).to_have_value("mine of ink")
    expect(count(page)).to_contain_text("30 pictures")
    page.locator("#dataset-trigger").fill("inky")
    page.locator("#dataset-trigger").press("Enter")
    expect(page.locator("#dataset-undo")).to_have_text("Undo: Trigger word: inky")
    assert load_settings(server.workspace / "datasets" / "mine of ink").trigger_word == "inky"

    # thumbnails that are asked for under the old name, while it changes, are rightly not found
    page.wait_for_function("[...document.querySelectorAll('.sl-cell img')].every((one) => one.src && one.complete)")
    page.locator("#dataset-more").click()
    page.get_by_role("button", name="Rename …").click()
    page.get_by_label("Name", exact=True).fill("inks")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.locator("#dataset-choice")).to_have_value("inks")
    page.get_by_role("button", name="Train with this dataset").click()
    expect(page.locator("#set-dataset-folder input")).to_have_value(re.compile("^inks"))
    expect(page.locator("#set-dataset-trigger-word").locator("input, textarea")).to_have_value("inky")
    page.go_back()
    page.goto(server.address + "/?tab=dataset&dataset=inks")
    page.locator(".sl-cell").first.wait_for()
    page.locator("#dataset-more").click()
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#dataset-choice")).not_to_have_value("inks")
    assert not (server.workspace / "datasets" / "inks").exists()
    page.locator("#dataset-new").click()
    page.get_by_label("Name", exact=True).fill("empty")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator(".sl-empty")).to_contain_text("empty has no pictures yet")


def test_find_understands_its_language(watched: Watch, server: Served) -> None:
    make(server, "find", {"a.png": "long hair, smile", "b.png": "short hair", "in/c.png": None, "score.png": "score:9"})
    page = open_set(watched, server, "find")
    page.wait_for_function("safelight.studio.rows.every((row) => !row.pending && row.bucket)")
    names = "typed => safelight.studio.rows.filter(safelight.studio.filter(typed).test).map(row => row.name)"
    for typed, found in {
        "hair": ["a.png", "b.png"],
        "hair smile": ["a.png"],
        '"long hair"': ["a.png"],
        'tag:"long hair"': ["a.png"],
        "tag:hair": [],
        "-tag:smile hair": ["b.png"],
        "TAG:SMILE": ["a.png"],
        "folder:in": ["in/c.png"],
        'folder:"" is:untagged': [],
        "is:untagged": ["in/c.png"],
        "tags:>=2": ["a.png"],
        "tokens:0": ["in/c.png"],
        "width:<97 -name:c.png": ["a.png", "b.png", "score.png"],
        "score:9": ["score.png"],
        "is:square": [],
        "is:landscape name:b": ["b.png"],
        "constructor:x": [],  # a word that every object of JavaScript has
        "tag:": ["a.png", "b.png", "in/c.png", "score.png"],
    }.items():
        assert page.evaluate(names, typed) == found, typed
    page.locator("#dataset-find").fill("is:nothing")
    expect(count(page)).to_contain_text("There is no is:nothing. There are: tagged,")
    page.locator("#dataset-find").fill("is:constructor")
    expect(count(page)).to_contain_text("There is no is:constructor.")


def test_the_tab_is_usable_by_everybody(watched: Watch, server: Served) -> None:
    make(server, "access", {f"{number}.png": "a, b" for number in range(5)} | {"odd <b>.png": HOSTILE}, (640, 480))
    (server.workspace / "datasets" / "access" / "broken.png").write_bytes(b"no picture")
    for width, dark in ((1180, False), (390, True)):
        page = open_set(watched, server, "access", width=width, dark=dark)
        page.evaluate("safelight.studio.focus_card('broken.png')")
        expect(card(page, "broken.png")).to_contain_text("! ")
        page.evaluate("safelight.studio.focus_card('0.png')")
        assert page.locator("#view-studio_grid b").count() == 0
        for opened in (False, True):
            if opened:
                card(page, "0.png").locator(".sl-thumb").click()
                expect(page.locator(".sl-look")).to_be_visible()
                page.wait_for_function("safelight.studio.row('0.png').bucket")
            found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
            serious = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
            assert not serious, json.dumps(serious, indent=1)[:3000]
        small = page.evaluate(
            """() => [...document.querySelectorAll('#studio button, #studio select, #studio input, dialog button')]
            .filter((one) => one.offsetParent && !one.closest('.sl-tick, [popover]'))
            .map((one) => [one.outerHTML.slice(0, 90), one.closest('label.sl-choice')?.offsetHeight || one.offsetHeight])
            .filter(([, height]) => height < 44)"""
        )
        assert not small
        page.keyboard.press("Escape")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_tokens_are_those_of_the_model_in_the_form_whenever_that_is_known(watched: Watch, server: Served) -> None:
    text = "astronaut, spacesuit, looking at viewer"
    make(server, "counted", {"a.png": text})
    demo, clip = (count_tokens([text], base)[0] for base in ("demo", ""))
    assert demo != clip
    page = open_set(watched, server, "counted")
    tokens = card(page, "a.png").locator(".sl-tokens")
    expect(tokens).to_have_text(f"{demo}/75")
    page.evaluate("safelight.studio.set_training({...safelight.studio.training, 'model.base': 'other'})")
    expect(tokens).to_have_text(f"{clip}/75")
