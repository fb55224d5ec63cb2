"""From a heap of 300 messy pictures to a LoRA, on the page alone: in, tagged, checked, mended, cropped, trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch, Watcher
from tests.browser.steps import wait_for_state
from tests.browser.test_import import drop
from tests.messy import build_messy
from tests.taggers import put_tagger, real_tagger
from tests.ui.served import served
from trainer.dataset.captions import split_tags
from trainer.dataset.settings import load_marks
from trainer.dataset.studio import Studio
from trainer.workspace import Workspace

FIXES = (
    ("unreadable", "Take them out"),
    ("duplicate", "Keep the largest"),
    ("blurred", "Take them out"),
    ("border", "Cut the border off"),
)
"""Findings that a person would act on, and the button for each."""
LONG = 300_000


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    workspace = Workspace.open(tmp_path / "workspace")
    put_tagger(workspace, "lite0", real_tagger())
    return workspace.path


def fingerprint(folder: Path) -> str:
    """One hash over names and contents of all files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + path.read_bytes())
    return digest.hexdigest()


def open_panel(page: Page, name: str) -> None:
    if page.locator(f"#studio-{name}").is_hidden():
        page.locator(f"#studio-open-{name}").click()
    expect(page.locator(f"#studio-{name}")).to_be_visible()


def bring_in(page: Page, folder: Path) -> None:
    drop(page, folder)
    page.get_by_label("Into the dataset").fill("heap")
    page.get_by_role("button", name="Import", exact=False).filter(has_text="files").click()
    report = page.locator(".sl-task[data-task=import]", has_text="heap")
    expect(report).to_contain_text("pictures added to heap", timeout=LONG)
    expect(page.locator("#dataset-choice")).to_have_value("heap")


def tag(page: Page) -> None:
    open_panel(page, "tagging")
    page.locator("#studio-tagger").select_option("lite0")
    button = page.locator("#studio-tag-pictures")
    expect(button).to_contain_text("without a caption")
    page.get_by_label("General threshold").fill("0.05")  # the network knows animals and cups, not galaxies
    button.click()
    expect(page.locator(".sl-task[data-task=tag]")).to_contain_text("written with", timeout=LONG)


def clean(page: Page) -> None:
    open_panel(page, "quality")
    page.evaluate("safelight.studio.set_training({...safelight.studio.training, 'dataset.resolution': 64})")
    page.locator("#studio-quality-check").click()
    expect(page.locator("#studio-quality-summary")).to_contain_text("pictures.", timeout=LONG)
    for kind, words in FIXES:
        finding = page.locator(f'.sl-finding[data-kind="{kind}"]')
        if finding.count():
            finding.get_by_role("button", name=words).first.click()
            expect(finding).to_have_count(0, timeout=LONG)


def crop(page: Page, picture: str) -> None:
    page.evaluate("name => safelight.studio.open_viewer(name)", picture)
    frame = page.locator(".sl-crop")
    frame.wait_for()
    for _ in range(5):
        frame.press("+")
    frame.press("Shift+ArrowLeft")
    page.wait_for_function("name => safelight.studio.row(name).mark", arg=picture)
    page.keyboard.press("Escape")


def train(page: Page) -> None:
    page.get_by_role("button", name="Train with this dataset").click()
    expect(page.locator("#set-dataset-folder input")).to_have_value("heap")
    expect(page.locator("#set-dataset-trigger-word textarea, #set-dataset-trigger-word input")).to_have_value(
        "heapstyle"
    )
    page.locator("#set-name input, #set-name textarea").fill("heap_lora")
    page.locator("#set-training-max-train-steps input").fill("12")
    page.locator("#set-sample-prompts textarea").fill("heapstyle, cat")
    page.locator("#start-training").click()
    wait_for_state(page, "Finished")


def test_a_heap_becomes_a_lora_without_a_file_touched_by_hand(
    watched: Watch, watcher: Watcher, fresh: Path, tmp_path: Path
) -> None:
    watcher.forgives = ("Failed to load resource",)  # no thumbnail of a picture that can't be read
    messy = build_messy(tmp_path / "heap of pictures")
    before = fingerprint(messy.folder)
    with served(fresh) as server:
        page = watched(server.address + "/?tab=dataset", width=1280, height=900)
        page.locator("#studio-open-import").wait_for()
        bring_in(page, messy.folder)
        dataset = Studio(Workspace.open(fresh)).open("heap")
        came = dataset.pictures()
        assert len(came) > 250
        written = dataset.captions()
        open_panel(page, "tags")
        page.locator("#dataset-trigger").fill("heapstyle")
        page.locator("#dataset-trigger").press("Enter")
        tag(page)
        captions = dataset.captions()
        assert {name: captions[name] for name in written if written[name]} == {
            name: text for name, text in written.items() if text
        }, "what people wrote is lost"
        clean(page)
        left = dataset.pictures()
        assert len(left) < len(came)
        wide = next(name for name in left if name.startswith("10_") and name.endswith(".jpg"))
        crop(page, wide)
        assert wide in load_marks(dataset.path)
        train(page)
        assert fingerprint(messy.folder) == before
        runs = list((fresh / "runs").iterdir())
        assert len(runs) == 1 and list(runs[0].glob("heap_lora*.safetensors"))
        assert all(split_tags(text) for text in dataset.captions().values() if text)
