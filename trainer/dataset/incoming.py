"""Sorts out files that are to become a dataset: which are pictures, which text belongs to which, and what is neither.

Captions may lie beside a picture (`a.txt`, `a.caption`, `a.png.txt`) or in one file for all (`metadata.jsonl` or
`metadata.csv`, as the `datasets` library writes them: https://huggingface.co/docs/datasets/image_dataset). The
`manifest.json` of an export of ours brings crops, masks, repeats and the trigger word back.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from security.archives import unpack
from security.errors import RefusedConfig, RefusedFile, SafelightError
from security.policy import IMAGE_SUFFIXES, MIB
from security.sniff import open_regular
from trainer.dataset.captions import MAX_CAPTION_BYTES, caption_text
from trainer.dataset.encodings import decoded
from trainer.dataset.exported import MANIFEST, Told, read_manifest
from trainer.dataset.scan import REPEAT_FOLDER

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".jpe", ".apng")
"""What may be in a picture's name that comes in; inside a dataset it then ends in .jpg or .png."""
CAPTION_SUFFIXES = (".txt", ".caption")
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")
WANTED_SUFFIXES = (*PICTURE_SUFFIXES, *CAPTION_SUFFIXES, ".jsonl", ".csv", ".json")
MAX_TABLE_BYTES = 64 * MIB
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "tags", "description", "additional_feature")
"""Columns that hold captions, the likeliest first."""
FILE_COLUMNS = ("file_name", "image", "file")
NOT_ALONG = "has a caption in the metadata, but did not come along"

Skipped = tuple[str, str]
"""The name of what was left out, and why."""


