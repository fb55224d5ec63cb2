"""Waits for the disk in the background after large edits, so that what was written is no longer on a history's list."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from typing import Protocol

from security.errors import SafelightError

logger = logging.getLogger("safelight.history")

DELAY_SECONDS = 2.0
"""Edits often come in groups; one wait serves them all."""


class Settles(Protocol):
    """What is settled: `trainer.dataset.history.History`."""

    def settle(self) -> None: ...


_guard = threading.Lock()
_waiting: list[Settles] = []
_thread: threading.Thread | None = None


def settle_later(history: Settles) -> None:
    """Calls `settle` soon, on a thread. If the program ends before, the next one does it."""
    global _thread
    with _guard:
        if not any(history is other for other in _waiting):
            _waiting.append(history)
        if _thread is None:
            _thread = threading.Thread(target=_work, name="safelight-settle", daemon=True)
            _thread.start()


def _work() -> None:
    global _thread
    while True:
        time.sleep(DELAY_SECONDS)
        with _guard:
            histories = list(_waiting)
            _waiting.clear()
            if not histories:
                _thread = None
                return
        for history in histories:
            try:
                history.settle()
            except (SafelightError, OSError, sqlite3.Error) as error:
                logger.info("a history was not settled: %s", error)  # the dataset was deleted or renamed meanwhile
