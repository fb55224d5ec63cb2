"""Lists on the command line: runs and base models, for people or as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

from trainer.families import FAMILIES
from trainer.jobs import Jobs
from trainer.models.catalog import catalog
from trainer.models.library import list_models
from trainer.models.text import gigabytes
from trainer.runs import Progress
from trainer.workspace import Workspace


def list_runs(workspace: Workspace, *, as_json: bool) -> int:
    """Prints every run, newest first."""
    runs = Jobs(workspace).runs()
    if as_json:
        fields = (
            "run_id",
            "name",
            "state",
            "step",
            "total_steps",
            "loss",
            "created",
            "message",
            "can_resume",
            "notice",
        )
        listed = [{field: getattr(run, field) for field in fields} | _best(run) for run in runs]
        print(json.dumps(listed, indent=1))
        return 0
    if not runs:
        print(f"No runs in {workspace.path} yet. `demo` makes the first one.")
        return 0
    rows = [("RUN", "STATE", "STEP", "LOSS", "BEST", "STARTED")]
    for run in runs:
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        started = datetime.datetime.fromtimestamp(run.created).strftime("%Y-%m-%d %H:%M")
        best = f"{run.best.loss:.4f} at {run.best.step}" if run.best else ""
        rows.append((run.run_id, run.state.value, f"{run.step}/{run.total_steps}", loss, best, started))
    print_table(rows)
    return 0


def _best(run: Progress) -> dict[str, object]:
    """The step with the lowest held-out loss, and its files; empty where none was measured."""
    files = [saved.path for saved in run.recommended]
    return {"best_step": run.best.step, "best_loss": run.best.loss, "recommended": files} if run.best else {}


def list_base_models(workspace: Workspace, *, as_json: bool) -> int:
    """Prints the embedded model and those in the workspace; for one that can't be used, why."""
    models = list_models(workspace)
    if as_json:
        fields = ("name", "family", "family_label", "num_bytes", "prediction_type", "builtin", "problem", "source")
        listed = [
            {
                **{field: getattr(model, field) for field in fields},
                "integrity": model.integrity.value,
                "path": str(model.path),
            }
            for model in models
        ]
        print(json.dumps(listed, indent=1))
        return 0
    rows = [("MODEL", "FAMILY", "PREDICTS", "SIZE", "FILES", "SOURCE")]
    for model in models:
        note = model.problem or model.source
        files = "embedded" if model.builtin else model.integrity.value
        rows.append((model.name, model.family_label, model.prediction_type, gigabytes(model.num_bytes), files, note))
    print_table(rows)
    return 0


def list_catalog(*, as_json: bool) -> int:
    """Prints the models that are suggested, with the sizes to download."""
    if as_json:
        fields = ("name", "title", "family", "source", "file", "licence", "revision", "size", "sha256", "why")
        print(json.dumps([{field: getattr(row, field) for field in fields} for row in catalog()], indent=1))
        return 0
    rows = [("NAME", "FAMILY", "SIZE", "LICENCE", "WHAT FOR")]
    for row in catalog():
        size = gigabytes(row.size) if row.size else "?"
        rows.append((row.name, FAMILIES[row.family].label, size, row.licence or "see its page", row.why))
    print_table(rows)
    print("Fetch one with: python launch.py fetch NAME")
    return 0


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
