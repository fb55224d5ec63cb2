"""Puts new files and folders in their places: written beside them first, so that they appear whole or not at all."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from security.errors import RefusedPath
from security.roots import Root

PARTIAL_SECONDS = 24 * 3600
"""Age at which a half-written file is nobody's any more."""


@contextmanager
def file_beside(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a new file to, which gets its name when the block ends well, and goes when not.

    Raises RefusedPath if the name is taken, also if it was taken meanwhile, unless `replace`: the old file goes then.
    """
    refuse_taken(target, replace=replace)
    temporary = _beside(target)
    try:
        yield temporary
        _put_in_place(temporary, target, replace=replace)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which gets its name when the block ends well, and goes when not. Raises RefusedPath."""
    refuse_taken(target)
    temporary = _beside(target)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        refuse_taken(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_taken(target: Path, *, replace: bool = False) -> None:
    """Raises RefusedPath if there is something of that name, unless it is a file that is to be replaced."""
    if target.is_dir() and replace:
        raise RefusedPath(f"{target.name} is a folder, so no file can take its place. Choose another name.")
    if target.exists() and not replace:
        raise RefusedPath(f"{target.name} is there already. Choose another name.")


def copy_file(source: Path, target: Path) -> None:
    """Copies a checked file to a new place below a folder that nobody else knows yet; only its owner can read it."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
    target.chmod(0o600)


def take_away(path: Path) -> None:
    """Deletes a file or folder that was just made."""
    Root(path.parent).remove_tree(path)


def sweep(folder: Path) -> None:
    """Deletes what a killed program left half-written in a folder, once it is so old that nobody writes it any more."""
    for path in folder.glob(".partial-" + "[0-9a-f]" * 16):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > PARTIAL_SECONDS:
                Root(folder).remove_tree(path)


def _beside(target: Path) -> Path:
    return target.with_name(f".partial-{secrets.token_hex(8)}")


def _put_in_place(temporary: Path, target: Path, *, replace: bool) -> None:
    if replace:
        temporary.replace(target)
        return
    try:
        target.hardlink_to(temporary)  # unlike a rename, this fails when the name was taken meanwhile
    except FileExistsError:
        refuse_taken(target)
    except OSError:  # a disk without hard links
        refuse_taken(target)
        temporary.rename(target)
