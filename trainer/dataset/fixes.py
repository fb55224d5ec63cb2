"""What can be done about a finding with one click: one table, each row one step that can be undone.

Before anything is changed the dataset is checked again: what a report said of a file that is another one now is not
acted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from security.errors import SafelightError
from security.roots import Root
from trainer.dataset import caption_faults
from trainer.dataset.buckets import Placement, fit
from trainer.dataset.captions import MAX_CAPTION_BYTES, split_tags, with_trigger
from trainer.dataset.checking import Checking
from trainer.dataset.encodings import decoded
from trainer.dataset.history import Content
from trainer.dataset.pieces import Piece, cropped, mask_bytes, on_colour, open_piece, picture_bytes
from trainer.dataset.quality import CHECKS, GREY_COLOUR, Checkup, Finding
from trainer.dataset.scan import REPEAT_FOLDER
from trainer.dataset.settings import MARKS_FILE, OWN_FOLDER, Mark, marks_bytes
from trainer.dataset.studio import Dataset, caption_name, mask_name
from trainer.dataset.tag_operations import OPERATIONS, EditOptions
from trainer.dataset.tokens import count_tokens
from trainer.tasks import TaskControl

WHITE = (255, 255, 255)
PIECE_ASPECT = 1.5
"""A long picture is cut into pieces that are at most so much longer than wide."""
MAX_PIECES = 100
BATCH_CHANGES = 100
BATCH_BYTES = 64 * 1024 * 1024
"""So much is written at once, at most."""


@dataclass(frozen=True)
class Work:
    """What a fix is given: the dataset, the finding as it is now, what it was found in, and the pictures that are meant.

    `base`: the base model, whose tokens are counted.
    """

    dataset: Dataset
    finding: Finding
    checkup: Checkup
    pictures: Sequence[str]
    base: str


@dataclass(frozen=True)
class Change:
    """What is changed for one picture: files to write, and crops chosen by hand that move or go."""

    files: Mapping[str, Content]
    marks: Mapping[str, Mark | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Fix:
    """A row of FIXES. `button` says what it does, `done` what it did (after "12 pictures").

    `work` yields a change for each picture, or None for one that it can do nothing for; `rest` is then said of these.
    """

    button: str
    done: str
    work: Callable[[Work], Iterator[Change | None]]
    rest: str = "left as they were"


def find_fix(kind: str, fix: str) -> Fix:
    """The row of FIXES. Raises SafelightError for a fix that is none of that check's."""
    if kind not in CHECKS:
        raise SafelightError(f"There is no check {kind[:80]!r}. There are: {', '.join(CHECKS)}.")
    if fix not in CHECKS[kind].fixes:
        raise SafelightError(f"{fix[:80]!r} is no fix for {kind!r}. There are: {', '.join(CHECKS[kind].fixes)}.")
    return FIXES[fix]


def apply_fix(
    checking: Checking, kind: str, fix: str, pictures: Iterable[str] | None = None, control: TaskControl | None = None
) -> str:
    """Fixes what a check finds now, for these pictures or for all; one step to undo. Returns what was done, in a sentence.

    Raises SafelightError for a fix that is none of the finding's. A cancelled one keeps what it has done.
    """
    control = control or TaskControl()
    dataset = checking.dataset
    dataset.refuse_builtin()
    row = find_fix(kind, fix)
    report, checkup = checking.look((kind,), control)
    wanted = None if pictures is None else set(pictures)
    for finding in report.findings:
        meant = [name for name in finding.pictures if wanted is None or name in wanted]
        return _carry_out(Work(dataset, finding, checkup, meant, checking.config.model.base), row, control)
    return "Nothing of the kind is left, so nothing was changed."


def _carry_out(work: Work, fix: Fix, control: TaskControl) -> str:
    done = left = 0
    counted = CHECKS[work.finding.kind].counted
    label = f"{work.finding.title}: {fix.button[0].lower()}{fix.button[1:]}"
    with work.dataset.history.long(label) as edit:
        for batch in _batches(fix.work(work), control, len(work.pictures)):
            marks: dict[str, Mark | None] = {}
            files: dict[str, Content] = {}
            for change in batch:
                if change is None:
                    left += 1
                    continue
                done += 1
                files |= change.files
                marks |= change.marks
            with work.dataset.history.locked():
                edit.add(files | _mark_changes(work.dataset, marks))
    rest = f" {_count(left, counted)} {fix.rest}." if left else ""
    return f"{_count(done, counted)} {fix.done}." + rest + (" Undo takes it back." if done else "")


