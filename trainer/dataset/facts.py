"""What is known of a picture without decoding it: size, format, hash. Read once per content, then kept in the cache."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path

from security.errors import RefusedFile
from security.images import image_info, read_picture
from security.roots import Root
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.dataset")

_FILE_NAME = "pictures.sqlite"
_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS pictures (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, fault TEXT,
    width INTEGER, height INTEGER, format TEXT, num_frames INTEGER, has_alpha INTEGER, num_bytes INTEGER, sha256 TEXT
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """`width` and `height` in pixels, upright; `format` as Pillow calls it; `sha256` of the file's bytes.

    `has_alpha`: it has a channel or a colour for transparency, which may be used nowhere.
    """

    width: int
    height: int
    format: str
    num_frames: int
    has_alpha: bool
    num_bytes: int
    sha256: str


def facts_of(workspace: Workspace, path: Path) -> PictureFacts:
    """The facts of a picture of any folder, read anew only if its size or time of change differs from the last time.

    Raises RefusedFile for what is no picture, too large or can't be read; a picture that is cut off is not noticed.
    """
    store = _store(workspace.cache_dir)
    try:
        status = path.stat()
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be read: {error.strerror}.") from None
    known = store.find(path, status)
    if known is None:
        try:
            known = _read(path)
        except RefusedFile as error:
            known = str(error)
        store.keep([(path, status, known)])
    if isinstance(known, str):
        raise RefusedFile(known)
    return known


def remember_facts(workspace: Workspace, facts: Iterable[tuple[Path, PictureFacts]]) -> None:
    """Keeps what is known of files that were just written, so that they need not be read for it. Raises OSError."""
    _store(workspace.cache_dir).keep([(path, path.stat(), one) for path, one in facts])


def _read(path: Path) -> PictureFacts:
    data = read_picture(path)
    info = image_info(data, path.name)
    digest = hashlib.sha256(data).hexdigest()
    return PictureFacts(info.width, info.height, info.format, info.num_frames, info.has_alpha, len(data), digest)


class _Store:
    """The file that facts are kept in. One connection for all threads; several programs may use it at once.

    It is a cache: where it can't be written, pictures are read again, and a damaged one is replaced.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._guard = threading.Lock()
        self._root = Root(cache_dir)
        self._path = self._root.child(_FILE_NAME)
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError:
            self._renew()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is read again
        if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            connection.execute("DROP TABLE IF EXISTS pictures")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        return connection

    def _renew(self) -> None:
        logger.warning("%s is damaged and made anew", self._path)
        for ending in ("", "-wal", "-shm"):
            if (path := self._path.with_name(self._path.name + ending)).exists():
                self._root.remove_tree(path)
        self._connection = self._opened()

    def find(self, path: Path, status: os.stat_result) -> PictureFacts | str | None:
        """What is known of the file as it is now: its facts, or what is wrong with it; None if nothing is."""
        question = "SELECT * FROM pictures WHERE path = ? AND size = ? AND mtime_ns = ?"
        values = (os.fsencode(path), status.st_size, status.st_mtime_ns)
        with self._guard:
            try:
                row = self._connection.execute(question, values).fetchone()
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:
                self._renew()
                return None
        if row is None:
            return None
        _, _, _, fault, width, height, kind, num_frames, has_alpha, num_bytes, sha256 = row
        return fault or PictureFacts(width, height, kind, num_frames, bool(has_alpha), num_bytes, sha256)

    def keep(self, rows: Iterable[tuple[Path, os.stat_result, PictureFacts | str]]) -> None:
        """Writes rows, instead of older ones of the same files."""
        values = []
        for path, status, known in rows:
            facts = (known, *[None] * 7) if isinstance(known, str) else ("", *astuple(known))
            values.append((os.fsencode(path), status.st_size, status.st_mtime_ns, *facts))
        with self._guard:
            try:
                with closing(self._connection.cursor()) as cursor:
                    cursor.execute("BEGIN IMMEDIATE")
                    cursor.executemany(f"REPLACE INTO pictures VALUES ({', '.join('?' * 11)})", values)  # noqa: S608
                    cursor.execute("COMMIT")
            except sqlite3.OperationalError as error:
                logger.warning("the facts of %d pictures are not kept: %s", len(values), error)
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            except sqlite3.DatabaseError:
                self._renew()


@functools.lru_cache(maxsize=8)
def _store(cache_dir: Path) -> _Store:
    return _Store(cache_dir)
