"""Finding the pictures and captions of a folder, and bringing pictures into the workspace."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedFile, SafelightError
from security.images import read_image_info
from security.policy import IMAGE_SUFFIXES
from security.roots import Root, resolve_user_folder
from trainer.config.schema import DatasetConfig
from trainer.dataset.captions import prepared_caption, read_caption, resting_caption
from trainer.dataset.settings import Mark, load_marks, load_settings, mask_path
from trainer.demo import DATASETS as DEMO_DATASETS
from trainer.workspace import Workspace

REPEAT_FOLDER = re.compile(r"^(\d{1,4})_.+$")
SMALLEST_SIDE = 32
UNMARKED = Mark()
"""The crop of a picture for which none was chosen: the whole of it, cut in the middle."""


Measure = Callable[[Path], tuple[tuple[int, int], str]]
"""Says (width, height) in pixels, upright, and the SHA-256 of a picture file. Raises RefusedFile or OSError."""


@dataclass(frozen=True)
class Picture:
    """One training picture. `size`: (width, height) in pixels, upright; `content_hash`: sha256 of the file's bytes.

    `caption` is its text without chance, `prepared` what each step makes its own of (see captions.py).
    `name`: its path from the dataset's folder, with forward slashes. `trigger_word`: the one that its caption holds.
    `mark`: the crop chosen by hand. `mask`: the file that says what to learn, with its sha256.
    """

    path: Path
    size: tuple[int, int]
    caption: str
    has_caption: bool
    repeats: int
    content_hash: str
    name: str = ""
    trigger_word: str = ""
    mark: Mark = UNMARKED
    mask: Path | None = None
    mask_hash: str = ""
    prepared: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds. `skipped`: (file name, reason) of everything that looks like a picture but can't be used."""

    pictures: tuple[Picture, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset of the library."""

    name: str
    path: Path
    num_pictures: int
    num_captions: int
    builtin: bool


def picture_paths(folder: Path) -> list[Path]:
    """Every picture file under a folder in a fixed order; hidden files and links are left out."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir():
                waiting.append(Path(entry.path))
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                found.append(Path(entry.path))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:  # as for a file that can't be listed: it is not ours
        return []


def scan_folder(
    folder: Path,
    settings: DatasetConfig,
    *,
    trigger_word: str | None = None,
    use_masks: bool = False,
    measure: Measure | None = None,
) -> Scan:
    """Reads sizes, captions, crops and hashes of all pictures under a folder; nothing is dropped without a reason.

    `trigger_word` is the one that captions get, the settings' or the dataset's own unless given. `measure` says how
    sizes and hashes are found: read from the files, for a run; a page may remember them. Raises SafelightError when the
    dataset's own settings are damaged.
    """
    own, marks = load_settings(folder), load_marks(folder)
    trigger = (trigger_word if trigger_word is not None else settings.trigger_word or own.trigger_word).strip()
    measure = measure or _measured
    masked = use_masks and mask_path(folder, "x").parent.is_dir()
    pictures, skipped = [], []
    for path in picture_paths(folder):
        name = path.relative_to(folder).as_posix()
        try:
            size, content_hash = measure(path)
            if min(size) < SMALLEST_SIDE:
                raise RefusedFile(f"it is {size[0]}x{size[1]} pixels, smaller than {SMALLEST_SIDE} on a side")
            caption = read_caption(path, settings.caption_extension, keep_lines=settings.wildcards)
            mask = _mask_of(folder, name, size, measure) if masked else None
        except (RefusedFile, OSError) as error:
            skipped.append((name, str(error)))
            continue
        prepared = prepared_caption(caption or "", settings, trigger)
        pictures.append(
            Picture(
                path=path,
                size=size,
                caption=resting_caption(prepared, settings),
                prepared=prepared,
                has_caption=caption is not None,
                repeats=repeats_of(name, own.repeats, settings.repeats),
                content_hash=content_hash,
                name=name,
                trigger_word=trigger,
                mark=marks.get(name, UNMARKED),
                mask=mask[0] if mask else None,
                mask_hash=mask[1] if mask else "",
            )
        )
    return Scan(tuple(pictures), tuple(skipped))


def repeats_of(name: str, own: Mapping[str, int], otherwise: int) -> int:
    """How often a picture is seen per epoch: as its dataset says for its folder, or the folder's name, or `otherwise`."""
    folder = name.rpartition("/")[0]
    if folder in own:
        return own[folder]
    matched = REPEAT_FOLDER.match(folder.rpartition("/")[2])
    return max(1, int(matched.group(1))) if matched else otherwise


def _measured(path: Path) -> tuple[tuple[int, int], str]:
    info = read_image_info(path)
    with path.open("rb") as file:
        return (info.width, info.height), hashlib.file_digest(file, "sha256").hexdigest()


def _mask_of(folder: Path, name: str, size: tuple[int, int], measure: Measure) -> tuple[Path, str] | None:
    """The mask of a picture and its hash; None if it has none. Raises RefusedFile for one that does not fit."""
    path = mask_path(folder, name)
    if not path.exists():
        return None
    mask_size, mask_hash = measure(path)
    if mask_size != size:
        raise RefusedFile(
            f"its mask has {mask_size[0]}x{mask_size[1]} pixels and the picture {size[0]}x{size[1]}. "
            "Paint the mask anew or remove it"
        )
    return path, mask_hash


_LIKE_A_PATH = re.compile(r"^[A-Za-z]:|[/\\]")
"""No name has a slash, a backslash or a drive, on whatever system the path was written."""


def find_dataset(workspace: Workspace, folder: str) -> Path:
    """The folder of a dataset given by name or by path. Raises SafelightError that lists the names when there is none.

    Raises RefusedPath for a folder of the system, and for one on another machine.
    """
    if folder in DEMO_DATASETS:
        return DEMO_DATASETS[folder]
    if folder.startswith(("\\\\", "//")):  # refused before Windows could log in there to look
        return resolve_user_folder(folder, None)
    path = Path(folder).expanduser()
    if path.is_absolute() or _LIKE_A_PATH.search(folder):
        if not path.is_dir():
            raise SafelightError(
                f"There is no folder {folder} on this machine. Choose a dataset, or give the path of a folder with pictures."
            )
        return resolve_user_folder(str(path.absolute()), None)
    inside = Root(workspace.datasets_dir).child(folder)
    if not inside.is_dir():
        known = ", ".join(info.name for info in list_datasets(workspace))
        raise SafelightError(f"There is no dataset named {folder!r}. Datasets here: {known}.")
    return inside


def dataset_names(workspace: Workspace) -> list[str]:
    """The embedded datasets and those of the workspace, by name; without a look at their pictures."""
    with os.scandir(workspace.datasets_dir) as entries:
        own = [one.name for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith(".")]
    return [*DEMO_DATASETS, *sorted(own)]


def list_datasets(workspace: Workspace) -> list[DatasetInfo]:
    """The embedded datasets and those of the workspace, by name."""
    infos = []
    for name in dict.fromkeys(dataset_names(workspace)):
        path = DEMO_DATASETS.get(name, workspace.datasets_dir / name)
        pictures = picture_paths(path)
        captions = sum(picture.with_suffix(".txt").is_file() for picture in pictures)
        infos.append(DatasetInfo(name, path, len(pictures), captions, builtin=name in DEMO_DATASETS))
    return infos
