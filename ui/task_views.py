"""What the status strip says of work on datasets, as plain values. Nothing here knows Gradio."""

from __future__ import annotations

from typing import Any

from trainer.tasks import TaskState, TaskView
from trainer.words import duration

CANCEL_TASK = "cancel_task"
"""The strip's action on a task."""
LORA_KIND = "lora"
"""Tasks of the Tools tab, which belong to no dataset."""
WORDS = {
    "import": "Importing",
    "tag": "Tagging",
    "caption": "Captioning",
    "check": "Checking",
    "prepare": "Preparing",
    "mask": "Masking",
    "copy": "Copying",
    "export": "Exporting",
    "publish": "Uploading",
    "preflight": "Checking",
    LORA_KIND: "Making",
}
"""The state of a strip that shows a task of this kind; others are "Working"."""


TABS = {"preflight": "train", LORA_KIND: "tools"}
"""The tab that shows a task of this kind; others are on the Dataset tab."""


def task_line(task: TaskView) -> str:
    """How far it is: "120 of 2,000 · 40 s left"."""
    if task.state is TaskState.WAITING:
        return "waits for the work before it"
    counted = f"{task.done:,} of {task.total:,}" if task.total else task.text or "starting"
    return counted if task.eta_seconds is None else f"{counted} · {duration(task.eta_seconds)} left"


def with_task(values: dict[str, Any], task: TaskView | None) -> dict[str, Any]:
    """The strip's values with a running task: in the place of an idle strip, beside one that is busy."""
    values = {**values, "task": "", "tab": ""}
    if task is None:
        return values
    word, line, name = WORDS.get(task.kind, "Working"), task_line(task), task.dataset or task.title
    if values["active"]:
        beside = " · ".join(part for part in (values["beside"], f"{word} {name} · {line}") if part)
        return {**values, "beside": beside, "task": task.id}
    return {
        **values,
        "word": word,
        "tone": "good" if task.state is TaskState.RUNNING else "busy",
        "title": f"{task.percent}% {name} - Safelight",
        "name": name,
        "run": "",
        "task": task.id,
        "tab": TABS.get(task.kind, "dataset"),
        "headline": line,
        "percent": task.percent,
        "active": True,
        "actions": [[CANCEL_TASK, "Cancel"]],
    }
