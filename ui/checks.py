"""The "Check" of the Train tab: starts a check of the run as a task, and tells how far it is and what it found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trainer.config.schema import TrainConfig
from trainer.models.text import gigabytes
from trainer.preflight.check_run import Preflight, preflight, report_values
from trainer.preflight.checks import Finding, Level
from trainer.preflight.estimates import Estimate
from trainer.tasks import TaskControl
from trainer.words import duration
from ui.form import SETTINGS, element_id, label
from ui.messages import text_of
from ui.services import Services
from ui.task_views import task_line

KIND = "preflight"
MAX_KEPT = 20


class CheckDesk:
    """Checks of runs, asked for by any page of this program."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._results: OrderedDict[str, Preflight] = OrderedDict()

    def start(self, config: TrainConfig) -> str:
        """Starts a check and returns its task's id. Raises SafelightError when the page may not use what it names."""
        services = self.services
        services.refuse_paths(config)
        task = ""

        def work(control: TaskControl) -> str:
            busy = services.jobs.active_run_id

            def tell(done: int, total: int, text: str) -> None:
                control.raise_if_cancelled()
                control.progress(done, total, text)

            past = services.jobs.runs()
            result = preflight(services.workspace, config, past=past, tell=tell, dry_run=busy is None)
            if busy is not None and not result.faults:
                text = f"No dry run was made, because {busy} is training. Check again when it is over."
                result = replace(result, findings=(*result.findings, Finding("dry run", Level.NOTE, text)))
            self._keep(task, result)
            return result.sentence

        dataset = config.dataset.folder
        task = services.studio.tasks.start(KIND, f"Checking {config.name}", dataset, work, lane="compute")
        return task

    def _keep(self, task: str, result: Preflight) -> None:
        self._results[task] = result
        while len(self._results) > MAX_KEPT:
            self._results.popitem(last=False)

    def functions(self) -> Sequence[Callable[[Any], dict[str, Any]]]:
        """What the page's script calls."""

        def check_state(argument: Any = None) -> dict[str, Any]:
            """How far a check is, and its result when it is over."""
            view = self.services.studio.tasks.get(text_of(argument, "task"))
            result = self._results.get(view.id)
            return {
                "active": view.state.is_active,
                "state": view.state.value,
                "line": " · ".join(part for part in (view.text, task_line(view)) if part and part != view.text),
                "text": view.text,
                "percent": view.percent,
                "message": view.message,
                "result": None if result is None else shown(result),
            }

        def check_cancel(argument: Any = None) -> dict[str, Any]:
            """Ends a check."""
            self.services.studio.tasks.cancel(text_of(argument, "task"))
            return {}

        return [check_state, check_cancel]


def shown(result: Preflight) -> dict[str, Any]:
    """A result in words, with the form's fields that its findings are about."""
    values = report_values(result)
    for finding in values["findings"]:
        setting = SETTINGS.get(finding["setting"])
        finding["field"] = element_id(setting.name) if setting else ""
        finding["label"] = label(setting) if setting else ""
    values["estimate"] = None if result.estimate is None else _in_words(result.estimate)
    return values


def _in_words(estimate: Estimate) -> list[dict[str, str]]:
    low, high = estimate.seconds_range
    memory = gigabytes(estimate.memory_bytes) + (
        f" of {gigabytes(estimate.memory_total)}" if estimate.memory_total else ""
    )
    rows = [
        ("Steps", f"{estimate.steps} on {estimate.images} pictures, {estimate.epochs:.3g} epochs", ""),
        (
            "Time",
            f"about {duration(estimate.seconds)} ({duration(low)} to {duration(high)})",
            _parts(estimate.time_parts, duration),
        ),
        ("Memory", memory if estimate.memory_bytes else "not known", _parts(estimate.memory_parts, gigabytes)),
        (
            "Disk",
            f"{gigabytes(estimate.disk_bytes)} of {gigabytes(estimate.disk_free)} free",
            _parts(estimate.disk_parts, gigabytes),
        ),
    ]
    return [{"name": name, "text": text, "parts": parts} for name, text, parts in rows]


def _parts(parts: Any, words: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in parts.items() if value > 0)
