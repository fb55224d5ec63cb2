"""Runs another program: an argument list, never a shell; an environment without secrets; an end after a set time."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from security.errors import Cancelled, FailedCommand
from security.policy import CHILD_VARIABLE_PREFIXES, CHILD_VARIABLES, MAX_CHILD_OUTPUT_BYTES

MAX_LINE_BYTES = 64 * 1024
"""Longest line of a program that answers in lines."""
MAX_SAID_BYTES = 4 * 1024 * 1024
"""Longest line of a Talker; a longer one arrives in pieces."""
_POLL_SECONDS, _END_SECONDS = 0.1, 10.0

Completed = subprocess.CompletedProcess[str]
"""How a command ended: `returncode`, `stdout` and `stderr`."""


def scrubbed_environment() -> dict[str, str]:
    """The variables of this process that a child may see: no tokens, nothing but policy.CHILD_VARIABLES."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in CHILD_VARIABLES or name.upper().startswith(CHILD_VARIABLE_PREFIXES)
    }


def ended_by(returncode: int) -> str:
    """How a program ended that something outside of it ended: the name of the signal, and what usually sends it."""
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    return f"was ended from outside ({name}), as a system does that runs out of memory"


def run(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    descriptors: Sequence[int] = (),
) -> Completed:
    """Runs `argv` to its end with no input and returns its exit code, stdout and stderr (UTF-8, bad bytes replaced).

    `argv[0]` is a program on the PATH or an absolute path. `env` is added to the scrubbed environment. `folder` is its
    working folder; `descriptors` (not on Windows) are the only open files it inherits. A command that exits with an
    error is the caller's to judge. Raises FailedCommand if the program is missing, outlives `timeout_seconds` or prints
    over MAX_CHILD_OUTPUT_BYTES; then its whole process group is killed.
    """
    if any("\0" in part for part in argv):
        raise FailedCommand(f"An argument of {argv[0]!r} holds a NUL character. Remove it.")
    program = shutil.which(argv[0])
    if program is None:
        raise FailedCommand(f"The program {argv[0]!r} is not installed, or not on the PATH.")
    process = subprocess.Popen(
        [program, *argv[1:]],
        env={**scrubbed_environment(), **(env or {})},
        cwd=folder,
        pass_fds=tuple(descriptors),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that the children of the program can be killed with it
    )
    try:
        output, errors = _communicate(process, argv[0], timeout_seconds)
    except BaseException:
        _kill_group(process)
        process.wait()
        raise
    return subprocess.CompletedProcess([program, *argv[1:]], process.returncode, output, errors)


