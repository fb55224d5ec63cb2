"""Takes a dataset out: pictures without metadata, captions, masks and a manifest with hashes, as a folder or a zip file.

Two layouts: the folders as they are, or those of kohya's training scripts (`10_trigger name/`), which other trainers read too.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from security import png
from security.errors import RefusedFile, SafelightError
from security.images import clean_copy, image_info, read_picture
from security.names import safe_name, same_name_key, sanitized_name
from security.redaction import refuse_secrets
from security.roots import Root, refuse_full_disk, resolve_user_folder
from security.zip_writer import ZipWriter
from trainer.dataset.captions import with_trigger
from trainer.dataset.exported import MANIFEST, VERSION
from trainer.dataset.scan import REPEAT_FOLDER, repeats_of
from trainer.dataset.settings import DatasetSettings, Mark, mask_path
from trainer.dataset.studio import Dataset
from trainer.tasks import TaskControl

MASKS = "masks"
ZIP_SUFFIX = ".zip"


class Layout(StrEnum):
    """How the exported folders are called."""

    FOLDERS = "folders"
    KOHYA = "kohya"


@dataclass(frozen=True)
class Exported:
    """What went out. `num_bytes` are those of the pictures."""

    num_pictures: int
    num_bytes: int
    num_skipped: int

    @property
    def sentence(self) -> str:
        """The report."""
        count = f"{self.num_pictures:,} picture{'' if self.num_pictures == 1 else 's'}"
        left = f"; {self.num_skipped:,} left out" if self.num_skipped else ""
        return f"{count} exported, {self.num_bytes / 1e6:,.1f} MB{left}."


class Target(Protocol):
    """Where files go."""

    def add(self, path: str, data: bytes) -> None:
        """A file of the export, `path` with "/"."""


class FolderTarget:
    """A new folder."""

    def __init__(self, folder: Path) -> None:
        self._root = Root(folder)

    def add(self, path: str, data: bytes) -> None:
        """Writes a file into the folder."""
        self._root.write_known(path, data, durable=False)


def export_dataset(
    dataset: Dataset, target: Target, layout: Layout, control: TaskControl, names: Sequence[str] | None = None
) -> Exported:
    """Writes a dataset, or the named pictures of it, into `target`. Pictures that can't be read are skipped and told.

    Raises Cancelled when the user ends it, SafelightError for damaged settings or when no picture is left.
    """
    wanted = None if names is None else set(names)
    pictures = [name for name in dataset.pictures() if wanted is None or name in wanted]
    captions, faults = dataset.read_captions(pictures)
    settings, marks = dataset.settings, dataset.marks
    namer, rows, num_bytes, num_skipped = _Namer(dataset.name, settings, layout), [], 0, 0
    written: set[str] = set()
    for number, picture in enumerate(pictures):
        control.raise_if_cancelled()
        control.progress(number, len(pictures), picture)
        try:
            data, suffix, size = cleaned(dataset.path / picture)
            if picture in faults:
                raise RefusedFile(f"its caption can't be read: {faults[picture]}")
        except (RefusedFile, OSError) as error:
            control.skip(picture, str(error))
            num_skipped += 1
            continue
        path = namer.path_of(picture, suffix)
        caption = captions.get(picture)
        if layout is Layout.KOHYA and caption is not None:
            caption = with_trigger(caption, settings.trigger_word)
        text_path = f"{path.rpartition('.')[0]}.txt"
        if caption is not None and text_path not in written:
            target.add(text_path, caption.encode())
            written.add(text_path)
        target.add(path, data)
        mask = _add_mask(dataset, picture, path, namer, target)
        num_bytes += len(data)
        rows.append(_row(path, data, size, caption, namer.repeats_of(picture), marks.get(picture), mask))
    if not rows:
        raise SafelightError(f"There is nothing to export: {dataset.name} has no picture that can be read.")
    text = manifest_text(dataset.name, settings, layout, rows)
    target.add(MANIFEST, text.encode())
    control.progress(len(pictures), len(pictures))
    return Exported(len(rows), num_bytes, num_skipped)


def cleaned(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """A picture's file without metadata, its suffix, and its (width, height). A PNG or JPEG keeps its pixels bit for bit.

    Raises RefusedFile for what can't be read.
    """
    data = read_picture(path)
    info = image_info(data, path.name)
    kept = png.only_pixels(data) if info.format == "PNG" and info.num_frames == 1 else None
    if kept is not None:
        return kept, ".png", (info.width, info.height)
    clean = clean_copy(path, 16)
    return clean.data, clean.suffix, (clean.width, clean.height)


def manifest_text(name: str, settings: DatasetSettings, layout: Layout, rows: Sequence[Mapping[str, Any]]) -> str:
    """The manifest: what each exported file is and its hash. Raises RefusedConfig if a token stands in it."""
    values = {
        "version": VERSION,
        "dataset": name,
        "made_from": settings.made_from,
        "trigger_word": settings.trigger_word,
        "layout": layout.value,
        "pictures": list(rows),
    }
    text = json.dumps(values, indent=1) + "\n"
    refuse_secrets(text, "The manifest of this export")
    return text


def _row(
    path: str, data: bytes, size: tuple[int, int], caption: str | None, repeats: int, mark: Mark | None, mask: str
) -> dict[str, Any]:
    return {
        "picture": path,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "size": list(size),
        "caption": caption,
        "repeats": repeats,
        "crop": None if mark is None else {"focus": list(mark.focus), "zoom": mark.zoom},
        "mask": mask or None,
    }


def _add_mask(dataset: Dataset, picture: str, path: str, namer: _Namer, target: Target) -> str:
    mask = mask_path(dataset.path, picture)
    if mask.is_symlink() or not mask.is_file():
        return ""
    name = namer.mask_of(picture, path)
    target.add(name, cleaned(mask)[0])
    return name


class _Namer:
    """Gives each picture its place in the export; no two get the same, also where case does not count."""

    def __init__(self, dataset: str, settings: DatasetSettings, layout: Layout) -> None:
        self._dataset, self._settings, self._layout = dataset, settings, layout
        self._owners: dict[str, str] = {}

    def repeats_of(self, picture: str) -> int:
        """How often an epoch looks at a picture."""
        return repeats_of(picture, self._settings.repeats, 1)

    def path_of(self, picture: str, suffix: str) -> str:
        """The path of a picture that was `picture` and has this suffix now."""
        folder, _, name = picture.rpartition("/")
        place = self._kohya_folder(folder, picture) if self._layout is Layout.KOHYA else _sane(folder)
        stem, number = sanitized_name(Path(name).stem, "picture"), 1
        # pictures of one name and different endings share a caption file, and may go on doing so
        kin = picture.rpartition(".")[0]
        candidate = stem
        while not self._take(f"{place}/{candidate}", kin) or not self._take(f"{place}/{candidate}{suffix}", picture):
            number += 1
            candidate = f"{stem}-{number}"
        return f"{place}/{candidate}{suffix}".lstrip("/")

    def mask_of(self, picture: str, path: str) -> str:
        """The path of the mask of a picture that goes to `path`: as `path`, unless another file has that name."""
        stem, number = path.rpartition(".")[0], 1
        candidate = f"{MASKS}/{stem}.png"
        while not self._take(candidate, f"mask of {picture}"):
            number += 1
            candidate = f"{MASKS}/{stem}-{number}.png"
        return candidate

    def _take(self, path: str, owner: str) -> bool:
        return self._owners.setdefault(same_name_key(path), owner) == owner

    def _kohya_folder(self, folder: str, picture: str) -> str:
        """`REPEATS_TRIGGER NAME`, one level deep, as kohya's scripts want it."""
        last = folder.rpartition("/")[2]
        matched = REPEAT_FOLDER.match(last)
        label = (last[len(matched.group(1)) + 1 :] if matched else last) or self._dataset
        trigger = self._settings.trigger_word.strip()
        words = label if not trigger or trigger in label.split() else f"{trigger} {label}"
        return sanitized_name(f"{self.repeats_of(picture)}_{words}", "pictures")


