"""What an edit of a history means: which files change from what to what, there and back. Works within a transaction."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from security.errors import SafelightError
from trainer.dataset.history_store import (
    INCOMING,
    INLINE_BYTES,
    NO_FILE,
    Look,
    Places,
    Row,
    Store,
    Stored,
    decoded,
    encoded,
    look_at,
)

Content = bytes | None | Path
"""New bytes; None to remove; or a file to move in: of the workspace's cache, or one that the same edit takes away."""
TAKEN_BACK = "Taken back: "


@dataclass(frozen=True)
class Edit:
    """One step that can be undone. `time`: seconds since the epoch. `id` 0: nothing had to be changed, nothing was kept.

    `left`: files that the last undo or redo did not touch, because something else had changed them since.
    """

    id: int
    time: float
    label: str
    files: tuple[str, ...]
    undone: bool = False
    left: tuple[str, ...] = ()
    num_files: int = 0


def planned(places: Places, store: Store, changes: Mapping[str, Content]) -> list[Row]:
    """The files that change, from what they hold to what they shall hold. Raises SafelightError for a bad path."""
    current = {path: store.current(places, path) for path in changes}
    moved_from: set[Path] = set()
    rows = []
    for path, content in changes.items():
        want, source = None, ""
        if isinstance(content, Path):
            if content in moved_from:
                raise SafelightError(f"{content.name} can't be moved to two places.")
            moved_from.add(content)
            want, source = _moved(places, store, content, current, changes)
        elif content is not None and len(content) > INLINE_BYTES:
            source = f"own:{INCOMING}/{secrets.token_hex(8)}"
            root, relative = places.source_of(source)
            root.write_known(relative, content, durable=False)
            want = store.moved(look_at(root, relative))
        elif content is not None:
            want = store.inline(content)
        have, look = current[path]
        if _id(have) != _id(want):
            rows.append(Row(path, have, want, source, look))
    return rows


Current = Mapping[str, tuple[Stored | None, Look]]


def _moved(
    places: Places, store: Store, source: Path, current: Current, changes: Mapping[str, Content]
) -> tuple[Stored, str]:
    """The content that a file brings that is moved in, and where from; "" within the dataset."""
    if source.is_relative_to(places.dataset.path):
        old = source.relative_to(places.dataset.path).as_posix()
        content, _ = current.get(old, (None, NO_FILE))
        if content is None or changes[old] == source:
            raise SafelightError(
                f"{old} is in the dataset already. To move it, the same edit has to take it from there."
            )
        return content, ""
    text = places.source_text(source)
    root, relative = places.source_of(text)
    try:
        return store.moved(look_at(root, relative)), text
    except FileNotFoundError:
        raise SafelightError(f"{source.name} is gone, so it can't be moved into a dataset.") from None


def way_back(places: Places, store: Store, edit: int, *, undone: bool) -> tuple[list[Row], set[str]]:
    """What an undo (or, not `undone`, a redo) of an edit has to do, and the files that it leaves alone."""
    rows, left = [], set()
    found = store.query("SELECT path, before, after FROM files WHERE edit=?", edit)
    contents = {number: store.content(number) for row in found for number in row[1:]}
    coming = {row[2 if undone else 1] for row in found}  # these lie at a path now, the others in blobs/
    for path, before, after in found:
        have, want = (contents[after], contents[before]) if undone else (contents[before], contents[after])
        name = decoded(path)
        is_here = want is None or want.data is not None or want.id in coming or places.has_blob(want)
        seen = _matching(places, name, have) if is_here else None
        if seen is not None:
            rows.append(Row(name, have, want, seen=seen))
        elif _matching(places, name, want) is None:
            left.add(name)
    return rows, left


def _matching(places: Places, path: str, content: Stored | None) -> Look | None:
    try:
        return places.matching(path, content)
    except SafelightError:  # a folder or a link has come there
        return None


def note(store: Store, edit: int, rows: Iterable[Row]) -> None:
    """Adds files to an edit. A file that it changed before keeps what was there first; one that is as before goes."""
    store.change_many(
        "INSERT INTO files VALUES(?, ?, ?, ?, 0) ON CONFLICT(edit, path) DO UPDATE SET after=excluded.after",
        [(edit, encoded(row.path), _id(row.have), _id(row.want)) for row in rows],
    )
    store.change("DELETE FROM files WHERE edit=? AND before IS after", edit)


