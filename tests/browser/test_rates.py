"""The planned learning rate on the Train tab: a curve with words, the warning, and both follow what is typed."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import Watch
from tests.browser.steps import fill_form_from
from tests.ui.served import Served
from trainer.config.files import dump_config, parse_config


def test_the_curve_follows_the_form_and_a_rate_out_of_its_band_is_told(
    watched: Watch, server: Served, tmp_path: Path
) -> None:
    page = watched(server.address + "/?tab=train")
    settings = {"optimizer": {"schedule": "rex", "warmup_steps": 30}, "training": {"max_train_steps": 100}}
    path = tmp_path / "planned.toml"
    path.write_text(dump_config(parse_config({"name": "planned", **settings})), encoding="utf-8")
    fill_form_from(page, path)
    figure = page.locator("#planned-rates figure")
    words = "100 steps; learning rate 0.0001, after a warm-up of 30 steps, rex down to"
    expect(figure.locator("figcaption")).to_contain_text(words)
    expect(figure.locator("figcaption")).to_contain_text("AdamW: The usual choice.")
    chart = figure.get_by_role("img")
    assert words in (chart.get_attribute("aria-label") or "")
    assert (chart.locator("path").get_attribute("d") or "").count("L") == 99
    assert "warm-up ends 30" in chart.text_content()
    expect(page.locator("#planned-rates .sl-message")).to_have_count(0)
    page.locator(".sl-fold").click()
    page.locator("#set-optimizer-learning-rate input").fill("0.5")
    expect(page.locator("#planned-rates .sl-message")).to_contain_text(
        "optimizer.learning_rate is 0.5, higher than adamw"
    )
    expect(figure.locator("figcaption")).to_contain_text("learning rate 0.5")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
