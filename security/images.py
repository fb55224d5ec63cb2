"""Opens pictures that others made: bounded in bytes and pixels, a few named formats, fully decoded, upright."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from security.errors import RefusedFile
from security.jpeg import only_pixels
from security.policy import IMAGE_FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE
from security.sniff import SNIFF_BYTES, Kind, open_regular, sniff

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_PNG_ORIENTATION_MARKERS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG can keep an orientation. It may come after the pixels, so Pillow decodes them all to look for it."""

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 1},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
"""PNG at the fast level: a tenth larger than at the usual one, in a third of the time."""
_THUMBNAIL_OPTIONS: dict[str, Any] = {"format": "WEBP", "quality": 85, "method": 2}
_DRAWN_AS_THEY_ARE = ("L", "RGB")
"""Modes of JPEGs that every program shows alike; in CMYK they differ."""

_DECODER_FAULTS = (
    OSError, ValueError, TypeError, SyntaxError, LookupError, EOFError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's decoders raise on broken files; they document no common class."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture's header says. `width` and `height` are in pixels, after the EXIF orientation.

    `has_alpha`: there is a channel or a colour for transparency, which may be used nowhere.
    """

    width: int
    height: int
    format: str
    num_frames: int
    has_alpha: bool


@dataclass(frozen=True, slots=True)
class CleanPicture:
    """A picture's file written anew, pixels only. `suffix` is .jpg or .png; sizes in pixels.

    `num_frames`: of the file it was made from, of which the first is here. `thumbnail`: a small WebP file, empty if the
    picture itself is no larger.
    """

    data: bytes
    suffix: str
    width: int
    height: int
    has_alpha: bool
    num_frames: int
    thumbnail: bytes


def read_image_info(path: Path) -> ImageInfo:
    """What the header of a picture says, the same that `open_image` will give, in most cases without decoding the pixels.

    Raises RefusedFile for what is not a picture or too large. A file that is cut off is only found by `open_image`.
    """
    return image_info(read_picture(path), path.name)


def read_picture(path: Path) -> bytes:
    """The whole file of a picture, so that what is checked is what is decoded. Its ending says nothing: it is sniffed.

    Raises RefusedFile for what is no picture by its first bytes, or larger than policy.MAX_IMAGE_BYTES.
    """
    with open_regular(path) as file:
        content = sniff(file.read(SNIFF_BYTES))
        if content.kind is not Kind.PICTURE:
            found = f" It is {content.words}." if content.words else ""
            raise RefusedFile(f"{path.name} is not a PNG, JPEG, WebP or BMP picture.{found} Convert it or take it out.")
        file.seek(0)
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise RefusedFile(f"{path.name} is larger than {MAX_IMAGE_BYTES // 2**20} MiB. Make it smaller.")
    return data


def image_info(data: bytes, name: str) -> ImageInfo:
    """As `read_image_info`, of a file that was read already and is called `name` in messages."""
    try:
        with _open_header(data, name) as image:
            width, height = reversed(image.size) if _orientation(image, data) in _SIDEWAYS else image.size
            return ImageInfo(width, height, *_format(image), image.has_transparency_data)
    except _DECODER_FAULTS as error:
        raise _refusal(name, error) from None


def open_image(path: Path) -> Image.Image:
    """The decoded picture, upright, in the mode of the file; of an animation, the first frame.

    Raises RefusedFile that names the file: not one of policy.IMAGE_FORMATS, over the limits, cut off or broken.
    """
    data = read_picture(path)
    try:
        with _open_header(data, path.name) as image:
            return ImageOps.exif_transpose(image)  # always a copy, so this decodes
    except _DECODER_FAULTS as error:
        raise _refusal(path.name, error) from None


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The picture in mode RGB, 8 bits per channel. What is transparent shows `background`.

    16-bit greyscale is scaled to 8 bits (Pillow's own conversion clips it to white).
    """
    image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def clean_copy(source: Path, thumbnail_side: int) -> CleanPicture:
    """The file of a picture written anew, pixels only: no EXIF, place, comment, text, profile or bytes after its end.

    An upright JPEG of usual colours keeps its pixels bit for bit; all else becomes a PNG of 8 bits, without loss and with
    what is transparent. The picture is decoded once to see that it is whole. `thumbnail_side`: longest of the thumbnail,
    in pixels. Raises RefusedFile as `open_image` does.
    """
    data, name = read_picture(source), source.name
    try:
        with _open_header(data, name) as image:
            num_frames = _format(image)[1]
            kept = _kept_jpeg(image, data, name)
        if kept is None:
            return _as_png(_decoded(data, name), num_frames, thumbnail_side)
        with _open_header(kept, name) as image:
            width, height = image.size
            small = _thumbnail(image, thumbnail_side)  # of a large JPEG, a reduced one is decoded: all bytes, less work
            return CleanPicture(kept, ".jpg", width, height, False, num_frames, small)
    except _DECODER_FAULTS as error:
        raise _refusal(name, error) from None


def thumbnail_file(source: Path, side: int) -> bytes:
    """A WebP file of a picture, upright and at most `side` pixels a side; what is transparent is white.

    Empty if the picture is a still one and no larger. Raises RefusedFile as `open_image` does.
    """
    data, name = read_picture(source), source.name
    try:
        with _open_header(data, name) as image:
            moves, kept = _format(image)[1] > 1, _kept_jpeg(image, data, name)
        if kept is not None:
            with _open_header(kept, name) as image:
                return _thumbnail(image, side)
        return _thumbnail(_decoded(data, name), side, always=moves)
    except _DECODER_FAULTS as error:
        raise _refusal(name, error) from None


def encoded(image: Image.Image, suffix: str) -> bytes:
    """The file of a picture that is in memory, pixels only.

    `suffix` is .png or .webp (both without loss, transparency kept) or .jpg (quality 95, what is transparent is white).
    """
    image = _to_8_bits(image)
    keeps_alpha = image.has_transparency_data and suffix != ".jpg"
    pixels = image.convert("RGBA") if keeps_alpha else to_rgb(image)
    if pixels.mode == "RGBA" and pixels.getchannel("A").getextrema() == (255, 255):
        pixels = pixels.convert("RGB")  # nothing is transparent
    clean = Image.new(pixels.mode, pixels.size)  # a new image carries none of the old one's `info`
    clean.paste(pixels)
    buffer = io.BytesIO()
    clean.save(buffer, **_SAVE_OPTIONS[suffix])
    return buffer.getvalue()


def _as_png(image: Image.Image, num_frames: int, thumbnail_side: int) -> CleanPicture:
    data = encoded(image, ".png")
    has_alpha = data[25] == 6  # the colour type in its header: 2 is RGB, 6 is RGBA
    width, height = image.size
    return CleanPicture(data, ".png", width, height, has_alpha, num_frames, _thumbnail(image, thumbnail_side))


def _thumbnail(image: Image.Image, side: int, *, always: bool = False) -> bytes:
    """Reduces `image` itself, which is decoded by that if it was not."""
    if max(image.size) <= side and not always:
        image.load()
        return b""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, **_THUMBNAIL_OPTIONS)
    return buffer.getvalue()


