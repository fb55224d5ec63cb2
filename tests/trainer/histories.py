"""Small datasets with a history, for the tests of it: what is on the disk, and edits of every kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trainer.dataset.history import Content, History

FILES = {"a.png": b"picture a", "a.txt": b"a hat", "sub/b.png": b"picture b", "sub/b.txt": b"b", "notes.txt": b""}
LARGE = b"L" * 100
"""Over the limit that the tests set for what lies in the database."""


def quick_folder() -> Path | None:
    """A folder in memory where there is one: waiting for the disk thousands of times is not what the tests are about."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="safelight-", dir=memory)) if os.access(memory, os.W_OK) else None


class Bench:
    """A dataset folder, the cache that new files come from, and a history."""

    def __init__(self, folder: Path, files: Mapping[str, bytes] = FILES) -> None:
        self.folder, self.cache = folder / "set", folder / "cache"
        self.cache.mkdir(parents=True)
        self.folder.mkdir()
        for name, data in files.items():
            self.write(name, data)

    @property
    def history(self) -> History:
        """A new one each time, as after a restart."""
        return History(self.folder, self.cache)

    def write(self, name: str, data: bytes) -> None:
        """Changes a file behind the history's back."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def staged(self, name: str, data: bytes) -> Path:
        """A file in the cache, ready to be moved in."""
        path = self.cache / name
        path.write_bytes(data)
        return path

    def files(self) -> dict[str, bytes]:
        """Everything that is in the dataset, without what the history keeps for itself."""
        own = self.folder / ".safelight"
        kept = {"dataset.json", "marks.json", "masks"}
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and (not path.is_relative_to(own) or path.relative_to(own).parts[0] in kept)
        }

    def every_kind(self, mark: bytes) -> dict[str, Content]:
        """One edit with all that an edit can do: write, replace, remove, move within, move in, large and small."""
        name = mark.decode()
        return {
            "a.txt": mark,
            "sub/b.png": None,
            "sub/b.txt": None,
            f"sub/moved-{name}.png": self.folder / "a.png",
            "a.png": None,
            f"new-{name}/c.png": self.staged(f"{name}.png", b"picture c" + mark),
            ".safelight/masks/a.png.png": LARGE + mark,
            ".safelight/dataset.json": b"{}" + mark,
        }


def undo_all(history: History) -> int:
    """Takes everything back. Returns how many steps that were."""
    steps = 0
    while history.next_steps()[0] is not None:
        assert history.undo().left == ()
        steps += 1
    return steps


def redo_all(history: History) -> None:
    """Does everything again."""
    while history.next_steps()[1] is not None:
        assert history.redo().left == ()