def _batches(changes: Iterator[Change | None], control: TaskControl, total: int) -> Iterator[list[Change | None]]:
    """Several changes at once, but no more than fit into memory."""
    batch: list[Change | None] = []
    num_bytes = 0
    for number, change in enumerate(changes):
        control.progress(number, total, "changing")
        batch.append(change)
        if change is not None:
            num_bytes += sum(len(content) for content in change.files.values() if isinstance(content, bytes))
        if len(batch) >= BATCH_CHANGES or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
        if control.cancelled():
            break
    yield batch


def _mark_changes(dataset: Dataset, marks: Mapping[str, Mark | None]) -> dict[str, Content]:
    if not marks:
        return {}
    new = {**dataset.marks, **marks}
    data = marks_bytes({name: mark for name, mark in new.items() if mark is not None and mark != Mark()})
    return {f"{OWN_FOLDER}/{MARKS_FILE}": data}


def _count(number: int, counted: str) -> str:
    return f"{number:,} {counted}{'' if number == 1 else 's'}"


# ---- taking pictures out --------------------------------------------------------------------------------------------


def _removal(work: Work, picture: str, gone: frozenset[str]) -> Change:
    """With mask, crop, and the caption unless a picture that stays has the same one."""
    files: dict[str, Content] = {picture: None, mask_name(picture): None}
    stem = caption_name(picture)
    if not any(caption_name(one.name) == stem for one in work.checkup.pictures if one.name not in gone):
        files[stem] = None
    return Change(files, {picture: None})


def _remove(work: Work) -> Iterator[Change]:
    gone = frozenset(work.pictures)
    return (_removal(work, picture, gone) for picture in work.pictures)


def _keep_largest(work: Work) -> Iterator[Change | None]:
    """The first of each group stays and gets the longest caption of the group if it has none itself."""
    meant = set(work.pictures)
    gone = frozenset(name for group in work.finding.groups for name in group[1:] if name in meant)
    for best, *others in work.finding.groups:
        removed = [name for name in others if name in gone]
        captions = [work.checkup.by_name[name].caption or "" for name in removed]
        caption = max(captions, key=len, default="")
        for number, name in enumerate(removed):
            change = _removal(work, name, gone)
            if number == 0 and caption.strip() and not (work.checkup.by_name[best].caption or "").strip():
                files = {**change.files, **work.dataset.caption_changes({best: caption})}
                change = Change(files, change.marks)
            yield change


def _remove_captions(work: Work) -> Iterator[Change]:
    return (Change({name: None}) for name in work.pictures)


# ---- other pixels ---------------------------------------------------------------------------------------------------


def _opened(work: Work, picture: str) -> Piece | None:
    try:
        return open_piece(work.dataset.path, picture, work.dataset.marks.get(picture, Mark()))
    except SafelightError:
        return None


def _rewritten(work: Work, picture: str, piece: Piece, taken: set[str]) -> Change:
    """The picture's file written anew as PNG, under its name if it ends so, else with its mask and crop under that ending."""
    name = str(PurePosixPath(picture).with_suffix(".png"))
    files: dict[str, Content] = {}
    marks: dict[str, Mark | None] = {}
    if name != picture:
        while name in taken:  # another picture is called so
            name = f"{name.removesuffix('.png')}-2.png"
        if caption_name(name) != caption_name(picture):
            caption = work.checkup.by_name[picture].caption
            files |= {caption_name(name): caption.encode() if caption is not None else None}
        files |= {picture: None, mask_name(picture): None}
        marks[picture] = None
    taken.add(name)
    files |= {name: picture_bytes(piece, ".png"), mask_name(name): mask_bytes(piece)}
    return Change(files, marks | {name: piece.mark})


