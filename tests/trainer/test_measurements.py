"""What measurements add up to: the best step, the spread, the notice of overfitting, the early end."""

from __future__ import annotations

import math
import statistics

import pytest

from trainer.measurements import Measurement, Measurements


def measured(*rows: tuple[int, list[float], list[float]], key: str = "k") -> Measurements:
    measurements = Measurements(key)
    for step, held_out, trained in rows:
        measurements.add(Measurement(step, tuple(held_out), tuple(trained)))
    return measurements


def curve(*losses: float) -> Measurements:
    return measured(*((step * 10, [loss], []) for step, loss in enumerate(losses)))


def test_loss_and_spread_are_mean_and_standard_error() -> None:
    values = [0.1, 0.25, 0.07, 0.3]
    one = Measurement(3, tuple(values), (0.5,))
    assert one.loss == pytest.approx(statistics.mean(values))
    assert one.spread == pytest.approx(statistics.stdev(values) / math.sqrt(4))
    assert (one.trained_loss, one.trained_spread) == (0.5, 0.0)
    assert Measurement(3, (0.1,)).trained_loss is None


@pytest.mark.parametrize(
    ("losses", "best"), [((0.1, 0.3, 0.2, 0.25), 20), ((0.3, 0.2, 0.2, 0.2), 10), ((0.1,), None), ((0.1, 0.4), 10)]
)
def test_the_best_is_the_first_of_the_lowest_and_never_the_bare_base(
    losses: tuple[float, ...], best: int | None
) -> None:
    found = curve(*losses).best
    assert (found.step if found else None) == best


def test_measuring_a_step_again_forgets_what_came_after() -> None:
    measurements = curve(0.4, 0.3, 0.2, 0.1)
    measurements.add(Measurement(20, (0.25,)))
    assert [(one.step, one.loss) for one in measurements.entries] == [(0, 0.4), (10, 0.3), (20, 0.25)]


@pytest.mark.parametrize(
    ("losses", "delta", "count"),
    [
        ((0.5, 0.4, 0.3), 0.0, 0),
        ((0.5, 0.4, 0.4, 0.41), 0.0, 2),
        ((0.5, 0.499, 0.498, 0.497), 0.01, 3),
        ((0.5, 0.499, 0.498, 0.494), 0.01, 0),
        ((0.5, 0.6, 0.4, 0.5), 0.0, 1),
        ((), 0.0, 0),
    ],
)
def test_gains_are_counted_from_the_last_one(losses: tuple[float, ...], delta: float, count: int) -> None:
    assert curve(*losses).num_without_gain(delta) == count


def test_the_run_ends_early_only_where_it_was_asked_for() -> None:
    stuck = curve(0.5, 0.4, 0.41, 0.42)
    assert "2 times in a row" in stuck.early_end(2, 0.0)
    assert "2 times in a row" in stuck.early_end(1, 0.0)
    assert stuck.early_end(3, 0.0) == ""
    assert stuck.early_end(0, 0.0) == ""
    assert curve(0.5, 0.4, 0.3).early_end(1, 0.0) == ""


BEST = [0.10, 0.30, 0.20]
ROSE = [0.12, 0.33, 0.22]


def test_overfitting_is_told_with_its_step_and_numbers() -> None:
    notice = measured((0, [0.3] * 3, [0.3]), (40, BEST, [0.2]), (80, ROSE, [0.1])).notice
    assert "Since step 40" in notice and "0.2000 to 0.2233 at step 80" in notice
    assert "by heart" in notice and "0.2000 to 0.1000" in notice
    assert "best so far is the LoRA of step 40" in notice


def test_a_rise_of_both_losses_is_not_called_learning_by_heart() -> None:
    notice = measured((40, BEST, [0.2]), (80, ROSE, [0.3])).notice
    assert notice and "by heart" not in notice
    assert measured((40, BEST, []), (80, ROSE, [])).notice.count("worse for pictures") == 1


@pytest.mark.parametrize(
    "now",
    [
        [0.1001, 0.3001, 0.2001],  # sure, and nothing worth a word
        [0.20, 0.20, 0.215],  # a rise of 2.5 %, lost in what the pictures differ by
        [0.09, 0.29, 0.19],  # a gain
    ],
)
def test_chance_is_no_overfitting(now: list[float]) -> None:
    assert measured((40, BEST, [0.2]), (80, now, [0.1])).notice == ""


def test_the_notice_goes_when_the_loss_falls_again() -> None:
    measurements = measured((40, BEST, [0.2]), (80, ROSE, [0.1]))
    assert measurements.notice
    measurements.add(Measurement(120, (0.09, 0.28, 0.19), (0.1,)))
    assert measurements.notice == ""


def test_numbers_come_back_exactly_and_only_for_the_same_pictures() -> None:
    measurements = measured((0, [1 / 3, 0.1], [2 / 7]), (5, [1e-17, 0.2], [0.3]))
    assert Measurements.from_text(measurements.to_text(), "k") == measurements
    assert Measurements.from_text(measurements.to_text(), "other") == Measurements("other")


def test_no_number_is_seen() -> None:
    assert Measurement(1, (0.1, 0.2)).is_finite
    assert not Measurement(1, (0.1, math.nan)).is_finite
    assert not Measurement(1, (0.1,), (math.inf,)).is_finite
