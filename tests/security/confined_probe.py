"""Runs in a confined child and tries what it was told to; prints what came of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Does what arguments[0] names."""
    return ACTIONS[arguments[0]](arguments[1:])


def code_of(operation: Callable[[], object]) -> str:
    try:
        operation()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "worked"


def try_all(arguments: list[str]) -> int:
    secret, new, port, process = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3])
    denied: dict[str, Callable[[], object]] = {
        "read": secret.read_bytes,
        "write": lambda: new.write_text("x"),
        "list": lambda: list(secret.parent.iterdir()),
        "passwd": Path("/etc/passwd").read_bytes,
        "environ": Path("/proc/self/environ").read_bytes,
        "connect": lambda: socket.create_connection(("127.0.0.1", port)),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "program": lambda: subprocess.run(["/bin/true"], check=True),
        "signal": lambda: os.kill(process, 0),
    }
    for name, operation in denied.items():
        say(f"denied-{name}", code_of(operation))
    say("cwd", str(Path.cwd()))
    say("home", str(Path.home()))
    say("temporary", tempfile.gettempdir())
    say("stdin", "empty" if sys.stdin.read() == "" else "full")
    say("session", "own" if os.getsid(0) == os.getpid() else "another")
    say("isolated", str(sys.flags.isolated))
    say("descriptors", ",".join(str(number) for number in range(60) if is_open(number)))
    say("variables", repr(sorted(os.environ.items())))
    Path("own.txt").write_text("x")
    say("wrote", "own.txt")
    return 0


def say(name: str, value: str) -> None:
    sys.stdout.write(f"{name} {value}\n")


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def read_descriptor(arguments: list[str]) -> int:
    sys.stdout.write(os.read(int(arguments[0]), 100).decode())
    Path("touched").touch()
    return 0


def take_memory(_: list[str]) -> int:
    return took(len(bytearray(500 << 20)))


def take_time(_: list[str]) -> int:
    began = time.monotonic()
    while time.monotonic() - began < 60:
        pass
    return took(1)


def take_disk(_: list[str]) -> int:
    return took(Path("large").write_bytes(bytes(100_000)))


def take_files(_: list[str]) -> int:
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    return took(len(opened))


def took(_: int) -> int:
    sys.stdout.write("took it\n")
    return 0


def sleep(_: list[str]) -> int:
    time.sleep(60)
    return 0


def shout(_: list[str]) -> int:
    while True:
        sys.stdout.write("x" * 100_000)


ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "try": try_all,
    "read": read_descriptor,
    "memory": take_memory,
    "time": take_time,
    "file": take_disk,
    "files": take_files,
    "sleep": sleep,
    "shout": shout,
}
