"""What the status strip says of work on datasets."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.ui.test_tabs import drawn
from trainer.tasks import TaskControl, TaskState, TaskView
from ui.services import Services
from ui.strip import status_strip
from ui.task_views import LORA_KIND, WORDS, task_line, with_task
from ui.views import strip_values


def task(**changes: Any) -> TaskView:
    values: dict[str, Any] = {
        "id": "t1", "kind": "import", "title": "Import into hats", "dataset": "hats", "state": TaskState.RUNNING,
        "done": 120, "total": 2000, "text": "a.png", "eta_seconds": 40.0, "message": "", "skipped": (),
        "started": 1.0, "ended": 0.0,
    }  # fmt: skip
    return TaskView(**{**values, **changes})


def test_an_idle_strip_shows_the_task() -> None:
    idle = {**strip_values(None, 0), "beside": ""}
    values = with_task(idle, task())
    assert (values["word"], values["name"], values["headline"]) == ("Importing", "hats", "120 of 2,000 · 40 s left")
    assert (values["percent"], values["active"], values["tab"], values["task"]) == (6, True, "dataset", "t1")
    assert values["actions"] == [["cancel_task", "Cancel"]]
    assert with_task(idle, None)["word"] == "Idle"


def test_a_busy_strip_shows_it_beside() -> None:
    busy = {**strip_values(None, 0), "word": "Training", "active": True, "beside": "Downloading x · 3%"}
    values = with_task(busy, task(kind="tag"))
    assert values["word"] == "Training" and values["actions"] == []
    assert values["beside"] == "Downloading x · 3% · Tagging hats · 120 of 2,000 · 40 s left"


def test_lines_of_all_states() -> None:
    assert task_line(task(state=TaskState.WAITING)) == "waits for the work before it"
    assert task_line(task(total=0, eta_seconds=None)) == "a.png"
    assert task_line(task(total=0, text="", eta_seconds=None)) == "starting"
    assert with_task({**strip_values(None, 0), "beside": ""}, task(kind="other"))["word"] == "Working"
    assert len(set(WORDS.values())) == len(WORDS) - 1  # a dataset is checked, and a run before it starts
    lora = with_task({**strip_values(None, 0), "beside": ""}, task(kind=LORA_KIND, dataset="", title="Resize x"))
    assert (lora["word"], lora["name"], lora["tab"]) == ("Making", "Resize x", "tools")


def test_the_strip_polls_the_tasks_and_cancels_them(services: Services) -> None:
    began, ended = threading.Event(), threading.Event()

    def work(control: TaskControl) -> str:
        began.set()
        while not control.cancelled():
            ended.wait(0.001)
        return "ended"

    strip = drawn(status_strip, services)
    task_id = services.studio.tasks.start("tag", "Tag", "hats", work)
    assert began.wait(10)
    assert strip.strip_state(None)["task"] == task_id
    assert "kept" in strip.strip_action({"task": task_id, "run": "", "download": "", "action": "cancel_task"})["text"]
    assert services.studio.tasks.wait(10)
    assert strip.strip_state(None)["word"] == "Idle"
    assert "error" in strip.strip_action({"task": "", "action": "cancel_task"})


@pytest.mark.parametrize("kind", WORDS)
def test_words_of_all_kinds(kind: str) -> None:
    assert with_task({**strip_values(None, 0), "beside": ""}, task(kind=kind))["word"] == WORDS[kind]
