"""The learning rate over a run, as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from trainer.config.schema import OptimizerConfig, ScheduleName


def learning_rate_factor(step: int, total_steps: int, settings: OptimizerConfig) -> float:
    """Factor on the learning rate for optimizer step `step` (0-based) of `total_steps`.

    Linear warm-up from 0 (the first step takes 1/warmup_steps), then the named curve from 1 towards the floor
    `min_learning_rate_ratio`. The formulas are those of Hugging Face transformers' schedules with a floor added.
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
}
