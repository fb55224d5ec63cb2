"""Brings pictures into a dataset: each is decoded and written anew, its caption beside it, all of it one step to undo."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from security.errors import RefusedFile, SafelightError
from security.images import clean_copy, open_image
from security.names import safe_name, same_name_key, sanitized_name
from security.policy import MAX_ARCHIVE_DEPTH
from security.roots import Root
from trainer.dataset.captions import read_caption
from trainer.dataset.facts import PictureFacts, facts_of, remember_facts
from trainer.dataset.history import Content, LongEdit
from trainer.dataset.incoming import PICTURE_SUFFIXES, Bundle, Incoming, archive_bundle, folder_bundle, sorted_out
from trainer.dataset.masks import mask_file
from trainer.dataset.scan import dataset_names, repeats_of
from trainer.dataset.settings import MARKS_FILE, OWN_FOLDER, SETTINGS_FILE, Mark, marks_bytes, settings_bytes
from trainer.dataset.studio import Dataset, Studio, mask_name
from trainer.dataset.thumbnails import THUMBNAIL_SIDE, keep_thumbnail
from trainer.demo import DATASETS as DEMO_DATASETS
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

ARCHIVE_SUFFIX = ".zip"
NUM_THREADS = 2
"""Decoding, compressing and hashing run beside each other; more threads take memory and the machine from a run."""
MAX_AHEAD = 3 * NUM_THREADS
"""Pictures that are worked on ahead of the one that is put in."""
BATCH_FILES = 64
BATCH_SECONDS = 1.0
"""How often pictures are put in: often enough to be seen coming, seldom enough to be quick."""
EXAMPLES = ", ".join(PICTURE_SUFFIXES)


def import_paths(studio: Studio, name: str, paths: Sequence[Path], control: TaskControl) -> str:
    """Brings in folders, zip archives and files of this machine. Returns what came in, in a sentence.

    A dataset of that name is added to, else made. An archive that is not sound stops all of it before anything came in.
    Raises SafelightError for that, for a name that can't be one, and when no picture can be taken.
    """
    check_name(name)
    control.progress(0, 0, "Looking at the files")
    with studio.staging() as folder:
        bundles = []
        loose: dict[str, Path] = {}
        for number, path in enumerate(paths):
            if path.is_dir():
                bundles.append(folder_bundle(path))
            elif path.suffix.lower() == ARCHIVE_SUFFIX:
                bundles.append(archive_bundle(path, folder / f"archive-{number}", control.cancelled))
            else:
                loose[path.name if path.name not in loose else f"{number}/{path.name}"] = path
        bundles.append(sorted_out(loose))
        label = f"Import {paths[0].name}" if len(paths) == 1 else f"Import {len(paths)} files and folders"
        return import_bundles(studio, name, label, bundles, control)


def import_files(studio: Studio, name: str, files: Iterable[tuple[str, Path]], control: TaskControl) -> str:
    """Brings in files that came one by one, as (path as the sender has it, where it lies), zip archives among them."""
    check_name(name)
    control.progress(0, 0, "Looking at the files")
    with studio.staging() as folder:
        bundles = []
        loose: dict[str, Path] = {}
        for number, (sent, path) in enumerate(files):
            if path.suffix.lower() == ARCHIVE_SUFFIX:
                bundles.append(archive_bundle(path, folder / f"archive-{number}", control.cancelled))
            else:
                loose[sent if sent not in loose else f"{number}/{sent}"] = path
        bundles.append(sorted_out(loose))
        return import_bundles(studio, name, "Import from the browser", bundles, control)


def check_name(name: str) -> None:
    """Raises SafelightError for a text that can't be the name of a dataset, or is the embedded one's."""
    if safe_name(name, "dataset name") in DEMO_DATASETS:
        raise SafelightError(
            f"{name} is the embedded dataset and can't be changed. Copy it first, or choose another name."
        )


def import_bundles(
    studio: Studio, name: str, label: str, bundles: Iterable[Bundle], control: TaskControl, total: int = 0
) -> str:
    """Brings in bundle after bundle; an iterator may make the next one while it goes on. `total`: pictures, if known.

    Cancelled by `control`, it keeps what came in. Raises SafelightError if no picture could be taken.
    """
    check_name(name)
    if isinstance(bundles, Sequence):
        total = sum(len(bundle.pictures) for bundle in bundles)
    counts = _Counts()
    with ExitStack() as stack:
        put = _Put(studio, name, label, counts, control, stack)
        folder = stack.enter_context(studio.staging())
        Root(folder).create_file("in-use").close()  # an empty folder goes when its last file moves into the dataset
        pool = stack.enter_context(ThreadPoolExecutor(NUM_THREADS, "safelight-import"))
        for incoming, work in _ahead(studio.workspace, pool, folder, bundles, counts, control):
            control.progress(counts.seen, max(total, counts.seen), "Importing")
            try:
                put.one(incoming, work.result())
            except (RefusedFile, OSError) as error:
                counts.left_out += 1
                control.skip(incoming.name, _reason(incoming, error))
            counts.seen += 1
        put.flush()
        control.progress(counts.seen, max(total, counts.seen), "")
    return _report(name, counts, total, control)


@dataclass
class _Counts:
    seen: int = 0
    added: int = 0
    captions: int = 0
    known: int = 0
    left_out: int = 0
    animated: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    trigger_word: str = ""


@dataclass(frozen=True)
class _Ready:
    """A picture that only has to be put in its place. `path`: where it lies, in the cache; `mask_fault`: why it gets none."""

    path: Path
    suffix: str
    facts: PictureFacts
    num_frames: int
    mask: bytes | None = None
    mask_fault: str = ""


def _ahead(
    workspace: Workspace,
    pool: ThreadPoolExecutor,
    folder: Path,
    bundles: Iterable[Bundle],
    counts: _Counts,
    control: TaskControl,
) -> Iterator[tuple[Incoming, Future[_Ready]]]:
    """The pictures of all bundles in their order, some of them being worked on already. Ends early when cancelled."""
    waiting: deque[tuple[Incoming, Future[_Ready]]] = deque()
    number = 0
    for bundle in bundles:
        for skipped in bundle.skipped:
            counts.left_out += 1
            control.skip(*skipped)
        counts.trigger_word = counts.trigger_word or bundle.trigger_word
        for incoming in bundle.pictures:
            if control.cancelled():
                break
            waiting.append((incoming, pool.submit(_prepared, workspace, folder, number, incoming)))
            number += 1
            if len(waiting) >= MAX_AHEAD:
                yield waiting.popleft()
        while waiting and not control.cancelled():  # the next bundle may take the place of this one's files
            yield waiting.popleft()
        if control.cancelled():
            break
    for _, work in waiting:
        work.cancel()


def _prepared(workspace: Workspace, folder: Path, number: int, incoming: Incoming) -> _Ready:
    """On a thread of the pool: the picture written anew into `folder`, its thumbnail into the cache."""
    clean = clean_copy(incoming.path, THUMBNAIL_SIDE)
    kind = "JPEG" if clean.suffix == ".jpg" else "PNG"
    digest = hashlib.sha256(clean.data).hexdigest()
    facts = PictureFacts(clean.width, clean.height, kind, 1, clean.has_alpha, len(clean.data), digest)
    root = Root(folder)
    name = f"ready-{number}{clean.suffix}"
    with root.create_file(name) as file:
        file.write(clean.data)
    keep_thumbnail(workspace, facts, clean.thumbnail)
    mask, fault = _mask(incoming, (clean.width, clean.height))
    return _Ready(root.path / name, clean.suffix, facts, clean.num_frames, mask, fault)


def _mask(incoming: Incoming, size: tuple[int, int]) -> tuple[bytes | None, str]:
    """The mask that came along with a picture of that (width, height), or why it is not taken."""
    if incoming.mask is None:
        return None, ""
    try:
        mask = open_image(incoming.mask)
    except (RefusedFile, OSError) as error:
        return None, str(error)
    return (mask_file(mask), "") if mask.size == size else (None, "it is a mask of another size than its picture")


class _Put:
    """Gives pictures their names in the dataset and puts them there in batches. Makes the dataset for the first one."""

    def __init__(
        self, studio: Studio, name: str, label: str, counts: _Counts, control: TaskControl, stack: ExitStack
    ) -> None:
        self._studio, self._name, self._label = studio, name, label
        self._counts, self._control, self._stack = counts, control, stack
        self._dataset: Dataset | None = None
        self._edit: LongEdit | None = None
        self._changes: dict[str, Content] = {}
        self._facts: dict[str, PictureFacts] = {}
        self._began = time.monotonic()
        self._taken: dict[str, dict[str, str]] = {}
        self._marks: dict[str, Mark] = {}
        self._repeats: dict[str, int] = {}
        self._is_new = False

    def one(self, incoming: Incoming, ready: _Ready) -> None:
        """Puts one picture in, sooner or later; leaves out what is there already."""
        self._open()
        path = PurePosixPath(incoming.name)
        folder = "/".join(sanitized_name(part, "folder") for part in path.parts[:-1][-MAX_ARCHIVE_DEPTH:])
        stem = sanitized_name(path.stem, "picture")
        name, is_known = self._free_name(f"{folder}/" if folder else "", stem, ready, incoming.caption)
        if is_known:
            self._counts.known += 1
            return
        self._changes[name] = ready.path
        self._facts[name] = ready.facts
        if incoming.caption is not None:
            self._changes[str(PurePosixPath(name).with_suffix(".txt"))] = incoming.caption.encode()
            self._counts.captions += bool(incoming.caption)
            if incoming.is_guessed:
                self._counts.guessed.append(name)
        self._exported(name, incoming, ready)
        self._counts.added += 1
        if ready.num_frames > 1:
            self._counts.animated.append(name)
        if len(self._facts) >= BATCH_FILES or time.monotonic() - self._began > BATCH_SECONDS:
            self.flush()

    def _exported(self, name: str, incoming: Incoming, ready: _Ready) -> None:
        """What an export told of a picture that is called `name` now."""
        if ready.mask is not None:
            self._changes[mask_name(name)] = ready.mask
        if ready.mask_fault and incoming.told is not None:
            self._counts.left_out += 1
            self._control.skip(incoming.told.mask, ready.mask_fault)
        if incoming.told is None:
            return
        if incoming.told.mark is not None:
            self._marks[name] = incoming.told.mark
        if incoming.told.repeats != repeats_of(name, {}, 1):
            self._repeats[name.rpartition("/")[0]] = incoming.told.repeats

    def flush(self) -> None:
        """Puts in what waits."""
        self._began = time.monotonic()
        if not self._changes:
            return
        assert self._edit is not None and self._dataset is not None
        with self._dataset.history.locked():
            self._edit.add(self._changes | self._own_files(self._dataset))
        root = Root(self._dataset.path)
        here = [(root.known_child(name), facts) for name, facts in self._facts.items()]
        remember_facts(self._studio.workspace, [(path, facts) for path, facts in here if path.is_file()])
        self._changes, self._facts = {}, {}

    def _own_files(self, dataset: Dataset) -> dict[str, Content]:
        """Crops, and for a new dataset the settings that an export has."""
        files: dict[str, Content] = {}
        if self._marks:
            files[f"{OWN_FOLDER}/{MARKS_FILE}"] = marks_bytes({**dataset.marks, **self._marks})
        self._marks, settings = {}, dataset.settings
        if not self._is_new:  # it would change what the pictures that are there already mean
            return files
        word = settings.trigger_word or self._counts.trigger_word
        wanted = replace(settings, trigger_word=word, repeats={**self._repeats, **settings.repeats})
        if wanted != settings:
            files[f"{OWN_FOLDER}/{SETTINGS_FILE}"] = settings_bytes(wanted)
        return files

    def _open(self) -> None:
        if self._dataset is not None:
            return
        self._is_new = self._name not in dataset_names(self._studio.workspace)
        self._dataset = self._studio.create(self._name) if self._is_new else self._studio.open(self._name)
        self._edit = self._stack.enter_context(self._dataset.history.long(self._label))
        for path in self._dataset.path.rglob("*"):
            relative = path.relative_to(self._dataset.path)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                self._stems(relative.parent.as_posix())[same_name_key(path.stem)] = relative.as_posix()
        for name in self._dataset.pictures():  # of a picture and its caption, the picture is compared
            path = PurePosixPath(name)
            self._stems(path.parent.as_posix())[same_name_key(path.stem)] = name

    def _stems(self, folder: str) -> dict[str, str]:
        return self._taken.setdefault(same_name_key(folder if folder != "." else ""), {})

    def _free_name(self, folder: str, stem: str, ready: _Ready, caption: str | None) -> tuple[str, bool]:
        """A name that is free in a folder (ending in "/"), or the name of the same picture and True.

        Two pictures never share a stem: they would share a caption.
        """
        stems = self._stems(folder.rstrip("/"))
        number, candidate = 1, stem
        while (there := stems.get(same_name_key(candidate))) is not None:
            if self._is_same(there, ready, caption):
                return there, True
            number += 1
            candidate = f"{stem}-{number}"
        name = f"{folder}{candidate}{ready.suffix}"
        stems[same_name_key(candidate)] = name
        return name, False

    def _is_same(self, name: str, ready: _Ready, caption: str | None) -> bool:
        """Whether a picture of the dataset is this one, with the same caption or nothing to add to it."""
        assert self._dataset is not None
        path = self._dataset.path / name
        known = self._facts.get(name)
        try:
            known = known or facts_of(self._studio.workspace, path)
            if known.sha256 != ready.facts.sha256:
                return False
            waiting = self._changes.get(str(PurePosixPath(name).with_suffix(".txt")))
            there = waiting.decode() if isinstance(waiting, bytes) else read_caption(path, ".txt")
        except RefusedFile:
            return False
        return caption in (None, "", there)


def _reason(incoming: Incoming, error: Exception) -> str:
    """What is wrong with a picture, which may have another name in the cache than its sender gave it."""
    if not isinstance(error, RefusedFile):
        return f"it could not be read: {getattr(error, 'strerror', error)}"
    text, name = str(error), incoming.path.name
    return PurePosixPath(incoming.name).name + text[len(name) :] if text.startswith(name) else text


def _report(name: str, counts: _Counts, total: int, control: TaskControl) -> str:
    if not counts.seen and not counts.left_out and not control.cancelled():
        raise SafelightError(f"There are no pictures in it ({EXAMPLES}).")
    if not counts.added and not counts.known and not control.cancelled():
        raise SafelightError(f"No picture could be taken; nothing was changed. {_left_out(counts)}")
    parts = [f"{_pictures(counts.added)} added to {name}, {counts.captions} with a caption."]
    if control.cancelled():
        parts.insert(0, f"Cancelled after {counts.seen} of {_pictures(max(total, counts.seen))}; what came in stays.")
    if counts.known:
        parts.append(f"{counts.known} {'was' if counts.known == 1 else 'were'} there already.")
    if counts.animated:
        number = _plural(len(counts.animated), "animation")
        parts.append(f"Of {number} the first frame came in ({_named(counts.animated)}).")
    if counts.guessed:
        number = _plural(len(counts.guessed), "caption")
        parts.append(f"{number} not UTF-8: the signs are a guess, look at them ({_named(counts.guessed)}).")
    parts.append(_left_out(counts))
    return " ".join(part for part in parts if part)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _left_out(counts: _Counts) -> str:
    return f"{counts.left_out} left out." if counts.left_out else ""


def _pictures(number: int) -> str:
    return _plural(number, "picture")


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