def converse(
    argv: Sequence[str],
    *,
    spoken: bytes,
    hear: Callable[[str], None],
    cancelled: Callable[[], bool],
    idle_seconds: float,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Completed:
    """Runs a program of this Python that is told `spoken` on its stdin and answers in lines, each given to `hear` at once.

    Returns exit code and stderr; `stdout` is empty. Environment and limits are those of `run`, but it may take as long as
    it goes on saying something. Raises Cancelled once `cancelled` says so, FailedCommand after `idle_seconds` without a
    line or for a line that is too long; then its whole process group is killed.
    """
    process = subprocess.Popen(
        [*argv],
        env={**scrubbed_environment(), **(env or {})},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        errors, lines = _Reader(process.stderr), _Lines(process.stdout)
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it ended already: its exit code tells
            pipe.write(spoken)
        _hear_all(lines, hear, cancelled, idle_seconds, Path(argv[0]).name)
        process.wait(_END_SECONDS)
        errors.join(_END_SECONDS)
    except BaseException:
        _kill_group(process)
        process.wait()
        raise
    return subprocess.CompletedProcess([*argv], process.returncode, "", errors.held.decode("utf-8", "replace"))


class Talker:
    """A program of this Python that runs beside this one, is told lines and says lines. `heard` gets (line, is_error).

    Environment as of `run`. It sees the end of what it is told when this program ends, however it does.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        heard: Callable[[str, bool], None],
        descriptors: Sequence[int] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [*argv],
            env={**scrubbed_environment(), **env},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(descriptors),
            start_new_session=True,  # so that Ctrl+C reaches this program alone, which then ends it well
        )
        pipes = ((self._process.stdout, False), (self._process.stderr, True))
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, is_error, heard), name="safelight-pipe", daemon=True)
            for pipe, is_error in pipes
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Tells it a line; one that has ended hears nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def returncode(self) -> int | None:
        """How it ended, once everything that it said was heard; None before."""
        code = self._process.poll()
        if code is None:
            return None
        for reader in self._readers:
            reader.join(_END_SECONDS)
        return code

    def kill(self) -> None:
        """Ends it at once, with all that it started."""
        _kill_group(self._process)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    @staticmethod
    def _read(pipe: IO[bytes], is_error: bool, heard: Callable[[str, bool], None]) -> None:
        with pipe:
            while line := pipe.readline(MAX_SAID_BYTES):
                heard(line.decode("utf-8", "replace").rstrip("\r\n"), is_error)


def _hear_all(
    lines: _Lines, hear: Callable[[str], None], cancelled: Callable[[], bool], idle_seconds: float, name: str
) -> None:
    heard = time.monotonic()
    while True:
        if cancelled():
            raise Cancelled("Cancelled.")
        try:
            line = lines.queue.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if time.monotonic() - heard > idle_seconds:
                raise FailedCommand(f"{name!r} said nothing for {idle_seconds:g} s and was stopped.") from None
            continue
        if line is None:
            return
        if len(line) > MAX_LINE_BYTES:
            raise FailedCommand(f"{name!r} printed a line of over {MAX_LINE_BYTES} bytes and was stopped.")
        heard = time.monotonic()
        hear(line.decode("utf-8", "replace").rstrip("\r\n"))


class _Lines(threading.Thread):
    """Reads lines of a pipe into a queue; None marks its end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(name="safelight-pipe", daemon=True)
        self.pipe = pipe
        self.queue: queue.Queue[bytes | None] = queue.Queue()
        self.start()

    def run(self) -> None:
        """The thread's work."""
        with self.pipe:
            while line := self.pipe.readline(MAX_LINE_BYTES + 1):
                self.queue.put(line)
                if len(line) > MAX_LINE_BYTES:
                    break
        self.queue.put(None)


class _Reader(threading.Thread):
    """Reads one pipe to its end, or until it has held too much."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(name="safelight-pipe", daemon=True)
        self.pipe = pipe
        self.held = b""
        self.start()

    def run(self) -> None:
        """The thread's work."""
        with self.pipe:
            while (chunk := self.pipe.read1(1 << 16)) and len(self.held) <= MAX_CHILD_OUTPUT_BYTES:  # type: ignore[attr-defined]
                self.held += chunk


def _communicate(process: subprocess.Popen[bytes], name: str, timeout_seconds: float) -> tuple[str, str]:
    """What the program printed, once it and all that hold its pipes have ended."""
    assert process.stdout is not None and process.stderr is not None
    deadline = time.monotonic() + timeout_seconds
    readers = (_Reader(process.stdout), _Reader(process.stderr))
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
        if len(reader.held) > MAX_CHILD_OUTPUT_BYTES:
            raise FailedCommand(f"{name!r} printed over {MAX_CHILD_OUTPUT_BYTES} bytes and was stopped.")
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise FailedCommand(f"{name!r} did not end within {timeout_seconds:g} s and was stopped.") from None
    if any(reader.is_alive() for reader in readers):
        raise FailedCommand(f"{name!r} ended, but not what it started. That was stopped.")
    output, errors = (reader.held.decode("utf-8", "replace") for reader in readers)
    return output.replace("\r\n", "\n"), errors.replace("\r\n", "\n")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the program, and on Linux and macOS all that it started."""
    if sys.platform == "win32":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):  # nothing is left of the group
        os.killpg(process.pid, signal.SIGKILL)
