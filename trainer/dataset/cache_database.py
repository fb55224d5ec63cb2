"""Tables in the cache of a workspace: one connection for all threads of a program, and several programs at once."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from security.roots import Root

logger = logging.getLogger("safelight.dataset")

MAX_OPEN = 8
_OPENING_TRIES = 20
_OPENING_PAUSE_SECONDS = 0.05


class CacheDatabase:
    """A database of one table that can be made again at any time.

    Where it can't be written or opened, nothing is kept. A damaged one is replaced; one that another program holds for a
    moment is not.
    """

    def __init__(self, cache_dir: Path, file_name: str, table: str, version: int) -> None:
        """`table`: the statement that creates the table, of another shape whenever `version` is another."""
        self._guard = threading.Lock()
        self._root = Root(cache_dir)
        self._path = self._root.child(file_name)
        self._table, self._version = table, version
        try:
            self._connection = self._opened()
        except sqlite3.OperationalError as error:
            logger.warning("%s can't be used, so nothing is kept: %s", self._path, error)
            self._connection = self._prepared(
                sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            )
        except sqlite3.DatabaseError:
            self._renew()

    def row(self, question: str, values: Sequence[Any]) -> tuple[Any, ...] | None:
        """The first row that answers a question, or None."""
        with self._guard:
            try:
                found: tuple[Any, ...] | None = self._connection.execute(question, values).fetchone()
                return found
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:
                self._renew()
                return None

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Carries out a statement for every row, for all of them or none."""
        with self._guard:
            try:
                with closing(self._connection.cursor()) as cursor:
                    cursor.execute("BEGIN IMMEDIATE")
                    cursor.executemany(statement, rows)
                    cursor.execute("COMMIT")
            except sqlite3.OperationalError as error:
                logger.warning("%s can't be written, so nothing is kept: %s", self._path, error)
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            except sqlite3.DatabaseError:
                self._renew()

    def _opened(self) -> sqlite3.Connection:
        """Tries for a second: turning a new file's journal on answers "locked" at once while another program does so."""
        for _ in range(_OPENING_TRIES - 1):
            try:
                return self._prepared(self._connected())
            except sqlite3.OperationalError:
                time.sleep(_OPENING_PAUSE_SECONDS)
        return self._prepared(self._connected())

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is made again
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone() != (self._version,):
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                connection.execute(f'DROP TABLE "{name.replace(chr(34), chr(34) * 2)}"')
            connection.execute(self._table)
            connection.execute(f"PRAGMA user_version = {self._version}")
        connection.execute("COMMIT")
        return connection

    def _renew(self) -> None:
        logger.warning("%s is damaged and made anew", self._path)
        for ending in ("", "-wal", "-shm"):
            if (path := self._path.with_name(self._path.name + ending)).exists():
                self._root.remove_tree(path)
        self._connection = self._opened()


_databases: dict[tuple[Path, str], CacheDatabase] = {}
_opening = threading.Lock()


def cache_database(cache_dir: Path, file_name: str, table: str, version: int) -> CacheDatabase:
    """The database of that name, opened once in this program."""
    with _opening:
        key = cache_dir.resolve(), file_name
        if key not in _databases:
            while len(_databases) >= MAX_OPEN:  # the oldest one is closed when nobody uses it any more
                del _databases[next(iter(_databases))]
            _databases[key] = CacheDatabase(cache_dir, file_name, table, version)
        return _databases[key]
