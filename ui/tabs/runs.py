"""The Runs tab: every run there is, live or old, in one view."""

from __future__ import annotations

from ui.monitor import RunMonitor
from ui.services import Services


def runs_tab(services: Services) -> RunMonitor:
    """Draws the tab."""
    return RunMonitor(services)
