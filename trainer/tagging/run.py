"""Tags the pictures of a dataset: decodes ahead, asks the networks on a confined thread, writes every batch as it comes.

All captions of one tagging are one step of the dataset's history. What was written before a cancel, a fault or a kill
stays, and can be undone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from security.errors import SafelightError
from security.images import open_image, to_rgb
from security.sandbox import SandboxState, confine_thread
from trainer.tagging.base import CaptionMode, Description, Tagger, TaggerFiles, TaggerRow, TaggingOptions
from trainer.tagging.compose import caption_of, combined, is_untagged
from trainer.tagging.shelf import get_tagger, tagger_files
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from trainer.dataset.history import Content
    from trainer.dataset.studio import Dataset

logger = logging.getLogger("safelight.tagging")

NETWORK_THREAD, DECODE_THREAD = "safelight-tagger", "safelight-decode"
NUM_DECODERS = 2
"""Pillow decodes outside of Python's lock; more than two would take the network's time."""
AHEAD = 2
"""Batches that are decoded, and batches that wait for the network, at most."""


class Control(Protocol):
    """Where the work reports to; `trainer.tasks.TaskControl` is one."""

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def skip(self, name: str, reason: str) -> None: ...
    def cancelled(self) -> bool: ...


@dataclass(frozen=True)
class Look:
    """What the taggers say of one picture, one description for each tagger; or why there is none."""

    name: str
    descriptions: tuple[Description, ...] = ()
    fault: str = ""


@dataclass
class Tally:
    """What became of the pictures: captions written, captions that had it all, pictures that nothing was said of."""

    written: int = 0
    same: int = 0
    silent: int = 0


class Crew:
    """Loaded taggers and their threads: one that runs the networks and can reach nothing but their files, two that decode.

    A context manager; the threads end with it.
    """

    def __init__(self, chosen: Sequence[tuple[TaggerRow, TaggerFiles]], options: TaggingOptions) -> None:
        self._taggers: list[Tagger] = []
        self._chosen, self._options = chosen, options
        self._states: list[SandboxState] = []
        self.where = ""

    def __enter__(self) -> Crew:
        folders = [files.folder for _, files in self._chosen]
        with ExitStack() as stack:
            network = ThreadPoolExecutor(1, NETWORK_THREAD, initializer=self._confine, initargs=(folders,))
            self._network = stack.enter_context(network)
            self._decoders = stack.enter_context(ThreadPoolExecutor(NUM_DECODERS, DECODE_THREAD))
            stack.callback(lambda: self._network.submit(self._close).result())
            self.where = self._network.submit(self._load).result()
            self._stack = stack.pop_all()  # from here on `__exit__` ends them
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def sandbox(self) -> SandboxState:
        """Whether the thread of the networks is confined."""
        return self._states[0]

    def looks(self, pictures: Sequence[tuple[str, Path]], cancelled: Callable[[], bool]) -> Iterator[list[Look]]:
        """Batches of what the taggers say of pictures (name, path), in their order. Ends early once `cancelled`."""
        left = iter(pictures)
        decoding: deque[list[tuple[str, Future[list[Any]]]]] = deque()
        describing: deque[tuple[list[Look], Future[list[Look]]]] = deque()
        while not cancelled():
            while len(decoding) < AHEAD and (chunk := list(islice(left, self._options.batch_size))):
                decoding.append([(name, self._decoders.submit(self._decode, path)) for name, path in chunk])
            if decoding and len(describing) < AHEAD:
                ready, faults = _sorted_out(decoding.popleft())
                describing.append((faults, self._network.submit(self._describe, ready)))
            elif describing:
                faults, found = describing.popleft()
                yield [*faults, *found.result()]
            else:
                return
        for found in [*(found for _, found in describing), *(decoded for chunk in decoding for _, decoded in chunk)]:
            found.cancel()

    def _confine(self, folders: list[Path]) -> None:
        self._states.append(confine_thread(read=folders, write=[]))

    def _load(self) -> str:
        places = []
        for row, files in self._chosen:
            tagger = row.make(self._options)
            self._taggers.append(tagger)
            places.append(tagger.load(files, self._options.device.value))
        return " and ".join(dict.fromkeys(places))

    def _close(self) -> None:
        for tagger in self._taggers:
            tagger.close()
        self._taggers.clear()

    def _decode(self, path: Path) -> list[Any]:
        image = to_rgb(open_image(path))
        return [tagger.prepare(image) for tagger in self._taggers]

    def _describe(self, ready: list[tuple[str, list[Any]]]) -> list[Look]:
        if not ready:
            return []
        answers = [
            tagger.describe([prepared[number] for _, prepared in ready]) for number, tagger in enumerate(self._taggers)
        ]
        return [Look(name, said) for (name, _), *said in zip(ready, *answers, strict=True)] if answers else []


def tag_dataset(
    workspace: Workspace, dataset: Dataset, names: Sequence[str], options: TaggingOptions, control: Control
) -> str:
    """Writes captions for the named pictures and returns the report. One step to undo.

    Raises SafelightError: a tagger that is not here or was changed, a read-only dataset, a device that is not there.
    """
    dataset.refuse_builtin()
    chosen = [(row := get_tagger(workspace, name), tagger_files(workspace, row)) for name in options.models]
    pictures, num_kept = _to_look_at(dataset, names, options, control)
    titles = " and ".join(row.title for row, _ in chosen)
    tally = Tally()
    if not pictures:
        return _report(titles, "", tally, num_kept)
    control.progress(0, len(pictures), f"Loading {titles}")
    num_done = 0
    with Crew(chosen, options) as crew, dataset.history.long(f"Tag with {titles}") as edit:
        logger.info(
            "%d pictures of %s: %s on the %s. %s", len(pictures), dataset.name, titles, crew.where, crew.sandbox.detail
        )
        began = time.monotonic()
        for looks in crew.looks(pictures, control.cancelled):
            with dataset.history.locked():  # nobody changes a caption between reading and writing it
                edit.add(_changes(dataset, looks, options, control, tally))
            num_done += len(looks)
            pace = num_done / max(time.monotonic() - began, 1e-3)
            control.progress(num_done, len(pictures), f"{pace:.3g} pictures a second on the {crew.where}")
    report = _report(titles, crew.where, tally, num_kept)
    if control.cancelled():
        return f"Cancelled after {num_done} of {len(pictures)} pictures. {report} What was written stays."
    return report


def _to_look_at(
    dataset: Dataset, names: Sequence[str], options: TaggingOptions, control: Control
) -> tuple[list[tuple[str, Path]], int]:
    """The pictures to ask about, and how many are left as they are."""
    there, trigger_word = set(dataset.pictures()), dataset.settings.trigger_word
    wanted = list(dict.fromkeys(names))
    captions, faults = dataset.read_captions([name for name in wanted if name in there])
    pictures, num_kept = [], 0
    for name in wanted:
        if name not in there:
            control.skip(name, "there is no such picture (any more)")
        elif name in faults and options.mode is not CaptionMode.REPLACE:
            control.skip(name, faults[name])
        elif options.mode is CaptionMode.IGNORE and not is_untagged(captions.get(name), trigger_word):
            num_kept += 1
        else:
            pictures.append((name, dataset.path / name))
    return pictures, num_kept


def _sorted_out(
    chunk: list[tuple[str, Future[list[Any]]]],
) -> tuple[list[tuple[str, list[Any]]], list[Look]]:
    """The decoded pictures of a batch, and those that can't be read."""
    ready, faults = [], []
    for name, decoded in chunk:
        try:
            ready.append((name, decoded.result()))
        except SafelightError as error:
            faults.append(Look(name, fault=str(error)))
        except OSError as error:
            faults.append(Look(name, fault=f"{name} can't be read: {error.strerror or type(error).__name__}."))
    return ready, faults