def mark_left(store: Store, edit: int, paths: Iterable[str]) -> None:
    """Notes the files that an undo or redo did not touch."""
    store.change_many("UPDATE files SET left=1 WHERE edit=? AND path=?", [(edit, encoded(path)) for path in paths])


def split_others(store: Store, paths: Iterable[str], own: int | None) -> None:
    """Closes unfinished edits for files that another one is about to change, so that both can be undone in order."""
    wanted = {encoded(path) for path in paths}
    held = store.query(
        "SELECT edit, path FROM files JOIN edits ON edits.id=files.edit WHERE seq IS NULL AND edit IS NOT ?", own
    )
    parts: dict[object, set[object]] = {}
    for edit, path in held:
        if path in wanted:
            parts.setdefault(edit, set()).add(path)
    for edit, paths_of_both in parts.items():
        shared = _tied(store, edit, paths_of_both)
        keep_undone(store)
        part = store.change(
            "INSERT INTO edits(seq, time, label, undone) SELECT ?, time, label, 0 FROM edits WHERE id=?",
            next_seq(store),
            edit,
        )
        store.change_many("UPDATE files SET edit=? WHERE edit=? AND path=?", [(part, edit, path) for path in shared])


def _tied(store: Store, edit: object, paths: set[object]) -> set[object]:
    """Paths of an edit and those that share a large content with them: it moved between them, so they stay together."""
    rows = store.query("SELECT path, before, after FROM files WHERE edit=?", edit)
    large = {number for (number,) in store.query("SELECT id FROM contents WHERE data IS NULL")}
    tied, size = set(paths), 0
    while len(tied) > size:
        size = len(tied)
        contents = {number for path, *both in rows if path in tied for number in both if number in large}
        tied |= {path for path, *both in rows if contents.intersection(both)}
    return tied


def keep_undone(store: Store) -> None:
    """Before a new edit: turns undone ones into done ones and one that takes them back, so that nothing is ever lost."""
    undone = store.query("SELECT id, label FROM edits WHERE undone AND seq NOT NULL ORDER BY seq DESC")
    if not undone:
        return
    changes: dict[object, tuple[object, object]] = {}
    for edit, _ in undone:  # in the order in which they were undone
        for path, before, after in store.query("SELECT path, before, after FROM files WHERE edit=? AND NOT left", edit):
            changes[path] = (changes[path][0] if path in changes else after, before)
    label = TAKEN_BACK + (str(undone[0][1]) if len(undone) == 1 else f"{len(undone)} edits")
    store.change("UPDATE files SET left=0 WHERE edit IN (SELECT id FROM edits WHERE undone)")
    store.change("UPDATE edits SET undone=0 WHERE undone")
    values = [(path, before, after) for path, (before, after) in changes.items() if before != after]
    if not values:
        return
    number = store.change(
        "INSERT INTO edits(seq, time, label, undone) VALUES(?, strftime('%s', 'now'), ?, 0)", next_seq(store), label
    )
    store.change_many("INSERT INTO files VALUES(?, ?, ?, ?, 0)", [(number, *row) for row in values])


def next_seq(store: Store) -> int:
    """The place of a new edit in the order of edits."""
    return store.number("SELECT max(seq) FROM edits") + 1


def refuse_unfinished(store: Store, edit: int) -> None:
    """Raises SafelightError if work that is not over has changed files of an edit since."""
    found = store.query(
        "SELECT label FROM edits JOIN files ON edits.id=files.edit WHERE seq IS NULL "
        "AND path IN (SELECT path FROM files WHERE edit=?) LIMIT 1",
        edit,
    )
    for (label,) in found:
        raise SafelightError(f"'{label}' is not over and has changed the same files. Wait for it or cancel it first.")


def edit_of(store: Store, number: int, *, with_files: bool = True) -> Edit:
    """An edit as the database has it."""
    found = store.query("SELECT time, label, undone FROM edits WHERE id=?", number)
    time, label, undone = found[0]
    files = store.query("SELECT path, left FROM files WHERE edit=? ORDER BY path", number) if with_files else []
    return Edit(
        number,
        time if isinstance(time, float) else 0.0,
        str(label),
        tuple(decoded(path) for path, _ in files),
        bool(undone),
        tuple(decoded(path) for path, is_left in files if is_left),
        store.number("SELECT count(*) FROM files WHERE edit=?", number),
    )


def _id(content: Stored | None) -> int | None:
    return None if content is None else content.id
