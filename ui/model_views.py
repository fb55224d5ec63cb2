"""What the page shows of models and their downloads, as plain values. Nothing here knows Gradio."""

from __future__ import annotations

import re
from typing import Any

from trainer.families import FAMILIES
from trainer.models.catalog import CatalogRow
from trainer.models.jobfiles import Download, DownloadState
from trainer.models.library import ModelInfo
from trainer.models.plans import Plan
from trainer.models.provenance import Integrity
from trainer.models.text import gigabytes
from trainer.words import duration

STATES: dict[DownloadState, tuple[str, str]] = {
    DownloadState.WAITING: ("Waiting", "quiet"),
    DownloadState.DOWNLOADING: ("Downloading", "good"),
    DownloadState.CHECKING: ("Checking", "busy"),
    DownloadState.ELSEWHERE: ("Downloading elsewhere", "busy"),
    DownloadState.DONE: ("Done", "good"),
    DownloadState.FAILED: ("Failed", "bad"),
    DownloadState.STOPPED: ("Stopped", "quiet"),
    DownloadState.INTERRUPTED: ("Interrupted", "busy"),
}
"""Word and tone of each state."""
CANCEL = "cancel_download"
"""The strip's action on a download."""
_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")
INTEGRITY: dict[Integrity, tuple[str, str]] = {
    Integrity.VERIFIED: ("verified: the files are those that came", ""),
    Integrity.UNREAD: ("compared when it is used", ""),
    Integrity.UNRECORDED: ("no record of where it came from", ""),
    Integrity.CHANGED: ("changed since it came: remove it and fetch it again", "bad"),
}
"""What the table says of a model's files, and the tone."""


def model_row(info: ModelInfo, num_runs: int) -> dict[str, Any]:
    """One model of the library."""
    state, tone = ("built in", "") if info.builtin else INTEGRITY[info.integrity]
    if info.problem:
        state, tone = info.problem, "bad"
    return {
        "name": info.name,
        "family": info.family_label,
        "size": gigabytes(info.num_bytes),
        "prediction": info.prediction_type,
        "builtin": info.builtin,
        "usable": not info.problem and info.integrity is not Integrity.CHANGED,
        "state": state,
        "tone": tone,
        "source": _COMMIT.sub(lambda found: found[0][:12], info.source),
        "used": f"{num_runs} run{'' if num_runs == 1 else 's'}" if num_runs else "",
    }


def catalog_row(row: CatalogRow) -> dict[str, Any]:
    """One suggested model."""
    return {
        "name": row.name,
        "title": row.title,
        "family": FAMILIES[row.family].label,
        "size": gigabytes(row.size) if row.size else "",
        "licence": row.licence,
        "why": row.why,
    }


def download_row(download: Download) -> dict[str, Any]:
    """One download with what can be done about it."""
    word, tone = STATES[download.state]
    actions = []
    if download.state in (DownloadState.WAITING, DownloadState.DOWNLOADING):
        actions = [["cancel", "Cancel"]]
    elif download.can_resume:
        actions = [["resume", "Continue"], ["remove", "Remove"]]
    elif download.state is DownloadState.DONE:
        actions = [["remove", "Remove from this list"]]
    return {
        "id": download.id,
        "name": download.name,
        "title": download.title,
        "word": word,
        "tone": tone,
        "percent": download.percent,
        "active": download.state.is_active,
        "done": download.state is DownloadState.DONE,
        "line": download_line(download),
        "message": download.message if download.state is DownloadState.FAILED else "",
        "actions": actions,
    }


def download_line(download: Download) -> str:
    """Where a download stands, in one line."""
    done = gigabytes(download.done_bytes)
    whole = f"{done} of {gigabytes(download.total_bytes)}" if download.total_bytes else done
    match download.state:
        case DownloadState.WAITING:
            return "waits for the one before it"
        case DownloadState.DOWNLOADING:
            parts = [f"{download.percent}%", whole] if download.total_bytes else [whole]
            if download.rate is not None:
                parts.append(f"{gigabytes(download.rate)}/s")
            if download.eta_seconds is not None:
                parts.append(f"{duration(download.eta_seconds)} left")
            return " · ".join(parts)
        case DownloadState.CHECKING:
            return download.message or "Checking"
        case DownloadState.DONE:
            return f"{done}, checked and in the library"
        case DownloadState.INTERRUPTED:
            return f"Safelight was closed at {whole}; Continue goes on from there"
        case DownloadState.STOPPED:
            return f"at {whole}; Continue goes on from there"
    return whole


def plan_view(plan_id: str, plan: Plan, free_bytes: int) -> dict[str, Any]:
    """What a link would bring, line by line."""
    size = gigabytes(plan.num_bytes) if plan.num_bytes else "size unknown"
    after = gigabytes(free_bytes - plan.num_bytes) if free_bytes > plan.num_bytes else "not enough room"
    facts: list[tuple[str, str]] = [
        ("Family", FAMILIES[plan.family].label if plan.family else "found out from the file itself"),
        ("Revision", plan.revision),
    ]
    if plan.files:
        facts += [("Size", size), ("Free on the disk after it", after), ("Hub's own scan", _scans(plan))]
        with_hash = sum(bool(file.sha256 or file.git_sha1) for file in plan.files)
        facts.append(("Checksums", f"{with_hash} of {len(plan.files)} files have one, and it must fit"))
    return {
        "plan": plan_id,
        "title": plan.title,
        "name": plan.name,
        "service": plan.service.value,
        "source": plan.repo or plan.source,
        "page": plan.page,
        "facts": [[name, value] for name, value in facts],
        "notes": [*plan.facts],
        "warnings": [*plan.warnings],
        "confirm": [*plan.confirm],
        "licence": plan.licence or "not stated",
        "licence_link": plan.licence_link,
        "choices": [[choice.file, choice.label] for choice in plan.choices],
        "convert": plan.needs_convert,
        "ready": bool(plan.files),
    }


def _scans(plan: Plan) -> str:
    verdicts = sorted({file.scan for file in plan.files})
    return ", ".join(verdicts)


def with_download(values: dict[str, Any], download: Download | None) -> dict[str, Any]:
    """The strip's values with a running download: in the place of an idle strip, beside one that trains."""
    if download is None:
        return {**values, "beside": ""}
    word, tone = STATES[download.state]
    line = download_line(download)
    if values["active"]:
        return {**values, "beside": f"{word} {download.name} · {line}", "download": download.id}
    return {
        **values,
        "word": word,
        "tone": tone,
        "title": f"{download.percent}% {download.name} - Safelight",
        "name": download.name,
        "run": "",
        "download": download.id,
        "headline": line,
        "percent": download.percent,
        "active": True,
        "actions": [[CANCEL, "Cancel"]] if download.state is DownloadState.DOWNLOADING else [],
        "beside": "",
    }
