"""Finding the pictures and captions of a folder, and bringing pictures into the workspace."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from security.archives import unpack
from security.errors import RefusedFile, SafelightError
from security.images import encoded, open_image, read_image_info
from security.names import safe_name, same_name_key, sanitized_name
from security.policy import IMAGE_SUFFIXES
from security.roots import Root, resolve_user_folder
from trainer.config.schema import DatasetConfig
from trainer.dataset.captions import read_caption, with_trigger
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


@dataclass(frozen=True)
class ImportReport:
    """What came in, and (file name, reason) of what did not."""

    name: str
    added: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


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
    pictures, skipped = [], []
    for path in picture_paths(folder):
        name = path.relative_to(folder).as_posix()
        try:
            size, content_hash = measure(path)
            if min(size) < SMALLEST_SIDE:
                raise RefusedFile(f"it is {size[0]}x{size[1]} pixels, smaller than {SMALLEST_SIDE} on a side")
            caption = read_caption(path, settings.caption_extension)
            mask = _mask_of(folder, name, size, measure) if use_masks else None
        except (RefusedFile, OSError) as error:
            skipped.append((name, str(error)))
            continue
        pictures.append(
            Picture(
                path=path,
                size=size,
                caption=with_trigger(caption or "", trigger),
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


def find_dataset(workspace: Workspace, folder: str) -> Path:
    """The folder of a dataset given by name or by path. Raises SafelightError that lists the names when there is none.

    Raises RefusedPath for a folder of the system, and for one on another machine.
    """
    if folder in DEMO_DATASETS:
        return DEMO_DATASETS[folder]
    path = Path(folder).expanduser()
    if path.is_absolute() or len(path.parts) > 1:
        if not path.is_dir():
            raise SafelightError(
                f"There is no folder {folder}. Give the name of a dataset or the path of a folder with pictures."
            )
        return resolve_user_folder(str(path.absolute()), None)
    inside = Root(workspace.datasets_dir).child(folder)
    if not inside.is_dir():
        known = ", ".join(info.name for info in list_datasets(workspace))
        raise SafelightError(f"There is no dataset named {folder!r}. Datasets here: {known}.")
    return inside


def list_datasets(workspace: Workspace) -> list[DatasetInfo]:
    """The embedded datasets and those of the workspace, by name."""
    own = {
        path.name: path
        for path in sorted(workspace.datasets_dir.iterdir())
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    }
    infos = []
    for name, path in [*DEMO_DATASETS.items(), *own.items()]:
        pictures = picture_paths(path)
        captions = sum(picture.with_suffix(".txt").is_file() for picture in pictures)
        infos.append(DatasetInfo(name, path, len(pictures), captions, builtin=name in DEMO_DATASETS))
    return infos


def collect_sources(folder: Path) -> list[Path]:
    """The pictures and caption files of a folder on this machine, ready for `import_pictures`."""
    pictures = picture_paths(folder)
    named = {(picture.parent, picture.stem) for picture in pictures}
    beside = (path for parent in {picture.parent for picture in pictures} for path in parent.iterdir())
    captions = [path for path in beside if path.suffix.lower() == ".txt" and (path.parent, path.stem) in named]
    return [*pictures, *sorted(path for path in captions if path.is_file())]


def unpack_sources(archive: Path, folder: Path) -> tuple[list[Path], tuple[tuple[str, str], ...]]:
    """Unpacks a zip archive into the new `folder`: its pictures and captions, ready for `import_pictures`.

    Also returns (name, reason) of what stayed in the archive. Raises RefusedFile for an archive that is not sound.
    """
    done = unpack(archive, folder, (*IMAGE_SUFFIXES, ".txt"))
    return list(done.files), done.skipped


def import_pictures(workspace: Workspace, name: str, sources: Sequence[Path], base: Path | None = None) -> ImportReport:
    """Copies pictures (re-encoded, without their metadata) and same-named .txt captions into a dataset of the workspace.

    An existing dataset of that name is added to; files of the same name get a number, so nothing is overwritten. Pictures
    below `base` keep the folders that they have there, `10_name` among them. Raises RefusedName for a bad name,
    SafelightError for the name of an embedded dataset.
    """
    if safe_name(name, "dataset name") in DEMO_DATASETS:
        raise SafelightError(f"{name} is the embedded dataset. Choose another name.")
    target_dir = Root(workspace.datasets_dir).child(name)
    target_dir.mkdir(exist_ok=True)
    root = Root(target_dir)
    captions = {(path.parent, path.stem): path for path in sources if path.suffix.lower() == ".txt"}
    added: list[str] = []
    skipped: list[tuple[str, str]] = []
    used = set()
    for source in (path for path in sources if path.suffix.lower() != ".txt"):
        inside = base is not None and source.is_relative_to(base)
        shown = source.relative_to(base).as_posix() if base is not None and inside else source.name
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append((shown, f"not a picture ({', '.join(sorted(IMAGE_SUFFIXES))})"))
            continue
        folders = [sanitized_name(part, "folder") for part in Path(shown).parts[:-1]]
        folder = root.child(*folders) if folders else root.path
        saved = folder / f"{_free_stem(folder, sanitized_name(source.stem, 'picture'))}.png"
        try:
            caption = captions.get((source.parent, source.stem))
            if caption is not None:
                used.add(caption)
            text = read_caption(source, caption.suffix) if caption is not None else None  # first: it may be refused
            root.write_bytes_atomic(saved, encoded(open_image(source), saved.suffix))
            if text is not None:
                root.write_text_atomic(saved.with_suffix(".txt"), text)
            added.append(saved.relative_to(root.path).as_posix())
        except (RefusedFile, OSError) as error:
            skipped.append((shown, str(error)))
    skipped.extend((path.name, "a caption without its picture") for path in captions.values() if path not in used)
    return ImportReport(name, tuple(added), tuple(skipped))


def _free_stem(folder: Path, stem: str) -> str:
    taken = {same_name_key(path.stem) for path in folder.iterdir()} if folder.is_dir() else set()
    number, candidate = 1, stem
    while same_name_key(candidate) in taken:
        number += 1
        candidate = f"{stem}-{number}"
    return candidate


def save_caption(workspace: Workspace, dataset: str, picture: str, text: str) -> None:
    """Writes the caption of one picture of a workspace dataset. Raises SafelightError for an embedded one."""
    if dataset in DEMO_DATASETS:
        raise SafelightError(
            f"{dataset} is the embedded dataset and can't be changed. Import it under another name first."
        )
    root = Root(Root(workspace.datasets_dir).child(dataset))
    path = root.child(*Path(picture).parts)
    if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
        raise SafelightError(f"There is no picture {picture!r} in {dataset}.")
    root.write_text_atomic(path.with_suffix(".txt"), " ".join(text.split()))
