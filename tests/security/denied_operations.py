"""What a training run must not be able to do. Each entry is tried twice: without the sandbox, where it works, and in it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Places:
    """Where the operations are tried. `run` is the run's own folder, `dataset` the one it trains on."""

    run: Path
    dataset: Path
    workspace: Path
    outside: Path
    port: int
    abstract_name: str
    other_process: int

    @property
    def other_dataset(self) -> Path:
        return self.workspace / "datasets" / "other"

    @property
    def other_model(self) -> Path:
        return self.workspace / "models" / "other.safetensors"

    @property
    def own_file(self) -> Path:
        path = self.run / "own.txt"
        path.write_text("mine")
        return path


def read(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)


def look(folder: Path) -> None:
    list(folder.iterdir())


def write_and_remove(path: Path) -> None:
    path.write_text("x")
    path.unlink()


def make_and_remove(folder: Path) -> None:
    folder.mkdir()
    folder.rmdir()


def write_to_nothing() -> None:
    with Path("/dev/null").open("w") as file:
        file.write("x")


def connect(places: Places, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as one:
        one.connect(("127.0.0.1", places.port))


def talk_to_itself() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        other.recv(1)


def listen() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def send_datagram(places: Places) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", places.port))


def look_up() -> None:
    """A name server is asked over UDP; here only the socket for it is made."""
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()


def connect_abstract(places: Places) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\0" + places.abstract_name)


SOCKET_FILES = {"stream.s": socket.SOCK_STREAM, "packets.s": socket.SOCK_SEQPACKET, "datagrams.s": socket.SOCK_DGRAM}
"""Sockets with a name in the file system, by which the desktop's session, Docker or an SSH agent take orders."""


def open_socket_files(folder: Path) -> list[socket.socket]:
    """Sockets of another program, which listens there."""
    made = []
    for name, kind in SOCKET_FILES.items():
        made.append(socket.socket(socket.AF_UNIX, kind))
        made[-1].bind(str(folder / name))
        if kind is not socket.SOCK_DGRAM:
            made[-1].listen(50)
    return made


def order_by_socket_file(places: Places, name: str) -> None:
    with socket.socket(socket.AF_UNIX, SOCKET_FILES[name]) as one:
        if SOCKET_FILES[name] is socket.SOCK_DGRAM:
            one.sendto(b"start a program", str(places.outside / name))
        else:
            one.connect(str(places.outside / name))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def in_shared_temporary_folder() -> None:
    descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    Path(name).unlink()


def move_out_and_back(places: Places) -> None:
    own = places.own_file
    target = places.outside / "moved.txt"
    own.rename(target)
    target.rename(own)


def start_from_memory() -> None:
    """A copy of a program in a file without a name, to which no rule on folders applies."""
    descriptor = os.memfd_create("program")
    try:
        os.write(descriptor, Path("/bin/true").read_bytes())
        subprocess.run([f"/proc/self/fd/{descriptor}"], check=True, pass_fds=[descriptor])
    finally:
        os.close(descriptor)


def start_an_open_file() -> None:
    """The call `execveat`, which takes a descriptor instead of a path."""
    descriptor = os.memfd_create("program")
    os.write(descriptor, Path("/bin/true").read_bytes())
    child = os.fork()
    if child == 0:
        try:
            os.execve(descriptor, ["true"], {})
        finally:
            os._exit(errno.EACCES)
    os.close(descriptor)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise PermissionError(errno.EACCES, "the program did not start")


def start(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


DENIED_OPERATIONS: dict[str, Callable[[Places], None]] = {
    "read a file outside": lambda at: read(at.outside / "secret.txt"),
    "list a folder outside": lambda at: look(at.outside),
    "list the home folder": lambda at: look(Path.home()),
    "list the root of the disk": lambda at: look(Path("/")),
    "read /etc/passwd": lambda at: read(Path("/etc/passwd")),
    "read the program's variables in /proc": lambda at: read(Path("/proc/self/environ")),
    "read another process's variables": lambda at: read(Path(f"/proc/{at.other_process}/environ")),
    "read another process's memory": lambda at: os.close(os.open(f"/proc/{at.other_process}/mem", os.O_RDONLY)),
    "read a picture of another dataset": lambda at: read(at.other_dataset / "a.png"),
    "list the datasets": lambda at: look(at.workspace / "datasets"),
    "read another model": lambda at: read(at.other_model),
    "read another run's settings": lambda at: read(at.workspace / "runs" / "other" / "config.toml"),
    "list the runs": lambda at: look(at.workspace / "runs"),
    "read the log": lambda at: read(at.workspace / "logs" / "safelight.log"),
    "read a visitor's upload": lambda at: read(at.workspace / "cache" / "page" / "upload.png"),
    "read a file beside the program's code": lambda at: read(ROOT / "README.md"),
    "list the program's folder": lambda at: look(ROOT),
    "write a file outside": lambda at: write_and_remove(at.outside / "new.txt"),
    "overwrite a file outside": lambda at: (at.outside / "secret.txt").write_text("x"),
    "truncate a file outside": lambda at: os.truncate(at.outside / "secret.txt", 0),
    "delete a file outside": lambda at: (at.outside / "doomed.txt").unlink(),
    "make a folder outside": lambda at: (at.outside / "folder").mkdir(),
    "remove a folder outside": lambda at: (at.outside / "doomed").rmdir(),
    "write into the shared temporary folder": lambda at: in_shared_temporary_folder(),
    "write into the models folder": lambda at: write_and_remove(at.workspace / "models" / "new.safetensors"),
    "write into another run": lambda at: write_and_remove(at.workspace / "runs" / "other" / "new.txt"),
    "write among the workspace's folders": lambda at: write_and_remove(at.workspace / "new.txt"),
    "write the log": lambda at: write_and_remove(at.workspace / "logs" / "new.log"),
    "write the remembered hashes of models": lambda at: write_and_remove(
        at.workspace / "cache" / "models" / "new.json"
    ),
    "write into the dataset it reads": lambda at: write_and_remove(at.dataset / "new.txt"),
    "append to a picture it reads": lambda at: os.close(os.open(at.dataset / "000.png", os.O_WRONLY | os.O_APPEND)),
    "write the program's code": lambda at: write_and_remove(ROOT / "trainer" / "probe.tmp"),
    "write among the installed packages": lambda at: write_and_remove(
        Path(sysconfig.get_path("purelib")) / "probe.tmp"
    ),
    "move a file out of its folder": move_out_and_back,
    "hard link a file out of its folder": lambda at: os.link(at.own_file, at.outside / "linked-out.txt"),
    "hard link a file into its folder": lambda at: os.link(at.outside / "secret.txt", at.run / "linked-in.txt"),
    "make a symbolic link in its folder": lambda at: (at.run / "link").symlink_to("/etc/passwd"),
    "make a pipe in its folder": lambda at: os.mkfifo(at.run / "pipe"),
    "make a socket in its folder": lambda at: make_socket(at.run / "s"),
    "open a device": lambda at: os.close(os.open("/dev/full", os.O_WRONLY)),
    "connect to a TCP port": lambda at: connect(at, socket.SOCK_STREAM),
    "listen on a TCP port": lambda at: listen(),
    "send a UDP datagram": lambda at: send_datagram(at),
    "look up a name": lambda at: look_up(),
    "ask the kernel about the network": lambda at: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "connect to an abstract socket": connect_abstract,
    "connect to a socket file of another program": lambda at: order_by_socket_file(at, "stream.s"),
    "connect to a socket file for packets": lambda at: order_by_socket_file(at, "packets.s"),
    "send to a socket file": lambda at: order_by_socket_file(at, "datagrams.s"),
    "start a program": lambda at: start("/bin/true"),
    "start a program from memory": lambda at: start_from_memory(),
    "start a program by its open file": lambda at: start_an_open_file(),
    "let others read a file outside": lambda at: (at.outside / "secret.txt").chmod(0o644),
    "shut a folder outside": lambda at: at.outside.chmod(0o700),
    "give a file outside away": lambda at: os.chown(at.outside / "secret.txt", os.getuid(), os.getgid()),
    "start a shell": lambda at: start("/bin/sh", "-c", "true"),
    "start another Python": lambda at: start(sys.executable, "-c", ""),
    "end another process": lambda at: os.kill(at.other_process, signal.SIGCONT),
}
"""Every one of them must raise PermissionError in the sandbox, or OSError "another disk" for links and moves."""

ALLOWED_OPERATIONS: dict[str, Callable[[Places], None]] = {
    "read a picture of its dataset": lambda at: read(at.dataset / "000.png"),
    "list its dataset": lambda at: look(at.dataset),
    "write, rename and delete in its folder": lambda at: at.own_file.rename(at.run / "renamed.txt").unlink(),
    "make and remove folders in its folder": lambda at: make_and_remove(at.run / "one"),
    "write into the cache of latents": lambda at: write_and_remove(at.workspace / "cache" / "latents" / "x"),
    "read Python's library": lambda at: read(Path(os.__file__)),
    "read the program's code": lambda at: read(ROOT / "trainer" / "loop.py"),
    "read random numbers": lambda at: read(Path("/dev/urandom")),
    "write to /dev/null": lambda at: write_to_nothing(),
    "talk to itself through a pair of sockets": lambda at: talk_to_itself(),
    "signal its own process": lambda at: os.kill(os.getpid(), signal.SIGCONT),
}
"""What training does, which must go on working."""
