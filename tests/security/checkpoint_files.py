"""Writes PyTorch checkpoints byte by byte: pickle instructions and zip records, the right ones and the wrong ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

PROTOCOL = b"\x80\x02"
STOP = b"."
NOTHING = b"N"
FALSE = b"\x89"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """LONG1, which holds numbers of any size."""
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def group(*parts: bytes) -> bytes:
    """TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """REDUCE of a global."""
    return name(module, attribute) + group(*arguments) + b"R"


def table(*items: bytes) -> bytes:
    """A dict of key, value, key, value ..."""
    return b"}(" + b"".join(items) + b"u"


def listing(*items: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


ORDERED = name("collections", "OrderedDict") + b")R"


def storage(key: str = "0", kind: str = "FloatStorage", elements: bytes = number(4), module: str = "torch") -> bytes:
    """A reference to the bytes of member data/KEY."""
    return group(text("storage"), name(module, kind), text(key), text("cpu"), elements) + b"Q"


def sizes(*values: int) -> bytes:
    """A shape or strides."""
    return group(*(number(value) for value in values))


def tensor(
    stored: bytes | None = None,
    shape: bytes = sizes(2, 2),
    strides: bytes = sizes(2, 1),
    *,
    offset: bytes = number(0),
    gradient: bytes = FALSE,
    hooks: bytes = ORDERED,
    more: bytes = b"",
) -> bytes:
    """A tensor of four 32-bit numbers, if nothing else is asked for."""
    arguments = group(storage() if stored is None else stored, offset, shape, strides, gradient, hooks, more)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(*items: bytes) -> bytes:
    """A whole pickle: a table with one sound tensor, then `items` (keys and values)."""
    return PROTOCOL + table(text("weight"), tensor(), *items) + STOP


@dataclass(frozen=True)
class Record:
    """One member of a zip. What begins with `local_` is what its own header says, if that differs."""

    name: str
    data: bytes
    flags: int = 0x0800
    method: int = 0
    packed: bytes | None = None
    crc: int | None = None
    size: int | None = None
    local_name: str | None = None
    local_method: int | None = None
    local_flags: int | None = None
    local_crc: int | None = None
    extra: bytes = b""
    listed: bool = True
    gap: bytes = b""


def deflated(record: Record) -> Record:
    """The same member, compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return replace(record, method=8, packed=packer.compress(record.data) + packer.flush())


def records(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> list[Record]:
    """The members of a checkpoint in torch's order; by default with 16 bytes for storage "0"."""
    stored = {"0": bytes(range(16))} if storages is None else storages
    return [
        Record("archive/data.pkl", pickle),
        Record("archive/byteorder", b"little"),
        *(Record(f"archive/data/{key}", data) for key, data in stored.items()),
        Record("archive/version", b"3\n"),
    ]


def zipped(
    members: list[Record],
    *,
    before: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    count: int = 0,
    in_directory: bytes = b"",
) -> bytes:
    """The zip file of these members. `count` replaces the true number of them in the end record."""
    body, directory = before, b""
    for member in members:
        packed = member.data if member.packed is None else member.packed
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.size is None else member.size
        listed_size = len(packed) if member.method == 0 and member.size is None else size
        packed_size = len(packed) if member.size is None else (size if member.method == 0 else len(packed))
        stored_name = member.name.encode()
        own_name = stored_name if member.local_name is None else member.local_name.encode()
        own_flags = member.flags if member.local_flags is None else member.local_flags
        own_method = member.method if member.local_method is None else member.local_method
        own_crc = crc if member.local_crc is None else member.local_crc
        body += member.gap
        offset = len(body)
        head = (20, own_flags, own_method, 0, 0x21, own_crc, packed_size, listed_size, len(own_name), len(member.extra))
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", *head) + own_name + member.extra + packed
        if member.listed:
            entry = (20, 20, member.flags, member.method, 0, 0x21, crc, packed_size, listed_size, len(stored_name))
            directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *entry, 0, 0, 0, 0, 0, offset) + stored_name
    directory += in_directory
    listed = count or sum(member.listed for member in members)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, listed, listed, len(directory), len(body), len(comment))
    return body + directory + end + comment + after


def checkpoint(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """A sound container around a pickle."""
    return zipped(records(pickle, storages))
