"""JPEGs that come in: their pixels bit for bit, and nothing else of the file."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security import jpeg
from security.errors import RefusedFile
from security.images import CleanPicture, clean_copy, open_image, read_image_info, thumbnail_file
from security.jpeg import only_pixels

CANARY = b"CANARY-48.8583-N"
SIDE = 64


def photo(mode: str = "RGB", size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Noise on a gradient, so that every coefficient of a JPEG is used."""
    chance = random.Random(5)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    noise = Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3))
    return Image.blend(image, noise, 0.3).convert(mode)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def jpeg_of(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    image = Image.open(io.BytesIO(data))
    return image.mode, image.size, image.tobytes()


def brought(tmp_path: Path, data: bytes) -> CleanPicture:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    return clean_copy(path, SIDE)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {"quality": 90}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "no subsampling": ("RGB", {"subsampling": 0}),
    "restart markers": ("RGB", {"restart_marker_blocks": 2}),
    "numbers are RGB": ("RGB", {"keep_rgb": True}),
    "own tables": ("RGB", {"optimize": True, "quality": 30}),
}


def dressed(data: bytes) -> bytes:
    """The same picture with everything that cameras, programs and ill-willed people put beside it."""
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    before = [
        segment(0xE1, b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + CANARY),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + CANARY),
        segment(0xE0, b"JFXX\0\x10" + CANARY),
        segment(0xED, b"Photoshop 3.0\0" + CANARY),
        segment(0xFE, CANARY),
    ]
    scan = data.index(b"\xff\xda")
    return data[:2] + b"".join(before) + data[2:scan] + segment(0xFE, CANARY) + data[scan:] + CANARY + data


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_stay_bit_for_bit_and_nothing_else_does(tmp_path: Path, kind: str) -> None:
    mode, options = KINDS[kind]
    plain = jpeg_of(photo(mode), **options)
    clean = brought(tmp_path, dressed(plain))
    assert clean.suffix == ".jpg"
    assert pixels_of(clean.data) == pixels_of(plain)
    assert (clean.width, clean.height, clean.has_alpha, clean.num_frames) == (96, 72, False, 1)
    assert CANARY not in clean.data and b"Exif" not in clean.data
    assert len(clean.data) <= len(plain) + 40, "also the second picture behind the end is gone"
    assert only_pixels(clean.data, "a") == clean.data
    small = Image.open(io.BytesIO(clean.thumbnail))
    assert small.format == "WEBP" and small.size == (SIDE, 48)


def test_the_thumbnail_of_a_jfif_picture_does_not_come_along(tmp_path: Path) -> None:
    plain = jpeg_of(photo())
    body = plain[6:20]
    assert body.startswith(b"JFIF\0")
    told = body[:-2] + b"\2\3" + CANARY + b"\0\0"
    clean = brought(tmp_path, plain[:2] + segment(0xE0, told) + plain[20:])
    assert CANARY not in clean.data and pixels_of(clean.data) == pixels_of(plain)


def test_what_the_numbers_stand_for_is_kept(tmp_path: Path) -> None:
    """Channels called R, G and B are taken for just that, unless the file says that it is JFIF, which is YCbCr."""
    plain = bytearray(jpeg_of(photo()))
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    for number, letter in enumerate(b"RGB"):
        plain[frame + 10 + 3 * number] = letter
        plain[scan + 5 + 2 * number] = letter
    assert pixels_of(bytes(plain)) == pixels_of(jpeg_of(photo()))
    without = bytes(plain[:2] + plain[20:])
    assert pixels_of(without) != pixels_of(bytes(plain))
    for data in (bytes(plain), without):
        clean = brought(tmp_path, data)
        assert clean.suffix == ".jpg" and pixels_of(clean.data) == pixels_of(data)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_on_its_side_becomes_an_upright_png(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of(photo(), exif=exif))
    upright = open_image(path)
    clean = clean_copy(path, SIDE)
    assert clean.suffix == ".png"
    assert pixels_of(clean.data) == ("RGB", upright.size, upright.tobytes())
    assert (clean.width, clean.height) == upright.size
    small = Image.open(io.BytesIO(clean.thumbnail))
    assert (small.width > small.height) == (upright.width > upright.height)
    assert thumbnail_file(path, SIDE) == clean.thumbnail


