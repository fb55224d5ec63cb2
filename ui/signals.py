"""Which signals ask a command or the page to end well."""

from __future__ import annotations

import signal


def ending_signals() -> list[signal.Signals]:
    """Ctrl+C, SIGTERM, and the end of the terminal or of an SSH connection, unless that is ignored as under nohup."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.append(hangup)
    return found
