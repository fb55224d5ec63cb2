"""The sandbox: a training run's thread, or a child process, that can reach the files it needs and no network. Linux only.

A second fence behind the checks of files: it holds what slips through them. Bound to a thread it is no wall, because
threads share memory; a child process has its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mimetypes
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from security import landlock
from security.landlock import DEVICE, READ, WRITE, Access, Rule
from security.policy import CONFINED_CHILD_VARIABLES, OFFLINE_VARIABLES
from security.processes import Completed, run
from security.seccomp import restrict_calls

REPOSITORY_DIR = Path(__file__).resolve().parents[1]
_CODE_FOLDERS = ("security", "trainer")
"""What a run or a confined child imports of this program. The workspace, .env and .git may lie beside them."""
_NET_SINCE_ABI = 4

_SYSTEM_FILES = (
    *("/usr", "/lib", "/lib32", "/lib64", "/opt/rocm", "/nix/store", "/run/opengl-driver"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf", "/etc/OpenCL/vendors", "/etc/nvidia"),
    *("/sys", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/devices", "/proc/driver", "/proc/modules"),
    *("/proc/version", "/proc/filesystems", "/proc/sys/vm", "/proc/sys/kernel"),
    *("/proc/self/maps", "/proc/self/status", "/proc/self/stat", "/proc/self/cgroup", "/proc/self/mountinfo"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)
"""Read by Python, the C library, torch and the GPU drivers. None of it is private to a person; no right to start a
program from it is given. /proc/self is listed by file: its `environ` still holds the variables the program began with."""
_LIBRARY_BYTES = 16 << 30
"""Address space for libraries on top of a child's memory: torch's GPU build maps some gigabytes that it never touches."""
_thread = threading.local()
_GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg")


@dataclass(frozen=True, slots=True)
class SandboxState:
    """Whether the sandbox works. `detail` is a sentence for Settings, doctor and the log."""

    active: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a confined child may use: memory and largest file in bytes, processor time in seconds."""

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    open_files: int = 64


def probe() -> SandboxState:
    """Tries the sandbox on a thread of its own and says whether it holds. Takes about a millisecond."""
    states: list[SandboxState] = []
    thread = threading.Thread(target=lambda: states.append(_restrict([])), name="safelight-sandbox-probe")
    thread.start()
    thread.join()
    return states[0]


def confine_thread(*, read: Sequence[Path], write: Sequence[Path]) -> SandboxState:
    """Binds the calling thread, and the threads it starts, to these files and folders and to what Python and torch need.

    `write` folders can also be read. Irrevocable, so give every job a thread of its own; other threads are not bound.
    Where the system has no sandbox the thread keeps its rights, and the state that is returned says so.
    """
    tempfile.gettempdir()  # found by writing, and remembered for the whole process: here that would find none
    if not mimetypes.inited:
        mimetypes.init()  # reads files of /etc, likewise remembered
    _wake_gpu()
    devices = [Rule(path, DEVICE) for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern)]
    own = [Rule(path, READ) for path in read] + [Rule(path, WRITE) for path in write]
    state = _restrict([*_runtime_rules(), *devices, *own])
    _thread.confined = state.active
    return state


def is_confined() -> bool:
    """Whether the calling thread was bound by `confine_thread`, so that it can start no program."""
    return getattr(_thread, "confined", False)


def run_confined(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    limits: Limits,
    timeout_seconds: float,
    read: Sequence[Path] = (),
    descriptors: Sequence[int] = (),
) -> Completed:
    """Runs `main(arguments)` of one of our modules in a child of this Python, which first gives up its rights.

    The child can read what Python and torch need and `read`, write only in `folder` (its working and temporary folder),
    start no program and reach no network; it inherits the open files `descriptors` and no others, sees no secret
    and is killed after `timeout_seconds`. Where it cannot be confined it does nothing and exits with
    CONFINEMENT_FAILED. Raises FailedCommand if it takes too long or says too much.
    """
    policy = {
        "module": module,
        "paths": [path for path in sys.path if Path(path).is_absolute()],
        "read": [str(path) for path in read],
        "write": [str(folder)],
        "limits": asdict(limits),
    }
    starter = Path(__file__).resolve().with_name("confined.py")
    places = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(folder))
    # -I: no variable, no current folder and no user's start-up file has a say in what is imported.
    return run(
        [sys.executable, "-I", "-B", str(starter), json.dumps(policy), *arguments],
        timeout_seconds=timeout_seconds,
        env={**OFFLINE_VARIABLES, **CONFINED_CHILD_VARIABLES, **places},
        folder=folder,
        descriptors=descriptors,
    )


