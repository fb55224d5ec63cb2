"""Masks of pictures: grey PNG files, white where training looks. Painted, from transparency, or made by a network."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from security.errors import SafelightError
from security.images import open_image, read_image_info
from security.roots import Root
from trainer.dataset.settings import mask_path
from trainer.dataset.studio import Dataset, Studio, mask_name
from trainer.tagging.base import Device, TaggingOptions
from trainer.tagging.run import Control, Crew
from trainer.tagging.shelf import is_here, tagger_files
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from trainer.dataset.history import Edit
    from trainer.tagging.base import TaggerRow

MAX_PAINTED_BYTES = 8 * 1024 * 1024
"""Largest PNG file that the page may send for one mask: twenty times what strokes at 2,048 pixels a side come to."""
NETWORK_BATCH = 2
PER_WRITE, MAX_WAIT_SECONDS = 8, 1.0
"""Masks that are written together, so that the history is locked only now and then; and how long one may wait."""

Made = tuple[str, Image.Image | None]
"""A picture and its new mask; None to leave it as it is (the reason is with the control already)."""


class MaskMode(StrEnum):
    """What happens to pictures that have a mask already."""

    KEEP = "keep"
    REPLACE = "replace"


def mask_file(mask: Image.Image) -> bytes:
    """The file of a mask: 8-bit grey PNG without anything else in it."""
    buffer = io.BytesIO()
    grey = mask.convert("L")
    clean = Image.new("L", grey.size)
    clean.paste(grey)
    clean.save(buffer, format="PNG")
    return buffer.getvalue()


def read_mask(dataset: Dataset, picture: str) -> Image.Image | None:
    """The mask of a picture in mode L; None if it has none. Raises RefusedFile for one that can't be read."""
    path = mask_path(dataset.path, picture)
    return open_image(path).convert("L") if path.is_file() else None


def alpha_mask(path: Path) -> Image.Image | None:
    """What is not transparent in a picture; None if nothing is. Raises RefusedFile for what is no picture."""
    image = open_image(path)
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def save_painted(studio: Studio, dataset: Dataset, picture: str, painted: bytes | None) -> Edit:
    """Keeps a mask that was painted in the page, a PNG at any size; None, or white all over, removes the mask.

    Raises SafelightError for a picture that is not there, and for bytes that are no picture.
    """
    path = dataset.path_of(picture)
    mask: bytes | None = None
    if painted is not None:
        if len(painted) > MAX_PAINTED_BYTES:
            raise SafelightError(
                f"The mask of {picture} has {len(painted):,} bytes; {MAX_PAINTED_BYTES:,} are the most."
            )
        with studio.staging() as staging:
            Root(staging).write_known("mask.png", painted, durable=False)
            image = open_image(staging / "mask.png").convert("L")
        info = read_image_info(path)
        image = image.resize((info.width, info.height), Image.Resampling.BILINEAR)
        mask = None if image.getextrema() == (255, 255) else mask_file(image)
    return dataset.set_masks(f"Mask of {picture}" if mask else f"No mask of {picture}", {picture: mask})


def masks_from_alpha(dataset: Dataset, names: Sequence[str], mode: MaskMode, control: Control) -> str:
    """The task: what is transparent is not learned. One step to undo. Returns the report."""

    def make(name: str) -> Image.Image:
        mask = alpha_mask(dataset.path_of(name))
        if mask is None:
            raise SafelightError("nothing in it is transparent")
        return mask

    return _make_masks(dataset, names, mode, control, _each(make, control), "Masks from transparency")


def invert_masks(dataset: Dataset, names: Sequence[str], control: Control) -> str:
    """The task: learn what was left out, and the other way round, in pictures that have a mask. One step to undo."""

    def make(name: str) -> Image.Image:
        mask = read_mask(dataset, name)
        if mask is None:
            raise SafelightError("its mask was removed meanwhile")
        return ImageOps.invert(mask)

    masked = [name for name in names if mask_path(dataset.path, name).is_file()]
    return _make_masks(dataset, masked, MaskMode.REPLACE, control, _each(make, control), "Invert masks")


def masks_by_network(
    workspace: Workspace, dataset: Dataset, names: Sequence[str], row: TaggerRow, mode: MaskMode, control: Control
) -> str:
    """The task: the subject that a network finds is learned, the background is not. One step to undo.

    Raises SafelightError for a network that is not here or was changed, and for a read-only dataset.
    """
    if not is_here(workspace, row):
        raise SafelightError(f"{row.title} is not in the workspace yet. Fetch it in the Masks panel, or with --fetch.")
    files = tagger_files(workspace, row)

    def make(wanted: Sequence[str]) -> Iterator[Made]:
        options = TaggingOptions(models=(row.name,), batch_size=NETWORK_BATCH, device=Device.AUTO)
        control.progress(0, len(wanted), f"Loading {row.title}")
        with Crew([(row, files)], options) as crew:
            for looks in crew.looks([(name, dataset.path / name) for name in wanted], control.cancelled):
                for look in looks:
                    if look.fault:
                        control.skip(look.name, look.fault)
                    yield look.name, None if look.fault else look.descriptions[0].mask()  # type: ignore[union-attr]

    return _make_masks(dataset, names, mode, control, make, f"Masks by {row.title}")


def _each(make: Callable[[str], Image.Image], control: Control) -> Callable[[Sequence[str]], Iterator[Made]]:
    """The same for one picture after the other; those that can't be done are told."""

    def made(wanted: Sequence[str]) -> Iterator[Made]:
        for name in wanted:
            if control.cancelled():
                return
            try:
                yield name, make(name)
            except (SafelightError, OSError) as error:
                control.skip(name, str(error))
                yield name, None

    return made


def _make_masks(
    dataset: Dataset,
    names: Sequence[str],
    mode: MaskMode,
    control: Control,
    make: Callable[[Sequence[str]], Iterator[Made]],
    label: str,
) -> str:
    dataset.refuse_builtin()
    there = set(dataset.pictures())
    wanted = [name for name in dict.fromkeys(names) if name in there]
    if mode is MaskMode.KEEP:
        wanted = [name for name in wanted if not mask_path(dataset.path, name).is_file()]
    num_kept = len(there & set(names)) - len(wanted)
    num_written = num_done = 0
    with dataset.history.long(label) as edit:
        for part in _parts(make(wanted)):
            changes = {mask_name(name): mask_file(mask) for name, mask in part if mask is not None}
            gone = [name for name, _ in part if not (dataset.path / name).is_file()]
            for name in gone:
                changes.pop(mask_name(name), None)
                control.skip(name, "there is no such picture (any more)")
            edit.add(changes)
            num_written, num_done = num_written + len(changes), num_done + len(part)
            control.progress(num_done, len(wanted), label)
    report = f"{num_written:,} mask{'' if num_written == 1 else 's'} written."
    if num_kept:
        report += f" {num_kept:,} picture{' has' if num_kept == 1 else 's have'} one already and kept it."
    if control.cancelled() and num_done < len(wanted):
        return f"Cancelled after {num_done:,} of {len(wanted):,} pictures. {report} What was written stays."
    return report


def _parts(made: Iterable[Made]) -> Iterator[list[Made]]:
    """What was made, some at a time: few if they take long, so that progress is seen and a kill loses little."""
    part: list[Made] = []
    began = time.monotonic()
    for one in made:
        part.append(one)
        if len(part) == PER_WRITE or time.monotonic() - began > MAX_WAIT_SECONDS:
            yield part
            part, began = [], time.monotonic()
    if part:
        yield part
