"""The learning rate before the start: on the Train tab as a curve, on the terminal as a line, both those of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.ui.conftest import make_services
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.schedules import learning_rate_factor
from ui.form import flat
from ui.rates import rates_line, rates_view
from ui.tabs.train import TrainTab


def config(steps: int = 40, **optimizer: Any) -> TrainConfig:
    return parse_config({"optimizer": optimizer, "training": {"max_train_steps": steps}})


def test_the_tab_shows_the_rates_of_the_run_and_warns_before_the_start(tmp_path: Path) -> None:
    with gr.Blocks():
        tab = TrainTab(make_services(tmp_path))
    wanted = config(schedule="rex", warmup_steps=5, learning_rate=0.5)

    def looked(values: dict[str, Any]) -> dict[str, Any]:
        typed = dict(zip(tab.form.outputs, tab.form.show_some(values), strict=True))
        return tab.look(typed)[0]["rates"]

    rates = looked(flat(wanted))
    assert rates["points"] == [(step + 1, 0.5 * learning_rate_factor(step, 40, wanted.optimizer)) for step in range(40)]
    assert rates["text"].startswith("40 steps; learning rate 0.5, after a warm-up of 5 steps, rex down to 0.0")
    assert [text for text in rates["warnings"] if "0.5" in text and "adamw" in text]
    assert looked({**flat(wanted), "optimizer.learning_rate": -1.0}) is None, "no curve of what can't be run"


def test_no_warning_for_a_usual_rate() -> None:
    assert rates_view(config())["warnings"] == []


def test_the_optimizer_is_told_with_what_is_special_about_it() -> None:
    assert rates_view(config())["optimizer"] == "AdamW: The usual choice."
    told = rates_view(config(name="muon"))["optimizer"]
    assert told.startswith("Muon: ") and "vectors and token embeddings go by AdamW" in told


def test_the_terminal_draws_the_curve_where_it_can() -> None:
    falling = config(8, schedule="linear")
    assert rates_line(falling, "utf-8") == "8 steps; learning rate 0.0001, linear down to 1.25e-05  █▇▆▅▅▄▃▂"
    assert rates_line(falling, "ascii") == rates_line(falling, "no such encoding")
    assert rates_line(falling, "ascii") == "8 steps; learning rate 0.0001, linear down to 1.25e-05"
    assert rates_line(config(1), "utf-8").endswith("█")
    assert len(rates_line(config(100_000, schedule="cosine"), "utf-8").split()[-1]) == 48


@pytest.mark.parametrize("warmup", [0, 3])
def test_warm_up_is_told(warmup: int) -> None:
    view = rates_view(config(warmup_steps=warmup))
    assert view["warmup"] == warmup
    assert ("warm-up" in view["text"]) == (warmup > 0)
