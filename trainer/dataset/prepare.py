"""Makes a new dataset out of another: cropped, resized, mirrored, converted. The original stays as it is.

Captions, masks, crops chosen by hand and settings come along; a mask is cut and turned with its picture.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, ValidationError

from security.errors import RefusedConfig, SafelightError
from security.roots import Root, refuse_full_disk
from trainer.config.files import Setting, section_settings
from trainer.config.schema import Section, TrainConfig, ValidationConfig
from trainer.dataset.buckets import Placement
from trainer.dataset.fixes import frame_box
from trainer.dataset.pieces import (
    UNCHOSEN,
    Piece,
    Scaler,
    cropped,
    mask_bytes,
    mirrored,
    on_colour,
    open_piece,
    picture_bytes,
    resized,
)
from trainer.dataset.plan import USUAL_STEP, model_step, plan_dataset
from trainer.dataset.settings import (
    MARKS_FILE,
    OWN_FOLDER,
    SETTINGS_FILE,
    Mark,
    marks_bytes,
    settings_bytes,
)
from trainer.dataset.studio import Dataset, Studio, caption_name, mask_name
from trainer.dataset.upscaling import open_upscaler
from trainer.tasks import TaskControl

MAX_SIDE = 16384
MIRRORED = "-mirrored"


class Crop(StrEnum):
    """What is cut off."""

    NONE = "none"
    SQUARE = "square"
    TRAINING = "training"


class Mirror(StrEnum):
    """Which pictures are mirrored."""

    NO = "no"
    ADD = "add"
    ALL = "all"


class Format(StrEnum):
    """What the pictures are written as."""

    KEEP = "keep"
    PNG = "png"
    JPEG = "jpg"
    WEBP = "webp"


class PrepareOptions(Section):
    """What is done to every picture, in this order; the page's form and the flags of `dataset prepare` are made from it."""

    crop: Crop = Crop.NONE
    """Keep whole pictures (none), cut squares (square), or cut and scale to exactly what training would see (training)."""
    longest_side: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Shrink pictures whose longer side has more pixels than this; 0 leaves large ones."""
    shortest_side: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Enlarge pictures whose shorter side has fewer pixels than this; 0 leaves small ones."""
    upscaler: Annotated[str, Field(max_length=200)] = ""
    """A network that enlarges, of the workspace's folder upscalers; empty enlarges by Lanczos, which adds no detail."""
    mirror: Mirror = Mirror.NO
    """Leave as they are (no), add a mirrored copy of each (add), or mirror all of them (all)."""
    background: Annotated[str, Field(pattern=r"^(#[0-9A-Fa-f]{6})?$")] = ""
    """Put transparent pictures on this colour, such as #ffffff for white; empty keeps what is transparent."""
    format: Format = Format.KEEP
    """PNG or WebP (both without loss), JPEG (smaller, quality 95), or as the file is if nothing else changes it (keep)."""


OPTIONS: dict[str, Setting] = {setting.name: setting for setting in section_settings(PrepareOptions)}


def prepare_options(values: Mapping[str, Any]) -> PrepareOptions:
    """Checked options. Raises RefusedConfig that names every fault."""
    try:
        options = PrepareOptions.model_validate(dict(values))
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors()]
        raise RefusedConfig(" ".join(faults)) from None
    if 0 < options.longest_side < options.shortest_side:
        raise RefusedConfig(
            f"shortest_side is {options.shortest_side} but longest_side is {options.longest_side}: no picture can have both. "
            "Set one of them to 0, or the longest side to more than the shortest."
        )
    return options


def _fault(detail: Mapping[str, Any]) -> str:
    is_colour = detail["type"] == "string_pattern_mismatch"
    reason = "a colour is # and six digits, such as #ffffff for white" if is_colour else detail["msg"]
    return f"{detail['loc'][0]} is {str(detail.get('input'))[:80]!r}: {reason}."


