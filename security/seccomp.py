"""A Linux thread gives up the network for good, and talking to other programs of this machine through socket files.

Landlock knows TCP and abstract sockets only. UDP and name look-ups need another fence, and so do socket files: whoever may
connect to that of the desktop's session, of Docker or of an SSH agent can have them start programs outside of every
sandbox. This is a filter of system calls, https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

_ARCHITECTURES: dict[str, tuple[int, int, int]] = {"x86_64": (0xC000003E, 41, 42), "aarch64": (0xC00000B7, 198, 203)}
"""For each processor its name in the kernel (AUDIT_ARCH_...) and its numbers of the calls `socket` and `connect`."""
_IO_URING_SETUP = 425
"""The same everywhere. Calls that go through io_uring are not seen by a filter, sockets among them."""
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


def forbid_network() -> bool:
    """Denies the calling thread, and what it starts, all sockets but local (AF_UNIX) ones, and connecting these.

    Pairs of sockets within the process and sockets that are open go on working. Returns whether the kernel took it; on
    other systems and processors nothing happens.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    architecture, socket_call, connect_call = _ARCHITECTURES[platform.machine()]
    # (operation, instructions to skip if true, if false, value); the last two are what the others jump to.
    instructions = (
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, 12, architecture),
        (_LOAD, 0, 0, _CALL_AT),
        (_IF_AT_LEAST, 10, 0, _FIRST_X32_CALL),
        (_IF_EQUAL, 9, 0, _IO_URING_SETUP),
        (_IF_EQUAL, 8, 0, connect_call),
        (_IF_EQUAL, 0, 6, socket_call),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_EQUAL, 0, 5, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND_ARGUMENT_AT),
        (_AND, 0, 0, _TYPE_BITS),
        (_IF_EQUAL, 1, 0, _STREAM),
        (_IF_EQUAL, 0, 1, _SEQPACKET),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(instructions), code)), 0, 0) == 0)