def confine_process(policy: Mapping[str, object]) -> SandboxState:
    """For a child that has one thread: limits and sandbox as `run_confined` described them. Cannot be undone."""
    import resource  # not on Windows, where no child comes here

    limits = Limits(**policy["limits"])  # type: ignore[arg-type]
    for kind, value in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_AS, limits.memory_bytes + _LIBRARY_BYTES),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, 0),  # no further process or thread; does not bind root
        (resource.RLIMIT_CORE, 0),  # a memory dump would hold the model, or what else was in memory
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))
    rules = [Rule(Path(path), READ) for path in policy["read"]]  # type: ignore[attr-defined]
    rules += [Rule(Path(path), WRITE) for path in policy["write"]]  # type: ignore[attr-defined]
    return _restrict([*_runtime_rules(), *rules])


def _restrict(rules: Sequence[Rule]) -> SandboxState:
    """Restricts the calling thread and looks whether it holds."""
    version = landlock.abi()
    if version == 0:
        reason = "Linux has it from 5.13 on, if it is switched on" if sys.platform == "linux" else "only Linux has it"
        return _off(reason)
    try:
        landlock.restrict_thread(rules)
    except OSError as error:
        return _off(f"the system refused it: {error.strerror or error}")
    if not _is_denied("/"):
        return _off("the system accepted it and still lets everything be read")
    if restrict_calls():
        network = "and reach no network"
    elif version >= _NET_SINCE_ABI:
        network = "and open no TCP connection; on this system it can still use UDP"
    else:
        network = "but can use the network, which this system cannot deny it"
    return SandboxState(
        True,
        f"On (Landlock {version}): a run can read its model and dataset, write its own folder and the cache, "
        f"start no program {network}. It is a second fence, no wall: a run shares the memory of this program.",
    )


def _off(reason: str) -> SandboxState:
    return SandboxState(
        False, f"Off: {reason}. Training works, with all rights of this user; pickle files cannot be converted."
    )


def _is_denied(folder: str) -> bool:
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return True
    return False


def _runtime_rules() -> Iterator[Rule]:
    """What every confined thread may read, and /dev/null."""
    for path in (*_SYSTEM_FILES, *_python_folders(), *_library_folders()):
        yield Rule(Path(path), READ)
    for name in _CODE_FOLDERS:
        yield Rule(REPOSITORY_DIR / name, READ)
    yield Rule(Path("/dev/null"), Access.READ_FILE | Access.WRITE_FILE)


def _python_folders() -> Iterator[str]:
    """The standard library and the installed packages, wherever this Python keeps them."""
    yield from {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        yield from (f"{prefix}/lib", f"{prefix}/lib64")
    yield from (path for path in sys.path if not _holds_more_than_code(Path(path)))


def _library_folders() -> Iterator[str]:
    """Where the user told the loader to look for libraries."""
    for path in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if not _holds_more_than_code(Path(path)):
            yield path


def _holds_more_than_code(folder: Path) -> bool:
    """True for folders that hold a person's files too: the home, this repository with its workspace, where we stand."""
    if not folder.is_absolute():
        return True
    resolved = folder.resolve()
    kept = [Path.home().resolve(), REPOSITORY_DIR, Path(tempfile.gettempdir()).resolve()]
    with contextlib.suppress(FileNotFoundError):  # the folder where we stand was deleted
        kept.append(Path.cwd())
    return any(keep.is_relative_to(resolved) for keep in kept)


def _wake_gpu() -> None:
    """Lets NVIDIA's driver make its device files. It starts a helper program for that, which a confined thread can't."""
    if sys.platform != "linux" or Path("/dev/nvidia-uvm").exists():
        return
    try:
        ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        return  # no NVIDIA driver here
