"""A download as it lies on disk, and how far it is: job.json, states, bytes, speed, time left."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import SafelightError
from security.policy import MAX_MODEL_JSON_BYTES
from security.roots import Root
from trainer.models.plans import Plan, plan_from, plan_values

JOB_FILE = "job.json"
RATE_SECONDS = 10.0
"""Speed is measured over this long, so that it is calm and still follows the line."""


class Outcome(StrEnum):
    """How a download ended. None is stored while it goes on: whether it does is seen from its lock."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


class DownloadState(StrEnum):
    """Where a download stands. Derived, never stored."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    CHECKING = "checking"
    ELSEWHERE = "going on in another window of this program"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def is_active(self) -> bool:
        """A process is working on it, or will."""
        return self in (self.WAITING, self.DOWNLOADING, self.CHECKING, self.ELSEWHERE)


@dataclass(frozen=True)
class Job:
    """What job.json holds. Times in seconds since the epoch."""

    id: str
    plan: Plan
    name: str
    convert: bool
    created: float
    outcome: Outcome | None = None
    message: str = ""
    ended: float = 0.0


@dataclass(frozen=True)
class Download:
    """All that can be told about a download at one moment. Bytes; `rate` per second; None where it is not known."""

    id: str
    name: str
    title: str
    source: str
    page: str
    state: DownloadState
    done_bytes: int
    total_bytes: int | None
    rate: float | None = None
    eta_seconds: float | None = None
    message: str = ""
    created: float = 0.0

    @property
    def can_resume(self) -> bool:
        """Whether it can go on from here."""
        return not self.state.is_active and self.state is not DownloadState.DONE

    @property
    def percent(self) -> int:
        """How much has come, 0 to 100; 0 while the size is not known."""
        return min(100, 100 * self.done_bytes // self.total_bytes) if self.total_bytes else 0

    @classmethod
    def of(cls, job: Job, state: DownloadState, done_bytes: int, **more: Any) -> Download:
        """The view of a job."""
        sizes = [file.size for file in job.plan.files]
        values: dict[str, Any] = {"total_bytes": None if None in sizes else job.plan.num_bytes, "message": job.message}
        if state is DownloadState.DONE:
            done_bytes = job.plan.num_bytes
        return cls(
            id=job.id,
            name=job.name,
            title=job.plan.title,
            source=job.plan.source,
            page=job.plan.page,
            state=state,
            done_bytes=done_bytes,
            created=job.created,
            **{**values, **more},
        )


class Meter:
    """Counts what comes while a download goes on. Written by its thread, read by pages."""

    def __init__(self, total_bytes: int | None) -> None:
        self._guard = threading.Lock()
        self._total = total_bytes
        self._before = 0
        self._now = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._phase = ""

    def tell(self, have: int, total: int | None) -> None:
        """The running file has `have` of `total` bytes."""
        with self._guard:
            self._now = have
            if self._total is None and total is not None:
                self._total = self._before + total
            now = time.monotonic()
            self._samples.append((now, self._before + have))
            while now - self._samples[0][0] > RATE_SECONDS:
                self._samples.popleft()

    def file_is_done(self, num_bytes: int) -> None:
        """The running file is complete."""
        with self._guard:
            self._before, self._now = self._before + num_bytes, 0

    def checks(self, phase: str) -> None:
        """Everything is here; `phase` says what is done with it now."""
        with self._guard:
            self._phase = phase

    def view(self, job: Job) -> Download:
        """The running download as of now."""
        with self._guard:
            done, total, rate = self._before + self._now, self._total, self._rate()
            state = DownloadState.CHECKING if self._phase else DownloadState.DOWNLOADING
            left = (total - done) / rate if rate and total is not None else None
            return Download.of(
                job, state, done, total_bytes=total, rate=rate, eta_seconds=left, message=self._phase or job.message
            )

    def _rate(self) -> float | None:
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began) if ended > began and last >= first else None


def write_job(folder: Path, job: Job) -> None:
    """Writes job.json, whole or not at all."""
    values = {**dataclasses.asdict(job), "plan": plan_values(job.plan)}
    Root(folder).write_text_atomic(folder / JOB_FILE, json.dumps(values, indent=1) + "\n")


def read_job(folder: Path) -> Job | None:
    """The job of a folder; None when there is none, or one that cannot be read."""
    if not (folder / JOB_FILE).is_file():
        return None
    try:
        values = read_json(folder / JOB_FILE, MAX_MODEL_JSON_BYTES)
        fields = {**values, "plan": plan_from(values["plan"]), "id": folder.name}
        fields["outcome"] = Outcome(values["outcome"]) if values["outcome"] else None
        return Job(**fields)
    except (SafelightError, KeyError, TypeError, ValueError):
        return None
