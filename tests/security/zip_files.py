"""Writes zip archives field by field: honest ones, and every kind that two readers could see differently."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFLATED = 8


@dataclass
class Member:
    """One file. `central` and `local` replace fields of its two headers; `raw` replaces its packed bytes."""

    name: str | bytes
    data: bytes = b"text"
    method: int = 0
    mode: int = stat.S_IFREG | 0o644
    central: Mapping[str, Any] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    central_extra: bytes = b""
    local_extra: bytes = b""
    offset: int | None = None


def deflate(data: bytes) -> bytes:
    """Bytes as a zip archive packs them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def zip_bytes(members: list[Member], comment: bytes = b"", zip64: bool = False, **end: int) -> bytes:
    """An archive. `end` replaces fields of the end record: disk, first, here, count, size, start."""
    body, directory = b"", b""
    for member in members:
        name = member.name.encode() if isinstance(member.name, str) else member.name
        packed = member.raw if member.raw is not None else member.data
        if member.raw is None and member.method == DEFLATED:
            packed = deflate(member.data)
        values: dict[str, Any] = {
            "flags": 0 if name.isascii() else 1 << 11, "method": member.method, "checksum": zlib.crc32(member.data),
            "packed": len(packed), "size": len(member.data), "name": name,
        }  # fmt: skip
        here = values | dict(member.local)
        offset = len(body) if member.offset is None else member.offset
        body += struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 20, here["flags"], here["method"], 0, 0x21, here["checksum"], here["packed"],
            here["size"], len(here["name"]), len(member.local_extra),
        ) + here["name"] + member.local_extra + packed  # fmt: skip
        there = values | {"offset": offset, "disk": 0, "attributes": member.mode << 16} | dict(member.central)
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 0x0314, 20, there["flags"], there["method"], 0, 0x21, there["checksum"],
            there["packed"], there["size"], len(there["name"]), len(member.central_extra), 0, there["disk"], 0,
            there["attributes"], there["offset"],
        ) + there["name"] + member.central_extra  # fmt: skip
    count = len(members)
    fields = {"disk": 0, "first": 0, "here": count, "count": count, "size": len(directory), "start": len(body)}
    tail = b""
    if zip64:
        start = len(body) + len(directory)
        tail = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, *fields.values())
        tail += struct.pack("<4sLQL", b"PK\x06\x07", 0, start, 1)
        fields |= {"here": 0xFFFF, "count": 0xFFFF, "size": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    fields |= end
    return body + directory + tail + struct.pack("<4s4H2LH", b"PK\x05\x06", *fields.values(), len(comment)) + comment


def write_zip(path: Path, *members: Member, **options: Any) -> Path:
    path.write_bytes(zip_bytes(list(members), **options))
    return path


def _with_second_end() -> bytes:
    inner = zip_bytes([Member("other.txt")])
    end = inner[inner.rindex(b"PK\x05\x06") :]
    return zip_bytes([Member("a.txt")], comment=end)


def _quine() -> bytes:
    """Two entries over the same packed bytes, as in the bombs that unpack to petabytes."""
    data = deflate(bytes(50_000))
    inner = Member("b.txt", bytes(50_000), DEFLATED, raw=data)
    overlap = zip_bytes([inner])
    outer_size = overlap.index(b"PK\x01\x02")
    outer = Member(
        "a.txt", overlap[:outer_size], 0, raw=overlap[:outer_size],
    )  # fmt: skip
    start = len(zip_bytes([outer])) - outer_size - 22 - 46 - 5  # where the stored data of `outer` begins
    return zip_bytes([outer, Member("b.txt", bytes(50_000), DEFLATED, raw=data, offset=start)])


def _full64(value: int) -> bytes:
    return struct.pack("<2HQ", 1, 8, value)


SURE = Member("ok.txt", b"fine")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "climbs out": (lambda: zip_bytes([SURE, Member("../evil.txt")]), "leads out"),
    "climbs out further in": (lambda: zip_bytes([Member("a/../../evil.txt")]), "leads out"),
    "climbs out with backslashes": (lambda: zip_bytes([Member("..\\evil.txt")]), "leads out"),
    "climbs out by a folder": (lambda: zip_bytes([Member("../", b"", mode=stat.S_IFDIR)]), "leads out"),
    "absolute": (lambda: zip_bytes([Member("/tmp/evil.txt")]), "leads out"),
    "absolute with backslash": (lambda: zip_bytes([Member("\\\\server\\evil.txt")]), "leads out"),
    "drive": (lambda: zip_bytes([Member("C:evil.txt")]), "leads out"),
    "NUL in a name": (lambda: zip_bytes([Member(b"a.png\0.txt")]), "control characters"),
    "newline in a name": (lambda: zip_bytes([Member("a\nb.txt")]), "control characters"),
    "no name": (lambda: zip_bytes([Member("")]), "name of 0 bytes"),
    "only dots": (lambda: zip_bytes([Member("./")]), "a file and a folder at once"),
    "name of a kilobyte": (lambda: zip_bytes([Member("a" * 1025)]), "name of 1025 bytes"),
    "five folders deep": (lambda: zip_bytes([Member("1/2/3/4/5/a.txt")]), "over 4 folders deep"),
    "link": (lambda: zip_bytes([Member("a.txt", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)]), "link or device"),
    "link of a kind that is left out": (lambda: zip_bytes([Member("a.x", b"/", mode=stat.S_IFLNK)]), "link or device"),
    "device": (lambda: zip_bytes([Member("a.txt", b"", mode=stat.S_IFCHR)]), "link or device"),
    "pipe": (lambda: zip_bytes([Member("a.txt", b"", mode=stat.S_IFIFO)]), "link or device"),
    "Windows junction": (lambda: zip_bytes([Member("a.txt", central={"attributes": 0x400})]), "link or device"),
    "file that is a folder": (lambda: zip_bytes([Member("a/", b"text")]), "a file and a folder at once"),
    "folder that is a file": (lambda: zip_bytes([Member("a.txt", b"", mode=stat.S_IFDIR)]), "file and a folder"),
    "same name twice": (lambda: zip_bytes([Member("a.txt", b"1"), Member("a.txt", b"2")]), "same file"),
    "names differ in case": (lambda: zip_bytes([Member("Mira.txt"), Member("mira.TXT")]), "same file"),
    "folders differ in case": (lambda: zip_bytes([Member("A/a.txt"), Member("a/a.txt")]), "same file"),
    "names differ in accents' form": (lambda: zip_bytes([Member("Zo\u00eb.txt"), Member("Zoe\u0308.txt")]), "same file"),
    "names differ in a dot step": (lambda: zip_bytes([Member("a.txt"), Member("./a.txt")]), "same file"),
    "file below a file": (lambda: zip_bytes([Member("a.txt"), Member("A.txt/b.txt")]), "a file and a folder at once"),
    "encrypted": (lambda: zip_bytes([Member("a.txt", central={"flags": 1}, local={"flags": 1})]), "is encrypted"),
    "encrypted in the directory only": (lambda: zip_bytes([Member("a.txt", central={"flags": 1})]), "disagree"),
    "encrypted before the file only": (lambda: zip_bytes([Member("a.txt", local={"flags": 1})]), "disagree"),
    "strongly encrypted": (lambda: zip_bytes([Member("a.txt", central={"flags": 65}, local={"flags": 65})]), "encrypted"),
    "patch data": (lambda: zip_bytes([Member("a.txt", central={"flags": 32}, local={"flags": 32})]), "method 0"),
    "method bzip2": (lambda: zip_bytes([Member("a.txt", method=12)]), "method 12"),
    "method lzma": (lambda: zip_bytes([Member("a.txt", method=14)]), "method 14"),
    "method deflate64": (lambda: zip_bytes([Member("a.txt", method=9)]), "method 9"),
    "another name before the file": (lambda: zip_bytes([Member("a.txt", local={"name": b"b.txt"})]), "disagree"),
    "another method before the file": (lambda: zip_bytes([Member("a.txt", local={"method": 8})]), "disagree"),
    "another size before the file": (lambda: zip_bytes([Member("a.txt", local={"size": 5})]), "disagree"),
    "another checksum before the file": (lambda: zip_bytes([Member("a.txt", local={"checksum": 1})]), "disagree"),
    "wrong checksum": (
        lambda: zip_bytes([Member("a.txt", central={"checksum": 1}, local={"checksum": 1})]), "checksum differs"),
    "wrong size, packed": (
        lambda: zip_bytes([Member("a.txt", b"a" * 99, 8, central={"size": 98}, local={"size": 98})]), "more than it says"),
    "too small, packed": (
        lambda: zip_bytes([Member("a.txt", b"a" * 99, 8, central={"size": 100}, local={"size": 100})]), "size or checksum"),
    "two sizes, stored": (
        lambda: zip_bytes([Member("a.txt", b"abc", central={"size": 2}, local={"size": 2})]), "has two sizes"),
    "bomb": (lambda: zip_bytes([Member("a.txt", bytes(3 << 20), 8)]), "packed over 100 times"),
    "file of 300 MiB": (
        lambda: zip_bytes([Member("a.txt", central={"size": 300 << 20}, local={"size": 300 << 20}, method=8)]),
        "has 314572800 bytes"),
    "21 GiB by announcement": (
        lambda: zip_bytes([
            Member(f"{n}.txt", central={"size": 250 << 20}, local={"size": 250 << 20}, method=8) for n in range(90)
        ]), "has 24 GB unpacked"),
    "10001 entries": (lambda: zip_bytes([Member(f"{n}.x", b"") for n in range(10_001)]), "lists 10001 files"),
    "files share bytes": (_quine, "share the same bytes"),
    "one file listed under two names": (
        lambda: zip_bytes([Member("a.txt"), Member("a.txt", central={"name": b"b.txt", "offset": 0})]), "disagree"),
    "packed data goes on": (
        lambda: zip_bytes([Member("a.txt", b"abc", 8, raw=deflate(b"abc") + b"more")]), "ends late"),
    "packed data ends early": (
        lambda: zip_bytes([Member("a.txt", b"abc" * 99, 8, raw=deflate(b"abc" * 99)[:-3])]), "ends early"),
    "packed data is noise": (lambda: zip_bytes([Member("a.txt", b"abc", 8, raw=b"\xff\xff\xff")]), "damaged"),
    "offset behind the directory": (lambda: zip_bytes([Member("a.txt", central={"offset": 9999})]), "not where"),
    "offset into the data": (lambda: zip_bytes([Member("a.txt", b"x" * 99, central={"offset": 9})]), "not where"),
    "data runs into the directory": (
        lambda: zip_bytes([Member("a.txt", central={"packed": 60}, local={"packed": 60})]), "not where"),
    "two directories": (_with_second_end, "two directories"),
    "directory elsewhere": (lambda: zip_bytes([SURE], start=1), "not where its end says"),
    "directory too short": (lambda: zip_bytes([SURE, Member("b.txt")], count=3, here=3), "ends early"),
    "more in the directory than counted": (lambda: zip_bytes([SURE, Member("b.txt")], count=1, here=1), "holds more"),
    "program in front": (lambda: b"MZ\0\0" + zip_bytes([SURE]), "it is a program"),
    "picture in front": (lambda: b"\x89PNG\r\n\x1a\n" + zip_bytes([SURE]), "it is a PNG picture"),
    "bytes behind the end": (lambda: zip_bytes([SURE]) + b"x", "its directory is missing"),
    "cut off": (lambda: zip_bytes([SURE])[:-9], "its directory is missing"),
    "second disk": (lambda: zip_bytes([SURE], disk=1, first=1), "one part of a split"),
    "entries on another disk": (lambda: zip_bytes([SURE], here=0), "one part of a split"),
    "file on another disk": (lambda: zip_bytes([Member("a.txt", central={"disk": 1})]), "one part of a split"),
    "part of a split archive": (lambda: b"PK\x07\x08" + zip_bytes([SURE]), "split zip archive"),
    "zip64 that is not there": (lambda: zip_bytes([SURE], start=0xFFFFFFFF), "not where its end says"),
    "zip64 that says otherwise": (lambda: zip_bytes([SURE], zip64=True, count=2, here=2), "different directories"),
    "zip64 size that is not there": (lambda: zip_bytes([Member("a.txt", central={"size": 0xFFFFFFFF})]), "no true size"),
    "zip64 size that is not the file's": (
        lambda: zip_bytes([Member("a.txt", central={"size": 0xFFFFFFFF}, central_extra=_full64(2**40))]), "disagree"),
    "broken extra field": (lambda: zip_bytes([Member("a.txt", central_extra=b"\1\0\xff\0a")]), "extra fields"),
    "two zip64 fields": (
        lambda: zip_bytes([Member("a.txt", central_extra=_full64(4) + _full64(9))]), "extra fields"),
    "tar": (lambda: bytes(257) + b"ustar\x0000" + bytes(300), "a tar archive. Only zip"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(99), "a gzip archive. Only zip"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive. Only zip"),
    "RAR": (lambda: b"Rar!\x1a\x07\x01\0" + bytes(99), "a RAR archive. Only zip"),
    "checkpoint": (lambda: zip_bytes([Member("m/data.pkl"), SURE]), "a PyTorch checkpoint"),
    "empty archive": (lambda: zip_bytes([]), "an empty zip archive"),
    "nothing": (lambda: b"", "does not begin as one"),
}  # fmt: skip
"""Archives that are refused as a whole, and what the refusal says."""