def _repaint(change: Callable[[Work, str, Piece], Piece | None]) -> Callable[[Work], Iterator[Change | None]]:
    """A fix that makes one new picture of each."""

    def work_on(work: Work) -> Iterator[Change | None]:
        taken = {one.name for one in work.checkup.pictures}
        for picture in work.pictures:
            piece = _opened(work, picture)
            new = change(work, picture, piece) if piece is not None else None
            yield _rewritten(work, picture, new, taken) if new is not None else None

    return work_on


def _without_border(work: Work, picture: str, piece: Piece) -> Piece | None:
    measures = work.checkup.by_name[picture].measures
    if measures is None or (measures.width, measures.height) != piece.size:
        return None
    left, top, right, bottom = measures.border
    return cropped(piece, (left, top, piece.size[0] - right, piece.size[1] - bottom))


def _to_shape(work: Work, picture: str, piece: Piece) -> Piece | None:
    """Cut to the shape of the nearest size that other pictures have; nothing is scaled."""
    sizes = {one.placement.bucket for one in work.checkup.pictures if one.placement and one.name not in work.pictures}
    if not sizes:
        return None
    aspect = math.log(piece.size[0] / piece.size[1])
    bucket = min(sorted(sizes), key=lambda size: abs(math.log(size[0] / size[1]) - aspect))
    return cropped(piece, frame_box(fit(piece.size, bucket, piece.mark.focus)))


def frame_box(placement: Placement) -> tuple[int, int, int, int]:
    """The part of a picture that is trained on, in whole pixels of the picture."""
    left, top, width, height = placement.frame
    full_width, full_height = placement.original
    x, y = round(left * full_width), round(top * full_height)
    return (
        x,
        y,
        min(full_width, x + max(1, round(width * full_width))),
        min(full_height, y + max(1, round(height * full_height))),
    )


def _split(work: Work) -> Iterator[Change | None]:
    """Equal pieces along the long side, each with the caption."""
    taken = {one.name for one in work.checkup.pictures}
    for picture in work.pictures:
        piece = _opened(work, picture)
        if piece is None:
            yield None
            continue
        width, height = piece.size
        number = min(MAX_PIECES, max(2, math.ceil(max(width, height) / min(width, height) / PIECE_ASPECT)))
        change = _removal(work, picture, frozenset([picture]))
        files = dict(change.files)
        caption = work.checkup.by_name[picture].caption
        stem = str(PurePosixPath(picture).with_suffix(""))
        for index in range(number):
            begin, end = (round(max(width, height) * place / number) for place in (index, index + 1))
            part = cropped(piece, (begin, 0, end, height) if width >= height else (0, begin, width, end))
            name = f"{stem}-{index + 1}.png"
            while name in taken:
                name = f"{name.removesuffix('.png')}-2.png"
            taken.add(name)
            files |= {name: picture_bytes(part, ".png"), mask_name(name): mask_bytes(part)}
            if caption is not None:
                files[caption_name(name)] = caption.encode()
        yield Change(files, change.marks)


# ---- captions -------------------------------------------------------------------------------------------------------


def _recaption(change: Callable[[Work, str, str], str | None]) -> Callable[[Work], Iterator[Change | None]]:
    """A fix that writes a new caption for each."""

    def work_on(work: Work) -> Iterator[Change | None]:
        for picture in work.pictures:
            caption = work.checkup.by_name[picture].caption or ""
            new = change(work, picture, caption)
            yield Change(work.dataset.caption_changes({picture: new})) if new is not None and new != caption else None

    return work_on


def _from_folder(work: Work, picture: str, caption: str) -> str | None:
    """The trigger word and the words of a folder named `10_words`, as other trainers read it."""
    folder = PurePosixPath(picture).parent.name
    named = REPEAT_FOLDER.match(folder)
    words = folder.partition("_")[2].replace("_", " ").strip() if named else ""
    return with_trigger(words, work.dataset.settings.trigger_word).strip() or None