def _sane(folder: str) -> str:
    """A folder's path that every system takes; what is fine stays as it is."""
    return "/".join(sanitized_name(part, "folder") for part in folder.split("/")) if folder else ""


# ---- where to -------------------------------------------------------------------------------------------------------


def export_to(
    dataset: Dataset, place: Path, layout: Layout, control: TaskControl, names: Sequence[str] | None = None
) -> Exported:
    """Exports into the new zip file or folder `place`. If it does not end well, nothing of it is left."""
    wanted = dataset.pictures() if names is None else names
    refuse_full_disk(place.parent, [dataset.path / name for name in wanted])
    with _opened(place) as target:
        return export_dataset(dataset, target, layout, control, names)


def new_place(text: str, allowed: Sequence[Path] | None) -> Path:
    """The new folder or .zip file that a user typed: its folder must be there, and nothing of that name in it.

    Raises RefusedPath or SafelightError that says why not.
    """
    typed = Path(text.strip())
    parent = resolve_user_folder(str(typed.parent), allowed)
    place = parent / safe_name(typed.name, "name")
    if place.exists() or place.is_symlink():
        raise SafelightError(f"{place} is there already. Choose a new name: nothing is overwritten.")
    return place


@contextmanager
def _opened(place: Path) -> Iterator[Target]:
    root = Root(place.parent)
    partial = root.path / f"{place.name[:80]}-{secrets.token_hex(4)}.part"
    try:
        if place.suffix.lower() == ZIP_SUFFIX:
            with root.create_file(partial.name) as file, closing(ZipWriter(file)) as archive:
                yield archive
        else:
            partial.mkdir(mode=0o700)
            yield FolderTarget(partial)
        if place.exists() or place.is_symlink():
            raise SafelightError(f"{place} is there already. Choose a new name: nothing is overwritten.")
        partial.rename(place)
    except BaseException:
        if partial.exists():
            root.remove_tree(partial)
        raise
