"""What slow looks at pictures found out, kept by the content of the picture: a check of what did not change takes moments."""

from __future__ import annotations

import functools
import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from security.images import open_image
from security.roots import Root
from trainer.dataset.measures import Measures, measure, measures_from_bytes
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.dataset")

FILE_NAME = "looks.sqlite"
MEASURES_VERSION = 1
"""Raise it when `measure` answers differently for the same picture."""
_TABLE = "CREATE TABLE IF NOT EXISTS looks (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


def measures_of(workspace: Workspace, path: Path, sha256: str) -> Measures:
    """The measures of a picture with that SHA-256, decoded only the first time. Raises RefusedFile for a broken one."""
    looks = looks_of(workspace)
    key = f"measures {MEASURES_VERSION} {sha256}"
    kept = looks.get(key)
    if kept is not None:
        try:
            return measures_from_bytes(kept)
        except (ValueError, TypeError, KeyError):
            logger.warning("what is kept of %s in %s is damaged; it is measured again", path.name, FILE_NAME)
    found = measure(open_image(path))
    looks.put(key, found.to_bytes())
    return found


def kept_look(workspace: Workspace, kind: str, sha256: str, look: Callable[[], bytes]) -> bytes:
    """What `look` answered for the content with that SHA-256, now or at an earlier time. `kind` names look and version."""
    looks = looks_of(workspace)
    kept = looks.get(f"{kind} {sha256}")
    if kept is None:
        kept = look()
        looks.put(f"{kind} {sha256}", kept)
    return kept


@functools.lru_cache(maxsize=8)
def _looks(cache_dir: Path) -> Looks:
    return Looks(cache_dir)


def looks_of(workspace: Workspace) -> Looks:
    """The file of a workspace; one connection for the whole program."""
    return _looks(workspace.cache_dir)


class Looks:
    """A file of named values. Safe from several threads and programs.

    It is a cache: where it can't be written nothing is kept, and a damaged one is replaced.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._guard = threading.Lock()
        self._root = Root(cache_dir)
        self._path = self._root.child(FILE_NAME)
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError:
            self._renew()

    def get(self, name: str) -> bytes | None:
        """The value of that name, or None."""
        with self._guard:
            try:
                row = self._connection.execute("SELECT value FROM looks WHERE key = ?", (_key(name),)).fetchone()
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:
                self._renew()
                return None
        return bytes(row[0]) if row else None

    def put(self, name: str, value: bytes) -> None:
        """Keeps a value instead of an older one."""
        with self._guard:
            try:
                self._connection.execute("REPLACE INTO looks VALUES (?, ?)", (_key(name), value))
            except sqlite3.OperationalError as error:
                logger.warning("%s can't be written, so nothing is kept: %s", self._path, error)
            except sqlite3.DatabaseError:
                self._renew()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is looked at again
        connection.execute(_TABLE)
        return connection

    def _renew(self) -> None:
        logger.warning("%s is damaged and made anew", self._path)
        for ending in ("", "-wal", "-shm"):
            if (path := self._path.with_name(self._path.name + ending)).exists():
                self._root.remove_tree(path)
        self._connection = self._opened()


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
