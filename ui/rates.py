"""The learning rate over a run before it starts: for the Train tab as points to draw, for the terminal as a line."""

from __future__ import annotations

from typing import Any

from trainer.config.schema import TrainConfig
from trainer.learning_rates import learning_rate_warnings
from trainer.optimizers import OPTIMIZERS
from trainer.schedules import curve, curve_text

HEIGHTS = "▁▂▃▄▅▆▇█"
LINE_COLUMNS = 48


def rates_view(config: TrainConfig) -> dict[str, Any]:
    """What the page draws: points (step, rate), steps of warm-up, the same in words, what the optimizer is, and rates
    outside their band."""
    row = OPTIMIZERS[config.optimizer.name]
    return {
        "optimizer": f"{row.title}: {row.help}",
        "points": curve(config),
        "warmup": config.optimizer.warmup_steps,
        "text": curve_text(config),
        "warnings": learning_rate_warnings(config),
    }


def rates_line(config: TrainConfig, encoding: str) -> str:
    """The curve in words, and drawn in one line where the terminal has the signs for it."""
    points = curve(config)
    highest = max(rate for _, rate in points)
    columns = min(LINE_COLUMNS, len(points))
    chosen = [points[round(number * (len(points) - 1) / max(1, columns - 1))][1] for number in range(columns)]
    drawn = "".join(HEIGHTS[round(rate / highest * (len(HEIGHTS) - 1))] for rate in chosen)
    try:
        drawn.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return curve_text(config)
    return f"{curve_text(config)}  {drawn}"
