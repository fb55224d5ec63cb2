"""What is known of a picture without decoding it: size, format, hash. Read once per content, then kept in the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from security.errors import RefusedFile
from security.images import image_info, read_picture
from trainer.dataset.cache_database import CacheDatabase, cache_database
from trainer.workspace import Workspace

_FILE_NAME = "pictures.sqlite"
_VERSION = 1
_TABLE = """
CREATE TABLE pictures (
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
    try:
        status = path.stat()
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be read: {error.strerror}.") from None
    known = _find(workspace, path, status)
    if known is None:
        try:
            known = _read(path)
        except RefusedFile as error:
            known = str(error)
        _keep(workspace, [(path, status, known)])
    if isinstance(known, str):
        raise RefusedFile(known)
    return known


def remember_facts(workspace: Workspace, facts: Iterable[tuple[Path, PictureFacts]]) -> None:
    """Keeps what is known of files that were just written, so that they need not be read for it. Raises OSError."""
    _keep(workspace, [(path, path.stat(), one) for path, one in facts])


def _read(path: Path) -> PictureFacts:
    data = read_picture(path)
    info = image_info(data, path.name)
    digest = hashlib.sha256(data).hexdigest()
    return PictureFacts(info.width, info.height, info.format, info.num_frames, info.has_alpha, len(data), digest)


def _database(workspace: Workspace) -> CacheDatabase:
    return cache_database(workspace.cache_dir, _FILE_NAME, _TABLE, _VERSION)


def _find(workspace: Workspace, path: Path, status: os.stat_result) -> PictureFacts | str | None:
    """What is known of the file as it is now: its facts, or what is wrong with it; None if nothing is."""
    question = "SELECT * FROM pictures WHERE path = ? AND size = ? AND mtime_ns = ?"
    row = _database(workspace).row(question, (os.fsencode(path), status.st_size, status.st_mtime_ns))
    if row is None:
        return None
    _, _, _, fault, width, height, kind, num_frames, has_alpha, num_bytes, sha256 = row
    return fault or PictureFacts(width, height, kind, num_frames, bool(has_alpha), num_bytes, sha256)


def _keep(workspace: Workspace, rows: Iterable[tuple[Path, os.stat_result, PictureFacts | str]]) -> None:
    """Writes rows, instead of older ones of the same files."""
    values = []
    for path, status, known in rows:
        facts = (known, *[None] * 7) if isinstance(known, str) else ("", *astuple(known))
        values.append((os.fsencode(path), status.st_size, status.st_mtime_ns, *facts))
    _database(workspace).write(f"REPLACE INTO pictures VALUES ({', '.join('?' * 11)})", values)  # noqa: S608
