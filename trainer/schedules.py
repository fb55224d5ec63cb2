"""The learning rate over a run, as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from trainer.config.schema import OptimizerConfig, ScheduleName, TrainConfig

CURVE_POINTS = 240
"""Enough for a drawing that is looked at, not measured."""


def learning_rate_factor(step: int, total_steps: int, settings: OptimizerConfig) -> float:
    """Factor on the learning rate for optimizer step `step` (0-based) of `total_steps`.

    Linear warm-up from 0 (the first step takes 1/warmup_steps), then the named curve from 1 towards the floor
    `min_learning_rate_ratio`. The formulas are those of Hugging Face transformers' schedules with a floor added, and REX
    (Chen et al. 2021, arXiv:2107.04197, equation 3).
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule is ScheduleName.CONSTANT:
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    floor = settings.min_learning_rate_ratio
    return floor + (1.0 - floor) * _CURVES[settings.schedule](min(1.0, progress), settings)


_CURVES = {
    ScheduleName.LINEAR: lambda progress, _: 1.0 - progress,
    ScheduleName.COSINE: lambda progress, _: 0.5 * (1.0 + math.cos(math.pi * progress)),
    ScheduleName.COSINE_WITH_RESTARTS: lambda progress, settings: (
        0.5 * (1.0 + math.cos(math.pi * ((progress * settings.num_cycles) % 1.0))) if progress < 1.0 else 0.0
    ),
    ScheduleName.POLYNOMIAL: lambda progress, settings: (1.0 - progress) ** settings.power,
    ScheduleName.REX: lambda progress, _: (1.0 - progress) / (0.5 + 0.5 * (1.0 - progress)),
}


def curve(config: TrainConfig) -> list[tuple[int, float]]:
    """Steps, counted from 1, and the learning rates that the run takes them with: the first, the last, and some between.

    A run of at most CURVE_POINTS steps gives all of them.
    """
    total = config.training.max_train_steps
    count = min(total, CURVE_POINTS)
    steps = {round(number * (total - 1) / max(1, count - 1)) for number in range(count)}
    steps |= {step for step in (config.optimizer.warmup_steps - 1, config.optimizer.warmup_steps) if 0 <= step < total}
    rate = config.optimizer.learning_rate
    return [(step + 1, rate * learning_rate_factor(step, total, config.optimizer)) for step in sorted(steps)]


def curve_text(config: TrainConfig) -> str:
    """The curve in one line: "1000 steps; learning rate 0 to 0.0001 in 50 steps, then cosine down to 1e-05"."""
    points, settings = curve(config), config.optimizer
    rates = [rate for _, rate in points]
    total = config.training.max_train_steps
    parts = [f"{total} step{'' if total == 1 else 's'}; learning rate {max(rates):.3g}"]
    if settings.warmup_steps:
        parts.append(f"after a warm-up of {settings.warmup_steps} steps")
    if settings.schedule is ScheduleName.CONSTANT:
        parts.append("constant")
    else:
        after = [rate for step, rate in points if step > settings.warmup_steps]
        parts.append(f"{settings.schedule.value.replace('_', ' ')} down to {min(after):.3g}")
    return ", ".join(parts)
