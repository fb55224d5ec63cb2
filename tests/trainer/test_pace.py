"""What a run tells of its speed, its memory and what limits it; and that a sudden slowness is noticed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.config.files import parse_config
from trainer.device import memory_now, processor_share
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.pace import CLIFF_STEPS, FEWEST, PaceWatch, pace_of, what_limits
from trainer.runs import RunFolder
from trainer.workspace import Workspace


def _steps(count: int, **values: Any) -> list[events.StepDone]:
    common = {"seconds": 0.5, "processor_share": 0.9, **values}
    return [
        events.StepDone(step=number, loss=1.0, learning_rate=1e-4, gradient_norm=1.0, images_seen=4 * number, **common)
        for number in range(1, count + 1)
    ]


def test_pictures_per_second_and_memory_are_those_of_the_last_steps() -> None:
    pace = pace_of(_steps(10, memory_bytes=3, memory_total=7))
    assert pace is not None
    assert pace.images_per_second == pytest.approx(8.0)
    assert (pace.memory_bytes, pace.memory_total) == (3, 7)
    assert pace_of(_steps(1)) is None
    assert pace_of([]) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "the processor's speed"),
        ({"processor_share": 0.3}, "other programs: this one gets 30%"),
        ({"input_seconds": 0.2}, "preparing pictures, noise and captions, 40%"),
        ({"processor_share": 0.0, "wait_seconds": 0.4}, "the GPU's speed, 80%"),
        ({"processor_share": 0.0, "wait_seconds": 0.01}, "the GPU waits for the processor"),
        ({"processor_share": 0.0}, ""),  # a run of an older version
    ],
)
def test_what_limits_a_run_is_named(values: dict[str, Any], words: str) -> None:
    limit = what_limits(_steps(5, **values))
    assert limit == words if words == "" else words in limit


def test_a_cliff_is_told_once_and_larger_pictures_are_none() -> None:
    watch = PaceWatch()
    usual, slow = _steps(1)[0], _steps(1, seconds=2.0)[0]
    assert not any(watch.look(usual, 100.0) for _ in range(FEWEST))
    assert not any(watch.look(slow, 400.0) for _ in range(3 * CLIFF_STEPS))  # four times the pixels
    assert not any(watch.look(slow, 100.0) for _ in range(CLIFF_STEPS - 1))
    told = [watch.look(slow, 100.0) for _ in range(10)]
    assert "4.0 times as long" in told[0]
    assert not any(told[1:])


def test_a_memory_that_is_nearly_full_is_told_once() -> None:
    watch = PaceWatch()
    full = _steps(1, memory_bytes=int(9.8e9), memory_total=int(10e9))[0]
    assert "9.8 GB of 10.0 GB" in watch.look(full, 1.0)
    assert watch.look(full, 1.0) == ""


def test_a_real_run_tells_its_pace(tmp_path: Path) -> None:
    config = parse_config(
        {
            "model": {"base": str(tiny_sd15(tmp_path / "base"))},
            "dataset": {"folder": str(tiny_dataset(tmp_path / "set")), "resolution": 64},
            "training": {"max_train_steps": 4, "batch_size": 2, "device": "cpu"},
        }
    )
    workspace = Workspace.open(tmp_path / "workspace")
    run = RunFolder.create(workspace, config)
    seen: list[events.Event] = []
    train(config, find_inputs(config, workspace), run, workspace, seen.append, Control())
    steps = [one for one in seen if isinstance(one, events.StepDone)]
    for step in steps:
        assert 0 < step.input_seconds < step.seconds
        assert step.wait_seconds == 0
        assert step.processor_share > 0
        assert 1e7 < step.memory_bytes < step.memory_total
    pace = pace_of(steps)
    assert pace is not None and pace.images_per_second > 0 and pace.limit


def test_a_gpu_has_no_share_of_the_processors() -> None:
    assert processor_share(torch.device("cuda"), 1.0, 1.0) == 0.0
    assert processor_share(torch.device("cpu"), 2.0, 4.0) == pytest.approx(0.5 / torch.get_num_threads())
    used, there_is = memory_now(torch.device("cpu"))
    assert 0 < used < there_is
