"""Fetches models on a thread of this process: plan, start, watch, stop, go on. Closing a page touches none of it.

A download is a folder of `downloads/` in the workspace: job.json and the parts that have come. Nothing of it is used, or
lies where models are looked for, before it is whole and has passed the checks; then it is renamed into the library.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from security.errors import Cancelled, RefusedName, SafelightError
from security.names import safe_name
from security.net import Network
from security.policy import FREE_DISK_RESERVE_BYTES, PART_FILE_DAYS, Service
from security.roots import Root
from security.sandbox import probe
from security.secrets import Secret
from trainer.models import civitai, huggingface
from trainer.models.catalog import CatalogRow
from trainer.models.fetching import fetch_model, source_text
from trainer.models.files import library_path
from trainer.models.jobfiles import Download, DownloadState, Job, Meter, Outcome, read_job, write_job
from trainer.models.library import DEMO_NAME
from trainer.models.plans import Plan, RefusedModel
from trainer.models.provenance import read_provenance
from trainer.models.sources import HuggingFaceSource, parse_source
from trainer.models.text import MAX_MODEL_NAME_BYTES, gigabytes
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.downloads")

DOWNLOAD_THREAD = "safelight-download"
LOCK_NAME = ".lock"
SWEEP_SECONDS = PART_FILE_DAYS * 24 * 3600
"""Downloads that nobody went on with for this long are deleted at start."""


class Tokens(Protocol):
    """Where tokens come from; `security.tokens.TokenStore` is one."""

    def get(self, service: Service) -> Secret | None: ...


class Downloads:
    """Downloads of one workspace, one at a time. `fault` is why nothing may be fetched, empty when all is well."""

    def __init__(self, workspace: Workspace, network: Network, tokens: Tokens, *, fault: str = "") -> None:
        self.workspace = workspace
        self.network = network
        self._tokens = tokens
        self._fault = fault
        self._guard = threading.RLock()
        self._queue: deque[str] = deque()
        self._active: str | None = None
        self._meter = Meter(None)
        self._stop = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        workspace.downloads_dir.mkdir(parents=True, exist_ok=True)
        self._sweep()

    @property
    def fault(self) -> str:
        """Why nothing may be fetched, empty when all is well."""
        return self._fault

    # ---- before the first byte ----

    def plan(self, text: str, *, file: str = "", revision: str = "") -> Plan:
        """What fetching `text` would bring. `file` and `revision` choose what the text leaves open. Asks the hub.

        Raises RefusedUrl, NeedsLogin, FailedDownload or RefusedModel, with the reason and the way out.
        """
        if self._fault:
            raise SafelightError(self._fault)
        asked = parse_source(text, self.network.parse)
        source = asked.source
        if isinstance(source, HuggingFaceSource):
            if revision or file:
                source = replace(source, revision=revision or source.revision, file=file or source.file)
            plan = huggingface.plan_download(self.network, self._tokens.get(Service.HUGGING_FACE), source)
        else:
            if revision:
                raise SafelightError("A model of Civitai has versions, not revisions. Name one with civitai:VERSION.")
            plan = civitai.plan_download(self.network, self._tokens.get(Service.CIVITAI), source, file)
        unchanged = asked.row is not None and not (file or revision)
        return _as_in_catalog(plan, asked.row) if asked.row is not None and unchanged else plan

    def start(
        self, plan: Plan, *, name: str = "", convert: bool = False, confirmed: bool = False, sha256: str = ""
    ) -> str:
        """Starts a download, or goes on with the same one that was left. Returns its id.

        `sha256` is what the user expects of a single file. Raises SafelightError when something has to be chosen,
        agreed to or converted first, when the name is taken, or when the disk is too full.
        """
        if self._fault:
            raise SafelightError(self._fault)
        plan = _ready(plan, convert=convert, confirmed=confirmed, sha256=sha256)
        if plan.needs_convert and not (sandbox := probe()).active:
            raise RefusedModel(
                f"{plan.files[0].path} can only be converted in a sandbox, and there is none here. {sandbox.detail} Look for "
                "a .safetensors version."
            )
        chosen = safe_name(name.strip() or plan.name, "model name")
        if (num_bytes := len(chosen.encode())) > MAX_MODEL_NAME_BYTES:  # its record would not get a name in the end
            raise RefusedName(
                f"The model name {chosen[:60]}… is too long: it has {num_bytes} bytes and {MAX_MODEL_NAME_BYTES} are allowed. "
                "Choose a shorter one."
            )
        self._refuse_taken(chosen, plan.shelf)
        for job in self._jobs():
            if job.outcome is not Outcome.DONE and (job.name, job.plan.files) == (chosen, plan.files):
                self.resume(job.id)
                return job.id
            if self.get(job.id).state.is_active and job.name == chosen:
                raise RefusedName(f"A download named {chosen} is going on already. Choose another name.")
        self._refuse_full_disk(plan)
        job = Job(secrets.token_hex(6), plan, chosen, convert, time.time())
        self._folder(job.id).mkdir(mode=0o700)
        write_job(self._folder(job.id), job)
        self._enqueue(job.id)
        return job.id

    def _refuse_taken(self, name: str, shelf: str) -> None:
        if name == DEMO_NAME or library_path(self.workspace.on_shelf(shelf).models_dir, name) is not None:
            raise RefusedName(f"There is a model named {name} already. Choose another name, or remove it first.")

    def _is_in_library(self, job: Job) -> bool:
        workspace = self.workspace.on_shelf(job.plan.shelf)
        recorded = read_provenance(workspace, job.name)
        is_there = library_path(workspace.models_dir, job.name) is not None  # the record is written before
        return is_there and recorded is not None and recorded.source == source_text(job.plan)

    def _refuse_full_disk(self, plan: Plan) -> None:
        free = shutil.disk_usage(self.workspace.downloads_dir).free
        needed = plan.num_bytes * (2 if plan.needs_convert else 1)
        if needed + FREE_DISK_RESERVE_BYTES > free:
            raise SafelightError(
                f"{plan.title} needs {gigabytes(needed)} and {gigabytes(FREE_DISK_RESERVE_BYTES)} should stay free; the disk has "
                f"{gigabytes(free)} left. Delete something, or put the workspace on another disk."
            )

    # ---- while it runs ----

    def cancel(self, job_id: str) -> None:
        """Stops a download, or takes it out of the queue. What has come stays, so that it can go on."""
        with self._guard:
            if job_id == self._active:
                self._stop.set()
            elif job_id in self._queue:
                self._queue.remove(job_id)
                self._end(job_id, Outcome.STOPPED)
            else:
                raise SafelightError(f"The download of {self.get(job_id).name} is not going on.")

    def resume(self, job_id: str) -> None:
        """Goes on with a stopped, failed or interrupted download where it was. Raises SafelightError when it can't."""
        if self._fault:
            raise SafelightError(self._fault)
        with self._guard:
            download = self.get(job_id)
            if download.state.is_active:
                return
            if not download.can_resume:
                raise SafelightError(f"{download.name} is in the library already.")
            if self._is_in_library(self._job(job_id)):  # the program ended between the last two steps
                self._end(job_id, Outcome.DONE)
                return
            self._refuse_taken(download.name, self._job(job_id).plan.shelf)
            write_job(self._folder(job_id), replace(self._job(job_id), outcome=None, message=""))
            self._enqueue(job_id)

    def remove(self, job_id: str) -> None:
        """Forgets a download and deletes what has come of it. Raises SafelightError while it is going on."""
        with self._guard:
            if self.get(job_id).state.is_active:
                raise SafelightError(f"{self.get(job_id).name} is being fetched. Stop it first.")
            Root(self.workspace.downloads_dir).remove_tree(self._folder(job_id))

    def current(self) -> Download | None:
        """The download that is going on in this process."""
        active = self._active
        return self.get(active) if active is not None else None

    def all(self) -> list[Download]:
        """Every download that was not forgotten, newest first."""
        return [self._view(job) for job in sorted(self._jobs(), key=lambda job: job.created, reverse=True)]

    def on_shelf(self, shelf: str) -> set[str]:
        """Ids of the downloads that bring something for one of the workspace's libraries."""
        return {job.id for job in self._jobs() if job.plan.shelf == shelf}

    def get(self, job_id: str) -> Download:
        """One download as of now. Raises SafelightError when there is none of that id."""
        return self._view(self._job(job_id))

    def shutdown(self, timeout_seconds: float = 10.0) -> bool:
        """Stops what runs; it can go on at the next start. Returns whether it ended in time."""
        with self._guard:
            self._closing = True
            self._queue.clear()
            self._stop.set()
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until nothing is left to fetch. Returns False when the time is up first."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
            return not thread.is_alive()
        return True

    # ---- the thread ----

    def _enqueue(self, job_id: str) -> None:
        with self._guard:
            if self._closing:
                raise SafelightError("Safelight is shutting down; start it again first.")
            self._queue.append(job_id)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=DOWNLOAD_THREAD, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._queue:
                    self._active, self._thread = None, None
                    return
                job_id = self._queue.popleft()
                self._active = job_id
                if not self._closing:
                    self._stop.clear()
            try:
                with self._lock(job_id).acquire(timeout=0):
                    self._run(self._job(job_id))
            except Timeout:
                logger.warning("download %s is going on in another process", job_id)
            finally:
                with self._guard:
                    self._active = None

    def _run(self, job: Job) -> None:
        """One download to its end, whatever it is; the end is written down for the pages that watch."""
        self._meter = Meter(None if any(file.size is None for file in job.plan.files) else job.plan.num_bytes)
        logger.info("fetching %s from %s as %s", job.plan.source, job.plan.service.value, job.name)
        try:
            fetch_model(
                self.workspace.on_shelf(job.plan.shelf),
                self.network,
                self._tokens.get(job.plan.service),
                job,
                self._folder(job.id),
                self._meter,
                self._stop.is_set,
            )
        except Cancelled:
            if not self._closing:
                self._end(job.id, Outcome.STOPPED)
        except SafelightError as error:
            logger.warning("the download of %s failed: %s", job.name, error)
            self._end(job.id, Outcome.FAILED, str(error))
        except OSError as error:
            logger.exception("the download of %s failed", job.name)
            self._end(job.id, Outcome.FAILED, _disk_message(error))
        else:
            logger.info("%s is in the library", job.name)
            self._end(job.id, Outcome.DONE)

    def _end(self, job_id: str, outcome: Outcome, message: str = "") -> None:
        write_job(self._folder(job_id), replace(self._job(job_id), outcome=outcome, message=message, ended=time.time()))

    # ---- folders ----

    def _folder(self, job_id: str) -> Path:
        return Root(self.workspace.downloads_dir).child(job_id)

    def _lock(self, job_id: str) -> FileLock:
        return FileLock(self._folder(job_id) / LOCK_NAME)

    def _job(self, job_id: str) -> Job:
        job = read_job(self._folder(job_id))
        if job is None:
            raise SafelightError(f"There is no download {job_id[:40]!r} any more.")
        return job

    def _jobs(self) -> list[Job]:
        folders = [path for path in self.workspace.downloads_dir.iterdir() if path.is_dir() and not path.is_symlink()]
        return [job for folder in folders if (job := read_job(folder)) is not None]

    def _view(self, job: Job) -> Download:
        with self._guard:
            is_active, waits, meter = job.id == self._active, job.id in self._queue, self._meter
        if is_active and job.outcome is None:
            return meter.view(job)
        have = _size_below(self._folder(job.id))
        if waits:
            state = DownloadState.WAITING
        elif job.outcome is not None:
            state = DownloadState(job.outcome.value)
        elif self._is_held(job.id):
            state = DownloadState.ELSEWHERE
        else:
            state = DownloadState.INTERRUPTED
        return Download.of(job, state, have)

    def _is_held(self, job_id: str) -> bool:
        """Whether another process works on it: then its lock cannot be had."""
        try:
            with self._lock(job_id).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def _sweep(self) -> None:
        """Deletes downloads that were left long ago, and folders of which nothing can be read."""
        for folder in [path for path in self.workspace.downloads_dir.iterdir() if path.is_dir()]:
            # looking at a download touches its lock, which is no going on with it
            files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
            age = time.time() - max((path.stat().st_mtime for path in files), default=0.0)
            if age < SWEEP_SECONDS or self._is_held(folder.name):
                continue
            job = read_job(folder)
            logger.info("deleting %s: nobody went on with it for %d days", job.name if job else folder, age // 86400)
            Root(self.workspace.downloads_dir).remove_tree(folder)


def _ready(plan: Plan, *, convert: bool, confirmed: bool, sha256: str) -> Plan:
    """The plan as it will be fetched. Raises RefusedModel for what the user has to decide first."""
    if not plan.files:
        raise RefusedModel(
            f"{plan.title} holds several models. Choose one: {', '.join(one.file for one in plan.choices)}."
        )
    if plan.needs_convert and not convert:
        raise RefusedModel(
            f"Refused: {plan.files[0].path} is a {Path(plan.files[0].path).suffix} file, which can run code when opened. "
            "Look for a .safetensors version, or let Safelight convert it: it is opened in a sandbox, and only "
            "its tensors are kept."
        )
    if sha256:
        if len(plan.files) != 1:
            raise RefusedModel("A SHA-256 can be given for a single file only; this is a folder of files.")
        given = plan.files[0].sha256
        if given and given != sha256.lower():
            raise RefusedModel(
                f"Refused: the hub has {plan.files[0].path} with the SHA-256 {given}, you expect {sha256.lower()}. It is "
                "another file; check the address and the hash."
            )
        plan = replace(plan, files=(replace(plan.files[0], sha256=sha256.lower()),))
    if plan.confirm and not confirmed:
        open_points = [point for point in plan.confirm if not (sha256 and "no SHA-256" in point)]
        if open_points:
            raise RefusedModel(f"Agree first, or leave it: {'; '.join(open_points)}.")
    return plan


def _as_in_catalog(plan: Plan, row: CatalogRow) -> Plan:
    """Holds what the catalog knows of a model against what the hub says. Raises RefusedModel where they differ."""
    file = plan.files[0]
    for what, known, said in (("SHA-256", row.sha256, file.sha256), ("size in bytes", row.size, file.size)):
        if known and said and known != said:
            raise RefusedModel(
                f"Refused: the catalog knows {row.title} with the {what} {known}; the hub now has {said}. The file was "
                "exchanged, or the catalog is out of date: paste the model's own address if you trust it."
            )
    facts = (row.why, *plan.facts)
    if row.sha256:
        facts = (*facts, "Size and SHA-256 are those of the catalog")
    files = (replace(file, sha256=row.sha256 or file.sha256, size=row.size or file.size),)
    return replace(
        plan,
        title=row.title,
        name=row.name,
        family=row.family,
        licence=plan.licence or row.licence,
        files=files,
        facts=facts,
    )


def _size_below(folder: Path) -> int:
    """Bytes of what has come."""
    return sum(path.stat().st_size for path in (folder / "parts").rglob("*") if path.is_file() and path.name[0] != ".")


def _disk_message(error: OSError) -> str:
    if error.errno in (28, 122):
        return "The disk is full. Make room, then press Continue: the download goes on where it was."
    return f"The disk did not do what it was asked ({error.strerror or type(error).__name__}). Check it, then press Continue."
