"""The log file of a workspace: what went wrong, with details that the page does not show, and without secrets.

Records are written by a thread of their own: the thread that trains may not write outside of its run's folder.
"""

from __future__ import annotations

import atexit
import logging
import queue
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler

from security.log_records import RedactingFormatter
from trainer.workspace import Workspace

MAX_LOG_BYTES = 5_000_000

_active: list[tuple[QueueHandler, QueueListener]] = []
"""The handler that takes records and the thread that writes them; none or one."""


def configure_logging(workspace: Workspace) -> None:
    """Writes warnings of all libraries and everything of Safelight to logs/safelight.log, up to 5 MB and one older file.

    A second call changes the workspace.
    """
    close_logging()
    file = RotatingFileHandler(
        workspace.logs_dir / "safelight.log", maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8"
    )
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(records)
    handler.setLevel(logging.INFO)
    listener = QueueListener(records, file)
    listener.start()
    _active.append((handler, listener))
    logging.getLogger("safelight").setLevel(logging.INFO)
    # When it is imported, it advises to install a package that downloads programs; Safelight doesn't want one.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)


def close_logging() -> None:
    """Writes what has been logged so far and closes the file. Call it before os._exit."""
    while _active:
        handler, listener = _active.pop()
        logging.getLogger().removeHandler(handler)
        listener.stop()
        for target in listener.handlers:
            target.close()


atexit.register(close_logging)
