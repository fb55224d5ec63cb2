"""Safelight as its users start it: `python launch.py` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
READY = "Safelight is ready: "


@dataclass
class Served:
    """A running page. `link` is what the terminal said (with the key, if there is one), `address` its bare address."""

    process: subprocess.Popen[str]
    workspace: Path
    link: str
    seconds_to_ready: float
    output: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.link.split("/?")[0]

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As the power going off does it."""
        self.process.kill()
        self.process.wait(30)

    def end(self, number: int = signal.SIGTERM, timeout: float = 40.0) -> int:
        """Asks the program to end and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def start(workspace: Path, *arguments: str, port: int = 0, timeout: float = 120.0, **variables: str) -> Served:
    """Starts the program and waits until it says that it is ready."""
    command = [
        sys.executable,
        "launch.py",
        "--no-venv",
        "--no-browser",
        "--port",
        str(port),
        "--workspace",
        str(workspace),
    ]
    return start_command([*command, *arguments], workspace, timeout=timeout, **variables)


def start_command(command: list[str], workspace: Path, *, timeout: float = 120.0, **variables: str) -> Served:
    """The same for any command that serves the page."""
    environment = {key: value for key, value in os.environ.items() if key != "SAFELIGHT_WORKSPACE"}
    environment |= {"PYTHONUNBUFFERED": "1", **variables}
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: queue.Queue[str | None] = queue.Queue()
    output: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            said.put(line)
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = started + timeout
    while True:
        try:
            line = said.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            process.kill()
            raise AssertionError(f"the page did not start:\n{''.join(output)}")
        if line.startswith(READY):
            return Served(process, workspace, line.removeprefix(READY).strip(), time.monotonic() - started, output)


@contextlib.contextmanager
def served(workspace: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    """The same, ended at the end."""
    page = start(workspace, *arguments, **variables)
    try:
        yield page
    finally:
        if page.process.poll() is None:
            page.kill()
