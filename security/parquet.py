"""Takes pictures and texts out of Parquet files that others made, in a confined child: pyarrow's reader is large C++.

(Format: https://parquet.apache.org/docs/file-format/; pictures as the `datasets` library stores them, a struct of `bytes`
and `path`, or as plain bytes.)
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.configs import parse_json
from security.confined import CONFINEMENT_FAILED
from security.errors import RefusedConfig, RefusedFile, SafelightError
from security.parquet_child import ROWS_NAME
from security.policy import MAX_IMAGE_BYTES, MAX_PARQUET_BYTES, MAX_PARQUET_GROUP_BYTES, MAX_PARQUET_GROUPS, MIB
from security.processes import ended_by
from security.sandbox import Limits, probe, run_confined
from security.sniff import open_regular

logger = logging.getLogger("safelight.parquet")

_MAGIC = b"PAR1"
_MEMORY_BYTES = 3 << 30
_SECONDS = 600
_MAX_ROWS_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """What a file holds: columns that may be pictures or texts, and the number of rows of each row group."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """One picture that was taken out. `name`: the file name that the table has for it, any text, or "".

    `path`: where it lies; None if it could not be taken, and `fault` says why.
    """

    name: str
    text: str
    path: Path | None
    fault: str


def look_into(path: Path, folder: Path) -> ParquetTable:
    """The columns and row groups of a Parquet file. `folder` is an empty one for the child.

    Raises RefusedFile for what is none or is damaged, SafelightError where no sandbox can be had.
    """
    told = _ask(path, folder, {"do": "look"})
    images, texts, groups = told.get("images"), told.get("texts"), told.get("groups")
    if not (_is_list(images, str) and _is_list(texts, str) and _is_list(groups, int)):
        raise SafelightError(f"{path.name} could not be read: the reader's report makes no sense.")
    if len(groups) > MAX_PARQUET_GROUPS:  # type: ignore[arg-type]
        raise RefusedFile(f"{path.name} is refused: it has over {MAX_PARQUET_GROUPS} row groups.")
    return ParquetTable(tuple(images), tuple(texts), tuple(groups))  # type: ignore[arg-type]


def take_group(path: Path, folder: Path, group: int, *, image: str, text: str, limit: int) -> list[ParquetRow]:
    """Writes the pictures of one row group, at most `limit`, into the empty `folder`. `text` is a column or "".

    Raises as `look_into`.
    """
    order = {
        "do": "read", "group": group, "image": image, "text": text, "limit": limit, "max_bytes": MAX_IMAGE_BYTES,
        "max_total_bytes": MAX_PARQUET_GROUP_BYTES,
    }  # fmt: skip
    _ask(path, folder, order)
    rows_path = folder / ROWS_NAME
    if rows_path.is_symlink() or rows_path.stat().st_size > _MAX_ROWS_BYTES:
        raise SafelightError(f"{path.name} could not be read: the reader's report is no file or too long.")
    with open_regular(rows_path) as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [_row(line, folder, path.name) for line in lines[:limit]]


def _row(line: str, folder: Path, name: str) -> ParquetRow:
    """What the child says of one row. It has read an untrusted file, so its words are checked like one."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        raise SafelightError(f"{name} could not be read: the reader's report makes no sense.") from None
    told = told if isinstance(told, dict) else {}
    file = told.get("file")
    path = folder / file if isinstance(file, str) and file.isascii() and file.isdecimal() else None
    if path is not None and (path.is_symlink() or not path.is_file()):
        path = None
    fault = "" if path is not None else _plain(told.get("fault")) or "it could not be taken out"
    return ParquetRow(_plain(told.get("name")), _plain(told.get("text")), path, fault)


def _ask(path: Path, folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    state = probe()
    if not state.active:
        raise SafelightError(
            f"{path.name} is a Parquet file, which is only opened in a sandbox, and there is none here. {state.detail} "
            "Take the dataset as files or as a zip archive instead, or import it on a machine with Linux."
        )
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_PARQUET_BYTES:
            raise RefusedFile(f"{path.name} has {size // MIB} MiB; {MAX_PARQUET_BYTES // MIB} MiB are allowed.")
        start, end = file.read(4), b""
        if size > 12:
            file.seek(-4, os.SEEK_END)
            end = file.read(4)
        if (start, end) != (_MAGIC, _MAGIC):
            raise RefusedFile(f"{path.name} is no Parquet file, or it is cut off. Download it again.")
        done = run_confined(
            "security.parquet_child",
            [str(file.fileno()), json.dumps(order)],
            folder=folder,
            limits=Limits(_MEMORY_BYTES, _SECONDS, MAX_IMAGE_BYTES + _MAX_ROWS_BYTES),
            timeout_seconds=_SECONDS,
            descriptors=[file.fileno()],
        )
    if done.returncode == CONFINEMENT_FAILED:
        raise SafelightError(
            f"{path.name} was not opened: the sandbox could not be set up. {_plain(done.stderr[-300:])}"
        )
    if done.returncode != 0:
        logger.warning("reading %s ended with %d: %s", ascii(path.name), done.returncode, _plain(done.stderr[-4000:]))
        if done.returncode < 0:
            raise SafelightError(
                f"{path.name} is not read: the program that reads it {ended_by(done.returncode)}. Nothing was changed. "
                "Close other programs and try again."
            )
        raise RefusedFile(
            f"{path.name} could not be read (exit code {done.returncode}). It is damaged, or needs more memory than "
            f"{_MEMORY_BYTES // MIB} MiB."
        )
    try:
        told = parse_json(done.stdout, "The reader's report")
    except RefusedConfig as error:
        raise SafelightError(f"{path.name} could not be read. {error}") from None
    if fault := told.get("fault"):
        raise RefusedFile(f"{path.name} is damaged or of an unusual kind ({_plain(fault)[:200]}).")
    return told


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _plain(text: object) -> str:
    """A text of the child without what is not drawn."""
    return "".join(sign if sign.isprintable() else " " for sign in text) if isinstance(text, str) else ""