@dataclass(frozen=True)
class Incoming:
    """A picture that comes in. `name`: its path from the top of what it came in; `caption`: None if it has none.

    `is_guessed`: the caption was no UTF-8 text, so its signs are a guess. `told`: what the manifest of an export says of
    it, `mask` is the file that this one names.
    """

    name: str
    path: Path
    caption: str | None
    is_guessed: bool = False
    told: Told | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Bundle:
    """Pictures that come in together, in the order of their names, and what of the same source does not.

    `trigger_word`: the one that an export says the pictures have.
    """

    pictures: tuple[Incoming, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    trigger_word: str = ""


def folder_bundle(folder: Path) -> Bundle:
    """The pictures below a folder of this machine with their folders; hidden files are left out, links are not followed.

    A folder that is itself called `10_name` stays as one, because the number says how often its pictures are seen.
    """
    prefix = f"{folder.name}/" if REPEAT_FOLDER.match(folder.name) else ""
    files, skipped = {}, []
    for path in _walk(folder):
        name = prefix + path.relative_to(folder).as_posix()
        if path.is_symlink():
            skipped.append((name, "a link, and links are not followed"))
        elif path.suffix.lower() in WANTED_SUFFIXES:
            files[name] = path
        else:
            skipped.append((name, _other(name)))
    return _sorted_out(files, skipped)


def archive_bundle(archive: Path, folder: Path, cancelled: Callable[[], bool] = lambda: False) -> Bundle:
    """The pictures of a zip archive, unpacked into the new `folder`. Raises RefusedFile for an archive that is not sound.

    Raises Cancelled once `cancelled()` says so; nothing is left behind then.
    """
    done = unpack(archive, folder, WANTED_SUFFIXES, cancelled)
    return sorted_out({path.relative_to(folder).as_posix(): path for path in done.files}, done.skipped)


def sorted_out(files: Mapping[str, Path], skipped: Sequence[Skipped] = ()) -> Bundle:
    """Finds the pictures among files, and the caption of each. `files`: where each lies, by its name with "/".

    A folder that holds everything is not kept, unless it is a `10_name`: archives and dropped folders have one around.
    """
    return _sorted_out(_unwrapped({name: path for name, path in files.items() if not _is_hidden(name)}), skipped)


def _sorted_out(files: Mapping[str, Path], skipped: Sequence[Skipped]) -> Bundle:
    left = list(skipped)
    trigger_word, exported, manifest_faults = _manifests(files)
    left += manifest_faults
    masks = {told.mask for name, told in exported.items() if name in files} - exported.keys()
    pictures = {name: path for name, path in files.items() if _suffix(name) in PICTURE_SUFFIXES and name not in masks}
    texts = {name: path for name, path in files.items() if _suffix(name) in CAPTION_SUFFIXES}
    by_key = {_key(name): name for name in texts}
    left += [(name, _other(name)) for name in files if _suffix(name) not in WANTED_SUFFIXES]
    told, table_faults = _tables({name: path for name, path in files.items() if _suffix(name) in (".jsonl", ".csv")})
    left += table_faults
    used, found = set(), []
    for name in sorted(pictures):
        beside = [by_key[key] for key in _caption_keys(name) if key in by_key]
        used.update(beside)
        try:
            caption, is_guessed = _text(texts[beside[0]], beside[0]) if beside else (told.get(name), False)
        except (RefusedFile, OSError) as error:
            left.append((name, str(error)))
            continue
        left += [(other, f"{beside[0]} is the caption of the same picture") for other in beside[1:]]
        one = exported.get(name)
        mask = files.get(one.mask) if one and one.mask in masks else None
        found.append(Incoming(name, pictures[name], caption, is_guessed, one, mask))
    left += [(name, "a caption without its picture") for name in texts if name not in used]
    left += [(name, NOT_ALONG) for name in told if name not in pictures]
    return Bundle(tuple(found), tuple(left), trigger_word)


def _text(path: Path, name: str) -> tuple[str, bool]:
    """The caption in a file, and whether its encoding had to be guessed. Raises RefusedFile or OSError."""
    try:
        return caption_text(path, name), False
    except RefusedFile:
        with open_regular(path) as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
        text = decoded(data) if len(data) <= MAX_CAPTION_BYTES and not _is_utf8(data) else None
        if text is None:
            raise
        return " ".join(text.split()), True


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def _manifests(files: Mapping[str, Path]) -> tuple[str, dict[str, Told], list[Skipped]]:
    """The trigger word and what is told of pictures by the manifests of exports, and other .json files with the reason."""
    trigger_word, told = "", {}
    faults: list[Skipped] = []
    for name, path in sorted(files.items()):
        if _suffix(name) != ".json":
            continue
        folder, slash, base = name.rpartition("/")
        try:
            manifest = read_manifest(path, name) if base == MANIFEST else None
        except (RefusedConfig, RefusedFile, OSError) as error:
            faults.append((name, str(error)))
            continue
        if manifest is None:
            faults.append((name, _other(name)))
            continue
        trigger_word = trigger_word or manifest.trigger_word
        for picture, one in manifest.pictures.items():
            mask = f"{folder}{slash}{one.mask}" if one.mask else ""
            told[f"{folder}{slash}{picture}"] = replace(one, mask=mask)
    return trigger_word, told, faults


def _walk(top: Path) -> Iterator[Path]:
    """Files and links in a fixed order, however deep. Raises SafelightError for a folder that can't be read."""
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise SafelightError(f"The folder {str(path)[:300]} cannot be read: {error.strerror}.") from None
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file() or entry.is_symlink():
                yield Path(entry.path)
        waiting += reversed(folders)


def _unwrapped(files: dict[str, Path]) -> dict[str, Path]:
    common = _common_folders(list(files))
    around = next((number for number, part in enumerate(common) if REPEAT_FOLDER.match(part)), len(common))
    return {name.split("/", around)[-1]: path for name, path in files.items()}


def _common_folders(names: Sequence[str]) -> Sequence[str]:
    """The folders that all names begin with."""
    folders = [name.split("/")[:-1] for name in names]
    first, last = min(folders, default=[]), max(folders, default=[])  # all others are between them
    length = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _key(name: str) -> str:
    """A caption's name with its ending in lower case: `a.TXT` belongs to `a.png` too."""
    return name[: len(name) - len(_suffix(name))] + _suffix(name)


def _caption_keys(picture: str) -> Iterator[str]:
    stem = picture[: len(picture) - len(_suffix(picture))]
    for suffix in CAPTION_SUFFIXES:
        yield stem + suffix
    for suffix in CAPTION_SUFFIXES:
        yield picture + suffix  # as gallery-dl writes them


def _other(name: str) -> str:
    return f"a {_suffix(name)} file" if _suffix(name) else "a file without an ending"


# ---- one file with all captions -------------------------------------------------------------------------------------


def _tables(files: Mapping[str, Path]) -> tuple[dict[str, str], list[Skipped]]:
    """Captions by picture from all metadata files, and what is wrong with which file."""
    told: dict[str, str] = {}
    faults: list[Skipped] = []
    for name, path in sorted(files.items()):
        folder, _, base = name.rpartition("/")
        if base.lower() not in TABLE_NAMES:
            faults.append((name, f"only {' and '.join(TABLE_NAMES)} are read for captions"))
            continue
        try:
            for file_name, caption in table_captions(path, name):
                told[f"{folder}/{file_name}" if folder else file_name] = caption
        except RefusedFile as error:
            faults.append((name, str(error)))
    return told, faults


def table_captions(path: Path, name: str) -> list[tuple[str, str]]:
    """(file name, caption) of each row of a metadata.jsonl or metadata.csv. Raises RefusedFile that says what is wrong."""
    with open_regular(path) as file:
        data = file.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise RefusedFile(f"{name} is larger than {MAX_TABLE_BYTES // MIB} MiB. Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RefusedFile(f"{name} is not UTF-8 text. Save it as UTF-8.") from None
    rows = _json_rows(text, name) if name.lower().endswith(".jsonl") else _csv_rows(text, name)
    file_column = next((column for column in FILE_COLUMNS if column in rows[0]), None) if rows else None
    text_column = caption_column(rows[0]) if rows else None
    if rows and file_column is None:
        raise RefusedFile(f"{name} has no column file_name. Its columns are {_listed(rows[0])}.")
    if rows and text_column is None:
        raise RefusedFile(f"{name} has no column of captions such as text. Its columns are {_listed(rows[0])}.")
    found = []
    for row in rows:
        file_name, caption = row.get(file_column), one_caption(row.get(text_column), str(text_column))
        if isinstance(file_name, str) and caption:
            found.append((file_name.replace("\\", "/").removeprefix("./"), caption))
    return found


def caption_column(columns: Mapping[str, Any]) -> str | None:
    """Which of the columns holds captions, by its name."""
    lower = {column.lower(): column for column in columns if isinstance(column, str)}  # None: cells beyond the head
    return next((lower[name] for name in CAPTION_COLUMNS if name in lower), None)


def one_caption(value: object, column: str) -> str:
    """One line of text out of a cell: of several sentences the first, of a list of tags all."""
    if isinstance(value, list):
        texts = [text for text in value if isinstance(text, str)]
        value = ", ".join(texts) if column.lower() == "tags" else next(iter(texts), "")
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text.replace("\0", "").encode("utf-8", "ignore")[:MAX_CAPTION_BYTES].decode("utf-8", "ignore")


def _json_rows(text: str, name: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise RefusedFile(f"Line {number} of {name} is not JSON. Correct it, or take the file out.") from None
        if not isinstance(row, dict):
            raise RefusedFile(f"Line {number} of {name} is no JSON object. Correct it, or take the file out.")
        rows.append(row)
    return rows


def _csv_rows(text: str, name: str) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise RefusedFile(f"{name} is not a CSV table ({error}). Correct it, or take the file out.") from None


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(str(column)[:40] for column in list(row)[:12]) or "none"
