"""A Linux thread gives up the network for good: no socket but local ones can be made, so no UDP and no name look-up either.

Landlock knows TCP only. This is a filter of system calls, https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

_ARCHITECTURES: dict[str, tuple[int, int]] = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""For each processor its name in the kernel (AUDIT_ARCH_...) and its number of the call `socket`."""
_IO_URING_SETUP = 425
"""The same everywhere. Calls that go through io_uring are not seen by a filter, sockets among them."""
_FIRST_X32_CALL = 0x40000000
"""On x86_64 the same calls exist a second time under these numbers."""
_AF_UNIX = 1

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_CALL_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
"""Places in struct seccomp_data; the lower half of the first argument on these little-endian processors."""
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EACCES
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_network() -> bool:
    """Lets the calling thread, and what it starts, make local (AF_UNIX) sockets only; sockets that are open stay open.

    Returns whether the kernel took it; on other systems and processors nothing happens.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    architecture, socket_call = _ARCHITECTURES[platform.machine()]
    # (operation, instructions to skip if true, if false, value); the last two are what the others jump to.
    instructions = (
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, _CALL_AT),
        (_IF_AT_LEAST, 5, 0, _FIRST_X32_CALL),
        (_IF_EQUAL, 4, 0, _IO_URING_SETUP),
        (_IF_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(instructions), code)), 0, 0) == 0)
