"""A picture in work with what belongs to it: its mask and the crop chosen for it follow every cut, turn and change of size."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from security.errors import SafelightError
from security.images import encoded, open_image, to_rgb
from trainer.dataset.settings import MAX_ZOOM, Mark, mask_path

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
Size = tuple[int, int]
UNCHOSEN = Mark()
Scaler = Callable[[Image.Image, Size], Image.Image]
"""Makes a picture larger."""


@dataclass(frozen=True)
class Piece:
    """`image` upright; `mask` of the same size in mode L, white is learned; `mark`: the crop chosen by hand."""

    image: Image.Image
    mask: Image.Image | None = None
    mark: Mark = UNCHOSEN

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.image.size


def open_piece(folder: Path, picture: str, mark: Mark) -> Piece:
    """A picture of a dataset with its mask. Raises RefusedFile for a broken one, SafelightError for a mask that doesn't fit."""
    image = open_image(folder / picture)
    path = mask_path(folder, picture)
    if not path.is_file():
        return Piece(image, None, mark)
    mask = open_image(path).convert("L")
    if mask.size != image.size:
        raise SafelightError(
            f"The mask of {picture} is {mask.size}, the picture {image.size}. Paint it anew or remove it."
        )
    return Piece(image, mask, mark)


def cropped(piece: Piece, box: Box) -> Piece:
    """The part inside `box`. A chosen crop keeps its middle, as far as it is still there."""
    width, height = piece.size
    new_width, new_height = box[2] - box[0], box[3] - box[1]
    focus = (
        _share((piece.mark.focus[0] * width - box[0]) / new_width),
        _share((piece.mark.focus[1] * height - box[1]) / new_height),
    )
    zoom = min(MAX_ZOOM, max(1.0, piece.mark.zoom * max(new_width / width, new_height / height)))
    mark = UNCHOSEN if piece.mark == UNCHOSEN else Mark(focus, zoom)
    return Piece(piece.image.crop(box), piece.mask.crop(box) if piece.mask else None, mark)


def resized(piece: Piece, size: Size, enlarge: Scaler | None = None) -> Piece:
    """The same at another size in pixels; `enlarge` does it where the picture has to grow."""
    if size == piece.size:
        return piece
    grows = size[0] > piece.size[0] or size[1] > piece.size[1]
    image = enlarge(piece.image, size) if grows and enlarge is not None else _scaled(piece.image, size)
    mask = piece.mask.resize(size, Image.Resampling.BILINEAR) if piece.mask else None
    return replace(piece, image=image, mask=mask)


def mirrored(piece: Piece) -> Piece:
    """Left and right changed."""
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    mark = replace(piece.mark, focus=(1 - piece.mark.focus[0], piece.mark.focus[1]))
    return Piece(piece.image.transpose(flip), piece.mask.transpose(flip) if piece.mask else None, mark)


def on_colour(piece: Piece, colour: tuple[int, int, int]) -> Piece:
    """What is transparent shows `colour`; the picture is RGB then."""
    return replace(piece, image=to_rgb(piece.image, colour))


def picture_bytes(piece: Piece, suffix: str) -> bytes:
    """The picture's file, .png, .webp (both without loss) or .jpg."""
    return encoded(piece.image, suffix)


def mask_bytes(piece: Piece) -> bytes | None:
    """The mask's file, if there is a mask."""
    return None if piece.mask is None else _grey_png(piece.mask)


def _grey_png(mask: Image.Image) -> bytes:
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def _scaled(image: Image.Image, size: Size) -> Image.Image:
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA") if image.has_transparency_data else to_rgb(image)
    # Pillow weighs colours by their opaqueness, so what can't be seen doesn't shine through at the edges
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
