"""What slow looks at pictures found out, kept by the content of the picture: a check of what did not change takes moments."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from security.images import open_image
from trainer.dataset.cache_database import CacheDatabase, cache_database
from trainer.dataset.measures import Measures, measure, measures_from_bytes
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.dataset")

FILE_NAME = "looks.sqlite"
_VERSION = 1
MEASURES_VERSION = 1
"""Raise it when `measure` answers differently for the same picture."""
_TABLE = "CREATE TABLE looks (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


def measures_of(workspace: Workspace, path: Path, sha256: str) -> Measures:
    """The measures of a picture with that SHA-256, decoded only the first time. Raises RefusedFile for a broken one."""
    known = known_measures(workspace, sha256)
    if known is None:
        known = measure(open_image(path))
        looks_of(workspace).put(_measures_key(sha256), known.to_bytes())
    return known


def known_measures(workspace: Workspace, sha256: str) -> Measures | None:
    """The measures of a picture with that SHA-256, if it was looked at before."""
    kept = looks_of(workspace).get(_measures_key(sha256))
    if kept is None:
        return None
    try:
        return measures_from_bytes(kept)
    except (ValueError, TypeError, KeyError):
        logger.warning("what is kept of the picture %s in %s is damaged", sha256[:12], FILE_NAME)
        return None


def _measures_key(sha256: str) -> str:
    return f"measures {MEASURES_VERSION} {sha256}"


def kept_look(workspace: Workspace, kind: str, sha256: str, look: Callable[[], bytes]) -> bytes:
    """What `look` answered for the content with that SHA-256, now or at an earlier time. `kind` names look and version."""
    looks = looks_of(workspace)
    kept = looks.get(f"{kind} {sha256}")
    if kept is None:
        kept = look()
        looks.put(f"{kind} {sha256}", kept)
    return kept


def looks_of(workspace: Workspace) -> Looks:
    """The looks that a workspace keeps."""
    return Looks(cache_database(workspace.cache_dir, FILE_NAME, _TABLE, _VERSION))


@dataclass(frozen=True)
class Looks:
    """Named values in a database of the cache."""

    database: CacheDatabase

    def get(self, name: str) -> bytes | None:
        """The value of that name, or None."""
        row = self.database.row("SELECT value FROM looks WHERE key = ?", (_key(name),))
        return bytes(row[0]) if row else None

    def put(self, name: str, value: bytes) -> None:
        """Keeps a value instead of an older one."""
        self.database.write("REPLACE INTO looks VALUES (?, ?)", [(_key(name), value)])


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
