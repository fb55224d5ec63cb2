"""The datasets of a workspace as the page and the command line work with them: every change is a step that can be undone."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from security.errors import RefusedFile, SafelightError
from security.names import safe_name, same_name_key
from security.policy import IMAGE_SUFFIXES
from security.roots import Root, refuse_full_disk
from trainer.dataset.captions import MAX_CAPTION_BYTES, read_caption
from trainer.dataset.history import Content, Edit, History
from trainer.dataset.scan import DatasetInfo, dataset_names, list_datasets, picture_paths
from trainer.dataset.settings import (
    MARKS_FILE,
    MASKS_FOLDER,
    OWN_FOLDER,
    SETTINGS_FILE,
    DatasetSettings,
    Mark,
    load_marks,
    load_settings,
    marks_bytes,
    mask_path,
    settings_bytes,
)
from trainer.demo import DATASETS as DEMO_DATASETS
from trainer.tasks import Tasks
from trainer.workspace import Workspace

STAGING = "studio"
STALE_SECONDS = 24 * 3600


class Studio:
    """All datasets of a workspace, and the long work on them."""

    def __init__(self, workspace: Workspace, tasks: Tasks | None = None) -> None:
        self.workspace = workspace
        self.tasks = tasks or Tasks(workspace.logs_dir)

    def datasets(self) -> list[DatasetInfo]:
        """The embedded datasets and those of the workspace, by name."""
        return list_datasets(self.workspace)

    def open(self, name: str) -> Dataset:
        """A dataset by its name; what a killed program left half done in it is completed first.

        Raises SafelightError if there is none of that name.
        """
        if name in DEMO_DATASETS:
            return Dataset(name, DEMO_DATASETS[name], self.workspace, builtin=True)
        # a folder that stands in the library may have a name that not every system allows
        listed = name in dataset_names(self.workspace)
        path = Root(self.workspace.datasets_dir).child(name) if listed else self._folder(name)
        if not path.is_dir():
            raise SafelightError(f"There is no dataset named {name[:100]!r}. Choose one of the list.")
        return Dataset(name, path, self.workspace, builtin=False)

    def create(self, name: str) -> Dataset:
        """A new, empty dataset. Raises RefusedName for a bad name, SafelightError for one that is taken."""
        path = self._free(name)
        path.mkdir()
        return self.open(path.name)

    def copy(self, name: str, new: str, progress: Callable[[int, int], None] | None = None) -> Dataset:
        """A new dataset with the files, settings, crops and masks of another, without its history.

        `progress` is called with files done and files in all; what it raises ends the copy, and nothing is left of it.
        """
        source, target = self.open(name), self._free(new)
        partial = target.with_name(f".partial-{secrets.token_hex(8)}")
        files = _files_of(source.path)
        refuse_full_disk(self.workspace.datasets_dir, [source.path / one for one in files])
        try:
            for number, relative in enumerate(files):
                if progress is not None:
                    progress(number, len(files))
                copy = partial / relative
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source.path / relative, copy, follow_symlinks=False)
            partial.mkdir(exist_ok=True)
            settings = replace(source.settings, made_from=name)
            own = partial / OWN_FOLDER
            own.mkdir(mode=0o700, exist_ok=True)
            Root(own).write_bytes_atomic(own / SETTINGS_FILE, settings_bytes(settings))
            partial.rename(target)
        except BaseException:
            if partial.exists():
                Root(self.workspace.datasets_dir).remove_tree(partial)
            raise
        return self.open(target.name)

    def rename(self, name: str, new: str) -> Dataset:
        """Gives a dataset another name, with its history. Raises SafelightError while a task works on it."""
        dataset = self._own(name)
        self._refuse_busy(dataset)
        target = self._free(new)
        dataset.path.rename(target)
        return self.open(target.name)

    def delete(self, name: str) -> None:
        """Deletes a dataset with its pictures and its history: this alone can't be undone."""
        dataset = self._own(name)
        self._refuse_busy(dataset)
        Root(self.workspace.datasets_dir).remove_tree(dataset.path)

    def free_name(self, name: str) -> str:
        """`name`, or the first of name-2, name-3, ... that no dataset has."""
        taken = {same_name_key(info.name) for info in self.datasets()}
        number, candidate = 1, safe_name(name, "dataset name")
        while same_name_key(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        return candidate

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder in the cache for files that are about to be moved into a dataset; gone with the rest afterwards."""
        root = Root(self.workspace.cache_dir)
        places = root.child(STAGING)
        places.mkdir(mode=0o700, exist_ok=True)
        for left in [path for path in places.iterdir() if time.time() - path.lstat().st_mtime > STALE_SECONDS]:
            root.remove_tree(left)
        folder = root.child(STAGING, secrets.token_hex(8))
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            if folder.exists():
                root.remove_tree(folder)

    def _folder(self, name: str) -> Path:
        return Root(self.workspace.datasets_dir).child(safe_name(name, "dataset name"))

    def _free(self, name: str) -> Path:
        path = self._folder(name.strip())
        if same_name_key(path.name) in {same_name_key(info.name) for info in self.datasets()} or path.exists():
            raise SafelightError(f"There is a dataset named {path.name!r} already. Choose another name.")
        return path

    def _own(self, name: str) -> Dataset:
        dataset = self.open(name)
        dataset.refuse_builtin()
        return dataset

    def _refuse_busy(self, dataset: Dataset) -> None:
        for task in self.tasks.busy_with(dataset.name):
            raise SafelightError(f"'{task.title}' is working on {dataset.name}. Wait for it or cancel it first.")
        if not dataset.history_fault:
            dataset.history.refuse_unfinished()


class Dataset:
    """One dataset. Names of pictures are paths relative to its folder, with "/". Nothing is kept in memory."""

    def __init__(self, name: str, path: Path, workspace: Workspace, *, builtin: bool) -> None:
        self.name, self.path, self.builtin = name, path, builtin
        # no more than the staging folders: the history may be a stranger's, and the cache holds files of others
        self._history = History(path, workspace.cache_dir / STAGING)
        self.history_fault = ""
        """Why nothing can be changed: the history is damaged. The pictures can be looked at all the same."""
        if not builtin:
            try:
                self._history.recover()
            except SafelightError as error:
                self.history_fault = str(error)

    @property
    def history(self) -> History:
        """Through this every change goes. Raises SafelightError for an embedded dataset."""
        self.refuse_builtin()
        return self._history

    @property
    def revision(self) -> int:
        """A number that grows with every change of ours, for polls. What others do to the folder is not counted."""
        return 0 if self.builtin or self.history_fault else self._history.revision

    @property
    def settings(self) -> DatasetSettings:
        """Trigger word, repeats, origin."""
        return load_settings(self.path)

    @property
    def marks(self) -> dict[str, Mark]:
        """The crops chosen by hand, by picture."""
        return load_marks(self.path)

    def pictures(self) -> list[str]:
        """All pictures in a fixed order."""
        return [path.relative_to(self.path).as_posix() for path in picture_paths(self.path)]

    def captions(self) -> dict[str, str]:
        """The captions of all pictures that have a readable one."""
        return self.read_captions()[0]

    def caption_faults(self) -> dict[str, str]:
        """What is wrong with captions that can't be read, by picture."""
        return self.read_captions()[1]

    def read_captions(self, pictures: Iterable[str] | None = None) -> tuple[dict[str, str], dict[str, str]]:
        """`captions` and `caption_faults` in one go, of all pictures or of those given."""
        captions, faults = {}, {}
        for picture in self.pictures() if pictures is None else pictures:
            try:
                text = read_caption(self.path / picture, ".txt")
            except (RefusedFile, OSError) as error:
                faults[picture] = str(error)
                continue
            if text is not None:
                captions[picture] = text
        return captions, faults

    def masks(self) -> set[str]:
        """The pictures that have a mask."""
        return {picture for picture in self.pictures() if mask_path(self.path, picture).is_file()}

    def path_of(self, picture: str) -> Path:
        """The file of a picture. Raises SafelightError if the dataset has no such picture."""
        path = Root(self.path).known_child(picture)
        hidden = any(part.startswith(".") for part in picture.split("/"))
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            raise SafelightError(
                f"There is no picture {picture[:200]!r} in {self.name}. Check the name, or reload the page."
            )
        return path

    # ---- changes ----

    def set_captions(self, label: str, captions: Mapping[str, str | None]) -> Edit:
        """Writes captions; None removes the file. Two pictures of one name but different endings share one: the last wins.

        Raises SafelightError for a picture that is not there and a text that is too long.
        """
        changes: dict[str, Content] = {}
        for picture, text in captions.items():
            self.path_of(picture)
            changes[caption_name(picture)] = None if text is None else _caption_bytes(picture, text)
        return self.history.apply(label, changes)

    def caption_changes(self, captions: Mapping[str, str | None]) -> dict[str, Content]:
        """The files that `set_captions` would write: for `LongEdit.add`."""
        self.refuse_builtin()
        return {
            caption_name(picture): None if text is None else _caption_bytes(picture, text)
            for picture, text in captions.items()
            if self.path_of(picture)
        }

    def set_settings(self, label: str, settings: DatasetSettings) -> Edit:
        """Writes the settings. Raises RefusedConfig for values that are out of range."""
        return self.history.apply(label, {f"{OWN_FOLDER}/{SETTINGS_FILE}": settings_bytes(settings)})

    def set_marks(self, label: str, marks: Mapping[str, Mark | None]) -> Edit:
        """Chooses crops; None gives a picture back to the middle."""
        with self.history.locked():
            return self.history.apply(label, self._mark_changes(marks))

    def set_masks(self, label: str, masks: Mapping[str, bytes | None]) -> Edit:
        """Writes masks (8-bit grey PNG files, white is learned); None removes them."""
        for picture in masks:
            self.path_of(picture)
        return self.history.apply(label, {mask_name(picture): mask for picture, mask in masks.items()})

    def remove_pictures(self, label: str, names: Collection[str]) -> Edit:
        """Takes pictures out with caption, mask and mark; all comes back with undo."""
        with self.history.locked():
            gone = set(names)
            kept = {caption_name(picture) for picture in self.pictures() if picture not in gone}
            changes: dict[str, Content] = self._mark_changes(dict.fromkeys(gone))
            for picture in gone:
                self.path_of(picture)
                changes |= {picture: None, mask_name(picture): None}
                if caption_name(picture) not in kept:
                    changes[caption_name(picture)] = None
            return self.history.apply(label, changes)

    def move_pictures(self, label: str, moves: Mapping[str, str]) -> Edit:
        """Renames pictures or moves them to other sub-folders, with caption, mask and mark. The ending stays.

        Raises SafelightError for a name that is taken, RefusedName for one that is no good.
        """
        with self.history.locked():
            marks = self.marks
            changes: dict[str, Content] = {}
            for old, new in moves.items():
                self.path_of(old)
                self._check_new(old, new, moves)
                for before, after in _files_with(old, new):
                    if (self.path / before).is_file():
                        changes.setdefault(before, None)
                        changes[after] = self.path / before
                marks[new] = marks[old] if old in marks else Mark()
            remaining: dict[str, Mark | None] = dict.fromkeys(moves)
            remaining |= {new: marks[new] if old in self.marks else None for old, new in moves.items()}
            return self.history.apply(label, {**changes, **self._mark_changes(remaining)})

    def _check_new(self, old: str, new: str, moves: Mapping[str, str]) -> None:
        if old != new and same_name_key(old) == same_name_key(new):
            raise SafelightError(f"{new[:200]} differs only in case from {old[:200]}. Choose another name.")
        for part in new.split("/"):
            safe_name(part, "name")
        if Path(old).suffix != Path(new).suffix:
            raise SafelightError(f"{new[:200]} has another ending than {old[:200]}. Keep the ending.")
        taken = [new, caption_name(new)]
        leaving = set(moves) | {caption_name(name) for name in moves}
        if any((self.path / name).exists() and name not in leaving for name in taken):
            raise SafelightError(f"There is a picture or caption named {new[:200]} already. Choose another name.")
        if list(moves.values()).count(new) > 1:
            raise SafelightError(f"Two pictures would be named {new[:200]}. Choose another name.")

    def _mark_changes(self, marks: Mapping[str, Mark | None]) -> dict[str, Content]:
        new = {**self.marks, **marks}
        data = marks_bytes({name: mark for name, mark in new.items() if mark is not None and mark != Mark()})
        return {f"{OWN_FOLDER}/{MARKS_FILE}": data}

    def refuse_builtin(self) -> None:
        """Raises SafelightError for an embedded dataset."""
        if self.builtin:
            raise SafelightError(f"{self.name} is the embedded dataset and can't be changed. Copy it first.")


def caption_name(picture: str) -> str:
    """The caption file of a picture."""
    folder, slash, name = picture.rpartition("/")
    return f"{folder}{slash}{Path(name).with_suffix('.txt').name}"


def mask_name(picture: str) -> str:
    """The mask file of a picture, as `History.apply` calls it."""
    return f"{OWN_FOLDER}/{MASKS_FOLDER}/{picture}.png"


def _files_with(old: str, new: str) -> list[tuple[str, str]]:
    return [(old, new), (caption_name(old), caption_name(new)), (mask_name(old), mask_name(new))]


def _caption_bytes(picture: str, text: str) -> bytes:
    data = " ".join(text.split()).encode("utf-8", "replace")
    if len(data) > MAX_CAPTION_BYTES:
        raise SafelightError(f"The caption of {picture} has {len(data)} bytes; {MAX_CAPTION_BYTES} are the most.")
    if b"\0" in data:
        raise SafelightError(f"The caption of {picture} holds a NUL character. Take it out.")
    return data


def _files_of(folder: Path) -> list[Path]:
    """What a copy of a dataset takes along: no hidden files and no links, but settings, crops and masks."""
    found = []
    own = folder / OWN_FOLDER
    for path in sorted([*folder.rglob("*")]):
        relative = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any((folder / up).is_symlink() for up in relative.parents):
            continue
        ours = path in (own / SETTINGS_FILE, own / MARKS_FILE) or path.is_relative_to(own / MASKS_FOLDER)
        if ours or not any(part.startswith(".") for part in relative.parts):
            found.append(relative)
    return found
