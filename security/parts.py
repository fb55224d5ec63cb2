"""Unfinished downloads on disk: a `.part` file and a `.part.json` that says what it is a part of.

Both lie in the quarantine folder, are made by us alone (O_EXCL, no links, mode 0600), are written by one process at a
time, and survive a crash: the next attempt goes on where this one ended, if the hub can prove that the file is the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from security.configs import read_json
from security.errors import Cancelled, FailedDownload, RefusedConfig
from security.names import sanitized_name
from security.policy import FREE_DISK_RESERVE_BYTES, MIB
from security.roots import Root

_SUFFIXES = (".part", ".part.json", ".whole", ".lock")
_READ_BYTES = 1 * MIB
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Windows has no O_NOFOLLOW; there, only administrators and developers can make links."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a part belongs to: `url` without its query, the strong `etag` it was sent with, and what was wanted."""

    url: str = ""
    etag: str = ""
    size: int | None = None
    sha256: str | None = None


class Part:
    """The file that a download is written into. Use it inside `with part.locked()`."""

    def __init__(self, quarantine: Root, name: str, note: Note) -> None:
        """`name` as the caller calls the file; any text. `note`: what is wanted now, without an etag."""
        self.name = name
        self.wanted = note
        self.etag = ""
        self.have = 0
        self.sha256 = hashlib.sha256()
        self._quarantine = quarantine
        self._descriptor = -1
        tail = sanitized_name(name, "download").encode()[:80].decode("utf-8", "ignore").rstrip(". ")
        stem = f"{tail}.{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        self.path, self._note_path, self.whole_path, self._lock_path = (
            quarantine.child(stem + suffix) for suffix in _SUFFIXES
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process and thread away, and closes the file at the end.

        Raises FailedDownload if another is there, and for every fault of the disk; what is there is kept.
        """
        try:
            with FileLock(self._lock_path, timeout=0, mode=0o600):
                try:
                    yield
                finally:
                    self._close()
        except Timeout:
            raise FailedDownload(f"{self.name} is being downloaded already, here or in another window.") from None
        except OSError as error:
            raise FailedDownload(_disk_sentence(self.name, self.path.parent, error)) from None

    def open(self, cancelled: Callable[[], bool]) -> None:
        """Opens the part of an earlier attempt and hashes it, if it belongs to what is wanted now; else a new one."""
        note = self._read_note()
        same = (note.url, note.size, note.sha256) == (self.wanted.url, self.wanted.size, self.wanted.sha256)
        if not (same and note.etag and self._open_existing()):
            self.restart()
            return
        self.etag = note.etag
        for piece in read_pieces(self._descriptor):
            if cancelled():
                raise Cancelled("The download was stopped.")
            self.sha256.update(piece)
            self.have += len(piece)

    def restart(self) -> None:
        """Throws away what is there and makes a new, empty file."""
        self.remove()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW
        self._descriptor = os.open(self.path, flags, 0o600)

    def remember(self, etag: str) -> None:
        """Notes what the file is a part of, so that it can be continued. `etag`: a strong one, or ""."""
        self.etag = etag
        note = asdict(self.wanted) | {"etag": etag}
        self._quarantine.write_text_atomic(self._note_path, json.dumps(note))

    def write(self, piece: bytes) -> None:
        """Appends, all of it. Raises OSError."""
        left = memoryview(piece)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.sha256.update(piece)
        self.have += len(piece)

    def git_sha1(self) -> str:
        """The name that git gives this content: sha1 over "blob SIZE" and a NUL, then the content."""
        digest = hashlib.sha1(f"blob {self.have}\0".encode(), usedforsecurity=False)
        for piece in read_pieces(self._descriptor):
            digest.update(piece)
        return digest.hexdigest()

    def finish(self) -> Path:
        """Puts the complete file under its other name, from which `take_whole` finds it. Gives its path."""
        os.fsync(self._descriptor)
        self._close()
        self.path.replace(self.whole_path)
        self._note_path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        return self.whole_path

    def take_whole(self) -> tuple[int, str] | None:
        """Size and sha256 of a file that was complete before but never fetched from here, if it is the wanted one."""
        try:
            descriptor = os.open(self.whole_path, os.O_RDONLY | NO_FOLLOW)
        except OSError:
            return None
        try:
            size, digest = os.fstat(descriptor).st_size, hash_of(descriptor)
            fine = is_regular(descriptor)
        finally:
            os.close(descriptor)
        if fine and self.wanted.sha256 == digest:
            return size, digest
        self.whole_path.unlink()
        return None

    def remove(self) -> None:
        """Deletes the part and its note."""
        self._close()
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)
        self.have, self.etag, self.sha256 = 0, "", hashlib.sha256()

    def check_room(self, more: int) -> None:
        """Raises FailedDownload unless the disk has room for `more` bytes and the reserve."""
        free = shutil.disk_usage(self.path.parent).free
        if free < more + FREE_DISK_RESERVE_BYTES:
            raise FailedDownload(
                f"The disk has {free / MIB:.0f} MiB free in {self.path.parent}. {self.name} needs {more / MIB:.0f} MiB "
                f"more, and {FREE_DISK_RESERVE_BYTES / MIB:.0f} MiB stay free for training. Make room and try again."
            )

    def _open_existing(self) -> bool:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | NO_FOLLOW)
        except OSError:
            return False
        # A second name elsewhere would be a file of somebody's that is about to be written into.
        return is_regular(self._descriptor) and os.fstat(self._descriptor).st_nlink == 1

    def _read_note(self) -> Note:
        """The note of an earlier attempt, or an empty one if there is none or it is damaged."""
        try:
            values = read_json(self._note_path)
            return Note(**values)
        except (RefusedConfig, TypeError):
            return Note()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last over a power cut. Windows has no such call and does not need it."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_pieces(descriptor: int) -> Iterator[bytes]:
    """The whole file behind a descriptor, from its beginning."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    while piece := os.read(descriptor, _READ_BYTES):
        yield piece


def hash_of(descriptor: int) -> str:
    """sha256, in lower-case hex, of the whole file behind a descriptor."""
    digest = hashlib.sha256()
    for piece in read_pieces(descriptor):
        digest.update(piece)
    return digest.hexdigest()


def is_regular(descriptor: int) -> bool:
    """True for a file, False for a folder, pipe or device."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _disk_sentence(name: str, folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (
            f"The disk of {folder} is full, or your share of it. What came of {name} is kept. Make room and try again."
        )
    if error.errno == errno.EFBIG:
        return f"The disk of {folder} can't hold a file as large as {name}. Use another disk."
    return f"{name} could not be written to {folder}: {error.strerror}. What came is kept."