def prepare_dataset(
    studio: Studio,
    dataset: Dataset,
    new: str,
    options: PrepareOptions,
    config: TrainConfig,
    *,
    names: Sequence[str] | None = None,
    control: TaskControl | None = None,
) -> str:
    """Makes the dataset `new` of the pictures of another, or of those in `names`. Returns what was done, in a sentence.

    Pictures that can't be read are skipped and told. Cancelled or failed, nothing is left of it. Raises SafelightError
    for a name that is taken, options that do nothing, and an upscaler that is not there.
    """
    control = control or TaskControl()
    if options == PrepareOptions():
        raise SafelightError("Nothing is chosen to be done. Choose a crop, a size, a format, a colour or mirroring.")
    chosen = None if names is None else set(names)
    wanted = [name for name in dataset.pictures() if chosen is None or name in chosen]
    if not wanted:
        raise SafelightError(f"{dataset.name} has no pictures to prepare.")
    placements, told = _placements(studio, dataset, config) if options.crop is Crop.TRAINING else ({}, "")
    _new_folder(studio, new)
    with ExitStack() as stack:
        staging = stack.enter_context(studio.staging())
        refuse_full_disk(staging, [dataset.path / name for name in wanted])
        enlarge = (
            stack.enter_context(closing(open_upscaler(studio.workspace, options.upscaler)))
            if options.upscaler
            else None
        )
        work = _Work(dataset, staging, options, placements, enlarge)
        done = work.run(wanted, control)
        control.raise_if_cancelled()
        if not done:
            raise SafelightError(f"None of the {len(wanted):,} pictures could be prepared, so {new} was not made.")
        shutil.move(staging, _new_folder(studio, new))
    skipped = f" {len(wanted) - done:,} left out." if done < len(wanted) else ""
    written = f"{work.written:,} {'picture' if work.written == 1 else 'pictures'}"
    return f"{new} is made: {written} from {dataset.name}.{skipped}{told}"


def _new_folder(studio: Studio, name: str) -> Path:
    """Where a new dataset goes. Raises RefusedName for a bad name, SafelightError for one that is taken."""
    if studio.free_name(name) != name:
        raise SafelightError(f"There is a dataset named {name!r} already. Choose another name.")
    return Root(studio.workspace.datasets_dir).child(name)


def _placements(studio: Studio, dataset: Dataset, config: TrainConfig) -> tuple[Mapping[str, Placement], str]:
    """Where training would cut each picture, and what there is to say if its model is not known."""
    alone = config.dataset.model_copy(update={"folder": dataset.name, "more": (), "regularisation": ()})
    config = config.model_copy(update={"dataset": alone, "validation": ValidationConfig()})  # none held out
    told = ""
    try:
        step = model_step(studio.workspace, config.model.base)
    except SafelightError as error:  # the base may be chosen later; until then sizes are those of the usual models
        step, told = USUAL_STEP, f" {error} The crops are those of a usual model."
    plan = plan_dataset(studio.workspace, config, step)
    return {name: one.placement for name, one in plan.of_source().items()}, told