def _kept_jpeg(image: Image.Image, data: bytes, name: str) -> bytes | None:
    """The same JPEG without anything but its pixels, or None if it is none, not upright or of unusual colours."""
    if _format(image)[0] != "JPEG" or image.mode not in _DRAWN_AS_THEY_ARE or _orientation(image, data) in range(2, 9):
        return None
    kept = only_pixels(data, name)
    if kept is None:
        return None
    with _open_header(kept, name) as clean:
        return kept if (clean.size, clean.mode) == (image.size, image.mode) else None


def _decoded(data: bytes, name: str) -> Image.Image:
    with _open_header(data, name) as image:
        return ImageOps.exif_transpose(image)


def _format(image: Image.Image) -> tuple[str, int]:
    """Format and number of frames. The further pictures in a phone's JPEG are no animation: depth, a small copy."""
    if image.format == "MPO":
        return "JPEG", 1
    return image.format or "", getattr(image, "n_frames", 1)


def _orientation(image: Image.Image, data: bytes) -> int:
    """How the camera was held (EXIF tag 274); 1 is upright."""
    upright = image.format == "PNG" and not any(marker in data for marker in _PNG_ORIENTATION_MARKERS)
    return 1 if upright else image.getexif().get(_ORIENTATION_TAG, 1)


def _open_header(data: bytes, name: str) -> Image.Image:
    """The picture before decoding, its size checked."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise RefusedFile(
            f"{name} has {width} x {height} pixels, over the limit of {MAX_IMAGE_PIXELS // 10**6} million. "
            "Make it smaller."
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise RefusedFile(f"{name} has {width} x {height} pixels; no side may have over {MAX_IMAGE_SIDE}. Crop it.")
    return image


def _refusal(name: str, error: BaseException) -> RefusedFile:
    """The message for a file that Pillow could not open or decode. Refusals of our own pass unchanged."""
    if isinstance(error, RefusedFile):
        return error
    if isinstance(error, UnidentifiedImageError):
        return RefusedFile(f"{name} is not a PNG, JPEG, WebP or BMP picture. Convert it or take it out.")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RefusedFile(f"{name} has over {MAX_IMAGE_PIXELS // 10**6} million pixels. Make it smaller.")
    return RefusedFile(f"{name} is broken or cut off ({error}). Save it anew or take it out.")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit greyscale (modes I and I;16...) to mode L: 65535 becomes 255, 32896 becomes 128."""
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")  # 32-bit, on which Pillow's point() can compute
    wide.info.pop("transparency", None)  # a 16-bit colour key has no meaning among 8-bit values
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