def test_colours_for_printing_become_a_png(tmp_path: Path) -> None:
    red = Image.new("RGB", (96, 72), "red").convert("CMYK")
    clean = brought(tmp_path, jpeg_of(red, quality=95))
    assert clean.suffix == ".png"
    shown = Image.open(io.BytesIO(clean.data))
    assert shown.mode == "RGB" and shown.getpixel((8, 8))[0] > 245  # type: ignore[index]


def test_what_is_put_together_oddly_is_written_as_another_file(tmp_path: Path) -> None:
    plain = jpeg_of(photo())
    scan = plain.index(b"\xff\xda")
    odd = {
        "bytes between segments": plain[:scan] + CANARY + plain[scan:],
        "no end": plain.removesuffix(b"\xff\xd9"),
        "a number of lines": plain[:scan] + segment(0xDC, b"\0\x48") + plain[scan:],
    }
    for data in odd.values():
        assert only_pixels(data, "a") is None
    clean = brought(tmp_path, odd["bytes between segments"])
    assert clean.suffix == ".png" and clean.data[:4] == b"\x89PNG"
    assert pixels_of(clean.data) == pixels_of(plain)
    assert CANARY not in clean.data
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", plain[:scan], plain[: scan + 1], b"\xff\xd8\xff\xd9"):
        assert only_pixels(data, "a") is None


def test_a_picture_that_is_cut_off_is_refused_also_when_only_a_small_one_is_decoded(tmp_path: Path) -> None:
    for options in ({}, {"progressive": True}):
        data = jpeg_of(photo(size=(900, 700)), **options)
        for share in (0.98, 0.6, 0.2):
            with pytest.raises(RefusedFile, match=r"a\.jpg is broken or cut off"):
                brought(tmp_path, data[: int(len(data) * share)])


def test_a_picture_in_endless_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_of(photo(), progressive=True)
    num_scans = data.count(b"\xff\xda")
    assert num_scans > 5
    monkeypatch.setattr(jpeg, "MAX_JPEG_SCANS", num_scans)
    assert brought(tmp_path, data).suffix == ".jpg"
    monkeypatch.setattr(jpeg, "MAX_JPEG_SCANS", num_scans - 1)
    with pytest.raises(RefusedFile, match=r"a\.jpg is a JPEG of over"):
        brought(tmp_path, data)


def test_the_second_picture_of_a_phone_is_no_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo().save(path, "MPO", save_all=True, append_images=[photo(size=(48, 36))])
    info = read_image_info(path)
    assert (info.format, info.num_frames, info.width) == ("JPEG", 1, 96)
    clean = clean_copy(path, SIDE)
    assert (clean.suffix, clean.num_frames) == (".jpg", 1)
    assert len(clean.data) < path.stat().st_size


def test_the_first_frame_of_an_animation_comes_in_and_that_is_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (96, 72), color) for color in ("red", "blue")]
    for suffix in (".png", ".webp"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        clean = clean_copy(path, SIDE)
        assert (clean.suffix, clean.num_frames) == (".png", 2)
        assert getattr(Image.open(io.BytesIO(clean.data)), "n_frames", 1) == 1
        assert Image.open(io.BytesIO(clean.data)).convert("RGB").getpixel((1, 1)) == (255, 0, 0)
        assert Image.open(io.BytesIO(thumbnail_file(path, 256))).size == (96, 72), "a small one that moves stands still"


def test_a_small_still_picture_needs_no_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of(photo(size=(SIDE, SIDE))))
    assert thumbnail_file(path, SIDE) == b"" == clean_copy(path, SIDE).thumbnail
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(RefusedFile):
        clean_copy(path, SIDE)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much damage that it overlooks
def test_random_damage_ends_in_a_refusal_or_in_a_sound_picture(tmp_path: Path) -> None:
    chance = random.Random(3)
    path = tmp_path / "a.jpg"
    for data in (jpeg_of(photo(), progressive=True), dressed(jpeg_of(photo(), restart_marker_blocks=3))):
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(chance.randrange(1, 8)):
                broken[chance.randrange(len(broken) if chance.random() < 0.6 else 600)] = chance.randrange(256)
            path.write_bytes(broken)
            try:
                clean = clean_copy(path, SIDE)
            except RefusedFile:
                continue
            assert Image.open(io.BytesIO(clean.data)).size == (clean.width, clean.height)
