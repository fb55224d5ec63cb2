"""Fetches one file from a hub into quarantine, and moves it to its place once it was checked.

Nothing that a server says is believed: sizes are counted, checksums are made while the bytes come, and a file that
differs from what the hub's own list announced never leaves the quarantine.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from security.errors import FailedDownload, Interrupted
from security.net import Network, Response, Retries
from security.parts import NO_FOLLOW, Note, Part, hash_of, is_regular, sync_folder
from security.policy import FREE_DISK_CHECK_BYTES, MAX_MODEL_BYTES, MIB
from security.roots import Root
from security.urls import SafeUrl

if TYPE_CHECKING:
    from security.secrets import Secret

PROGRESS_SECONDS = 0.1
"""Least time between two reports of progress."""
_PROGRESS_BYTES = 1 * MIB
"""An attempt that brought this much does not count as failed."""
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]+"')
_CHANGED = "{} changed in quarantine after it was checked. Download it again."
_NO_SECOND_NAMES = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
"""What disks without hard links answer: exFAT, FAT, some network folders."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


@dataclass(frozen=True)
class Wanted:
    """What the hub's own list says about a file. Sizes in bytes, checksums in hex; None if the list has none.

    `name` stands in messages and must be different for each file of one quarantine folder. `git_sha1`: of small files
    of Hugging Face, which have no sha256. At most `max_bytes` are ever read.
    """

    name: str
    size: int | None
    sha256: str | None
    git_sha1: str | None = None
    max_bytes: int = MAX_MODEL_BYTES


@dataclass(frozen=True)
class Fetched:
    """A complete file in quarantine whose checksums are right. `host`: which one sent it; `etag`: "" if weak or none."""

    path: Path
    size: int
    sha256: str
    host: str
    etag: str


def fetch(
    network: Network,
    locate: Callable[[], SafeUrl],
    quarantine: Root,
    wanted: Wanted,
    *,
    token: Secret | None,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
) -> Fetched:
    """Downloads one file, going on where an earlier attempt ended. `locate` is asked anew before every attempt.

    `progress` gets the bytes that are there and the size, or None. Broken transfers are tried again. Raises
    FailedDownload (its subclass Interrupted once the tries are used up), NeedsLogin, RefusedUrl and Cancelled; after
    Interrupted and Cancelled, and when the disk is full, what came is kept for the next time.
    """
    _check_wanted(wanted)
    retries = Retries(network.patience, cancelled)
    url = locate()
    size, sha256 = wanted.size, wanted.sha256.lower() if wanted.sha256 else None
    part = Part(quarantine, wanted.name, Note(url=url.shown, size=size, sha256=sha256))
    with part.locked():
        if whole := part.take_whole():
            return Fetched(part.whole_path, *whole, url.host, "")
        part.open(cancelled)
        transfer = _Transfer(network, part, wanted, token, progress, cancelled)
        while True:
            before = part.have
            try:
                return transfer.attempt(url)
            except Interrupted as error:
                if part.have - before >= _PROGRESS_BYTES:
                    retries.progressed()
                retries.wait(error)
            url = locate()


def promote(fetched: Fetched, target: Path) -> None:
    """Moves a fetched file to its place, on the same disk, for good. Its content is compared once more.

    A file that is there already and has the same content is kept as it is. Raises FailedDownload if it has another
    content; nothing is ever overwritten.
    """
    try:
        descriptor = os.open(fetched.path, os.O_RDWR | NO_FOLLOW)
        try:
            os.fsync(descriptor)
            if not is_regular(descriptor) or hash_of(descriptor) != fetched.sha256:
                raise FailedDownload(_CHANGED.format(target.name))
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _link(fetched.path, target):
                _check_same(target, fetched)
            elif not os.path.samestat(os.fstat(descriptor), target.lstat()):
                target.unlink()
                raise FailedDownload(_CHANGED.format(target.name))
        finally:
            os.close(descriptor)
        fetched.path.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno == errno.EXDEV:
            reason = f"{fetched.path.parent} and {target.parent} must be on one disk"
        else:
            reason = error.strerror or type(error).__name__
        raise FailedDownload(f"{target} could not be put in its place: {reason}.") from None


