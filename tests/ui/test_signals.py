"""Which signals end a command well, asked of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = "from ui.signals import ending_signals; print(*[one.name for one in ending_signals()])"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(
    ("disposition", "names"), [(signal.SIG_DFL, "SIGINT SIGTERM SIGHUP"), (signal.SIG_IGN, "SIGINT SIGTERM")]
)
def test_a_closed_terminal_counts_unless_it_is_ignored(disposition: signal.Handlers, names: str) -> None:
    before = signal.signal(signal.SIGHUP, disposition)  # inherited by the child, as under nohup
    try:
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.stdout.split() == names.split()
