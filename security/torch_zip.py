"""The container of a PyTorch checkpoint: a zip file as torch writes it, in which every byte has exactly one meaning.

Two programs that read an odd zip differently can see two different files. So this is stricter than any reader: records
lie end to end, local and central headers agree, nothing is compressed, and only the members of a checkpoint are there.
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from security.errors import RefusedFile
from security.policy import MAX_PICKLE_BYTES, MAX_TENSORS

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SEE_EXTRA, _SEE_EXTRA_SHORT = 0xFFFFFFFF, 0xFFFF
"""The number is too large for its field and stands in the zip64 field."""
_ZIP64, _PADDING = 0x0001, 0x4246
"""Kinds of extra fields: large numbers, and torch's filler that aligns the data."""
_DESCRIPTOR_FOLLOWS, _UTF8 = 0x0008, 0x0800
_KNOWN_FLAGS = _DESCRIPTOR_FOLLOWS | _UTF8
_MAX_CENTRAL_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 1 << 22

_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,6}"
)
_MAX_SMALL_MEMBER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the container: where its bytes begin, how many they are, and their CRC-32."""

    name: str
    start: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The pickle of a checkpoint, and the size in bytes of each storage by its key."""

    pickle: bytes
    storages: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record of the central directory."""

    name: bytes
    flags: int
    crc: int
    size: int
    offset: int


def read_checkpoint(descriptor: int, name: str) -> Checkpoint:
    """Checks the container in an open file, checksums included, and returns what the check of the pickle needs.

    Raises RefusedFile that names the file as `name` and says what is wrong.
    """
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 4, 0)
    if start != b"PK\x03\x04":
        raise RefusedFile(
            f"{name} is not a checkpoint as PyTorch has written them since version 1.6 (2020). "
            "Get the .safetensors version of the model."
        )
    entries, directory = _central_directory(descriptor, size, name)
    members = _tiled(descriptor, entries, directory, name)
    for member in members.values():
        _check_sum(descriptor, member, name)
    _check_small_members(descriptor, members, name)
    pickle = members["data.pkl"]
    return Checkpoint(
        os.pread(descriptor, pickle.size, pickle.start),
        {key.removeprefix("data/"): member.size for key, member in members.items() if key.startswith("data/")},
    )


def _refuse(name: str, what: str) -> RefusedFile:
    return RefusedFile(f"{name} is no sound PyTorch checkpoint: {what}. Get the .safetensors version of the model.")


def _central_directory(descriptor: int, size: int, name: str) -> tuple[list[_Entry], int]:
    """The records of the central directory in its order, and where it begins."""
    end_at = size - _END.size
    end = os.pread(descriptor, _END.size, max(0, end_at))
    if end_at < 0 or len(end) != _END.size or end[:4] != b"PK\x05\x06":
        raise _refuse(name, "it does not end where a zip file ends")
    _, disk, first_disk, here, count, length, offset, comment = _END.unpack(end)
    if disk or first_disk or here != count or comment:
        raise _refuse(name, "its zip directory is split or has a comment")
    directory_end = end_at
    locator_at = end_at - _END64_LOCATOR.size
    locator = os.pread(descriptor, _END64_LOCATOR.size, max(0, locator_at))
    if locator[:4] == b"PK\x06\x07":
        directory_end, values = _end64(descriptor, locator, locator_at, name)
        for short, long, unknown in zip(
            (count, length, offset), values, (_SEE_EXTRA_SHORT, _SEE_EXTRA, _SEE_EXTRA), strict=True
        ):
            if short not in (long, unknown):
                raise _refuse(name, "its two zip directories differ")
        count, length, offset = values
    if offset + length != directory_end or length > _MAX_CENTRAL_BYTES or count > MAX_TENSORS + 16:
        raise _refuse(name, "its zip directory is not where it must be, or too long")
    data = os.pread(descriptor, length, offset)
    entries = list(_entries(data, count, name))
    return entries, offset


def _end64(descriptor: int, locator: bytes, locator_at: int, name: str) -> tuple[int, tuple[int, int, int]]:
    """Where the large end record begins; its count of members, and length and place of the directory."""
    _, disk, at, disks = _END64_LOCATOR.unpack(locator)
    record = os.pread(descriptor, _END64.size, max(0, locator_at - _END64.size))
    if disk or disks != 1 or at != locator_at - _END64.size or record[:4] != b"PK\x06\x06":
        raise _refuse(name, "its zip directory is split")
    _, length, _, _, disk, first_disk, here, count, directory_length, offset = _END64.unpack(record)
    if length != _END64.size - 12 or disk or first_disk or here != count:
        raise _refuse(name, "its zip directory is split")
    return at, (count, directory_length, offset)


def _entries(data: bytes, count: int, name: str) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        header = data[at : at + _CENTRAL.size]
        if len(header) != _CENTRAL.size or header[:4] != b"PK\x01\x02":
            raise _refuse(name, "its zip directory is damaged")
        _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk, _, _, offset = (
            _CENTRAL.unpack(header)
        )
        at += _CENTRAL.size
        member, extra = data[at : at + name_length], data[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length
        if len(member) != name_length or len(extra) != extra_length or comment or disk:
            raise _refuse(name, "its zip directory is damaged")
        if flags & ~_KNOWN_FLAGS:
            raise _refuse(name, f"a member has the zip flags {flags:#06x} (encrypted or patched)")
        if method != 0:
            raise _refuse(name, "a member is compressed, which torch never does")
        size, packed, offset = _large(extra, (size, packed, offset), name)
        if size != packed:
            raise _refuse(name, "a member gives two sizes")
        yield _Entry(member, flags, crc, size, offset)
    if at != len(data):
        raise _refuse(name, "its zip directory lists fewer members than it holds")


def _large(extra: bytes, values: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Size, packed size and offset, those that did not fit taken from the zip64 field."""
    wanted = values.count(_SEE_EXTRA)
    expected = struct.pack("<HH", _ZIP64, 8 * wanted) if wanted else b""
    if extra[:4] != expected or len(extra) != len(expected) + 8 * wanted:
        raise _refuse(name, "a member has unknown fields in the zip directory")
    numbers = iter(struct.unpack(f"<{wanted}Q", extra[4:]))
    size, packed, offset = (next(numbers) if value == _SEE_EXTRA else value for value in values)
    return size, packed, offset


