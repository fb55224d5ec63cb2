"""Reads the directory of a zip archive strictly: every entry is checked, and compared with the header before its file.

(Format: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5. Field names there: "compressed size" is `packed_size` here.)
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO

from security.errors import RefusedFile
from security.policy import MAX_ARCHIVE_ENTRIES

STORED, DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
"""A field that says: the true value stands in the zip64 part."""
_MAX_COMMENT_BYTES = 0xFFFF
_MAX_DIRECTORY_BYTES = MAX_ARCHIVE_ENTRIES * 2048
_MAX_NAME_BYTES = 1024

_ENCRYPTED_FLAGS = 0b0010_0000_0100_0001
"""Bits 0, 6 and 13: encrypted, strongly encrypted, hidden header."""
_PATCH_FLAG = 1 << 5
_SIZES_FOLLOW_FLAG = 1 << 3
"""The sizes were not known yet when the header before the file was written."""
_UTF8_FLAG = 1 << 11
_DOS_LINK = 0x400
"""The attribute that Windows gives to links and junctions."""
_ZIP64_FIELD = 0x0001
_SECOND_BYTE_BACKSLASH = re.compile(rb"([\x81-\xfe])\\")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of an archive. Sizes in bytes; `data_start` is where its packed bytes begin in the archive."""

    name: str
    is_folder: bool
    method: int
    packed_size: int
    size: int
    checksum: int
    data_start: int


@dataclass(frozen=True, slots=True)
class _Central:
    """An entry as the directory describes it."""

    name: bytes
    flags: int
    method: int
    checksum: int
    packed_size: int
    size: int
    offset: int
    attributes: int


def read_directory(file: BinaryIO, archive: str) -> list[Entry]:
    """Every entry of a zip archive, which is called `archive` in messages.

    Raises RefusedFile for damage, encryption, links and devices, packing methods other than deflate, archives of several
    parts, too many entries, and everything in which two readers could see different archives.
    """
    file_size = os.fstat(file.fileno()).st_size
    count, start, size = _find_directory(file, file_size, archive)
    if count > MAX_ARCHIVE_ENTRIES:
        raise RefusedFile(f"{archive} is refused: it lists {count} files; {MAX_ARCHIVE_ENTRIES} are allowed. Split it.")
    if size > _MAX_DIRECTORY_BYTES:
        raise RefusedFile(f"{archive} is refused: its directory has {size} bytes.")
    file.seek(start)
    data = file.read(size)
    entries = []
    spans = []
    position = 0
    for _ in range(count):
        central, position = _parse_central(data, position, archive)
        data_start = _compare_with_local(file, central, start, archive)
        spans.append((central.offset, data_start + central.packed_size))
        entries.append(_entry(central, data_start, archive))
    if position != len(data):
        raise RefusedFile(f"{archive} is refused: its directory holds more than it says.")
    _refuse_overlaps(spans, start, archive)
    return entries


def _find_directory(file: BinaryIO, file_size: int, archive: str) -> tuple[int, int, int]:
    """How many entries the directory has, where it starts, and its bytes."""
    tail_size = min(file_size, _END.size + _MAX_COMMENT_BYTES)
    file.seek(file_size - tail_size)
    tail = file.read(tail_size)
    ends = []
    at = tail.find(b"PK\x05\x06")
    while at >= 0:
        record = tail[at : at + _END.size]
        if len(record) == _END.size and at + _END.size + _END.unpack(record)[7] == len(tail):
            ends.append(at)
        at = tail.find(b"PK\x05\x06", at + 1)
    if not ends:
        raise RefusedFile(f"{archive} is cut off or no zip archive: its directory is missing. Download it again.")
    if len(ends) > 1:
        raise RefusedFile(f"{archive} is refused: it has two directories, so programs would see different files in it.")
    end = file_size - tail_size + ends[0]
    _, disk, first_disk, here, count, size, start, _ = _END.unpack(tail[ends[0] : ends[0] + _END.size])
    directory_end = end
    if end >= _LOCATOR64.size and _is_locator(file, end):
        directory_end, values = _read_zip64(file, end, archive)
        for short, long, full in zip(
            (disk, first_disk, here, count, size, start), values, (_FULL16,) * 4 + (_FULL32,) * 2, strict=True
        ):
            if short not in (full, long):
                raise RefusedFile(f"{archive} is refused: its two ends describe different directories.")
        disk, first_disk, here, count, size, start = values
    if disk or first_disk or here != count:
        raise RefusedFile(f"{archive} is one part of a split archive. Put the parts together first.")
    if start + size != directory_end:
        raise RefusedFile(f"{archive} is damaged: its directory is not where its end says. Download it again.")
    return count, start, size


