"""Landlock: a Linux thread gives up rights for good, without being root. https://docs.kernel.org/userspace-api/landlock.html

Only the calling thread and what it starts afterwards are bound; other threads of the process keep their rights.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path


class Access(IntFlag):
    """Rights on files, as the kernel numbers them (include/uapi/linux/landlock.h)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
    | Access.MAKE_REG
    | Access.MAKE_DIR
)
"""Plain files and folders only. A link made here could lead a reader with more rights somewhere else."""
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.READ_DIR | Access.IOCTL_DEV

_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
"""Rights that a rule on a single file may name; the kernel refuses the others."""
_SINCE_ABI = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
_NET_SINCE_ABI, _SCOPE_SINCE_ABI = 4, 6
_BIND_AND_CONNECT_TCP = 0b11
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1
_NEWEST_KNOWN_ABI = 7

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same numbers on every processor that Python has wheels for."""
_ASK_VERSION, _ASK_ERRATA = 1 << 0, 1 << 1
_ERRATUM_SIGNALS_BETWEEN_THREADS = 1 << 1
"""Before this fix a bound thread could not signal the other threads of its own process."""
_RULE_PATH_BENEATH = 1
_SET_NO_NEW_PRIVILEGES = 38


@dataclass(frozen=True, slots=True)
class Rule:
    """What stays allowed on a file, or on a folder and all below it."""

    path: Path
    access: Access


def abi() -> int:
    """The kernel's version of Landlock, 1 and up; 0 where there is none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE_RULESET, None, 0, _ASK_VERSION))


def restrict_thread(rules: Iterable[Rule]) -> None:
    """Denies the calling thread every file but those of `rules`, every TCP connection, and new privileges; for good.

    Rights that this kernel does not know stay as they were: TCP before ABI 4, device commands before 5, abstract
    sockets and signals before 6. A rule for a path that cannot be reached is left out. Raises OSError where Landlock is
    missing or the process may not use it.
    """
    version = min(abi(), _NEWEST_KNOWN_ABI)
    if version < 1:
        raise OSError("this system has no Landlock")
    handled = _handled(version)
    ruleset = _check(_call(_CREATE_RULESET, *_attributes(version, handled), 0))
    try:
        for rule in rules:
            _add(ruleset, rule, handled)
        _check(_libc().prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _check(_call(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _handled(version: int) -> Access:
    """Every right that this kernel can deny."""
    handled = Access(0)
    for right in Access:
        if _SINCE_ABI.get(right, 1) <= version:
            handled |= right
    return handled


def _attributes(version: int, handled: Access) -> tuple[bytes, int]:
    """struct landlock_ruleset_attr and its size, as long as this kernel knows it."""
    values = [int(handled)]
    if version >= _NET_SINCE_ABI:
        values.append(_BIND_AND_CONNECT_TCP)
    if version >= _SCOPE_SINCE_ABI:
        errata = max(0, _call(_CREATE_RULESET, None, 0, _ASK_ERRATA))
        signals = _SCOPE_SIGNALS if errata & _ERRATUM_SIGNALS_BETWEEN_THREADS else 0
        values.append(_SCOPE_ABSTRACT_SOCKETS | signals)
    attributes = struct.pack(f"={len(values)}Q", *values)
    return attributes, len(attributes)


def _add(ruleset: int, rule: Rule, handled: Access) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # nothing there, or nothing that this user can reach anyway
    try:
        access = rule.access & handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        attributes = struct.pack("=Qi", int(access), descriptor)
        if access:
            _check(_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, attributes, 0))
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: bytes | int | None) -> int:
    """A system call of the calling thread; -1 and errno where it fails."""
    converted = [
        argument
        if isinstance(argument, bytes)
        else ctypes.c_void_p(argument)
        if argument is None
        else ctypes.c_long(argument)
        for argument in arguments
    ]
    return int(_libc().syscall(ctypes.c_long(number), *converted))


def _check(result: int) -> int:
    """`result`, or OSError with what the kernel said."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
