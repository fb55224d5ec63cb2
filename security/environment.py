"""The environment the program runs in: variables that undo a protection go, those that keep libraries offline come.

Standard library only, because both functions must run before gradio, huggingface_hub or diffusers is imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from security.policy import DROPPED_VARIABLE_PREFIXES, DROPPED_VARIABLES, OFFLINE_VARIABLES

_TEMP_PREFIX = "safelight-page-"
_LOCK_NAME = "lock"
_held_locks: list[BinaryIO] = []
"""Open files whose lock shows other processes that their temporary folder is in use."""


def private_files() -> None:
    """Makes every file and folder that this process creates from now on readable by its owner alone (umask 077).

    Libraries that write for us, such as Pillow, ask for modes that let others read.
    """
    os.umask(0o077)


def offline_environment() -> None:
    """Keeps the model libraries off the network and from running code of a model. Call it before importing any of them.

    Sets policy.OFFLINE_VARIABLES, whatever they were, and removes policy.DROPPED_VARIABLES.
    """
    for name in DROPPED_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(OFFLINE_VARIABLES)


def closed_environment(temp_parent: Path | None = None) -> Path:
    """Prepares the page's environment; call it before gradio is imported. Returns gradio's private temporary folder.

    Removes every GRADIO_ variable (each can widen what is served), goes offline as `offline_environment` does, keeps
    loopback off any proxy, and gives gradio a folder of its own (mode 0700) inside `temp_parent` (the system's one if
    None). The folder goes when the program ends; folders of programs that were killed are removed at the next start.
    """
    for name in [name for name in os.environ if name.upper().startswith(DROPPED_VARIABLE_PREFIXES)]:
        del os.environ[name]
    offline_environment()
    for name in ("NO_PROXY", "no_proxy"):
        present = [host for host in os.environ.get(name, "").split(",") if host]
        missing = [host for host in ("127.0.0.1", "localhost", "::1") if host not in present]
        os.environ[name] = ",".join(present + missing)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder, lock = temporary_folder(_TEMP_PREFIX, temp_parent)
    _held_locks.append(lock)
    atexit.register(remove_temporary, folder, lock)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def temporary_folder(prefix: str, parent: Path | None = None) -> tuple[Path, BinaryIO]:
    """A new folder (mode 0700) in `parent` (the system's one if None) and its lock, held: keep it until the folder goes.

    Folders of the same prefix whose program was killed are removed first.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    _sweep_stale(parent, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
        lock = (folder / _LOCK_NAME).open("wb")
        if _lock_file(lock) and (folder / _LOCK_NAME).exists():
            return folder, lock
        lock.close()  # another program that starts now took it for a left-over, and removes it


def _lock_file(file: BinaryIO) -> bool:
    """Takes the lock of an open file without waiting; False if another process holds it. It ends with the process."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep_stale(parent: Path, prefix: str) -> None:
    """Removes temporary folders of ours whose program is gone. Only this user's; rmtree refuses links by itself."""
    for folder in parent.glob(prefix + "*"):
        try:
            if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
                continue
            lock = (folder / _LOCK_NAME).open("r+b")
        except OSError:
            continue  # just being made or removed by another program
        with lock:
            stale = _lock_file(lock)
            if stale:  # while it is locked: a program that is just making this folder then takes another
                shutil.rmtree(folder, ignore_errors=True)
        if stale:  # Windows does not delete a file that is open
            shutil.rmtree(folder, ignore_errors=True)


def remove_temporary(folder: Path, lock: BinaryIO) -> None:
    """Removes a folder that `temporary_folder` made."""
    lock.close()
    shutil.rmtree(folder, ignore_errors=True)
