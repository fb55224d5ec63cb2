"""A dataset as the page's grid draws it: one plain row a picture, and the tasks that work on it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from security.errors import SafelightError
from trainer.dataset.facts import facts_of
from trainer.dataset.settings import Mark, mask_path
from trainer.dataset.studio import Dataset
from trainer.dataset.tokens import count_tokens
from trainer.tasks import TaskView
from trainer.words import duration
from trainer.workspace import Workspace
from ui.views import FILES_PREFIX

FACTS_SECONDS = 0.4
"""How long one answer may read pictures that were never looked at; the page asks for the others afterwards."""
ACTIVE = ("waiting", "running")


def picture_url(dataset: str, name: str, version: int) -> str:
    """Where the page finds a picture. On Linux a name may be no UTF-8, but it can always be told by its bytes."""
    return f"{FILES_PREFIX}/datasets/{quote(os.fsencode(dataset), safe='')}/{quote(os.fsencode(name))}?v={version:x}"


def picture_rows(workspace: Workspace, dataset: Dataset, base: str = "") -> list[dict[str, Any]]:
    """Every picture in a fixed order. `base`: the model whose tokens are counted.

    Sizes and faults are there as far as they are known; a row without them says `pending`.
    """
    names = dataset.pictures()
    captions, faults = dataset.read_captions(names)
    marks, masks = dataset.marks, _masked(dataset, names)
    tokens = count_tokens([captions.get(name, "") for name in names], base)
    rows = []
    for name, count in zip(names, tokens, strict=True):
        try:
            status = (dataset.path / name).stat()
        except OSError:  # removed a moment ago
            continue
        rows.append(
            {
                "name": name,
                "url": picture_url(dataset.name, name, status.st_mtime_ns),
                "caption": captions.get(name, ""),
                "has": name in captions,
                "caption_fault": faults.get(name, ""),
                "tokens": count,
                "bytes": status.st_size,
                "time": status.st_mtime,
                "mark": mark_row(marks.get(name)),
                "mask": name in masks,
                "pending": True,
            }
        )
    facts = picture_facts(workspace, dataset.path, [row["name"] for row in rows])
    for row in rows:
        row.update(facts.get(row["name"], {}))
    return rows


def picture_facts(workspace: Workspace, folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and fault of as many pictures as can be read in FACTS_SECONDS, of one at least."""
    until = time.monotonic() + FACTS_SECONDS
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            facts = facts_of(workspace, folder / name)
            known = {"width": facts.width, "height": facts.height, "fault": "", "pending": False}
            found[name] = known | {"frames": facts.num_frames, "alpha": facts.has_alpha, "format": facts.format}
        except SafelightError as error:
            found[name] = {"width": 0, "height": 0, "fault": str(error), "pending": False}
        if time.monotonic() > until:
            break
    return found


def mark_row(mark: Mark | None) -> dict[str, float] | None:
    """The chosen crop of a picture, if somebody chose one."""
    return {"x": mark.focus[0], "y": mark.focus[1], "zoom": mark.zoom} if mark else None


def _masked(dataset: Dataset, names: Iterable[str]) -> set[str]:
    """Pictures that have a mask. One look at the folder first: most datasets have none."""
    if not mask_path(dataset.path, "x").parent.is_dir():
        return set()
    return {name for name in names if mask_path(dataset.path, name).is_file()}


def task_row(task: TaskView) -> dict[str, Any]:
    """A task for its card and for the strip."""
    left = task.eta_seconds
    return {
        "id": task.id,
        "kind": task.kind,
        "title": task.title,
        "dataset": task.dataset,
        "state": str(task.state),
        "active": task.state in ACTIVE,
        "done": task.done,
        "total": task.total,
        "text": task.text,
        "left": f"{duration(left)} left" if left is not None else "",
        "message": task.message,
        "skipped": len(task.skipped),
    }


def mark_of(value: Any) -> Mark | None:
    """A crop out of a script's argument; None for what is none, or for the middle without zoom."""
    if not isinstance(value, Mapping):
        return None
    numbers = [value.get(key) for key in ("x", "y", "zoom")]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return None
    x, y, zoom = (number for number in numbers if number is not None)
    if not (0 <= x <= 1 and 0 <= y <= 1 and 1 <= zoom <= 100):  # before they become floats: JSON has no largest number
        return None
    mark = Mark((float(x), float(y)), float(zoom))
    return None if mark == Mark() else mark
