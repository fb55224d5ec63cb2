"""Starts the processes that train one LoRA together, keeps them together, and says where they meet.

On one machine they meet at a file that only this user can open and speak over loopback: no port is open to anybody. Workers
of several machines meet at one address, whose port takes whoever reaches it for a worker (see docs/several-gpus.md).
"""

from __future__ import annotations

import ipaddress
import json
import os
import queue
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil  # type: ignore[import-untyped]

from security.environment import remove_temporary, temporary_folder
from security.errors import SafelightError
from security.policy import OFFLINE_VARIABLES
from security.processes import Talker, ended_by

REPOSITORY_DIR = Path(__file__).resolve().parents[1]
FAILED, LOST_OTHERS = 3, 4
"""Exit codes of a worker: it has said why it can't go on; another one was gone. Any other but 0 means that it was lost."""
_PREFIX = "safelight-workers-"
_TOGETHER_SECONDS = 20.0
"""So long the others may take to end once one has, before they are ended."""


@dataclass(frozen=True)
class Meeting:
    """Where workers meet: a file, or on several machines `address` and `port` of the first one.

    `folder`: for this machine's workers alone; `lock`: shows others that it is in use. `interface`: the one network that
    they speak over. `listens`: the open socket of the machine that the others come to.
    """

    folder: Path
    lock: BinaryIO
    address: str = ""
    port: int = 0
    interface: str = ""
    listens: socket.socket | None = None

    @property
    def file(self) -> Path:
        """Where the workers of one machine meet."""
        return self.folder / "meeting"

    def close(self) -> None:
        """Leaves nothing behind."""
        if self.listens is not None:
            self.listens.close()
        remove_temporary(self.folder, self.lock)


def meet_here() -> Meeting:
    """A meeting of workers of this machine, which nobody else can come to."""
    return Meeting(*temporary_folder(_PREFIX), interface=_interface_of("127.0.0.1"))


def meet_at(address: str, port: int, *, listen: bool) -> Meeting:
    """A meeting of several machines. `listen`: this one has that address, and waits there for the others; nowhere else.

    Raises SafelightError for an address that can't be.
    """
    host = _resolved(address)
    if not listen:
        if not (towards := _interface_towards(host)):
            raise SafelightError(f"No network of this machine leads to {address}. Check --main-address.")
        return Meeting(*temporary_folder(_PREFIX), host, port, towards)
    try:
        listening = socket.create_server((host, port), family=_family(host), backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SafelightError(
            f"--main-address is {address}:{port}, but this machine can't wait there ({reason}). Give an address of "
            "the machine with --node-rank 0, as the other machines reach it, and a free port."
        ) from None
    return Meeting(*temporary_folder(_PREFIX), host, port, _interface_of(host), listening)


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT as two. Raises SafelightError with an example."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1024 <= int(port) <= 65535:
        raise SafelightError(f"{text!r} is no address of a machine. Give it as HOST:PORT, such as 10.0.0.5:29500.")
    return host.strip("[]"), int(port)


class Crew:
    """Workers of one machine, `heard` from in one queue: (number of the worker, line, is it of its error output)."""

    def __init__(
        self, module: str, tasks: Sequence[Mapping[str, object]], meeting: Meeting, env: Mapping[str, str]
    ) -> None:
        self.heard: queue.SimpleQueue[tuple[int, str, bool]] = queue.SimpleQueue()
        self.members: list[Talker] = []
        starter = Path(__file__).resolve().with_name("worker.py")
        paths = [path for path in sys.path if Path(path).is_absolute()]
        argv = [sys.executable, "-I", str(starter), json.dumps({"module": module, "paths": paths})]
        # without a name either library would choose a network by itself; `=`: this one, not all whose names begin so
        links = {"GLOO_SOCKET_IFNAME": meeting.interface, "NCCL_SOCKET_IFNAME": f"={meeting.interface}"}
        try:
            for number, task in enumerate(tasks):
                descriptor = meeting.listens.fileno() if meeting.listens is not None and number == 0 else None
                one = Talker(
                    argv,
                    env={**OFFLINE_VARIABLES, **links, **env},
                    folder=meeting.folder,
                    heard=lambda line, is_error, number=number: self.heard.put((number, line, is_error)),  # type: ignore[misc]
                    descriptors=() if descriptor is None else (descriptor,),
                )
                self.members.append(one)
                one.say(json.dumps({**task, "listens": descriptor}))
        except BaseException:
            self.end()
            raise
        if meeting.listens is not None:
            meeting.listens.close()  # the first worker has it now; where that ends, nobody else should seem to wait there
        self._one_ended: float | None = None

    def say(self, line: str) -> None:
        """Tells every worker."""
        for member in self.members:
            member.say(line)

    def ended(self) -> list[int] | None:
        """The exit codes once all have ended; None before. Once one has ended, the others have to soon."""
        codes = [member.returncode() for member in self.members]
        if all(code is not None for code in codes):
            return [code for code in codes if code is not None]
        if any(code is not None for code in codes):
            self._one_ended = self._one_ended or time.monotonic()
            if time.monotonic() - self._one_ended > _TOGETHER_SECONDS:
                self.end()
        return None

    def end(self) -> None:
        """Ends all at once."""
        for member in self.members:
            member.kill()


def lost_words(codes: Sequence[int]) -> str:
    """Which workers were lost and how, for people; those that only missed another one are not told."""
    told = [
        f"worker {number + 1} of {len(codes)} {ended_by(code) if code < 0 else f'ended with code {code}'}"
        for number, code in enumerate(codes)
        if code not in (0, LOST_OTHERS)
    ]
    return ", ".join(told) or "a worker of another machine is gone, or the connection to it"


def _resolved(address: str) -> str:
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError:
        raise SafelightError(f"No machine of the name {address!r} is known here. Check --main-address.") from None
    host = str(found[0][4][0])
    if ipaddress.ip_address(host).is_unspecified:
        raise SafelightError(
            f"--main-address is {address}, which would let in every network. Give the one address that the other machines "
            "reach this one by."
        )
    return host


def _interface_of(host: str) -> str:
    """The name of the network interface that has this address; "" where none has."""
    return next(
        (name for name, entries in psutil.net_if_addrs().items() if any(entry.address == host for entry in entries)), ""
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _interface_towards(host: str) -> str:
    """The interface that leads to another machine. Nothing is sent to find it."""
    with socket.socket(_family(host), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return ""
        return _interface_of(str(probe.getsockname()[0]))