def _is_locator(file: BinaryIO, end: int) -> bool:
    """Whether the locator of a zip64 end stands before the end record at `end`."""
    file.seek(end - _LOCATOR64.size)
    return file.read(4) == b"PK\x06\x07"


def _read_zip64(file: BinaryIO, end: int, archive: str) -> tuple[int, tuple[int, ...]]:
    """Where the zip64 end record starts, and its disk, first disk, entries here, entries, directory size and start."""
    locator = end - _LOCATOR64.size
    file.seek(locator)
    _, disk, start, num_disks = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if disk or num_disks > 1:
        raise RefusedFile(f"{archive} is one part of a split archive. Put the parts together first.")
    if start + _END64.size != locator:
        raise RefusedFile(f"{archive} is refused: its zip64 end is not where it says.")
    file.seek(start)
    signature, size, _, _, *values = _END64.unpack(file.read(_END64.size))
    if signature != b"PK\x06\x06" or size != _END64.size - 12:
        raise RefusedFile(f"{archive} is refused: its zip64 end is damaged.")
    return start, tuple(values)


def _parse_central(data: bytes, position: int, archive: str) -> tuple[_Central, int]:
    """The entry of the directory at `position`, and where the next one is."""
    if position + _CENTRAL.size > len(data):
        raise RefusedFile(f"{archive} is damaged: its directory ends early. Download it again.")
    fields = _CENTRAL.unpack_from(data, position)
    signature, _, _, flags, method, _, _, checksum, packed_size, size = fields[:10]
    name_size, extra_size, comment_size, disk, _, attributes, offset = fields[10:]
    after = position + _CENTRAL.size + name_size + extra_size + comment_size
    if signature != b"PK\x01\x02" or after > len(data):
        raise RefusedFile(f"{archive} is damaged: its directory is not readable. Download it again.")
    name_end = position + _CENTRAL.size + name_size
    name = data[name_end - name_size : name_end]
    if not name or name_size > _MAX_NAME_BYTES:
        raise RefusedFile(f"{archive} is refused: a file in it has a name of {name_size} bytes.")
    wide = _zip64_values(data[name_end : name_end + extra_size], (size, packed_size, offset, disk), archive)
    size, packed_size, offset, disk = wide
    if disk:
        raise RefusedFile(f"{archive} is one part of a split archive. Put the parts together first.")
    central = _Central(name, flags, method, checksum, packed_size, size, offset, attributes)
    return central, after


def _zip64_values(extra: bytes, values: tuple[int, int, int, int], archive: str) -> tuple[int, int, int, int]:
    """Size, packed size, offset and disk, those that are full replaced by what the zip64 field in `extra` says."""
    fields = _extra_fields(extra, archive).get(_ZIP64_FIELD, b"")
    limits = (_FULL32, _FULL32, _FULL32, _FULL16)
    widths = (8, 8, 8, 4)
    position = 0
    wide = []
    for value, full, width in zip(values, limits, widths, strict=True):
        if value == full:
            part = fields[position : position + width]
            if len(part) != width:
                raise RefusedFile(f"{archive} is refused: a file in it has no true size.")
            value, position = int.from_bytes(part, "little"), position + width
        wide.append(value)
    return wide[0], wide[1], wide[2], wide[3]


def _extra_fields(extra: bytes, archive: str) -> dict[int, bytes]:
    """The extra fields of an entry by their number."""
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(extra):
        number, size = struct.unpack_from("<2H", extra, position)
        if position + 4 + size > len(extra) or (number == _ZIP64_FIELD and number in fields):
            raise RefusedFile(f"{archive} is refused: the extra fields of a file in it are damaged.")
        fields[number] = extra[position + 4 : position + 4 + size]
        position += 4 + size
    return fields  # up to three bytes of padding may be left; Android's tools write them


