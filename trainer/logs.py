"""The log file of a workspace: what went wrong, with details that the page does not show."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler

from trainer.workspace import Workspace

MAX_LOG_BYTES = 5_000_000


def configure_logging(workspace: Workspace) -> None:
    """Writes warnings of all libraries and everything of Safelight to logs/safelight.log, up to 5 MB and one older file."""
    handler = RotatingFileHandler(
        workspace.logs_dir / "safelight.log", maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logging.getLogger("safelight").setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
