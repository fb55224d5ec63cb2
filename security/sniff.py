"""Says what a file is by its first bytes, whatever its name claims.

The formats that matter here have rules of their own (`filetype` knows neither safetensors nor pickle, GGUF, HTML, SVG or
scripts); everything else is asked of `filetype`, so that a refusal can name the song or the tar archive that it met.
A sniffed kind decides which checks follow and which words a refusal uses. It is never a proof that a file is sound.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

import filetype

from security.errors import RefusedFile
from security.policy import MAX_HEADER_BYTES

SNIFF_BYTES = 1024
"""How much of a file's beginning is looked at. A tar archive says what it is at byte 257."""


class Kind(Enum):
    """What a file is, as far as a decision depends on it."""

    SAFETENSORS = auto()
    PICKLE = auto()
    TORCH_ZIP = auto()
    ZIP = auto()
    ARCHIVE = auto()
    NUMPY = auto()
    OTHER_WEIGHTS = auto()
    POINTER = auto()
    PICTURE = auto()
    OTHER_PICTURE = auto()
    WEB_PAGE = auto()
    SCRIPT = auto()
    PROGRAM = auto()
    JSON = auto()
    OTHER = auto()
    UNKNOWN = auto()


PICKLED = frozenset({Kind.PICKLE, Kind.TORCH_ZIP, Kind.ZIP, Kind.NUMPY})
"""Kinds that can hold a Python pickle, which runs code while it is being read."""
RUNNABLE = frozenset({Kind.SCRIPT, Kind.PROGRAM, Kind.WEB_PAGE})
"""Kinds that an operating system or a browser would run."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file is. `words` name it in a sentence: "a PNG picture". Empty for Kind.UNKNOWN."""

    kind: Kind
    words: str


UNKNOWN = Content(Kind.UNKNOWN, "")

_SIGNATURES: tuple[tuple[int, bytes, Content], ...] = (
    (0, b"PK\x05\x06", Content(Kind.ZIP, "an empty zip archive")),
    (0, b"PK\x07\x08", Content(Kind.ARCHIVE, "one part of a split zip archive")),
    (0, b"GGUF", Content(Kind.OTHER_WEIGHTS, "a GGUF model")),
    (0, b"\x89HDF", Content(Kind.OTHER_WEIGHTS, "an HDF5 file")),
    (0, b"version https://git-lfs", Content(Kind.POINTER, "a Git LFS pointer: the real file was never downloaded")),
    (0, b"\x93NUMPY", Content(Kind.NUMPY, "a NumPy array")),
    (0, b"\x89PNG\r\n\x1a\n", Content(Kind.PICTURE, "a PNG picture")),
    (0, b"\xff\xd8\xff", Content(Kind.PICTURE, "a JPEG picture")),
    (0, b"7z\xbc\xaf\x27\x1c", Content(Kind.ARCHIVE, "a 7z archive")),
    (0, b"Rar!\x1a\x07", Content(Kind.ARCHIVE, "a RAR archive")),
    (257, b"ustar", Content(Kind.ARCHIVE, "a tar archive")),
    (0, b"\x1f\x8b", Content(Kind.ARCHIVE, "a gzip archive")),
    (0, b"BZh", Content(Kind.ARCHIVE, "a bzip2 archive")),
    (0, b"\xfd7zXZ\x00", Content(Kind.ARCHIVE, "an xz archive")),
    (0, b"\x28\xb5\x2f\xfd", Content(Kind.ARCHIVE, "a zstd archive")),
    (0, b"\x7fELF", Content(Kind.PROGRAM, "a program (ELF)")),
    (0, b"\xfe\xed\xfa\xce", Content(Kind.PROGRAM, "a program (Mach-O)")),
    (0, b"\xfe\xed\xfa\xcf", Content(Kind.PROGRAM, "a program (Mach-O)")),
    (0, b"\xce\xfa\xed\xfe", Content(Kind.PROGRAM, "a program (Mach-O)")),
    (0, b"\xcf\xfa\xed\xfe", Content(Kind.PROGRAM, "a program (Mach-O)")),
    (0, b"\xca\xfe\xba\xbe", Content(Kind.PROGRAM, "a program (Java or Mach-O)")),
    (0, b"\x00asm", Content(Kind.PROGRAM, "a program (WebAssembly)")),
    (0, b"L\x00\x00\x00\x01\x14\x02\x00", Content(Kind.PROGRAM, "a Windows shortcut")),
    (0, b"#!", Content(Kind.SCRIPT, "a script")),
)
_TORCH_MEMBERS = (b"/data.pkl", b"/.format_version", b"/.storage_alignment", b"/byteorder")
"""Members of a checkpoint that torch writes first; each lies in a folder of any name."""
_OLD_PICKLE = re.compile(
    rb"\(?(?:[ci][A-Za-z_][\w.]*\n[\w.]+\n|[ld]p\d+\n|[IFLSV][^\n]{0,60}\n(?:p\d+\n|[.IFLSV(ltcio])|[]})][qr][\0-\xff])"
)
"""Beginnings of pickle protocols 0 and 1: a global, a list or dict with its memo, a value."""
_WEB_PAGE = re.compile(rb"<(?:!doctype\s+html|html|head|body|script|iframe|meta|title)\b", re.IGNORECASE)
_SCRIPT = re.compile(
    rb"(?:<\?php|<%|@echo\s+off|import\s+[\w.]+(?:\s+as\s+\w+)?[ \t]*[\r\n;]|from\s+[\w.]+\s+import\s|"
    rb"powershell\b|set-executionpolicy\b|wscript\.)",
    re.IGNORECASE,
)


