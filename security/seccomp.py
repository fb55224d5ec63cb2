"""A Linux thread gives up the calls of the system that Landlock lets through and training does not need.

Landlock knows files, TCP and abstract sockets. It does not know UDP and name look-ups; socket files, by which the desktop's
session, Docker or an SSH agent take orders to start programs outside of every sandbox; programs that were put together in
memory; and the modes, owners and attributes of files. This is a filter of system calls,
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Processor:
    """Its name in the kernel (AUDIT_ARCH_...), its number of the call `socket`, and those of the denied calls."""

    architecture: int
    socket_call: int
    denied_calls: tuple[int, ...]


_NEW_CALLS = (425, 452, 463, 466)
"""io_uring_setup (what goes through a ring is not seen by a filter), fchmodat2, setxattrat, removexattrat: the same on all."""
_PROCESSORS: dict[str, _Processor] = {
    # connect, execve, execveat, chmod, fchmodat, chown, lchown, fchownat, (l)setxattr, (l)removexattr
    "x86_64": _Processor(0xC000003E, 41, (42, 59, 322, 90, 268, 92, 94, 260, 188, 189, 197, 198, *_NEW_CALLS)),
    # the same, without those that were old already when this processor came
    "aarch64": _Processor(0xC00000B7, 198, (203, 221, 281, 53, 54, 5, 6, 14, 15, *_NEW_CALLS)),
}
_FIRST_X32_CALL = 0x40000000
"""On x86_64 the same calls exist a second time under these numbers."""
_AF_UNIX = 1
_STREAM, _SEQPACKET, _TYPE_BITS = 1, 5, 0xF
"""Kinds of sockets that can say nothing to anybody before they are connected. The other bits are options."""

_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_CALL_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
"""Places in struct seccomp_data; the lower halves of the arguments on these little-endian processors."""
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EACCES
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_calls() -> bool:
    """Denies the calling thread, and what it starts, the calls above: no network, no program, no order to another one.

    Pairs of sockets within the process, and files and sockets that are open, go on working. Returns whether the kernel
    took it; on other systems and processors nothing happens.
    """
    if sys.platform != "linux" or platform.machine() not in _PROCESSORS:
        return False
    instructions = _instructions(_PROCESSORS[platform.machine()])
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(instructions), code)), 0, 0) == 0)


def _instructions(processor: _Processor) -> list[tuple[int, int, int, int]]:
    """The filter: (operation, instructions to skip if true, if false, value)."""
    # From the last instruction back, because a jump counts how many instructions lie between.
    program = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]

    def before(operation: int, value: int, if_true: int | None = None, if_false: int | None = None) -> None:
        """Puts one in front. `if_true` and `if_false`: _ALLOW or _DENY, None to go on with the next."""
        places = {_ALLOW: len(program) - 2, _DENY: len(program) - 1, None: 0}
        program.insert(0, (operation, places[if_true], places[if_false], value))

    before(_IF_EQUAL, _SEQPACKET, if_true=_ALLOW, if_false=_DENY)
    before(_IF_EQUAL, _STREAM, if_true=_ALLOW)
    before(_AND, _TYPE_BITS)
    before(_LOAD, _SECOND_ARGUMENT_AT)
    before(_IF_EQUAL, _AF_UNIX, if_false=_DENY)
    before(_LOAD, _FIRST_ARGUMENT_AT)
    before(_IF_EQUAL, processor.socket_call, if_false=_ALLOW)
    for call in processor.denied_calls:
        before(_IF_EQUAL, call, if_true=_DENY)
    before(_IF_AT_LEAST, _FIRST_X32_CALL, if_true=_DENY)
    before(_LOAD, _CALL_AT)
    before(_IF_EQUAL, processor.architecture, if_false=_DENY)
    before(_LOAD, _ARCHITECTURE_AT)
    return program
