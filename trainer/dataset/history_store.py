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
from trainer.dataset.settings import MARKS_FILE, MASKS_FOLDER, OWN_FOLDER, SETTINGS_FILE, own_folder

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
class Look:
    """What tells a file that was changed meanwhile from one that was not. `mtime_ns` -1: there is none."""

    size: int
    mtime_ns: int
    inode: int


NO_FILE = Look(0, -1, 0)


@dataclass(frozen=True)
class Row:
    """A file that is to go from one content to another; None is no file. `source`: where a new content is moved from.

    `seen`: how the file looked when `have` was read, so that it need not be read again; None after a crash.
    """

    path: str
    have: Stored | None
    want: Stored | None
    source: str = ""
    seen: Look | None = None


class Places:
    """The folders that a history works in: the dataset, its hidden folder, and the cache that new files come from."""

    def __init__(self, folder: Path, sources: Path) -> None:
        self.dataset = Root(folder)
        hidden = own_folder(self.dataset.path)
        hidden.mkdir(mode=0o700, exist_ok=True)
        self.own = Root(hidden)
        self.cache = Root(sources) if sources.is_dir() else None

    def of(self, path: str) -> tuple[Root, str]:
        """The root that a path of the dataset lies in, and the path from there. Raises SafelightError for hidden files."""
        if not path.startswith(".") and "/." not in path:
            return self.dataset, path
        first, _, rest = path.partition("/")
        ours = rest in (SETTINGS_FILE, MARKS_FILE) or (rest.startswith(f"{MASKS_FOLDER}/") and "/." not in rest)
        if first == OWN_FOLDER and ours:
            return self.own, rest
        raise SafelightError(f"{path[:200]!r} is hidden, so it is no file of a dataset.")

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
        if self.cache is not None and source.is_relative_to(self.cache.path):
            return f"cache:{source.relative_to(self.cache.path).as_posix()}"
        raise SafelightError(f"{source} is not in the cache of the workspace, so it is not moved into a dataset.")

    def look(self, path: str) -> Look:
        """How a file of the dataset looks, NO_FILE if there is none. Raises SafelightError for a folder or device."""
        root, relative = self.of(path)
        try:
            return look_at(root, relative)
        except (FileNotFoundError, NotADirectoryError):
            return NO_FILE

    def read(self, path: str) -> bytes:
        """The content of a small file of the dataset."""
        root, relative = self.of(path)
        with root.open_read(relative) as file:
            return file.read(INLINE_BYTES + 1)

    def sync(self, path: str) -> None:
        """Waits until the disk has a file of the dataset."""
        root, relative = self.of(path)
        if self.look(path) is not NO_FILE:
            with root.known_child(relative).open("rb+") as file:
                os.fsync(file.fileno())

    def blob(self, content: Stored) -> str:
        """Where a content lies that is at no path, in the hidden folder."""
        return f"{BLOBS}/{content.id}"

    def has_blob(self, content: Stored) -> bool:
        return self.own.known_child(self.blob(content)).is_file()

    def matching(self, path: str, content: Stored | None) -> Look | None:
        """How a file of the dataset looks if it has this content (None: if there is no file), else None."""
        look = self.look(path)
        if content is None or look is NO_FILE:
            return look if content is None and look is NO_FILE else None
        if look.size != content.size:
            return None
        same = look.mtime_ns == content.mtime_ns if content.data is None else self.read(path) == content.data
        return look if same else None


class Store:
    """An open history database, within one transaction at a time."""

    def __init__(self, places: Places, *, write: bool) -> None:
        """Raises SafelightError for a database that is damaged or not ours."""
        path = places.own.known_child(DATABASE)
        for suffix in ("-journal", "-wal", "-shm"):  # what sqlite may open beside it; none of all may be a link
            places.own.known_child(f"{DATABASE}{suffix}")
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            self._db.execute("PRAGMA synchronous=FULL")
            tables = dict(self._db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
            tables.pop("sqlite_sequence", None)
            self.is_empty = not tables and not write  # a program was killed before it had made the tables
            if not tables and write:
                with self.transaction():
                    for statement in SCHEMA.values():
                        self._db.execute(statement)
            elif tables and tables != SCHEMA:
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
        number = 0 if row is None or row[0] is None else row[0]
        if not isinstance(number, int):
            raise sqlite3.DatabaseError(f"{str(number)[:40]!r} is not a number")
        return number

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

    def moved(self, look: Look) -> Stored:
        """A new content that is a file of its own."""
        values = (look.size, look.mtime_ns, look.inode)
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

    def current(self, places: Places, path: str) -> tuple[Stored | None, Look]:
        """What a file of the dataset holds now, kept from here on. A small one is read, a large one only looked at."""
        look = places.look(path)
        if look is NO_FILE:
            return None, look
        number = self.number("SELECT content FROM known WHERE path=?", encoded(path))
        known = self.content(number) if number else None
        if known is not None and known.data is None and (known.size, known.mtime_ns) == (look.size, look.mtime_ns):
            return known, look
        if look.size <= INLINE_BYTES:
            data = places.read(path)
            picture = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - thousands of times
            is_text = path.startswith(f"{OWN_FOLDER}/") or not picture or (known is not None and known.data == data)
            if is_text and len(data) <= INLINE_BYTES:
                return self.inline(data), look
        return self.moved(look), look

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
            [(encoded(row.path), row.want.id) for row in rows if row.want is not None],
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
            Row(decoded(path), self.content(have), self.content(want), decoded(source) if source else "")
            for path, have, want, source in found
        ]


def look_at(root: Root, relative: str) -> Look:
    """How a file looks. Raises SafelightError for what is not a regular file, FileNotFoundError if there is none."""
    found = root.known_child(relative).lstat()
    if not stat.S_ISREG(found.st_mode):
        raise SafelightError(f"{relative} is not a regular file, so it is left alone.")
    return Look(found.st_size, found.st_mtime_ns, found.st_ino % 2**63)


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