def sniff(start: bytes) -> Content:
    """What a file is whose first bytes (SNIFF_BYTES, or all of a shorter one) are `start`."""
    # First: a safetensors header of 128 bytes begins with 80 00, as a pickle does; no pickle goes on as these do.
    if len(start) > 8 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
        return Content(Kind.SAFETENSORS, "a safetensors file")
    if start.startswith(b"PK\x03\x04"):
        if any(member in start for member in _TORCH_MEMBERS):
            return Content(Kind.TORCH_ZIP, "a PyTorch checkpoint")
        return Content(Kind.ZIP, "a zip archive or PyTorch checkpoint")
    if (len(start) >= 2 and start[0] == 0x80 and start[1] <= 5) or _OLD_PICKLE.match(start):
        return Content(Kind.PICKLE, "a Python pickle")
    for offset, signature, content in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return content
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return Content(Kind.PICTURE, "a WebP picture")
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return Content(Kind.PICTURE, "a BMP picture")
    if start[:2] == b"MZ" and b"\0" in start:
        return Content(Kind.PROGRAM, "a program (Windows)")
    if len(start) >= 16 and start[1] in (0x0C, 0x0D, 0x0E, 0x0F) and start[2:4] == b"\r\n":
        return Content(Kind.PROGRAM, "compiled Python code")
    return _sniff_text(start) or _ask_filetype(start)


def sniff_file(path: Path) -> Content:
    """As `sniff`, of a file. Raises RefusedFile for what is no regular file or cannot be read."""
    with open_regular(path) as file:
        return sniff(file.read(SNIFF_BYTES))


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. A device or pipe is refused before it can block, also one that is swapped in.

    Links are followed: a path that a user typed may lead through one. Raises RefusedFile.
    """
    flags = os.O_RDONLY
    if sys.platform == "win32":
        flags |= os.O_BINARY
    else:
        flags |= os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RefusedFile(f"{path.name} is not a regular file.")
        descriptor = os.open(path, flags)
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFile(f"{path.name} is not a regular file.")
    return os.fdopen(descriptor, "rb")


def _sniff_text(start: bytes) -> Content | None:
    """Kinds of text, also behind a byte order mark, white space and comments."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text.lower()
    if lower.startswith((b"<svg", b"<!doctype svg")) or (lower.startswith(b"<?xml") and b"<svg" in lower):
        return Content(Kind.WEB_PAGE, "an SVG drawing, which can hold scripts")
    if _WEB_PAGE.match(text) or (text.startswith((b"<!--", b"<?xml")) and _WEB_PAGE.search(text)):
        return Content(Kind.WEB_PAGE, "a web page: the download needs a login or the address was wrong")
    if lower.startswith(b"<?xml"):
        return Content(Kind.OTHER, "an XML text")
    if text.startswith(b"#!") or _SCRIPT.match(text):
        return Content(Kind.SCRIPT, "a script")
    if text.startswith((b"{", b"[")):
        return Content(Kind.JSON, "a JSON text")
    return None


_FILETYPE_WORDS = (
    ("image/", Kind.OTHER_PICTURE, "a picture of another format"),
    ("video/", Kind.OTHER, "a video"),
    ("audio/", Kind.OTHER, "a sound file"),
    ("application/font", Kind.OTHER, "a font"),
    ("font/", Kind.OTHER, "a font"),
)
_FILETYPE_TEXTS = ("pdf", "rtf", "ps", "deb", "ar")
"""Formats with long beginnings of plain text. Others begin with two or three letters, as a caption may ("BMW", "MZ")."""
_FILETYPE_PROGRAMS = ("exe", "elf", "swf", "crx", "wasm", "deb", "rpm", "nes")
_FILETYPE_ARCHIVES = ("zip", "tar", "rar", "gz", "bz2", "7z", "br", "cab", "xz", "ar", "Z", "lz", "lzo", "lz4", "zst")


def _ask_filetype(start: bytes) -> Content:
    """What the `filetype` package recognises."""
    guess = filetype.guess(start) if start else None
    if guess is None or (start.isascii() and b"\0" not in start and guess.extension not in _FILETYPE_TEXTS):
        return UNKNOWN
    for beginning, kind, words in _FILETYPE_WORDS:
        if guess.mime.startswith(beginning):
            return Content(kind, f"{words} ({guess.extension})")
    if guess.extension in _FILETYPE_ARCHIVES:
        return Content(Kind.ARCHIVE, f"an archive ({guess.extension})")
    if guess.extension in _FILETYPE_PROGRAMS:
        return Content(Kind.PROGRAM, f"a program ({guess.extension})")
    return Content(Kind.OTHER, f"a file of another kind ({guess.extension})")
