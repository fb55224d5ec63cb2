"""Runs another program: an argument list, never a shell; an environment without secrets; an end after a set time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from security.errors import FailedCommand
from security.policy import CHILD_VARIABLE_PREFIXES, CHILD_VARIABLES


def scrubbed_environment() -> dict[str, str]:
    """The variables of this process that a child may see: no tokens, nothing but policy.CHILD_VARIABLES."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in CHILD_VARIABLES or name.upper().startswith(CHILD_VARIABLE_PREFIXES)
    }


def run(
    argv: Sequence[str], *, timeout_seconds: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `argv` to its end with no input and returns its exit code, stdout and stderr (UTF-8, bad bytes replaced).

    `argv[0]` is a program on the PATH or an absolute path. `env` is added to the scrubbed environment. A command that
    exits with an error is the caller's to judge. Raises FailedCommand if the program is missing or outlives
    `timeout_seconds`; then its whole process group is killed.
    """
    if any("\0" in part for part in argv):
        raise FailedCommand(f"An argument of {argv[0]!r} holds a NUL character. Remove it.")
    program = shutil.which(argv[0])
    if program is None:
        raise FailedCommand(f"The program {argv[0]!r} is not installed, or not on the PATH.")
    process = subprocess.Popen(
        [program, *argv[1:]],
        env={**scrubbed_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that the children of the program can be killed with it
    )
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except BaseException as error:
        _kill_group(process)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise FailedCommand(f"{argv[0]!r} did not end within {timeout_seconds:g} s and was stopped.") from None
        raise
    return subprocess.CompletedProcess([program, *argv[1:]], process.returncode, output, errors)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kills the program, and on Linux and macOS all that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
