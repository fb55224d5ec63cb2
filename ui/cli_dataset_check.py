"""`dataset check`: the quality of a dataset on the command line, and its fixes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.errors import SafelightError
from trainer.config.files import apply_flags, load_values, parse_config
from trainer.config.schema import TrainConfig
from trainer.dataset.checking import Checking, Report
from trainer.dataset.fixes import apply_fix, find_fix
from trainer.dataset.plan import model_step
from trainer.dataset.quality import CHECKS, Severity
from trainer.tasks import TaskControl, TaskState
from ui.cli_dataset import FAILED, open_studio, watch
from ui.settings_files import named_file

SHOWN_PICTURES = 10


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `dataset check`."""
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument("--config", type=Path, metavar="RUN.toml", help="judge by the settings of this run")
    parser.add_argument("--resolution", metavar="N", help="judge by this resolution in pixels")
    parser.add_argument("--base", metavar="MODEL", help="judge by the sizes of this base model")
    parser.add_argument("--held-out", default="", metavar="DATASET", help="must not have the same pictures as this one")
    parser.add_argument(
        "--tagger", default="", metavar="TAGGER", help="also compare what this tagger sees in the pictures"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too, not for problems alone")
    parser.add_argument("--all", action="store_true", help="name every picture, not the first ten of each finding")
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="CHECK[=FIX]",
        help="do what is advised about these findings, or this FIX; one step to undo each. May be given repeatedly",
    )


def check(options: argparse.Namespace) -> int:
    """Prints what was found; the exit code is 1 if a problem is left, with --strict also for a warning."""
    studio = open_studio(options)
    dataset = studio.open(options.name)
    config = _config(options)
    if options.base is not None:
        model_step(studio.workspace, config.model.base)  # a model that is named must be there
    checking = Checking(studio, dataset, config, options.held_out, options.tagger)
    told = []
    for kind, fix in [_fix_of(text) for text in options.fix]:
        sentence = _waited(checking, f"{CHECKS[kind].title}: {find_fix(kind, fix).button}", options, _fixing(kind, fix))
        told.append({"check": kind, "fix": fix, "done": sentence})
        if not options.json:
            print(f"{CHECKS[kind].title}: {sentence}")
    if told:
        dataset.history.settle()
    reports: list[Report] = []

    def work(checked: Checking, control: TaskControl) -> str:
        reports.append(checked.report(control))
        return reports[0].sentence

    _waited(checking, "Checking the quality", options, work)
    (report,) = reports
    if options.json:
        print(json.dumps(_values(report) | {"fixes": told}))
    else:
        _print(report, every=options.all)
    bad = (Severity.PROBLEM, Severity.WARNING) if options.strict else (Severity.PROBLEM,)
    return FAILED if any(finding.severity in bad for finding in report.findings) else 0


Work = Callable[[Checking, TaskControl], str]


def _fixing(kind: str, fix: str) -> Work:
    return lambda checking, control: apply_fix(checking, kind, fix, None, control)


def _waited(checking: Checking, title: str, options: argparse.Namespace, work: Work) -> str:
    """Runs work as a task, so that it shows its progress and ends at Ctrl+C. Raises SafelightError if it does not succeed."""
    tasks = checking.studio.tasks
    task = tasks.start("check", title, checking.dataset.name, lambda control: work(checking, control))
    view = watch(checking.studio, task, quiet=options.json)
    if view.state is not TaskState.DONE:
        raise SafelightError(view.message)
    return view.message


def _config(options: argparse.Namespace) -> TrainConfig:
    values = load_values(named_file(options.config)) if options.config is not None else {}
    flags = []
    if options.resolution is not None:
        flags += ["--dataset.resolution", options.resolution]
    if options.base is not None:
        flags += ["--model.base", options.base]
    return parse_config(apply_flags(values, flags))


def _fix_of(text: str) -> tuple[str, str]:
    """A check and one of its fixes, the advised one unless named."""
    kind, _, fix = text.partition("=")
    if kind in CHECKS and not fix:
        fix = CHECKS[kind].fixes[0]
    find_fix(kind, fix)
    return kind, fix


def _values(report: Report) -> dict[str, Any]:
    findings = [
        {
            "kind": finding.kind,
            "severity": finding.severity.value,
            "sentence": finding.sentence,
            "pictures": dict(finding.notes),
            "groups": [list(group) for group in finding.groups],
            "fixes": list(finding.fixes),
        }
        for finding in report.findings
    ]
    known = ("dataset", "num_pictures", "resolution", "step", "step_is_known", "held_out", "sentence")
    return {**{name: getattr(report, name) for name in known}, "findings": findings}


def _print(report: Report, *, every: bool) -> None:
    step = f"sides in steps of {report.step}" + ("" if report.step_is_known else ", as of a usual model")
    print(f"{report.dataset} at {report.resolution}×{report.resolution} pixels, {step}: {report.sentence}")
    for finding in report.findings:
        print(f"\n{finding.severity.value.upper()}  {finding.sentence}")
        shown = finding.pictures if every else finding.pictures[:SHOWN_PICTURES]
        for name in shown:
            print(f"  {name}: {finding.notes[name]}")
        if len(shown) < len(finding.pictures):
            print(f"  and {len(finding.pictures) - len(shown):,} more (--all)")
        for fix in finding.fixes:
            print(f"  --fix {finding.kind}={fix}: {find_fix(finding.kind, fix).button}")
