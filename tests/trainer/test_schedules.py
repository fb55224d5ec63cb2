"""The learning-rate curves against transformers' schedules, which they are said to follow."""

from __future__ import annotations

import pytest

from trainer.config.schema import OptimizerConfig, ScheduleName
from trainer.schedules import learning_rate_factor

TOTAL = 60


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("name", "settings", "reference"),
    [
        ("constant", {}, ("get_constant_schedule_with_warmup", {})),
        ("linear", {}, ("get_linear_schedule_with_warmup", {"num_training_steps": TOTAL})),
        ("cosine", {}, ("get_cosine_schedule_with_warmup", {"num_training_steps": TOTAL})),
        (
            "cosine_with_restarts",
            {"num_cycles": 3},
            ("get_cosine_with_hard_restarts_schedule_with_warmup", {"num_training_steps": TOTAL, "num_cycles": 3}),
        ),
        (
            "polynomial",
            {"power": 2.0},
            ("get_polynomial_decay_schedule_with_warmup", {"num_training_steps": TOTAL, "power": 2.0, "lr_end": 0.0}),
        ),
    ],
)
def test_curves_equal_transformers(name: str, settings: dict, reference: tuple, warmup: int) -> None:
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(transformers, reference[0])(optimizer, num_warmup_steps=warmup, **reference[1])
    config = OptimizerConfig(schedule=ScheduleName(name), warmup_steps=warmup, **settings)
    for step in range(TOTAL):
        ours = learning_rate_factor(step, TOTAL, config)
        if step >= warmup:
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        else:  # transformers' first warm-up step has rate 0 and moves nothing; ours is one step ahead
            assert ours == pytest.approx((step + 1) / warmup)
        optimizer.step()
        scheduler.step()


def test_the_floor_is_kept() -> None:
    config = OptimizerConfig(schedule=ScheduleName.COSINE, min_learning_rate_ratio=0.1)
    factors = [learning_rate_factor(step, TOTAL, config) for step in range(TOTAL + 1)]
    assert factors[0] == 1.0 and factors[-1] == pytest.approx(0.1) and min(factors) >= 0.1
