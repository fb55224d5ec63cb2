"""The machine's own memory: how much there is, and how much of it is still to be had. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its own limits; both versions of the interface."""


_TOLD = ("not enough memory", "DefaultCPUAllocator", "could not create a primitive", "could not create a memory")
"""What torch and oneDNN say on the CPU when the system refuses memory."""


def host_memory(control_group: Path = CONTROL_GROUP) -> tuple[int, int]:
    """Bytes that are still to be had, and all that this program may use: of the machine, or of its container."""
    machine = psutil.virtual_memory()
    available, total = int(machine.available), int(machine.total)
    limit = _limit(control_group)
    if limit is None:
        return available, total
    left, allowed = limit
    return min(available, left), min(total, allowed)


def own_memory() -> int:
    """Bytes of this program that lie in the machine's memory now."""
    try:  # of what Linux tells, a run in its sandbox may read this
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return int(psutil.Process(os.getpid()).memory_info().rss)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of a GPU or of the machine."""
    told = str(error)
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or any(words in told for words in _TOLD)
    )


def _limit(folder: Path) -> tuple[int, int] | None:
    """Bytes that a container may still take, and may have in all; None where nothing limits it."""
    for used, most in (
        ("memory.current", "memory.max"),
        ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes"),
    ):
        taken, allowed = _number(folder / used), _number(folder / most)
        if taken is not None and allowed is not None:
            kept = _dropped_first(folder / Path(used).with_name("memory.stat"))
            return max(0, allowed - taken + kept), allowed
    return None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None  # no container, or another version of the interface
    return int(text) if text.isdecimal() else None  # `max`: no limit


def _dropped_first(path: Path) -> int:
    """Bytes of files that the system keeps in case they are read again: it gives them up before anything fails."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(found.get("total_inactive_file", found.get("inactive_file", "0")))
