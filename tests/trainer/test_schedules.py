"""The learning-rate curves against transformers' schedules, which they are said to follow."""

from __future__ import annotations

import pytest

from trainer.config.files import parse_config
from trainer.config.schema import OptimizerConfig, ScheduleName
from trainer.schedules import CURVE_POINTS, curve, curve_text, learning_rate_factor

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


def test_rex_is_the_formula_of_its_paper() -> None:
    config = OptimizerConfig(schedule=ScheduleName.REX, warmup_steps=10)
    for step in range(10, TOTAL):
        left = 1 - (step - 10) / (TOTAL - 10)
        assert learning_rate_factor(step, TOTAL, config) == pytest.approx(left / (0.5 + 0.5 * left))
    half = learning_rate_factor(10 + (TOTAL - 10) // 2, TOTAL, config)
    assert half == pytest.approx(2 / 3), "above a straight line: the rate stays up longer and falls faster at the end"


@pytest.mark.parametrize("name", list(ScheduleName))
@pytest.mark.parametrize("warmup", [0, 1, 9])
def test_the_curve_that_is_shown_is_the_one_of_the_run(name: ScheduleName, warmup: int) -> None:
    optimizer = {"schedule": name.value, "warmup_steps": warmup, "num_cycles": 2, "learning_rate": 3e-4}
    config = parse_config({"optimizer": optimizer, "training": {"max_train_steps": TOTAL}})
    assert curve(config) == [
        (step + 1, 3e-4 * learning_rate_factor(step, TOTAL, config.optimizer)) for step in range(TOTAL)
    ]


def test_the_curve_of_a_long_run_is_short_and_keeps_its_ends_and_the_warm_up() -> None:
    optimizer = {"schedule": "linear", "warmup_steps": 777}
    points = curve(parse_config({"optimizer": optimizer, "training": {"max_train_steps": 1_000_000}}))
    assert CURVE_POINTS <= len(points) <= CURVE_POINTS + 2
    assert points[0][0] == 1 and points[-1][0] == 1_000_000
    assert dict(points)[777] == dict(points)[778] == max(rate for _, rate in points)


def test_the_curve_in_words() -> None:
    def words(steps: int, **optimizer: object) -> str:
        return curve_text(parse_config({"optimizer": optimizer, "training": {"max_train_steps": steps}}))

    assert words(400) == "400 steps; learning rate 0.0001, constant"
    assert words(1) == "1 step; learning rate 0.0001, constant"
    told = words(500, schedule="cosine", warmup_steps=50, min_learning_rate_ratio=0.1)
    assert told == "500 steps; learning rate 0.0001, after a warm-up of 50 steps, cosine down to 1e-05"
    told = words(100, schedule="cosine_with_restarts", num_cycles=2, learning_rate=1e-3)
    assert told.startswith("100 steps; learning rate 0.001, cosine with restarts down to ")
