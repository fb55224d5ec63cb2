"""Unpacks zip archives that others made: the wanted kinds of files only, all of an archive or nothing of it.

A zip says everything twice, in its directory at the end and before each file, and readers that trust different halves
see different archives. Here the directory is read once, must agree with what stands before each file, and then every
byte is counted while it is unpacked: what a header announces is never believed. An archive with a trait that honest
programs do not write (links, two files of one name, files that share bytes) is refused as a whole.
(Format: PKWARE APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT)
"""

from __future__ import annotations

import errno
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from security.archive_directory import STORED, Entry, read_directory
from security.errors import Cancelled, RefusedFile
from security.names import same_name_key, sanitized_name
from security.policy import (
    FREE_DISK_RESERVE_BYTES,
    MAX_ARCHIVE_BYTES,
    MAX_ARCHIVE_DEPTH,
    MAX_ARCHIVE_FILE_BYTES,
    MAX_ARCHIVE_RATIO,
    MIB,
)
from security.roots import Root
from security.sniff import SNIFF_BYTES, Kind, open_regular, sniff

_CHUNK_BYTES = 1 << 18
_FOLDER_ICON = "Icon\r"
"""The picture that macOS shows for a folder; the one name with a control character that an honest program writes."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive. `skipped`: (name inside the archive, reason) of what was not unpacked."""

    folder: Path
    files: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


def unpack(
    source: Path, folder: Path, suffixes: Sequence[str], cancelled: Callable[[], bool] = lambda: False
) -> Unpacked:
    """Unpacks a zip archive into the new `folder`, whose parent exists: files with one of these endings, in lower case.

    Files of other kinds and hidden ones are left in the archive and listed. The files are new, private (mode 0600) and
    carry neither the modes nor the times of the archive. Raises RefusedFile for a hostile or damaged archive and for
    other formats, Cancelled once `cancelled()` says so; nothing is left behind then.
    """
    with open_regular(source) as file:
        _refuse_other_formats(file, source.name)
        entries = read_directory(file, source.name)
        names = {entry: _checked_parts(entry, source.name) for entry in entries}
        _refuse_doubles(names, source.name)
        wanted, skipped = _chosen(names, suffixes)
        _check_sizes(list(wanted), folder.parent, source.name)
        parent = Root(folder.parent)
        fresh = parent.child(f"unpacking-{secrets.token_hex(8)}")
        fresh.mkdir(mode=0o700)
        try:
            files = _write_all(file, wanted, Root(fresh), source.name, cancelled)
            fresh.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RefusedFile(f"The disk is full, so {source.name} was not unpacked. Make room first.") from None
            raise
        finally:
            if fresh.is_dir():
                parent.remove_tree(fresh)
    return Unpacked(folder, tuple(folder / path for path in files), tuple(skipped))


def _refuse_other_formats(file: BinaryIO, name: str) -> None:
    """Raises RefusedFile unless the file begins as a zip archive with at least one file does."""
    content = sniff(file.read(SNIFF_BYTES))
    if content.kind is Kind.TORCH_ZIP:
        raise RefusedFile(f"{name} is {content.words}, not an archive of pictures.")
    if content.kind is Kind.ZIP and not content.words.startswith("an empty"):
        return
    if content.kind is Kind.ZIP:
        raise RefusedFile(f"{name} is {content.words}. Pack it again.")
    if content.kind is Kind.ARCHIVE:
        raise RefusedFile(f"{name} is {content.words}. Only zip archives are unpacked: pack the files as a .zip.")
    found = f"it is {content.words}" if content.words else "it does not begin as one"
    raise RefusedFile(f"{name} is no zip archive: {found}. Pack the files as a .zip.")


def _checked_parts(entry: Entry, archive: str) -> tuple[str, ...]:
    """The folders and the name of an entry, as they are in the archive, without "." and doubled slashes.

    Some programs write "\\" between folders; here it always separates. Raises RefusedFile for a path that leads out.
    """
    path = entry.name.replace("\\", "/")
    shown = _shown(entry.name)
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        raise RefusedFile(f"{archive} is refused: {shown} leads out of the archive.")
    if any(ord(character) < 32 or ord(character) == 127 for character in path.removesuffix(_FOLDER_ICON)):
        raise RefusedFile(f"{archive} is refused: the name {shown} has control characters.")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not parts:
        raise RefusedFile(f"{archive} is refused: a file in it has no name.")
    if len(parts) - (not entry.is_folder) > MAX_ARCHIVE_DEPTH and not _is_hidden(parts):
        raise RefusedFile(f"{archive} is refused: {shown} lies over {MAX_ARCHIVE_DEPTH} folders deep.")
    return parts


def _is_hidden(parts: tuple[str, ...]) -> bool:
    """True for what stays in the archive in any case: macOS repeats every file below a folder of its own, for one."""
    return parts[0] == "__MACOSX" or parts[-1] == _FOLDER_ICON or any(part.startswith(".") for part in parts)


def _refuse_doubles(names: dict[Entry, tuple[str, ...]], archive: str) -> None:
    """Raises RefusedFile if two entries are one file on some system, or one is a file and a folder at once."""
    files: dict[tuple[str, ...], str] = {}
    folders: set[tuple[str, ...]] = set()
    for entry, parts in names.items():
        key = tuple(same_name_key(part) for part in parts)
        folders.update(key[:length] for length in range(1, len(key)))
        if entry.is_folder:
            folders.add(key)
        elif key in files:
            raise RefusedFile(
                f"{archive} is refused: {_shown(files[key])} and {_shown(entry.name)} are the same file on many systems. "
                "Rename one and pack it again."
            )
        else:
            files[key] = entry.name
    for key in files.keys() & folders:
        raise RefusedFile(f"{archive} is refused: {_shown(files[key])} is a file and a folder at once.")


