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
from security.policy import IMAGE_FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE
from security.sniff import SNIFF_BYTES, Kind, open_regular, sniff

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_PNG_ORIENTATION_MARKERS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG can keep an orientation. It may come after the pixels, so Pillow decodes them all to look for it."""

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}

_DECODER_FAULTS = (
    OSError, ValueError, TypeError, SyntaxError, LookupError, EOFError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's decoders raise on broken files; they document no common class."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture's header says. `width` and `height` are in pixels, after the EXIF orientation."""

    width: int
    height: int
    format: str
    num_frames: int


def read_image_info(path: Path) -> ImageInfo:
    """Size and format of a picture, the same that `open_image` will give, in most cases without decoding the pixels.

    Raises RefusedFile for what is not a picture or too large. A file that is cut off is only found by `open_image`.
    """
    data = _read_bounded(path)
    try:
        with _open_header(data, path) as image:
            upright = image.format == "PNG" and not any(marker in data for marker in _PNG_ORIENTATION_MARKERS)
            orientation = 1 if upright else image.getexif().get(_ORIENTATION_TAG, 1)
            width, height = reversed(image.size) if orientation in _SIDEWAYS else image.size
            return ImageInfo(width, height, image.format or "", getattr(image, "n_frames", 1))
    except _DECODER_FAULTS as error:
        raise _refusal(path, error) from None


def open_image(path: Path) -> Image.Image:
    """The decoded picture, upright, in the mode of the file; of an animation, the first frame.

    Raises RefusedFile that names the file: not one of policy.IMAGE_FORMATS, over the limits, cut off or broken.
    """
    data = _read_bounded(path)
    try:
        with _open_header(data, path) as image:
            return ImageOps.exif_transpose(image)  # always a copy, so this decodes
    except _DECODER_FAULTS as error:
        raise _refusal(path, error) from None


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


def clean_copy(source: Path, suffix: str) -> bytes:
    """The file of a picture written anew, pixels only: no EXIF, place, comment, text, profile or bytes after its end.

    `suffix` is .png or .webp (both lossless, transparency kept) or .jpg (quality 95, transparency on white). Raises
    RefusedFile as `open_image` does.
    """
    image = _to_8_bits(open_image(source))
    keeps_alpha = image.has_transparency_data and suffix != ".jpg"
    pixels = image.convert("RGBA") if keeps_alpha else to_rgb(image)
    clean = Image.new(pixels.mode, pixels.size)  # a new image carries none of the old one's `info`
    clean.paste(pixels)
    buffer = io.BytesIO()
    clean.save(buffer, **_SAVE_OPTIONS[suffix])
    return buffer.getvalue()


def _read_bounded(path: Path) -> bytes:
    """The whole file, so that what is checked is what is decoded. Its ending says nothing: the content is sniffed."""
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


def _open_header(data: bytes, path: Path) -> Image.Image:
    """The picture before decoding, its size checked."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise RefusedFile(
            f"{path.name} has {width} x {height} pixels, over the limit of {MAX_IMAGE_PIXELS // 10**6} million. "
            "Make it smaller."
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise RefusedFile(
            f"{path.name} has {width} x {height} pixels; no side may have over {MAX_IMAGE_SIDE}. Crop it."
        )
    return image


def _refusal(path: Path, error: BaseException) -> RefusedFile:
    """The message for a file that Pillow could not open or decode. Refusals of our own pass unchanged."""
    if isinstance(error, RefusedFile):
        return error
    if isinstance(error, UnidentifiedImageError):
        return RefusedFile(f"{path.name} is not a PNG, JPEG, WebP or BMP picture. Convert it or take it out.")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RefusedFile(f"{path.name} has over {MAX_IMAGE_PIXELS // 10**6} million pixels. Make it smaller.")
    return RefusedFile(f"{path.name} is broken or cut off ({error}). Save it anew or take it out.")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit greyscale (modes I and I;16...) to mode L: 65535 becomes 255, 32896 becomes 128."""
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")  # 32-bit, on which Pillow's point() can compute
    wide.info.pop("transparency", None)  # a 16-bit colour key has no meaning among 8-bit values
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
