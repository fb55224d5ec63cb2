"""One download from its plan to the library: fetch into quarantine, check, convert if asked, promote, record."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from security.errors import FailedDownload, Interrupted, RefusedFile, RefusedName, SafelightError
from security.fetch import Fetched, Wanted, fetch, promote
from security.net import Network
from security.parts import sync_folder
from security.policy import MAX_HEADER_BYTES, MAX_MODEL_JSON_BYTES, MAX_VOCABULARY_BYTES, Service
from security.roots import Root
from security.secrets import Secret
from security.sniff import SNIFF_BYTES
from security.urls import SafeUrl
from trainer.models.checks import check_quarantined, check_tagger_folder
from trainer.models.detect import detect
from trainer.models.files import WEIGHT_SUFFIX, file_hashes, library_path, remember_hashes
from trainer.models.jobfiles import Job, Meter
from trainer.models.plans import Plan, PlannedFile
from trainer.models.provenance import FileRecord, Provenance, forget_provenance, recorded_parts, write_provenance
from trainer.workspace import TAGGERS, Workspace

PARTS_FOLDER, MODEL_FOLDER = "parts", "model"
_LIBRARY_LOCK = ".library.lock"


def fetch_model(
    workspace: Workspace,
    network: Network,
    token: Secret | None,
    job: Job,
    folder: Path,
    meter: Meter,
    cancelled: Callable[[], bool],
) -> None:
    """Fetches a model and puts it into the library, where it appears whole or not at all.

    `folder` is the job's own, on the disk of the library. Raises SafelightError: what was refused or failed, why, and the
    way out. What the checks refuse is deleted; what a broken connection left stays, so that it can go on.
    """
    (folder / PARTS_FOLDER).mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(folder / MODEL_FOLDER, ignore_errors=True)  # of an attempt that ended while it was being put together
    (folder / MODEL_FOLDER).mkdir(mode=0o700)
    try:
        fetched = {}
        for file in job.plan.files:
            fetched[file.path] = _fetch_one(network, token, job, file, folder, meter, cancelled)
            meter.file_is_done(fetched[file.path].size)
    except RefusedFile:
        _clear(folder)
        raise
    try:
        meter.checks("Checking")
        model = _put_together(job, folder / MODEL_FOLDER, fetched, meter)
        if workspace.shelf == TAGGERS:
            check_tagger_folder(model)
        else:
            check_quarantined(model)
        _promote(workspace, job, model, fetched)
    except (RefusedFile, FailedDownload):
        _clear(folder)  # refused for what is in it: nothing may pick it up by accident
        raise
    _clear(folder)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
    shutil.rmtree(folder / MODEL_FOLDER, ignore_errors=True)


def _fetch_one(
    network: Network,
    token: Secret | None,
    job: Job,
    file: PlannedFile,
    folder: Path,
    meter: Meter,
    cancelled: Callable[[], bool],
) -> Fetched:
    look = _FirstLook(job, file, folder)

    def locate() -> SafeUrl:
        return file_url(network, job.plan, file)

    def progress(have: int, total: int | None) -> None:
        meter.tell(have, total)
        look.at(have, total)

    small = MAX_VOCABULARY_BYTES if file.path.endswith((".json", ".txt", ".csv")) else None
    wanted = Wanted(file.path, file.size, file.sha256 or None, file.git_sha1 or None)
    if small is not None:
        limit = MAX_MODEL_JSON_BYTES if file.path.endswith("config.json") else small
        wanted = Wanted(file.path, file.size, file.sha256 or None, file.git_sha1 or None, limit)
    try:
        return fetch(
            network, locate, Root(folder / PARTS_FOLDER), wanted, token=token, progress=progress, cancelled=cancelled
        )
    except Interrupted as error:
        raise FailedDownload(f"{error} What has come is kept: press Continue, or run the same command again.") from None


class _FirstLook:
    """Checks the header of a single file as soon as it has come, so that the wrong model is not fetched to its end.

    A sparse file stands for the whole: it has the header and the announced size, which is all that the checks read.
    """

    def __init__(self, job: Job, file: PlannedFile, folder: Path) -> None:
        self._parts = folder / PARTS_FOLDER
        self._stand_in = folder / MODEL_FOLDER / f"{job.name}{WEIGHT_SUFFIX}"
        self._is_over = job.plan.layout != "file" or not file.path.endswith(WEIGHT_SUFFIX)

    def at(self, have: int, total: int | None) -> None:
        """The file has `have` of `total` bytes. Raises RefusedFile if it is no model that can be trained."""
        if self._is_over or not total or have < SNIFF_BYTES:
            return
        part = next(self._parts.glob("*.part"))
        with part.open("rb") as file:
            length = 8 + int.from_bytes(file.read(8), "little")
            if have < length <= MAX_HEADER_BYTES:
                return  # the header is still coming
            file.seek(0)
            start = file.read(min(length, MAX_HEADER_BYTES))
        self._is_over = True
        self._stand_in.write_bytes(start)
        try:
            os.truncate(self._stand_in, total)
            detect(self._stand_in)
        finally:
            self._stand_in.unlink()


def file_url(network: Network, plan: Plan, file: PlannedFile) -> SafeUrl:
    """Where the hub has a file. Asked anew for each attempt, because what it leads to expires."""
    if plan.service is Service.HUGGING_FACE:
        return network.url(plan.service, f"/{plan.repo}/resolve/{plan.revision}/{file.remote}")
    return network.url(
        plan.service, f"/api/download/models/{plan.version_id}", {"fileId": file.remote}, host=plan.host or None
    )


def _put_together(job: Job, folder: Path, fetched: dict[str, Fetched], meter: Meter) -> Path:
    """Gives the files the names that they have in a model. Returns the model's file or folder.

    They are second names of the files in quarantine, which stay there in case the program ends before the end.
    """
    if job.plan.layout == "file":
        ((path, one),) = fetched.items()
        suffix = Path(path).suffix.lower()
        if job.plan.needs_convert:
            return _converted(one, folder, suffix, job.name, meter)
        model = folder / f"{job.name}{suffix}"
        _name_also(one.path, model)
        return model
    model = folder / job.name
    for path, one in fetched.items():
        target = Root(folder).child(job.name, *path.split("/"))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _name_also(one.path, target)
    return model


def _converted(fetched: Fetched, folder: Path, suffix: str, name: str, meter: Meter) -> Path:
    from security.convert import convert_checkpoint  # needed for old files only

    meter.checks("Converting in a sandbox")
    risky = folder / f"{name}{suffix}"
    _name_also(fetched.path, risky)
    model = folder / f"{name}.safetensors"
    convert_checkpoint(risky, model)
    risky.unlink()
    meter.checks("Checking")
    return model


def _name_also(file: Path, name: Path) -> None:
    try:
        os.link(file, name, follow_symlinks=False)
    except OSError:  # a disk without second names, such as exFAT
        file.replace(name)


def _promote(workspace: Workspace, job: Job, model: Path, fetched: dict[str, Fetched]) -> None:
    """Moves a checked model into the library and writes its record. Never replaces anything there."""
    for part in [model, *model.rglob("*")] if model.is_dir() else [model]:
        part.chmod(stat.S_IRUSR | stat.S_IWUSR | (stat.S_IXUSR if part.is_dir() else 0))
    for one in fetched.values():
        one.path.unlink(missing_ok=True)  # from here on each file has one name only, which `promote` insists on
    host = next(iter(fetched.values())).host
    if model.is_dir():
        _refuse_changed(workspace, model, fetched)
        came = {f"{model.name}/{path}": one for path, one in fetched.items()}
    else:
        only = replace(next(iter(fetched.values())), path=model)
        if job.plan.needs_convert:
            ((_, sha256),) = file_hashes([model], workspace.models_cache_dir).items()
            only = Fetched(model, model.stat().st_size, sha256, host, "")
        came = {model.name: only}
    files = {path: FileRecord(one.size, one.sha256) for path, one in came.items()}
    workspace.models_cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.models_cache_dir / _LIBRARY_LOCK, mode=0o600):  # another program may bring the same name
        if library_path(workspace.models_dir, job.name) is not None:
            raise RefusedName(
                f"There is a model named {job.name} by now. Remove it, or fetch this one under another name."
            )
        _move_in(workspace, job.name, model, came, replace(_record(job, host), files=files))


def _move_in(workspace: Workspace, name: str, model: Path, came: dict[str, Fetched], record: Provenance) -> None:
    """Record, then model: should the program end in between, there is no model that nothing is known of."""
    write_provenance(workspace, name, record)
    try:
        if model.is_dir():
            model.rename(workspace.models_dir / model.name)
            sync_folder(workspace.models_dir)
        else:
            promote(came[model.name], workspace.models_dir / model.name)  # compares the content once more
    except (SafelightError, OSError):
        forget_provenance(workspace, name)
        raise
    hashes = {workspace.models_dir / path: one.sha256 for path, one in came.items()}
    remember_hashes(hashes, workspace.models_cache_dir)


def _refuse_changed(workspace: Workspace, model: Path, fetched: dict[str, Fetched]) -> None:
    """What was checked is what goes in: nothing may have written to the files since they came."""
    now = file_hashes([model / path for path in fetched], workspace.models_cache_dir, reread=True)
    if now != {model / path: one.sha256 for path, one in fetched.items()} or set(now) != set(
        recorded_parts(workspace, model)
    ):
        raise RefusedFile(f"{model.name} changed in quarantine after it had come. It is deleted. Fetch it again.")


def source_text(plan: Plan) -> str:
    """Where a model comes from, in one line of its record."""
    return f"{plan.service.value}: {plan.source}"


def _record(job: Job, host: str) -> Provenance:
    plan = job.plan
    with_hash = sum(bool(file.sha256 or file.git_sha1) for file in plan.files)
    checked = (
        "every file compared with the hub's checksum"
        if with_hash == len(plan.files)
        else f"{with_hash} of {len(plan.files)} files compared with the hub's checksum; the others had none"
    )
    if plan.needs_convert:
        sent = plan.files[0].sha256
        checked = f"converted from {plan.files[0].remote}" + (f" with the SHA-256 {sent}" if sent else "")
    return Provenance(
        source=source_text(plan),
        url=plan.page.partition("?")[0],
        revision=plan.revision,
        licence=plan.licence,
        checked=f"{checked}; sent by {host}",
        verdicts=plan.verdicts,
    )
