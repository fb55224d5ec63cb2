"""Models, Dataset, Train and Settings as a person uses them, hostile texts included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Watch
from tests.browser.steps import fill_form_from, open_tab
from tests.ui.served import Served
from trainer.config.files import load_config
from trainer.demo import BASE_DIR

HOSTILE = '<img src="http://elsewhere.example/x.png" onerror="window.hacked=1"> ${window.hacked=2} {{constructor}}'


def test_pictures_come_in_with_captions_that_are_only_text(watched: Watch, server: Served, tmp_path: Path) -> None:
    page = watched(server.address + "/?tab=dataset")
    Image.new("RGB", (300, 200), "red").save(tmp_path / "one.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "two <b>bold.png")
    (tmp_path / "one.txt").write_text(HOSTILE, encoding="utf-8")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.get_by_role("button", name="Import", exact=True).click()
    page.get_by_label("Into the dataset").fill("mine")
    page.locator("#studio-import-files").set_input_files(sorted(tmp_path.iterdir()))
    page.get_by_role("button", name="Import 4 files").click()
    report = page.locator(".sl-task[data-task=import]", has_text="mine")
    expect(report).to_contain_text("2 pictures added to mine, 1 with a caption. 1 left out.")
    report.locator("summary").click()
    expect(report.locator(".sl-skipped")).to_contain_text("broken.png is not a PNG")
    expect(page.locator("#dataset-choice")).to_have_value("mine")
    caption = page.get_by_label("Caption of one.png")
    expect(caption).to_have_value(" ".join(HOSTILE.split()))
    assert page.evaluate("window.hacked") is None
    assert page.locator("#studio b").count() == 0
    page.get_by_role("button", name="Train with this dataset").click()
    expect(page.locator("#set-dataset-folder input")).to_have_value("mine (2 pictures)")


def test_a_model_is_refused_or_taken_in_words(watched: Watch, server: Served, tmp_path: Path) -> None:
    page = watched(server.address + "/?tab=models")
    expect(page.locator("#view-models table").first).to_contain_text("built in")
    bad = tmp_path / "danger.ckpt"
    bad.write_bytes(b"PK\x03\x04" + bytes(64))
    page.locator("#model-path input").fill(str(bad))
    page.get_by_role("button", name="Check and import").click()
    expect(page.locator("#view-models .sl-message")).to_contain_text("danger.ckpt")
    page.locator("#model-path input").fill(str(BASE_DIR))
    page.locator("#model-name input").fill("copy")
    page.get_by_role("button", name="Check and import").click()
    expect(page.locator("#view-models .sl-message")).to_contain_text("copy is here")
    page.get_by_role("button", name="Use copy").click()
    expect(page.locator("#set-model-base input")).to_have_value("copy (Stable Diffusion 1.x)")
    open_tab(page, "Models")
    page.get_by_role("button", name="Remove copy").click()
    page.locator("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator("#view-models table").first).not_to_contain_text("copy")


def test_faults_are_shown_at_their_fields_and_the_first_has_the_focus(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.locator(".sl-fold").click()
    page.locator("#set-lora-rank input").fill("9999")
    page.locator(".sl-fold").click()
    page.locator("#set-name input").fill("bad name!")
    page.locator("#start-training").click()
    expect(page.locator("#set-name input")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#set-lora-rank input")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#set-lora-rank")).to_be_visible()
    expect(page.locator("#set-name input")).to_be_focused()
    described = page.locator("#set-lora-rank input").get_attribute("aria-describedby")
    expect(page.locator(f"#{described}")).to_contain_text("9999")
    page.locator("#set-name input").fill("good_name")
    page.locator("#set-lora-rank input").fill("8")
    page.get_by_role("button", name="Export as TOML").click()
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#set-name input")).not_to_have_attribute("aria-invalid", "true")


def test_every_setting_can_be_found_changed_and_put_back(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.locator(".sl-fold").click()
    page.locator("#setting-find").fill("min snr")
    expect(page.locator("#set-loss-min-snr-gamma")).to_be_visible()
    expect(page.locator("#set-lora-rank")).to_be_hidden()
    page.locator("#setting-find").fill("lora.rank")
    expect(page.locator("#set-lora-rank")).to_be_visible()
    page.locator("#set-lora-rank input").fill("31")
    changed = page.locator(".sl-changes li", has_text="Rank: 16")
    expect(changed).to_contain_text("31")
    for word, found in (
        ("vram", "memory-checkpointing"),
        ("holdout", "validation-split"),
        ("lr", "embedding-learning-rate"),
    ):
        page.locator("#setting-find").fill(word)
        expect(page.locator(f"#set-{found}")).to_be_visible()
        expect(page.locator("#set-lora-rank")).to_be_hidden()
    page.locator("#setting-find").fill("nothing has these words")
    expect(page.get_by_text("No setting has these words.")).to_be_visible()
    changed.get_by_role("button", name="Reset Rank to 16").click()
    expect(changed).to_have_count(0)
    page.locator("#setting-find").fill("")
    expect(page.locator("#set-lora-rank input")).to_have_value("16")


def test_pasted_text_counts_like_typed_text(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    name = page.locator("#set-name input, #set-name textarea")
    plan = page.locator("#panel-train .sl-message").first
    expect(plan).to_contain_text("steps per epoch")
    name.fill("two words")  # as a paste: one change without a key
    expect(plan).to_contain_text('name is "two words"')
    name.fill("one")
    expect(plan).to_contain_text("steps per epoch")
    page.reload()
    expect(name).to_have_value("one")


def test_a_message_is_readable_and_closable_over_a_dialog(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.evaluate("safelight.open_dialog('Some dialog', 'text'); safelight.notify('It broke.', 'bad')")
    page.locator("#sl-notices").get_by_role("button", name="Close").click(timeout=5000)
    expect(page.locator(".sl-notice")).to_have_count(0)
    page.evaluate("safelight.notify('It broke again.', 'bad')")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator(".sl-notice")).to_have_text(re.compile("It broke again"))
    page.get_by_role("button", name="Import", exact=True).click(trial=True, timeout=5000)


def test_a_setting_without_effect_is_told_at_its_field(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.locator(".sl-fold").click()
    page.locator("#set-optimizer-power input").fill("2")
    note = page.locator("#set-optimizer-power .sl-inactive")
    expect(note).to_have_text("Does nothing unless optimizer.schedule is polynomial.")
    expect(page.locator("#set-optimizer-power input")).to_have_attribute(
        "aria-describedby", "set-optimizer-power-inactive"
    )
    expect(page.locator(".sl-changes li", has_text="Power: 1")).to_contain_text("Does nothing unless")
    page.set_viewport_size({"width": 390, "height": 800})
    box = note.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.locator("#set-lora-rank input").fill("0")  # while the form has a mistake the notes stay
    expect(page.locator("#view-form .sl-message")).to_contain_text("lora.rank is 0")
    expect(note).to_be_visible()
    page.locator("#set-lora-rank input").fill("16")
    page.locator(".sl-changes li", has_text="Power: 1").get_by_role("button").click()
    expect(note).to_have_count(0)


def test_the_form_survives_a_reload_and_tells_what_it_means(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=train")
    page.locator("#set-name input").fill("kept_over_reload")
    page.get_by_label("Thorough").check()
    expect(page.locator("#set-training-max-train-steps input")).to_have_value("1130")
    plan = page.locator("#view-form .sl-message")
    expect(plan).to_contain_text(
        "30 pictures x 1 repeat (8 more held out to measure the loss), batch 4 = 8 steps per epoch; 1130 steps = 141 epochs"
    )
    page.reload()
    expect(page.locator("#set-name input")).to_have_value("kept_over_reload")
    expect(page.locator("#set-training-max-train-steps input")).to_have_value("1130")


def test_settings_go_out_and_in_as_toml(
    watched: Watch, server: Served, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    page = watched(server.address)
    fill_form_from(page, settings_file("carried", 7))
    page.get_by_role("button", name="Export as TOML").click()
    expect(page.locator("dialog")).to_contain_text("python launch.py train carried.toml")
    with page.expect_download() as download:
        page.locator("dialog").get_by_role("button", name="Download").click()
    saved = tmp_path / "out.toml"
    download.value.save_as(saved)
    assert load_config(saved) == load_config(settings_file("carried", 7))


def test_looks_and_keys_are_kept_in_the_browser(watched: Watch, server: Served) -> None:
    page = watched(server.address + "/?tab=settings")
    expect(page.locator("#view-access")).to_contain_text("Only this machine can open the page")
    page.get_by_label("Dark").check()
    expect(page.locator("body")).to_have_class("dark")
    page.reload()
    expect(page.locator("#panel-settings")).to_be_visible()
    expect(page.locator("body")).to_have_class("dark")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("open a tab")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.locator("#panel-models")).to_be_visible()
    stored = json.dumps(page.evaluate("Object.keys(localStorage)"))
    assert "run-history" not in stored
