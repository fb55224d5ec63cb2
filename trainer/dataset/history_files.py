"""Carries out what the write-ahead list of a history says, on the files of a dataset; again after a crash if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from security.errors import SafelightError
from trainer.dataset.history_store import NO_FILE, Look, Places, Row, Stored


def carry_out(places: Places, rows: Sequence[Row], *, durable: bool = False, after_crash: bool = False) -> set[str]:
    """Brings files from what they are to what they shall be. Returns those left alone: changed outside meanwhile.

    First every large content that goes away is moved to `blobs/`, then each is put where it belongs: so files may swap
    their places, and after a crash at any point the same call ends the work. `after_crash`: part of it may be done, and
    what a power cut tore (empty or missing files) is written again. `durable`: waits for the disk, file by file.
    """
    for row in rows:
        if after_crash:
            _safely(lambda row=row: _sweep(places, row.path))  # type: ignore[misc]
        have = row.have
        if have is None or have.data is not None or places.has_blob(have):
            continue
        if _safely(lambda row=row, have=have: _holds(places, row.path, have, exactly=after_crash)):  # type: ignore[misc]
            places.own.move_in(places.blob(have), *places.of(row.path))
    return {row.path for row in rows if not _safely(lambda row=row: _put(places, row, durable, after_crash))}  # type: ignore[misc]


def _safely(work: Callable[[], bool]) -> bool:
    """False for what has become a folder or a link meanwhile."""
    try:
        return work()
    except SafelightError:
        return False


def _sweep(places: Places, path: str) -> bool:
    root, relative = places.of(path)
    root.remove_partials(relative)
    return True


def _holds(places: Places, path: str, content: Stored, *, exactly: bool) -> bool:
    """Whether a large content still lies at its path. `exactly`: two files of one size and time are told apart too."""
    look = places.look(path)
    same = look is not NO_FILE and (look.size, look.mtime_ns) == (content.size, content.mtime_ns)
    return same and (not exactly or look.inode == content.inode)


def _put(places: Places, row: Row, durable: bool, after_crash: bool) -> bool:
    """Puts what is wanted at a path. Returns False if something else has come there."""
    root, relative = places.of(row.path)
    look = places.look(row.path)
    is_free = look is NO_FILE or (after_crash and _is_torn(places, row, look)) or _is_old(places, row, look)
    if row.want is None:
        if look is not NO_FILE and is_free:
            root.remove_file(relative)
        return is_free
    if row.want.data is not None:
        if is_free and (durable or not root.overwrite_known(relative, row.want.data)):
            root.write_known(relative, row.want.data, durable=durable)
        return is_free or places.matching(row.path, row.want) is not None
    if places.has_blob(row.want):
        if is_free:
            root.move_in(relative, places.own, places.blob(row.want))
        return is_free
    if row.source and is_free:
        source, name = places.source_of(row.source)
        if source.known_child(name).is_file():
            root.move_in(relative, source, name)
            return True
    return places.matching(row.path, row.want) is not None


def _is_torn(places: Places, row: Row, look: Look) -> bool:
    """Whether a crash left the file empty, or the new bytes with the end of the old ones behind them."""
    if look.size == 0:
        return True
    if row.have is None or row.want is None or row.have.data is None or row.want.data is None:
        return False
    new = row.want.data
    return look.size == row.have.size and places.read(row.path) == new + row.have.data[len(new) :]


def _is_old(places: Places, row: Row, look: Look) -> bool:
    """Whether the small content that is to be replaced is still there."""
    if row.have is None or row.have.data is None:
        return False
    return look == row.seen if row.seen is not None else places.matching(row.path, row.have) is not None


def reversed_rows(rows: Iterable[Row]) -> list[Row]:
    """The way back."""
    return [Row(row.path, row.want, row.have) for row in rows]
