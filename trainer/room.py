"""A full disk while a run works: told in plain words, waited out where something would be lost, never the end of a run
that could go on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from security.errors import SafelightError
from security.roots import disk_is_full
from trainer import events
from trainer.events import Event
from trainer.jobs import Control

LOOK_EVERY_SECONDS = 2.0
PATIENCE_ON_STOP_SECONDS = 12.0
"""How long a run that was asked to stop waits for room: less than the command line waits for its end."""

Emit = Callable[[Event], None]


class DiskFull(SafelightError):
    """What had to be written has found no room."""


def try_to_write(work: Callable[[], None], what: str, folder: Path, emit: Emit) -> bool:
    """Does `work`, which writes `what` below `folder`; a full disk is told by an event. Returns whether it was written."""
    try:
        work()
    except OSError as error:
        if not disk_is_full(error):
            raise
        emit(events.Warned(f"{_no_room(what, folder)} The run goes on and writes it at the next occasion: make room."))
        return False
    return True


def insist_on_writing(work: Callable[[], None], what: str, folder: Path, emit: Emit, control: Control) -> None:
    """Does `work` and waits for room where there is none, because steps would be lost. Raises DiskFull when asked to stop."""
    told, patience = False, PATIENCE_ON_STOP_SECONDS
    while True:
        try:
            work()
            break
        except OSError as error:
            if not disk_is_full(error):
                raise
        if not told:
            emit(events.Warned(f"{_no_room(what, folder)} The run waits: make room, and it is written by itself."))
            told = True
        time.sleep(LOOK_EVERY_SECONDS)
        patience -= LOOK_EVERY_SECONDS if control.ends else 0.0
        if patience <= 0:
            raise DiskFull(
                f"{_no_room(what, folder)} Make room and continue the run: it goes on from its last checkpoint."
            )


def _no_room(what: str, folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return f"The disk is full ({free / 1e6:.0f} MB free), so {what} could not be written."