def _compare_with_local(file: BinaryIO, central: _Central, directory_start: int, archive: str) -> int:
    """Where the packed bytes of an entry start. Raises RefusedFile if the header before them says something else."""
    shown = _text(central)[:80]
    if central.offset + _LOCAL.size > directory_start:
        raise RefusedFile(f"{archive} is damaged: {shown!r} is not where the directory says. Download it again.")
    file.seek(central.offset)
    fields = _LOCAL.unpack(file.read(_LOCAL.size))
    signature, _, flags, method, _, _, checksum, packed_size, size, name_size, extra_size = fields
    name, extra = file.read(name_size), file.read(extra_size)
    data_start: int = central.offset + _LOCAL.size + name_size + extra_size
    if signature != b"PK\x03\x04" or data_start + central.packed_size > directory_start:
        raise RefusedFile(f"{archive} is damaged: {shown!r} is not where the directory says. Download it again.")
    if _FULL32 in (packed_size, size):
        size, packed_size, _, _ = _zip64_values(extra, (size, packed_size, 0, 0), archive)
    told = (checksum, packed_size, size)
    true = (central.checksum, central.packed_size, central.size)
    agree = told == true
    if flags & _SIZES_FOLLOW_FLAG:
        agree = all(first in (0, second) for first, second in zip(told, true, strict=True))
    if (name, flags, method) != (central.name, central.flags, central.method) or not agree:
        raise RefusedFile(
            f"{archive} is refused: its directory and the file in it disagree about {shown!r}, "
            "so programs would see different files."
        )
    return data_start


def _entry(central: _Central, data_start: int, archive: str) -> Entry:
    """The checked entry. Raises RefusedFile for what is encrypted, packed in another way, or no file or folder."""
    name = _text(central)
    shown = name[:80]
    if central.flags & _ENCRYPTED_FLAGS:
        raise RefusedFile(f"{archive} is encrypted ({shown!r}). Unpack it with your own program first.")
    if central.flags & _PATCH_FLAG or central.method not in (STORED, DEFLATED):
        raise RefusedFile(
            f"{archive} packs {shown!r} with method {central.method}. Pack it as an ordinary zip archive."
        )
    kind = stat.S_IFMT(central.attributes >> 16)  # 0 in archives from Windows
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or central.attributes & _DOS_LINK:
        raise RefusedFile(f"{archive} is refused: {shown!r} is a link or device.")
    is_folder = name.endswith(("/", "\\"))
    if is_folder and (central.size or kind == stat.S_IFREG):
        raise RefusedFile(f"{archive} is refused: {shown!r} is a file and a folder at once.")
    if not is_folder and kind == stat.S_IFDIR:
        raise RefusedFile(f"{archive} is refused: {shown!r} is a file and a folder at once.")
    if central.method == STORED and central.packed_size != central.size:
        raise RefusedFile(f"{archive} is refused: {shown!r} is not packed and yet has two sizes.")
    return Entry(name, is_folder, central.method, central.packed_size, central.size, central.checksum, data_start)


def _text(central: _Central) -> str:
    """The name as text. Without the UTF-8 flag it is UTF-8 all the same (macOS), or the old DOS code page."""
    if central.flags & _UTF8_FLAG:
        return central.name.decode("utf-8", "surrogateescape")
    try:
        return central.name.decode("utf-8")
    except UnicodeDecodeError:
        # In Japanese and Chinese code pages the second byte of a character may be a backslash; it separates nothing.
        return _SECOND_BYTE_BACKSLASH.sub(rb"\1_", central.name).decode("cp437")


def _refuse_overlaps(spans: list[tuple[int, int]], directory_start: int, archive: str) -> None:
    """Raises RefusedFile if two files share bytes, by which some kilobytes unpack to petabytes."""
    before = 0
    for start, end in sorted(spans):
        if start < before:
            raise RefusedFile(f"{archive} is refused: files in it share the same bytes, as only a bomb needs.")
        before = end
    assert before <= directory_start  # each was compared when its header was read
