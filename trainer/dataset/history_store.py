"""The database of a dataset's history: edits, contents, and the list of what is being written (the write-ahead log).

Small contents lie in it, as what they were; pictures and other large files are moved to `blobs/`, never copied, and are
told apart by size and time. The database may come from a stranger with a dataset: its schema must be ours to the letter,
and every path in it is checked again where it is used.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from security.errors import SafelightError
from security.policy import IMAGE_SUFFIXES
from security.roots import Root
from trainer.dataset.settings import OWN_FOLDER, own_folder

DATABASE = "history.sqlite"
BLOBS = "blobs"
INCOMING = "incoming"
INLINE_BYTES = 64 * 1024
"""Contents up to this size lie in the database, except pictures."""
BUSY_SECONDS = 60.0

SCHEMA = {
    "contents": "CREATE TABLE contents(id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB UNIQUE, data BLOB, "
    "size INTEGER NOT NULL, mtime_ns INTEGER, inode INTEGER)",
    "edits": "CREATE TABLE edits(id INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER UNIQUE, time REAL NOT NULL, "
    "label TEXT NOT NULL, undone INTEGER NOT NULL)",
    "files": "CREATE TABLE files(edit INTEGER NOT NULL, path BLOB NOT NULL, before INTEGER, after INTEGER, "
    "left INTEGER NOT NULL, PRIMARY KEY(edit, path)) WITHOUT ROWID",
    "known": "CREATE TABLE known(path BLOB PRIMARY KEY, content INTEGER NOT NULL) WITHOUT ROWID",
    "pending": "CREATE TABLE pending(path BLOB PRIMARY KEY, have INTEGER, want INTEGER, source BLOB, "
    "done INTEGER NOT NULL, step INTEGER NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
    "numbers": "CREATE TABLE numbers(name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "files_of_path": "CREATE INDEX files_of_path ON files(path)",
}


@dataclass(frozen=True)
class Stored:
    """A content. `data` None: it is a file of that size and time, at its path or in `blobs/`."""

    id: int
    data: bytes | None
    size: int
    mtime_ns: int = 0
    inode: int = 0


@dataclass(frozen=True)
class Row:
    """A file that is to go from one content to another; None is no file. `source`: where a new content is moved from."""

    path: str
    have: Stored | None
    want: Stored | None
    source: str = ""


class Places:
    """The folders that a history works in: the dataset, its hidden folder, and the cache that new files come from."""

    def __init__(self, folder: Path, sources: Path) -> None:
        self.dataset = Root(folder)
        hidden = own_folder(self.dataset.path)
        hidden.mkdir(mode=0o700, exist_ok=True)
        self.own = Root(hidden)
        self.cache = Root(sources) if sources.is_dir() else None

    def of(self, path: str) -> tuple[Root, str]:
        """The root that a path of the dataset lies in, and the path from there."""
        first, slash, rest = path.partition("/")
        return (self.own, rest) if slash and first == OWN_FOLDER else (self.dataset, path)

    def source_of(self, text: str) -> tuple[Root, str]:
        """Where a new content is moved from: "cache:PATH" or "own:PATH"."""
        kind, _, relative = text.partition(":")
        if kind == "cache" and self.cache is not None:
            return self.cache, relative
        if kind == "own" and relative.startswith(f"{INCOMING}/"):
            return self.own, relative
        raise SafelightError("The history of this dataset wants a file from outside of the workspace's cache.")

    def source_text(self, source: Path) -> str:
        """The text for `source_of`. Raises SafelightError for a file elsewhere."""
        for kind, root in (("cache", self.cache), ("own", self.own)):
            if root is not None and source.is_relative_to(root.path):
                return f"{kind}:{source.relative_to(root.path).as_posix()}"
        raise SafelightError(f"{source} is not in the cache of the workspace, so it is not moved into a dataset.")

    def status(self, path: str) -> os.stat_result | None:
        """The status of a file of the dataset, None if there is none. Raises SafelightError for a folder or device."""
        root, relative = self.of(path)
        try:
            found = root.known_child(relative).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise SafelightError(f"{path} is not a regular file, so it is not changed.")
        return found

    def read(self, path: str) -> bytes:
        """The content of a small file of the dataset."""
        root, relative = self.of(path)
        with root.open_read(relative) as file:
            return file.read(INLINE_BYTES + 1)

    def sync(self, path: str) -> None:
        """Waits until the disk has a file of the dataset."""
        root, relative = self.of(path)
        if self.status(path) is not None:
            with root.known_child(relative).open("rb+") as file:
                os.fsync(file.fileno())

    def blob(self, content: Stored) -> str:
        """Where a content lies that is at no path, in the hidden folder."""
        return f"{BLOBS}/{content.id}"

    def has_blob(self, content: Stored) -> bool:
        return self.own.known_child(self.blob(content)).is_file()

    def matches(self, path: str, content: Stored | None) -> bool:
        """Whether a file of the dataset has this content (None: whether there is no file)."""
        found = self.status(path)
        if found is None or content is None:
            return found is None and content is None
        if found.st_size != content.size:
            return False
        return found.st_mtime_ns == content.mtime_ns if content.data is None else self.read(path) == content.data


class Store:
    """An open history database, within one transaction at a time."""

    def __init__(self, places: Places, *, write: bool) -> None:
        """Raises SafelightError for a database that is damaged or not ours."""
        path = places.own.known_child(DATABASE)
        places.own.known_child(f"{DATABASE}-journal")  # neither may be a link
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            self._db.execute("PRAGMA synchronous=FULL")
            tables = dict(self._db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
            tables.pop("sqlite_sequence", None)
            if not tables and write:
                with self.transaction():
                    for statement in SCHEMA.values():
                        self._db.execute(statement)
            elif tables != SCHEMA:
                raise SafelightError(
                    f"{OWN_FOLDER}/{DATABASE} is no history of this version of Safelight. Set it aside to begin a new one."
                )
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on the disk when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def query(self, text: str, *values: object) -> list[tuple[object, ...]]:
        return self._db.execute(text, values).fetchall()

    def number(self, text: str, *values: object) -> int:
        """The one number of a query, 0 if there is none."""
        row = self._db.execute(text, values).fetchone()
        return int(row[0]) if row is not None and row[0] is not None else 0

    def change(self, text: str, *values: object) -> int:
        """Carries out a statement. Returns the id of the row that it made."""
        return self._db.execute(text, values).lastrowid or 0

    def change_many(self, text: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.executemany(text, rows)

    # ---- contents ----

    def inline(self, data: bytes) -> Stored:
        """A small content, kept in the database once."""
        digest = hashlib.sha256(data).digest()
        found = self.number("SELECT id FROM contents WHERE sha256=?", digest)
        if not found:
            found = self.change("INSERT INTO contents(sha256, data, size) VALUES(?, ?, ?)", digest, data, len(data))
        return Stored(found, data, len(data))

    def moved(self, found: os.stat_result) -> Stored:
        """A new content that is a file of its own."""
        values = (found.st_size, found.st_mtime_ns, found.st_ino % 2**63)
        return Stored(
            self.change("INSERT INTO contents(size, mtime_ns, inode) VALUES(?, ?, ?)", *values), None, *values
        )

    def content(self, number: object) -> Stored | None:
        """The content of that id; None for NULL."""
        if number is None:
            return None
        for found, data, *rest in self.query("SELECT id, data, size, mtime_ns, inode FROM contents WHERE id=?", number):
            numbers = [value if isinstance(value, int) else 0 for value in rest]
            if isinstance(found, int) and isinstance(data, bytes | None):
                return Stored(found, data, *numbers)
        raise sqlite3.DatabaseError(f"content {number} is missing")

    def current(self, places: Places, path: str) -> Stored | None:
        """What a file of the dataset holds now, kept from here on. A small one is read, a large one only looked at."""
        found = places.status(path)
        if found is None:
            return None
        own = path.startswith(f"{OWN_FOLDER}/")
        picture = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - thousands of times
        if found.st_size <= INLINE_BYTES and (own or not picture):
            data = places.read(path)
            if len(data) <= INLINE_BYTES:
                return self.inline(data)
        number = self.number("SELECT content FROM known WHERE path=?", encoded(path))
        known = self.content(number) if number else None
        if known is not None and places.matches(path, known):
            return known
        return self.moved(found)

    # ---- the write-ahead list ----

    def expect(self, rows: Iterable[Row]) -> None:
        """Writes down what is going to be done to the files; from then on it will be, whatever happens."""
        boot, rows = boot_name(), list(rows)
        self.change("INSERT INTO numbers VALUES('revision', 1) ON CONFLICT(name) DO UPDATE SET value=value+1")
        step = self.number("SELECT value FROM numbers WHERE name='revision'")
        self.change_many(
            "INSERT OR REPLACE INTO pending VALUES(?, ?, ?, ?, 0, ?, ?)",
            [
                (encoded(row.path), _id(row.have), _id(row.want), os.fsencode(row.source) or None, step, boot)
                for row in rows
            ],
        )
        self.change_many("DELETE FROM known WHERE path=?", [(encoded(row.path),) for row in rows])
        self.change_many(
            "INSERT INTO known VALUES(?, ?)",
            [(encoded(row.path), row.want.id) for row in rows if row.want is not None and row.want.data is None],
        )

    def carried_out(self, rows: Iterable[Row], *, durable: bool) -> None:
        """Takes rows off the list if they are on the disk, else notes that only the disk has to be waited for."""
        change = "DELETE FROM pending WHERE path=?" if durable else "UPDATE pending SET done=1 WHERE path=?"
        self.change_many(change, [(encoded(row.path),) for row in rows])
        if not durable:
            self.change("UPDATE pending SET boot=? WHERE done", boot_name())

    def expected(self, where: str, *values: object) -> list[Row]:
        """What is on the list."""
        found = self.query(f"SELECT path, have, want, source FROM pending WHERE {where}", *values)  # noqa: S608 - ours
        return [
            Row(decoded(path), self.content(have), self.content(want), os.fsdecode(source) if source else "")  # type: ignore[arg-type]
            for path, have, want, source in found
        ]


def encoded(path: str) -> bytes:
    """A path as the database holds it: file names of Linux need not be text."""
    return os.fsencode(path)


def decoded(path: object) -> str:
    """The path again. Raises sqlite3.DatabaseError for what is none."""
    if not isinstance(path, bytes):
        raise sqlite3.DatabaseError("a path is not bytes")
    return os.fsdecode(path)


def _id(content: Stored | None) -> int | None:
    return None if content is None else content.id


def boot_name() -> str:
    """A name of this start of the machine. After another start, the last unsettled writes are looked at again."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round((time.time() - time.monotonic()) / 600))
