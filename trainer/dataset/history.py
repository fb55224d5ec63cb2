"""Every change of a dataset's files, written down before it is made: undone without end, also after a restart or a crash.

The database `.safelight/history.sqlite` is a write-ahead log: an edit is on the disk as a whole before the first file of
it is touched, so no file needs a wait of its own, and what a killed program left is completed at the next opening.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from security.errors import SafelightError
from security.roots import Root
from trainer.dataset.history_files import carry_out, reversed_rows
from trainer.dataset.history_plan import (
    Content,
    Edit,
    edit_of,
    keep_undone,
    mark_left,
    next_seq,
    note,
    planned,
    refuse_unfinished,
    split_others,
    way_back,
)
from trainer.dataset.history_store import BLOBS, BUSY_SECONDS, DATABASE, INCOMING, Places, Row, Store, boot_name
from trainer.dataset.settings import OWN_FOLDER, own_folder
from trainer.dataset.settling import settle_later

__all__ = ["Content", "Edit", "History", "LongEdit"]
LOCK_FILE = "history.lock"
MAX_LABEL = 300
DURABLE_FILES = 16
"""Up to so many small files are waited for one by one; more are synced together a little later."""


class History:
    """The history of one dataset folder. Safe from several threads and from several processes at once."""

    def __init__(self, folder: Path, sources: Path) -> None:
        """`sources`: the folder that new files may be moved in from, the cache of the workspace."""
        self._folder, self._sources = folder, sources
        self._guard = threading.RLock()
        self._open: tuple[Places, Store] | None = None

    # ---- changing ----

    def apply(self, label: str, changes: Mapping[str, Content]) -> Edit:
        """Changes files as one step; either all of it happens or nothing. Paths are relative to the dataset.

        Files that have that content already are no part of it. Raises SafelightError for paths outside of the dataset,
        for a damaged history, and when the disk is full.
        """
        with self.locked():
            return self._write(changes, label, None)

    @contextmanager
    def long(self, label: str) -> Iterator[LongEdit]:
        """Work that changes files bit by bit and is one step in the end. What was done before an exception stays done."""
        with self.locked() as (_, store):
            with store.transaction():
                number = store.change(
                    "INSERT INTO edits(time, label, undone) VALUES(?, ?, 0)", time.time(), _line(label)
                )
            alive = self._alive_lock(number)
            alive.acquire()
        try:
            yield LongEdit(self, number, label)
        finally:
            with self.locked() as (places, store):
                self._end_long(store, number)
                _collect(places, store)
                _release(alive)

    def undo(self) -> Edit:
        """Takes back the last step. Raises SafelightError if there is none, or while unfinished work holds its files."""
        return self._turn("SELECT id FROM edits WHERE seq NOT NULL AND NOT undone ORDER BY seq DESC", undone=True)

    def redo(self) -> Edit:
        """Does again what was undone last. Raises SafelightError if there is nothing."""
        return self._turn("SELECT id FROM edits WHERE seq NOT NULL AND undone ORDER BY seq", undone=False)

    # ---- looking ----

    def edits(self, limit: int = 100, *, with_files: bool = True) -> list[Edit]:
        """The newest steps, newest first; undone ones come before those that `undo` would take."""
        with self._reading() as store:
            if store is None:
                return []
            rows = store.query("SELECT id FROM edits WHERE seq NOT NULL ORDER BY seq DESC LIMIT ?", limit)
            return [edit_of(store, int(str(row[0])), with_files=with_files) for row in rows]

    def next_steps(self) -> tuple[Edit | None, Edit | None]:
        """What `undo` and `redo` would do now, without the files; None for nothing."""
        with self._reading() as store:
            if store is None:
                return None, None
            last = store.number("SELECT id FROM edits WHERE seq NOT NULL AND NOT undone ORDER BY seq DESC")
            first = store.number("SELECT id FROM edits WHERE seq NOT NULL AND undone ORDER BY seq")
            undo, redo = (edit_of(store, found, with_files=False) if found else None for found in (last, first))
            return undo, redo

    @property
    def revision(self) -> int:
        """A number that grows with every change made through a history of this folder."""
        with self._reading() as store:
            return 0 if store is None else store.number("SELECT value FROM numbers WHERE name='revision'")

    # ---- opening ----

    @contextmanager
    def locked(self, timeout_seconds: float = BUSY_SECONDS) -> Iterator[tuple[Places, Store]]:
        """Keeps everybody else from changing the dataset: for reading, deciding and applying in one go. Can be nested."""
        with self._guard:
            if self._open is not None:
                yield self._open
                return
            try:
                places = Places(self._folder, self._sources)
                with FileLock(places.own.known_child(LOCK_FILE), timeout_seconds, mode=0o600, thread_local=False):
                    store = Store(places, write=True)
                    try:
                        self._recover(places, store)
                        self._open = places, store
                        yield self._open
                    finally:
                        self._open = None
                        store.close()
            except Timeout:
                raise SafelightError("Another program is changing this dataset. Try again in a minute.") from None
            except sqlite3.Error as error:
                raise _damaged(error) from None
            except OSError as error:
                raise SafelightError(f"Nothing was changed: {_reason(error)}. Put that right and try again.") from None

    def recover(self) -> None:
        """Completes what a killed program left. Cheap when there is nothing."""
        with self._reading() as store:
            if store is None:
                return
            unfinished = store.number("SELECT count(*) FROM pending WHERE NOT done OR boot != ?", boot_name())
            begun = store.query("SELECT id FROM edits WHERE seq IS NULL")
        if unfinished or any(not self._is_alive(number) for (number,) in begun):
            with self.locked():
                pass

    def refuse_unfinished(self) -> None:
        """Raises SafelightError while a long edit is going on, in this program or in another one."""
        with self._reading() as store:
            begun = [] if store is None else store.query("SELECT id, label FROM edits WHERE seq IS NULL")
        for number, label in begun:
            if self._is_alive(number):
                raise SafelightError(f"'{label}' is not over. Wait for it or cancel it first.")

    @property
    def num_bytes(self) -> int:
        """How much of the disk the history takes: removed pictures, replaced texts."""
        own = own_folder(self._folder)
        files = [own / DATABASE, *(own / BLOBS).glob("*")]
        return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink())

    def forget(self) -> None:
        """Frees what the history takes: nothing that was done so far can be undone any more. The files stay as they are."""
        with self.locked() as (places, store):
            self.refuse_unfinished()
            with store.transaction():
                store.change("DELETE FROM files")
                store.change("DELETE FROM edits")
                store.change("DELETE FROM known")
            self.settle()
            _collect(places, store)
            with store.transaction():
                store.change("DELETE FROM contents")
            store.change("VACUUM")

    def set_aside(self) -> Path | None:
        """Puts a damaged history out of the way, with what it holds, so that a new one begins. Returns where it is now."""
        own = own_folder(self._folder)
        with self._guard:
            if not (own / DATABASE).is_file():
                return None
            with FileLock(Root(own).known_child(LOCK_FILE), BUSY_SECONDS, mode=0o600, thread_local=False):
                number = 1
                while (aside := own / f"damaged-{number}").exists():
                    number += 1
                aside.mkdir(mode=0o700)
                for name in (DATABASE, f"{DATABASE}-journal", BLOBS, INCOMING):
                    if (own / name).exists():
                        (own / name).rename(aside / name)
                return aside

    @contextmanager
    def _reading(self) -> Iterator[Store | None]:
        with self._guard:
            if self._open is not None:
                yield self._open[1]
                return
            if not (own_folder(self._folder) / DATABASE).is_file():
                yield None
                return
            try:
                store = Store(Places(self._folder, self._sources), write=False)
                try:
                    yield None if store.is_empty else store
                finally:
                    store.close()
            except sqlite3.Error as error:
                raise _damaged(error) from None

    def _alive_lock(self, number: object) -> FileLock:
        """Held by the program that does the long edit, as long as it lives."""
        path = Root(own_folder(self._folder)).known_child(f"long-{number}.lock")
        return FileLock(path, 0, mode=0o600, thread_local=False)

    def _is_alive(self, number: object) -> bool:
        lock = self._alive_lock(number)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
        return False

    def _recover(self, places: Places, store: Store) -> None:
        unfinished = store.expected("NOT done OR boot != ?", boot_name())
        if unfinished:
            carry_out(places, unfinished, after_crash=True)
            self._finished(store, unfinished, durable=False)
        for (number,) in store.query("SELECT id FROM edits WHERE seq IS NULL"):
            alive = self._alive_lock(number)
            with suppress(Timeout):
                alive.acquire()
                self._end_long(store, int(str(number)))
                _release(alive)

    # ---- writing ----

    def _write(self, changes: Mapping[str, Content], label: str, long: int | None) -> Edit:
        assert self._open is not None
        places, store = self._open
        with store.transaction():
            rows = planned(places, store, changes)
            if not rows:
                return Edit(long or 0, time.time(), _line(label), ())
            split_others(store, [row.path for row in rows], long)
            number = long
            if number is None:
                keep_undone(store)
                values = (next_seq(store), time.time(), _line(label))
                number = store.change("INSERT INTO edits(seq, time, label, undone) VALUES(?, ?, ?, 0)", *values)
            note(store, number, rows)
            store.expect(rows)

        def forget() -> None:
            note(store, number, reversed_rows(rows))
            if long is None:
                store.change("DELETE FROM edits WHERE id=? AND id NOT IN (SELECT edit FROM files)", number)

        left = self._carry_out(rows, forget)
        return Edit(number, time.time(), _line(label), tuple(row.path for row in rows), left=tuple(sorted(left)))

    def _turn(self, query: str, *, undone: bool) -> Edit:
        with self.locked() as (places, store):
            number = store.number(query)
            if not number:
                raise SafelightError(f"There is nothing to {'undo' if undone else 'redo'}.")
            refuse_unfinished(store, number)
            with store.transaction():
                rows, left = way_back(places, store, number, undone=undone)
                store.change("UPDATE edits SET undone=? WHERE id=?", int(undone), number)
                store.change("UPDATE files SET left=0 WHERE edit=?", number)
                mark_left(store, number, left)
                store.expect(rows)

            def forget() -> None:
                store.change("UPDATE edits SET undone=? WHERE id=?", int(not undone), number)

            late = self._carry_out(rows, forget)
            if late:
                with store.transaction():
                    mark_left(store, number, late)
            return edit_of(store, number)

    def _carry_out(self, rows: list[Row], forget: Callable[[], None]) -> set[str]:
        """Does what is on the list; if that fails, goes back to what was before and raises SafelightError."""
        assert self._open is not None
        places, store = self._open
        durable = len(rows) <= DURABLE_FILES
        try:
            left = carry_out(places, rows, durable=durable)
            self._finished(
                store, rows, durable=durable and all(row.want is None or row.want.data is not None for row in rows)
            )
            return left
        except OSError as error:
            reason, back = _reason(error), reversed_rows(rows)
            try:
                with store.transaction():
                    store.expect(back)
                    forget()
                carry_out(places, back, after_crash=True)
                self._finished(store, back, durable=False)
            except (OSError, sqlite3.Error):
                raise SafelightError(
                    f"Not everything could be written: {reason}. Put that right: the rest is then written by itself."
                ) from None
            raise SafelightError(f"Nothing was changed: {reason}. Put that right and try again.") from None

    def _finished(self, store: Store, rows: list[Row], *, durable: bool) -> None:
        with store.transaction():
            store.carried_out(rows, durable=durable)
        if not durable:
            settle_later(self)

    def settle(self) -> None:
        """Waits until the disk has all that was written, then takes it off the list."""
        with self._reading() as store:
            if store is None or not store.number("SELECT count(*) FROM pending WHERE done AND boot=?", boot_name()):
                return
            step = store.number("SELECT max(step) FROM pending WHERE done AND boot=?", boot_name())
            names = [row.path for row in store.expected("done AND step <= ?", step)]
        if sys.platform == "win32":
            places = Places(self._folder, self._sources)
            for name in names:
                places.sync(name)
        else:
            os.sync()
        with self.locked() as (_, store), store.transaction():
            store.change("DELETE FROM pending WHERE done AND step <= ? AND boot=?", step, boot_name())

    def _end_long(self, store: Store, number: int) -> None:
        with store.transaction():
            if store.number("SELECT count(*) FROM files WHERE edit=?", number):
                keep_undone(store)
                store.change("UPDATE edits SET seq=? WHERE id=?", next_seq(store), number)
            else:
                store.change("DELETE FROM edits WHERE id=?", number)


class LongEdit:
    """An edit that grows while the work goes on."""

    def __init__(self, history: History, number: int, label: str) -> None:
        self._history, self._number, self._label = history, number, label

    def add(self, changes: Mapping[str, Content]) -> Edit:
        """As `History.apply`, as a part of this edit. Returns what this call changed."""
        with self._history.locked():
            return self._history._write(changes, self._label, self._number)


def _collect(places: Places, store: Store) -> None:
    """Removes the large contents that no edit, file or list needs any more."""
    unused = (
        "SELECT id FROM contents WHERE data IS NULL AND id NOT IN (SELECT before FROM files WHERE before NOT NULL) "
        "AND id NOT IN (SELECT after FROM files WHERE after NOT NULL) AND id NOT IN (SELECT content FROM known) "
        "AND id NOT IN (SELECT have FROM pending WHERE have NOT NULL) "
        "AND id NOT IN (SELECT want FROM pending WHERE want NOT NULL)"
    )
    numbers = store.query(unused)
    for (number,) in numbers:
        with suppress(FileNotFoundError):
            places.own.remove_file(f"{BLOBS}/{number}")
    with store.transaction():
        store.change_many("DELETE FROM contents WHERE id=?", numbers)
    wanted = {str(row.source) for row in store.expected("source NOT NULL")}
    for path in (places.own.path / INCOMING).glob("*"):  # what a failed edit left
        if f"own:{INCOMING}/{path.name}" not in wanted:
            places.own.remove_file(f"{INCOMING}/{path.name}")


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


def _release(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _line(label: str) -> str:
    """A label as it is kept: one line, valid text, not too long."""
    return " ".join(label.encode("utf-8", "replace").decode().split())[:MAX_LABEL]


def _damaged(error: sqlite3.Error) -> SafelightError:
    if "full" in str(error):
        return SafelightError("The disk is full, so nothing was changed. Make room and try again.")
    if "disk I/O" in str(error):
        return SafelightError(f"The disk could not be written ({error}), so nothing was changed. Is it full?")
    if "readonly" in str(error) or "unable to open" in str(error):
        return SafelightError(f"{OWN_FOLDER}/{DATABASE} can't be written ({error}). Check the rights of the folder.")
    return SafelightError(
        f"{OWN_FOLDER}/{DATABASE} is damaged ({error}). Pictures and captions are as they are; set the history aside to go on."
    )
