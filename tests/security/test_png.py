"""PNG files without anything but their pixels."""

from __future__ import annotations

import io
import zlib

import pytest
from PIL import Image, PngImagePlugin

from security.png import only_pixels


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def picture(mode: str = "RGB", **options: object) -> bytes:
    image = Image.effect_noise((40, 30), 80).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """The file with one more chunk, after its header."""
    return data[:33] + chunk(kind, body) + data[33:]


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.size, image.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_pixels_stay_and_all_else_goes(mode: str) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "where I live")
    texts.add_itxt("Author", "me")
    data = picture(mode, pnginfo=texts, dpi=(72, 72), icc_profile=b"a profile") + b"and more"
    assert b"where I live" in data
    kept = only_pixels(data)
    assert kept is not None and pixels(kept) == pixels(data)
    assert only_pixels(kept) == kept
    for word in (b"where I live", b"Author", b"pHYs", b"iCCP", b"and more"):
        assert word in data and word not in kept


def test_a_colour_that_is_transparent_stays() -> None:
    data = picture("P", transparency=0)
    kept = only_pixels(data)
    assert kept is not None
    with Image.open(io.BytesIO(kept)) as image:
        assert image.info == {"transparency": 0}


def test_what_lies_on_its_side_or_moves_has_to_be_decoded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert only_pixels(picture(exif=exif)) is None
    assert only_pixels(with_chunk(picture(), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")) is None
    assert only_pixels(with_chunk(picture(), b"acTL", b"\0" * 8)) is None


WHOLE = picture()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", WHOLE[:-1], WHOLE[:500], WHOLE.replace(b"IDAT", b"IDAU", 1),
        with_chunk(WHOLE, b"ABCD", b"unknown but needed"), WHOLE[:8] + WHOLE[33:],
        WHOLE[:60] + bytes([WHOLE[60] ^ 1]) + WHOLE[61:], WHOLE[:8] + b"\xff\xff\xff\xff" + WHOLE[12:],
    ],
)  # fmt: skip
def test_what_is_broken_is_left_to_the_decoder(data: bytes) -> None:
    assert only_pixels(data) is None
