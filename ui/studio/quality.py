"""The panel "Check quality": what may be wrong with the open dataset, and doing something about it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.files import ConfigError
from trainer.config.schema import TrainConfig
from trainer.dataset.checking import Checking, Report
from trainer.dataset.fixes import apply_fix, find_fix
from trainer.dataset.quality import Finding, problems_by_picture
from trainer.dataset.scan import dataset_names
from trainer.dataset.studio import Dataset
from trainer.tagging.shelf import list_taggers
from trainer.tasks import TaskControl
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.asked import dataset_of
from ui.studio.panels import Answer, Panel
from ui.studio.sizes import run_with

KIND = "check"


@dataclass(frozen=True)
class _Done:
    """A report, and what was asked for it."""

    report: Report
    held_out: str
    tagger: str


class QualityDesk:
    """Answers the panel's script. The last report of each dataset is kept for every page that looks at it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._guard = threading.Lock()
        self._reports: dict[str, _Done] = {}

    def functions(self) -> Sequence[Answer]:
        """What the script calls."""
        return [self.quality_state, self.check_quality, self.fix_finding]

    def quality_state(self, argument: Any = None) -> dict[str, Any]:
        """The last report, if there is one, and the datasets that can be held out."""
        dataset = dataset_of(self.services, argument)
        with self._guard:
            done = self._reports.get(dataset.name)
        others = [name for name in dataset_names(self.services.workspace) if name != dataset.name]
        active = any(task.kind == KIND for task in self.services.studio.tasks.busy_with(dataset.name))
        taggers = [
            {"name": one.row.name, "title": one.row.title}
            for one in list_taggers(self.services.workspace)
            if one.is_here and one.row.kind == "tags"
        ]
        state: dict[str, Any] = {"others": others, "taggers": taggers, "active": active, "report": None, "problems": {}}
        if done is not None:
            state["report"] = {
                "sentence": done.report.sentence,
                "note": _note(done.report),
                "held_out": done.held_out,
                "tagger": done.tagger,
                "stale": done.report.revision != dataset.revision,
                "findings": [_finding(finding) for finding in done.report.findings],
            }
            state["problems"] = problems_by_picture(done.report.findings)
        return state

    def check_quality(self, argument: Any = None) -> dict[str, Any]:
        """Looks at every picture and caption."""
        checking = self._checking(argument)

        def work(control: TaskControl) -> str:
            return self._report(checking, control)

        return self._start("Checking the quality", checking, work)

    def fix_finding(self, argument: Any = None) -> dict[str, Any]:
        """Does what a button of a finding says for the pictures of `names`, then checks again."""
        checking = self._checking(argument)
        kind, fix = text_of(argument, "kind"), text_of(argument, "fix")
        button = find_fix(kind, fix).button
        checking.dataset.refuse_builtin()
        names = argument.get("names")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ShownError("The page sent no pictures. Reload the page.")

        def work(control: TaskControl) -> str:
            told = apply_fix(checking, kind, fix, names, control)
            if not control.cancelled():
                self._report(checking, control)
            return told

        return self._start(button, checking, work)

    def _start(self, title: str, checking: Checking, work: Any) -> dict[str, Any]:
        tasks, name = self.services.studio.tasks, checking.dataset.name
        if any(task.kind == KIND for task in tasks.busy_with(name)):
            raise ShownError(f"{name} is being checked already. Wait for it or cancel it first.")
        return {"task": tasks.start(KIND, title, name, work, lane="compute" if checking.tagger else "disk")}

    def _report(self, checking: Checking, control: TaskControl) -> str:
        report = checking.report(control)
        with self._guard:
            self._reports[report.dataset] = _Done(report, checking.held_out, checking.tagger)
        return report.sentence

    def _checking(self, argument: Any) -> Checking:
        dataset = dataset_of(self.services, argument)
        held_out = argument.get("held_out")
        if not isinstance(held_out, str) or (held_out and held_out not in dataset_names(self.services.workspace)):
            raise ShownError("There is no such dataset to compare with any more. Reload the page.")
        tagger = argument.get("tagger", "")
        if not isinstance(tagger, str):
            raise ShownError("The page sent no tagger. Reload the page.")
        config = self._config(dataset, argument.get("training"))
        return Checking(self.services.studio, dataset, config, held_out, tagger)

    def _config(self, dataset: Dataset, training: Any) -> TrainConfig:
        try:
            config = run_with(dataset.name, training)
        except ConfigError as error:
            raise ShownError(f"The Train form has a mistake: {error.faults[0].message}") from None
        self.services.refuse_paths(config)
        return config


def _note(report: Report) -> str:
    told = (
        f"As training at {report.resolution}×{report.resolution} pixels would see it, sides in steps of {report.step}."
    )
    return (
        told if report.step_is_known else f"{told} The base model is not here, so these are the steps of a usual one."
    )


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity.value,
        "title": finding.title,
        "sentence": finding.sentence,
        "notes": dict(finding.notes),
        "groups": [list(group) for group in finding.groups],
        "fixes": [{"name": name, "button": find_fix(finding.kind, name).button} for name in finding.fixes],
    }


def _functions(services: Services) -> Sequence[Answer]:
    return QualityDesk(services).functions()


QUALITY_PANEL = Panel("quality", _functions)