def _chosen(
    names: dict[Entry, tuple[str, ...]], suffixes: Sequence[str]
) -> tuple[dict[Entry, tuple[str, ...]], list[tuple[str, str]]]:
    """What is unpacked, with the safe name of each part of its path, and what is not, with the reason."""
    wanted: dict[Entry, tuple[str, ...]] = {}
    skipped = []
    hidden = 0
    taken: set[tuple[str, ...]] = set()
    for entry, parts in names.items():
        if entry.is_folder:
            continue
        if _is_hidden(parts):
            hidden += 1
            continue
        suffix = "." + parts[-1].rpartition(".")[2].lower() if "." in parts[-1] else ""
        safe = tuple(sanitized_name(part, "unnamed") for part in parts)
        key = tuple(same_name_key(part) for part in safe)
        if suffix not in suffixes or not safe[-1].endswith(suffix):
            skipped.append((_shown(entry.name), f"a {suffix} file" if suffix else "a file without an ending"))
        elif key in taken:
            skipped.append((_shown(entry.name), "its name is not possible here, and the nearest one is taken"))
        else:
            taken.add(key)
            wanted[entry] = safe
    if hidden:
        skipped.append((f"{hidden} hidden file{'' if hidden == 1 else 's'}", "names with a dot in front, or of macOS"))
    return wanted, skipped


def _check_sizes(entries: Sequence[Entry], folder: Path, archive: str) -> None:
    """Raises RefusedFile if the announced sizes are over the limits or the disk is too full for them."""
    for entry in entries:
        if entry.size > MAX_ARCHIVE_FILE_BYTES:
            raise RefusedFile(
                f"{archive} is refused: {_shown(entry.name)} has {entry.size} bytes unpacked; "
                f"{MAX_ARCHIVE_FILE_BYTES // MIB} MiB are allowed."
            )
    total = sum(entry.size for entry in entries)
    if total > MAX_ARCHIVE_BYTES:
        raise RefusedFile(f"{archive} is refused: it has {total / 1e9:.0f} GB unpacked. Split it.")
    free = shutil.disk_usage(folder).free
    if total + FREE_DISK_RESERVE_BYTES > free:
        raise RefusedFile(
            f"{archive} needs {total / 1e9:.1f} GB unpacked, and the disk has {free / 1e9:.1f} GB left, of which "
            f"{FREE_DISK_RESERVE_BYTES / 1e9:.1f} GB stay free. Make room first."
        )


def _write_all(
    file: BinaryIO, wanted: dict[Entry, tuple[str, ...]], root: Root, archive: str, cancelled: Callable[[], bool]
) -> list[Path]:
    """Unpacks the entries below `root`. Returns their paths relative to it, in the order of the archive."""
    written = []
    total = 0
    for entry, parts in wanted.items():
        with root.create_file("/".join(parts)) as target:
            for chunk in _content(file, entry, archive):
                if cancelled():
                    raise Cancelled(f"Unpacking {archive} was cancelled.")
                total += len(chunk)
                if total > MAX_ARCHIVE_BYTES:
                    raise RefusedFile(f"{archive} is refused: it unpacks to more than it says.")
                target.write(chunk)
        written.append(Path(*parts))
    return written


def _content(file: BinaryIO, entry: Entry, archive: str) -> Iterator[bytes]:
    """The bytes of a file, in pieces. Raises RefusedFile once they are more than announced, a bomb, or damaged."""
    shown = _shown(entry.name)
    file.seek(entry.data_start)
    unread, checksum, size = entry.packed_size, 0, 0
    inflater = None if entry.method == STORED else zlib.decompressobj(-zlib.MAX_WBITS)
    while unread if inflater is None else not inflater.eof:
        packed = inflater.unconsumed_tail if inflater is not None else b""
        if not packed and unread:
            packed = file.read(min(_CHUNK_BYTES, unread))
            if not packed:
                raise RefusedFile(f"{archive} became shorter while it was read. Copy or download it again.")
            unread -= len(packed)
        try:
            chunk = packed if inflater is None else inflater.decompress(packed, _CHUNK_BYTES)
        except zlib.error as error:
            raise RefusedFile(f"{shown} in {archive} is damaged ({error}). Download it again.") from None
        if not packed and not chunk:
            raise RefusedFile(f"{shown} in {archive} is damaged: its packed data ends early. Download it again.")
        size += len(chunk)
        if size > entry.size or size > MAX_ARCHIVE_FILE_BYTES:
            raise RefusedFile(f"{archive} is refused: {shown} unpacks to more than it says.")
        if size > MIB and size > MAX_ARCHIVE_RATIO * entry.packed_size:
            raise RefusedFile(
                f"{archive} is refused: {shown} is packed over {MAX_ARCHIVE_RATIO} times, as no picture can be."
            )
        checksum = zlib.crc32(chunk, checksum)
        if chunk:
            yield chunk
    if inflater is not None and (inflater.unused_data or unread):
        raise RefusedFile(f"{shown} in {archive} is damaged: its packed data ends late. Download it again.")
    if size != entry.size or checksum != entry.checksum:
        raise RefusedFile(f"{shown} in {archive} is damaged: its size or checksum differs. Download it again.")


def _shown(name: str) -> str:
    """A name from the archive for a message: one line, not endless."""
    return name[:80] if name.isprintable() else name[:80].encode("unicode_escape").decode()