class _Transfer:
    """The attempts to get one file."""

    def __init__(
        self,
        network: Network,
        part: Part,
        wanted: Wanted,
        token: Secret | None,
        progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._network = network
        self._part = part
        self._wanted = wanted
        self._token = token
        self._progress = progress
        self._cancelled = cancelled
        self._joined = part.have > 0
        self._started_over = False

    def attempt(self, url: SafeUrl) -> Fetched:
        """One transfer, or what is missing of it. Raises Interrupted if another attempt may help."""
        part = self._part
        if url.shown != part.wanted.url:
            part.wanted = Note(url.shown, "", part.wanted.size, part.wanted.sha256)
            part.restart()
        if self._wanted.size is not None and part.have > self._wanted.size:
            part.restart()
        if part.have and part.have == self._wanted.size:
            return self._checked(url.host)
        if part.have and not part.etag:
            part.restart()
        headers = {"Range": f"bytes={part.have}-", "If-Range": part.etag} if part.have else {}
        with self._network.open(url, token=self._token, headers=headers, cancelled=self._cancelled) as response:
            if response.status == 200 or _continues(response, part, self._wanted.size):
                self._receive(response)
                return self._checked(response.url.host)
        part.restart()  # a part of something else, or none: ask again, for the whole
        with self._network.open(url, token=self._token, cancelled=self._cancelled) as response:
            self._receive(response)
            return self._checked(response.url.host)

    def _receive(self, response: Response) -> None:
        """Writes a body to the part. Raises FailedDownload when it is, or gets, larger than it may be."""
        part, wanted = self._part, self._wanted
        if response.status == 200 and part.have:
            part.restart()
        self._joined = part.have > 0
        total = wanted.size if response.length is None else part.have + response.length
        self._check_total(response, total)
        limit = wanted.max_bytes if total is None else total
        part.check_room(limit - part.have if total is not None else 0)
        part.remember(_strong_etag(response))
        next_look = part.have + FREE_DISK_CHECK_BYTES
        told = 0.0
        for piece in response.chunks():
            if part.have + len(piece) > limit:
                part.remove()
                raise FailedDownload(f"{wanted.name} is larger than the {limit} bytes it may have. It was deleted.")
            part.write(piece)
            if part.have >= next_look:
                part.check_room(limit - part.have if total is not None else 0)
                next_look = part.have + FREE_DISK_CHECK_BYTES
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self._progress(part.have, total)
        self._progress(part.have, total)
        if wanted.size is not None and part.have < wanted.size and response.length is None and not response.chunked:
            raise Interrupted(f"{response.url.host} broke off after {part.have} of {wanted.size} bytes.")

    def _check_total(self, response: Response, total: int | None) -> None:
        """Refuses a body by what is announced, before any of it is read."""
        wanted, host = self._wanted, response.url.host
        if wanted.size is not None and total != wanted.size:
            raise FailedDownload(
                f"{host} announces {total} bytes for {wanted.name}; the hub's list says {wanted.size}."
            )
        if total is not None and total > wanted.max_bytes:
            raise FailedDownload(_too_large(wanted.name, total, wanted.max_bytes))
        if total is None and not response.chunked and wanted.sha256 is None:
            raise FailedDownload(
                f"Neither {host} nor the hub's list says how long {wanted.name} is. It was not fetched."
            )

    def _checked(self, host: str) -> Fetched:
        """The complete file, if size and checksums are right; else it is deleted."""
        part, wanted = self._part, self._wanted
        fault = ""
        sha256 = part.sha256.hexdigest()
        if wanted.size is not None and part.have != wanted.size:
            fault = f"it has {part.have} bytes and the hub's list says {wanted.size}"
        elif part.wanted.sha256 is not None and sha256 != part.wanted.sha256:
            fault = f"its sha256 is {sha256} and the hub's list says {part.wanted.sha256}"
        elif wanted.git_sha1 is not None and (found := part.git_sha1()) != wanted.git_sha1.lower():
            fault = f"its git sha1 is {found} and the hub's list says {wanted.git_sha1}"
        if not fault:
            etag, size = part.etag, part.have
            return Fetched(part.finish(), size, sha256, host, etag)
        part.restart()
        if self._joined and not self._started_over:
            self._started_over = True
            raise Interrupted(f"{wanted.name} was put together wrongly: {fault}. It is fetched anew.")
        raise FailedDownload(f"{wanted.name} is not the file that was announced: {fault}. It was deleted.")


def _check_wanted(wanted: Wanted) -> None:
    """Raises FailedDownload for what is too large by the hub's own list, or has a checksum that is none."""
    if wanted.size is not None and not 0 <= wanted.size <= wanted.max_bytes:
        raise FailedDownload(_too_large(wanted.name, wanted.size, wanted.max_bytes))
    for text, digits in ((wanted.sha256, 64), (wanted.git_sha1, 40)):
        if text is not None and not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", text):
            raise FailedDownload(f"The checksum {text[:80]!r} of {wanted.name} does not have {digits} hex digits.")


def _too_large(name: str, size: int, limit: int) -> str:
    return f"{name} has {size / MIB:.0f} MiB and at most {limit / MIB:.0f} MiB are fetched. Is it the right file?"


def _continues(response: Response, part: Part, size: int | None) -> bool:
    """True if the answer is exactly what is missing of the same file."""
    ranges = response.headers.get_all("Content-Range", [])
    match = _CONTENT_RANGE.fullmatch(ranges[0]) if response.status == 206 and len(ranges) == 1 else None
    if match is None or _strong_etag(response) not in ("", part.etag):
        return False
    first, last, total = (int(group) for group in match.groups())
    return (
        first == part.have
        and last == total - 1
        and total == (size if size is not None else total)
        and response.length in (None, total - first)
    )


def _strong_etag(response: Response) -> str:
    """The answer's ETag if it promises the same bytes, else ""."""
    etags = response.headers.get_all("ETag", [])
    return etags[0] if len(etags) == 1 and _STRONG_ETAG.fullmatch(etags[0]) else ""


def _link(source: Path, target: Path) -> bool:
    """Gives the file its place. False if something is there already. Raises OSError."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise FailedDownload(
                f"{source.parent} and {target.parent} must be on one disk. Move the workspace."
            ) from None
        # Some disks (exFAT, network folders) have no second names for a file. An empty file keeps the place instead.
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        source.replace(target)
    return True


def _check_same(target: Path, fetched: Fetched) -> None:
    """Raises FailedDownload unless the file in the way has the same content."""
    try:
        descriptor = os.open(target, os.O_RDONLY | NO_FOLLOW)
        try:
            same = os.fstat(descriptor).st_size == fetched.size and hash_of(descriptor) == fetched.sha256
        finally:
            os.close(descriptor)
    except OSError:
        same = False
    if not same:
        raise FailedDownload(f"{target} exists and is another file. Rename or delete it, then download again.")