def _tiled(descriptor: int, entries: list[_Entry], directory: int, name: str) -> dict[str, Member]:
    """The members by their name below the root folder; they fill the file up to the directory without a gap."""
    at = 0
    root = b""
    members: dict[str, Member] = {}
    for index, entry in enumerate(entries):
        if entry.offset != at:
            raise _refuse(name, "its members do not lie end to end")
        folder, slash, inner = entry.name.partition(b"/")
        root = folder if index == 0 else root
        try:
            member_name = inner.decode("ascii")
            readable = folder.decode("utf-8").isprintable()
        except UnicodeDecodeError:
            member_name, readable = "", False
        if not slash or not root or folder != root or not readable or not _MEMBER.fullmatch(member_name):
            shown = entry.name[:80].decode("ascii", "backslashreplace")
            raise _refuse(name, f"it has the member {shown!r}, which no checkpoint has")
        if member_name in members:
            raise _refuse(name, f"it has the member {member_name} twice")
        start = _data_start(descriptor, entry, name)
        at = _data_end(descriptor, entry, start, name)
        if member_name == "data.pkl" and entry.size > MAX_PICKLE_BYTES:
            raise _refuse(name, f"its pickle has over {MAX_PICKLE_BYTES} bytes")
        if not member_name.startswith("data") and entry.size > _MAX_SMALL_MEMBER_BYTES:
            raise _refuse(name, f"its member {member_name} is too large")
        members[member_name] = Member(member_name, start, entry.size, entry.crc)
    if at != directory:
        raise _refuse(name, "bytes lie between its members and its directory")
    if "data.pkl" not in members:
        raise _refuse(name, "it has no data.pkl")
    return members


def _data_start(descriptor: int, entry: _Entry, name: str) -> int:
    """Where a member's bytes begin, once its own header says the same as the directory."""
    header = os.pread(descriptor, _LOCAL.size, entry.offset)
    if len(header) != _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise _refuse(name, "a member's own header is missing")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(header)
    rest = os.pread(descriptor, name_length + extra_length, entry.offset + _LOCAL.size)
    known = (0, entry.crc) if entry.flags & _DESCRIPTOR_FOLLOWS else (entry.crc,)
    sizes = (0, entry.size, _SEE_EXTRA) if entry.flags & _DESCRIPTOR_FOLLOWS else (entry.size, _SEE_EXTRA)
    same = flags == entry.flags and method == 0 and crc in known and packed in sizes and size in sizes
    if not same or rest[:name_length] != entry.name:
        raise _refuse(name, "a member's own header and the directory differ")
    _check_local_extra(rest[name_length:], entry, name)
    return int(entry.offset + _LOCAL.size + name_length + extra_length)


def _check_local_extra(extra: bytes, entry: _Entry, name: str) -> None:
    while extra:
        kind, length = struct.unpack("<HH", extra[:4]) if len(extra) >= 4 else (-1, 0)
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        large = kind == _ZIP64 and len(value) in (8, 16, 24)
        if len(value) != length or not (kind == _PADDING or large):
            raise _refuse(name, "a member's own header has unknown fields")
        if large and any(
            number not in (0, entry.size, entry.offset) for number in struct.unpack(f"<{length // 8}Q", value)
        ):
            raise _refuse(name, "a member's own header and the directory differ")


def _data_end(descriptor: int, entry: _Entry, start: int, name: str) -> int:
    """Where the next member begins: after the bytes, and the record behind them that repeats sum and sizes."""
    end = start + entry.size
    if not entry.flags & _DESCRIPTOR_FOLLOWS:
        return end
    for form in ("<4sLLL", "<4sLQQ"):
        length = struct.calcsize(form)
        found = os.pread(descriptor, length, end)
        if len(found) == length and struct.unpack(form, found) == (b"PK\x07\x08", entry.crc, entry.size, entry.size):
            return end + length
    raise _refuse(name, "what follows a member differs from the directory, or the file is cut off")


def _check_sum(descriptor: int, member: Member, name: str) -> None:
    total, at, left = 0, member.start, member.size
    while left:
        chunk = os.pread(descriptor, min(left, _CHUNK_BYTES), at)
        if not chunk:
            break
        total, at, left = zlib.crc32(chunk, total), at + len(chunk), left - len(chunk)
    if left or total != member.crc:
        raise _refuse(name, f"the checksum of {member.name} is wrong, so it is damaged: download it again")


def _check_small_members(descriptor: int, members: dict[str, Member], name: str) -> None:
    order = members.get("byteorder")
    if order is not None and os.pread(descriptor, order.size, order.start) != b"little":
        raise _refuse(name, "its numbers are in the byte order of other processors")