def _changes(
    dataset: Dataset, looks: Sequence[Look], options: TaggingOptions, control: Control, tally: Tally
) -> dict[str, Content]:
    """The caption files to write. What they are is counted."""
    changes: dict[str, Content] = {}
    trigger_word = dataset.settings.trigger_word
    for look in looks:
        if look.fault:
            control.skip(look.name, look.fault)
            continue
        captions, faults = dataset.read_captions([look.name])
        if look.name in faults and options.mode is not CaptionMode.REPLACE:
            control.skip(look.name, faults[look.name])
            continue
        fresh = caption_of(look.descriptions, options)
        after = combined(captions.get(look.name), fresh, options.mode, trigger_word)
        if after is None:
            tally.silent, tally.same = tally.silent + (not fresh), tally.same + bool(fresh)
            continue
        try:
            changes |= dataset.caption_changes({look.name: after})
            tally.written += 1
        except SafelightError as error:  # the picture was removed meanwhile
            control.skip(look.name, str(error))
    return changes


def _report(titles: str, where: str, tally: Tally, num_kept: int) -> str:
    def captions(number: int) -> str:
        return f"{number:,} caption{'' if number == 1 else 's'}"

    parts = [f"{captions(tally.written)} written with {titles}" + (f" on the {where}" if where else "")]
    if tally.same:
        parts.append(f"{captions(tally.same)} had it all already")
    if tally.silent:
        parts.append(f"nothing sure enough to say of {tally.silent:,} picture{'' if tally.silent == 1 else 's'}")
    if num_kept:
        parts.append(f"{captions(num_kept)} left as {'it was' if num_kept == 1 else 'they were'}")
    return "; ".join(parts) + "."