@dataclass
class _Work:
    """The making of one dataset in the folder `target`."""

    source: Dataset
    target: Path
    options: PrepareOptions
    placements: Mapping[str, Placement]
    enlarge: Scaler | None
    written: int = 0

    def run(self, names: Sequence[str], control: TaskControl) -> int:
        """Returns how many pictures of the source went in."""
        root, marks = Root(self.target), self.source.marks
        captions, faults = self.source.read_captions(names)
        taken: set[str] = set()
        new_marks: dict[str, Mark] = {}
        done = 0
        for number, name in enumerate(names):
            control.raise_if_cancelled()
            control.progress(number, len(names), "preparing pictures")
            try:
                results = self._results(name, marks.get(name, UNCHOSEN))
            except SafelightError as error:
                control.skip(name, str(error))
                continue
            if name in faults:
                control.skip(name, f"came along without its caption: {faults[name]}")
            done += 1
            for ending, data, piece in results:
                saved = _free(name, ending, data[1], taken)
                self._write(root, saved, data[0], piece, captions.get(name))
                if piece.mark != UNCHOSEN:
                    new_marks[saved] = piece.mark
        settings = replace(self.source.settings, made_from=self.source.name)
        _put(root, f"{OWN_FOLDER}/{SETTINGS_FILE}", settings_bytes(settings))
        if (own_marks := marks_bytes(new_marks)) is not None:
            _put(root, f"{OWN_FOLDER}/{MARKS_FILE}", own_marks)
        return done

    def _results(self, name: str, mark: Mark) -> list[tuple[str, tuple[bytes, str], Piece]]:
        """For each picture that becomes of one: what its name ends with, its file and its ending, and what belongs to it."""
        piece = open_piece(self.source.path, name, mark)
        new = self._changed(name, piece)
        file = self._file(name, piece, new)
        if self.options.mirror is Mirror.NO:
            return [("", file, new)]
        other = mirrored(new)
        turned = (MIRRORED if self.options.mirror is Mirror.ADD else "", self._file(name, piece, other), other)
        return [turned] if self.options.mirror is Mirror.ALL else [("", file, new), turned]

    def _changed(self, name: str, piece: Piece) -> Piece:
        options = self.options
        if options.background and piece.image.has_transparency_data:
            red, green, blue = bytes.fromhex(options.background[1:])
            piece = on_colour(piece, (red, green, blue))
        if options.crop is Crop.SQUARE:
            piece = replace(cropped(piece, square_box(piece)), mark=UNCHOSEN)
        elif options.crop is Crop.TRAINING:
            if name not in self.placements:
                raise SafelightError("training would leave it out")
            place = self.placements[name]
            if place.enlargement > 1 and self.enlarge is not None:
                piece = resized(cropped(piece, frame_box(place)), place.bucket, self.enlarge)
            else:  # as training does it: scaled first, then cut, so that not a pixel differs
                piece = resized(piece, place.resized)
                box = (place.left, place.top, place.left + place.bucket[0], place.top + place.bucket[1])
                piece = cropped(piece, box)
            piece = replace(piece, mark=UNCHOSEN)
        return self._scaled(piece)

    def _scaled(self, piece: Piece) -> Piece:
        least, most = min(piece.size), max(piece.size)
        if self.options.shortest_side > least:
            piece = resized(piece, _by(piece, self.options.shortest_side / least), self.enlarge)
            most = max(piece.size)
        if 0 < self.options.longest_side < most:
            piece = resized(piece, _by(piece, self.options.longest_side / most))
        return piece

    def _file(self, name: str, old: Piece, new: Piece) -> tuple[bytes, str]:
        """The file's bytes and its ending; a file that nothing is done to stays bit for bit."""
        suffix = PurePosixPath(name).suffix.lower()
        if self.options.format is Format.KEEP:
            if new.image is old.image:
                with Root(self.source.path).open_read(name) as file:
                    return file.read(), suffix
            wanted = suffix if suffix in (".png", ".webp") else ".jpg" if suffix in (".jpg", ".jpeg") else ".png"
            # a JPEG has no transparency, and one that changed is written once more, with a little loss
            return picture_bytes(new, wanted), wanted
        wanted = f".{self.options.format.value}"
        return picture_bytes(new, wanted), wanted

    def _write(self, root: Root, name: str, data: bytes, piece: Piece, caption: str | None) -> None:
        _put(root, name, data)
        if caption is not None:
            _put(root, caption_name(name), caption.encode("utf-8", "replace"))
        if (mask := mask_bytes(piece)) is not None:
            _put(root, mask_name(name), mask)
        self.written += 1


def _put(root: Root, name: str, data: bytes) -> None:
    """Writes into the folder that nobody else knows of yet; a name that other systems don't allow may come along."""
    root.write_known(name, data, durable=False)


def _free(name: str, ending: str, suffix: str, taken: set[str]) -> str:
    """A new name whose caption no other picture has."""
    stem = str(PurePosixPath(name).with_suffix("")) + ending
    number, candidate = 1, f"{stem}{suffix}"
    while caption_name(candidate).casefold() in taken:
        number += 1
        candidate = f"{stem}-{number}{suffix}"
    taken.add(caption_name(candidate).casefold())
    return candidate


def square_box(piece: Piece) -> tuple[int, int, int, int]:
    """The largest square around the middle of the chosen crop, or as near to it as the picture allows; smaller if it zooms."""
    width, height = piece.size
    side = max(1, round(min(width, height) / piece.mark.zoom))
    left, top = (
        min(max(0, round(share * whole - side / 2)), whole - side)
        for share, whole in zip(piece.mark.focus, (width, height), strict=True)
    )
    return left, top, left + side, top + side


def _by(piece: Piece, factor: float) -> tuple[int, int]:
    return max(1, round(piece.size[0] * factor)), max(1, round(piece.size[1] * factor))