def _shorter(work: Work, picture: str, caption: str) -> str | None:
    """Without the last tags, or the last words if there are no tags, until it fits with the trigger word."""
    parts, glue = (split_tags(caption), ", ") if "," in caption else (caption.split(), " ")
    trigger = work.dataset.settings.trigger_word
    least, most = 0, len(parts)
    while least < most:  # the largest number of parts that fits
        middle = (least + most + 1) // 2
        text = with_trigger(glue.join(parts[:middle]), trigger)
        if count_tokens([text], work.base)[0] <= work.checkup.max_tokens:
            least = middle
        else:
            most = middle - 1
    return glue.join(parts[:least]) or None


def _without_contradictions(work: Work, picture: str, caption: str) -> str | None:
    measures = work.checkup.by_name[picture].measures
    colourful = measures is not None and measures.colour > GREY_COLOUR
    found = caption_faults.contradictions(caption, is_colourful=colourful)
    tags = tuple(tag for one in found for tag in one)
    return OPERATIONS["remove"].build(EditOptions(tags=tags))(caption)


def _reread(work: Work) -> Iterator[Change | None]:
    """Captions of other encodings in UTF-8; which encoding it is can only be guessed, so undo matters here."""
    for picture in work.pictures:
        with Root(work.dataset.path).open_read(caption_name(picture)) as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
        text = decoded(data) if len(data) <= MAX_CAPTION_BYTES else None
        yield Change(work.dataset.caption_changes({picture: text})) if text is not None else None


def _own_captions(work: Work) -> Iterator[Change | None]:
    """All but the first of each group get another name, with a copy of the caption."""
    taken = {caption_name(one.name) for one in work.checkup.pictures}
    for _, *others in work.finding.groups:
        for picture in (name for name in others if name in work.pictures):
            path, number = PurePosixPath(picture), 2
            while caption_name(name := str(path.with_stem(f"{path.stem}-{number}"))) in taken:
                number += 1
            taken.add(caption_name(name))
            files: dict[str, Content] = {picture: None, name: work.dataset.path / picture}
            mask = work.dataset.path / mask_name(picture)
            if mask.is_file():
                files |= {mask_name(picture): None, mask_name(name): mask}
            if (caption := work.checkup.by_name[picture].caption) is not None:
                files[caption_name(name)] = caption.encode()
            yield Change(files, {picture: None, name: work.dataset.marks.get(picture)})


FIXES: dict[str, Fix] = {
    "remove": Fix("Take them out", "taken out", _remove),
    "keep_largest": Fix("Keep the largest of each group", "taken out", _keep_largest),
    "crop_border": Fix("Cut the border off", "cut", _repaint(_without_border)),
    "crop_to_shape": Fix("Cut to the shape of others", "cut", _repaint(_to_shape), "left: there is no other size"),
    "split": Fix("Cut into pieces", "cut into pieces", _split),
    "first_frame": Fix("Keep the first picture of each", "now one picture", _repaint(lambda work, name, piece: piece)),
    "on_white": Fix("Put on white", "put on white", _repaint(lambda work, name, piece: on_colour(piece, WHITE))),
    "rewrite": Fix("Write as 8-bit PNG", "written anew", _repaint(lambda work, name, piece: piece)),
    "own_captions": Fix("Give each its own name and caption", "renamed", _own_captions),
    "folder_caption": Fix(
        "Write trigger word and folder name", "captioned", _recaption(_from_folder),
        "left: there is no trigger word, and the folder has no name like 10_cat. Tag them instead",
    ),
    "shorten": Fix("Shorten", "shortened", _recaption(_shorter)),
    "finish_sentence": Fix(
        "Cut back to the last whole sentence", "shortened",
        _recaption(lambda work, name, caption: caption_faults.finished(caption)),
    ),
    "drop_contradicting": Fix("Drop these tags", "changed", _recaption(_without_contradictions)),
    "deduplicate": Fix(
        "Keep each tag once", "changed",
        _recaption(lambda work, name, caption: OPERATIONS["deduplicate"].build(EditOptions(ignore_case=True))(caption)),
    ),
    "reencode": Fix("Read in its own encoding", "written as UTF-8", _reread, "left: the encoding can't be told"),
    "remove_caption": Fix("Take these files out", "taken out", _remove_captions),
}  # fmt: skip
"""Every fix by its name; rows of `quality.CHECKS` say for which findings they are."""
