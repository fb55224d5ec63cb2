"""The check of the Train tab: as a task, from start to result, and beside a run that trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import make_config
from trainer.runs import RunState
from trainer.tasks import TaskState
from ui.checks import CheckDesk
from ui.services import Services


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


def ended(desk: CheckDesk, task: str) -> dict[str, Any]:
    check_state, _ = desk.functions()
    assert desk.services.studio.tasks.wait(120)
    return check_state({"task": task})


def test_a_check_ends_in_a_report_with_the_fields_to_change(base: Path, tmp_path: Path, services: Services) -> None:
    desk = CheckDesk(services)
    config = make_config(base, tiny_dataset(tmp_path / "set", 4), optimizer={"learning_rate": 3.0})
    state = ended(desk, desk.start(config))
    assert (state["active"], state["state"]) == (False, "done"), state
    result = state["result"]
    assert result["ok"] and [row["name"] for row in result["estimate"]] == ["Steps", "Time", "Memory", "Disk"]
    (rate,) = [one for one in result["findings"] if one["check"] == "learning rate"]
    assert (rate["field"], rate["label"]) == ("set-optimizer-learning-rate", "Learning rate")
    assert "base model" in result["estimate"][2]["parts"]


def test_a_check_beside_a_run_leaves_the_device_to_the_run(base: Path, tmp_path: Path, services: Services) -> None:
    desk = CheckDesk(services)
    config = make_config(base, tiny_dataset(tmp_path / "set", 4), training={"max_train_steps": 100_000})
    run = services.jobs.submit(config)
    deadline = time.monotonic() + 60
    while services.jobs.progress(run).state is not RunState.TRAINING and time.monotonic() < deadline:
        time.sleep(0.05)
    state = ended(desk, desk.start(make_config(base, tmp_path / "set")))
    services.jobs.stop()
    assert services.jobs.wait(60)
    assert state["result"]["estimate"] is None
    assert any(f"{run} is training" in one["text"] for one in state["result"]["findings"])


def test_a_cancelled_check_says_so(base: Path, tmp_path: Path, services: Services) -> None:
    desk = CheckDesk(services)
    _, check_cancel = desk.functions()
    task = desk.start(make_config(base, tiny_dataset(tmp_path / "set", 4)))
    check_cancel({"task": task})
    state = ended(desk, task)
    assert state["state"] == TaskState.CANCELLED and state["result"] is None


def test_visitors_of_an_open_page_can_check_what_is_in_the_library_only(
    base: Path, tmp_path: Path, shared_services: Services
) -> None:
    with pytest.raises(SafelightError, match=r"model\.base"):
        CheckDesk(shared_services).start(make_config(base, tiny_dataset(tmp_path / "set", 4)))


@pytest.mark.parametrize("argument", [None, 7, {}, {"task": 7}, {"task": "nothing"}, {"task": "x" * 5000}])
def test_odd_questions_are_answered_with_an_error(services: Services, argument: Any) -> None:
    for function in CheckDesk(services).functions():
        with pytest.raises(SafelightError):
            function(argument)
