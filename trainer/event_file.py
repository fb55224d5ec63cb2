"""A run's event file while the disk is full: no event ends the run, none is lost, and bad news still gets through.

A small file beside it keeps a place on the disk. Steps wait in memory for room; what the user has to know takes that
place.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from security.roots import Root
from trainer import events
from trainer.events import Event
from trainer.runs import RunFolder

RESERVED_NAME = "events.reserve"
RESERVED_BYTES = 256 * 1024
"""Enough for some hundred sentences, and whole blocks of any file system."""
MAX_WAITING = 1_000_000
"""Events that wait in memory, about a kilobyte each; a run has one for each step."""
PATIENT = (events.StepDone, events.Preparing)


class EventFile:
    """Appends events of one session of a run. Used by the thread that trains alone."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._reserve = folder.path / RESERVED_NAME
        with suppress(OSError):  # no place to keep: the disk is full already
            if not self._reserve.exists():
                Root(folder.path).write_bytes_atomic(self._reserve, bytes(RESERVED_BYTES))

    def append(self, event: Event) -> None:
        """Writes the event and those that wait, as far as there is room. Raises RefusedConfig for one with a token."""
        self._waiting.append(event)
        try:
            self._write_waiting()
        except OSError:
            if not isinstance(event, PATIENT) and self._reserve.exists():
                Root(self._folder.path).remove_tree(self._reserve)
                with suppress(OSError):
                    self._write_waiting()

    def close(self) -> None:
        """Writes what still waits, if it can, and gives the kept place back."""
        if self._reserve.exists():
            Root(self._folder.path).remove_tree(self._reserve)
        with suppress(OSError):
            self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            self._folder.append(self._waiting[0])
            self._waiting.popleft()
