"""Pictures: colours are right, bombs and broken files are refused, nothing private is carried over."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from security import images
from security.errors import RefusedFile
from security.images import ImageInfo, clean_copy, encoded, open_image, read_image_info, thumbnail_file, to_rgb

RED, WHITE = (255, 0, 0), (255, 255, 255)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int = 8, color: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file with the given header; `extra` are chunks before the pixels `data` (with filter bytes)."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_every_allowed_format_opens(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", Image.new("RGB", (6, 4), RED))
    image = open_image(path)
    assert image.size == (6, 4)
    assert to_rgb(image).getpixel((3, 2))[0] > 240  # type: ignore[index]
    info = read_image_info(path)
    assert (info.width, info.height, info.num_frames) == (6, 4, 1)


def test_the_content_counts_not_the_ending(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (6, 4)), format="JPEG")
    assert read_image_info(path) == ImageInfo(6, 4, "JPEG", 1, False)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "EPS", "PDF"])
def test_other_formats_are_not_even_tried(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (16, 16)), format=kind)
    with pytest.raises(RefusedFile, match=r"a\.png is not a PNG, JPEG, WebP or BMP picture"):
        open_image(path)
    with pytest.raises(RefusedFile, match=r"a\.png"):
        clean_copy(path, 256)


def test_svg_and_html_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for text in ("<svg xmlns='http://www.w3.org/2000/svg'/>", "<html>", "", "\0" * 100):
        path.write_text(text)
        with pytest.raises(RefusedFile, match=r"a\.png"):
            open_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pictures_stand_upright_and_the_size_is_known_before(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", Image.new("RGB", (6, 4)), exif=exif)
    expected = (4, 6) if orientation >= 5 else (6, 4)
    assert open_image(path).size == expected
    info = read_image_info(path)
    assert (info.width, info.height) == expected


def test_an_orientation_after_the_pixels_of_a_png_counts_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(6, 4, data=b"".join(b"\0" + bytes(18) for _ in range(4)))
    end = png_chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(data.removesuffix(end) + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + end)
    assert open_image(path).size == (4, 6)
    assert (read_image_info(path).width, read_image_info(path).height) == (4, 6)


def test_sixteen_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = [0, 128, 257, 32896, 40000, 65535]
    path = tmp_path / "a.png"
    path.write_bytes(png(6, 1, bits=16, color=0, data=b"\0" + struct.pack(">6H", *values)))
    rgb = to_rgb(open_image(path))
    assert rgb.mode == "RGB"
    assert [rgb.getpixel((x, 0)) for x in range(6)] == [(round(v / 257),) * 3 for v in values]


def test_sixteen_bit_colour_and_a_sixteen_bit_colour_key(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, bits=16, color=2, data=b"\0" + struct.pack(">3H", 65535, 32896, 0)))
    assert to_rgb(open_image(path)).getpixel((0, 0)) == (255, 128, 0)
    key = png_chunk(b"tRNS", struct.pack(">H", 40000))
    path.write_bytes(png(1, 1, bits=16, color=0, data=b"\0" + struct.pack(">H", 40000), extra=key))
    assert to_rgb(open_image(path)).getpixel((0, 0)) == (156, 156, 156)
    key = png_chunk(b"tRNS", struct.pack(">H", 100))  # 25700 becomes 100, which is not the key's 100
    path.write_bytes(png(1, 1, bits=16, color=0, data=b"\0" + struct.pack(">H", 25700), extra=key))
    assert to_rgb(open_image(path)).getpixel((0, 0)) == (100, 100, 100)


def half_clear(mode: str) -> Image.Image:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_show_the_background(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putpixel((1, 0), 1)
        image = open_image(save(tmp_path / "a.png", image, transparency=1))
        assert image.mode == "P"
    else:
        image = half_clear(mode)
    assert to_rgb(image).getpixel((1, 0)) == WHITE
    assert to_rgb(image, (10, 20, 30)).getpixel((1, 0)) == (10, 20, 30)
    red = to_rgb(image).getpixel((0, 0))
    assert red == (RED if mode != "LA" else (76, 76, 76))


def test_half_transparent_is_mixed_and_colour_keys_count(tmp_path: Path) -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1), RED), transparency=RED)
    assert to_rgb(open_image(path)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (2, 2), WHITE).convert(mode) if mode != "LAB" else Image.new("LAB", (2, 2))
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert mode == "LAB" or rgb.getpixel((0, 0)) == WHITE


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 16), RED).convert("CMYK"), quality=95)
    red, green, blue = to_rgb(open_image(path)).getpixel((8, 8))  # type: ignore[misc]
    assert red > 245
    assert max(green, blue) < 10


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 255, 0))]
    for suffix in (".png", ".webp"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert to_rgb(open_image(path)).getpixel((4, 4)) == RED
        assert read_image_info(path).num_frames == 2


@pytest.mark.filterwarnings("ignore")  # Pillow warns before it refuses
def test_a_bomb_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    path = tmp_path / "a.png"
    for side in (8001, 10_000, 14_000, 60_000, 2**31 - 1):
        path.write_bytes(png(side, side))
        for function in (open_image, read_image_info):
            with pytest.raises(RefusedFile, match=r"a\.png.*(million pixels|limit of 64 million|broken)"):
                function(path)
    for width, height in ((1, 64_000_000), (40_000, 2)):  # few pixels, but lines that never end
        path.write_bytes(png(width, height))
        for function in (open_image, read_image_info):
            with pytest.raises(RefusedFile, match=r"a\.png has .* no side may have over 32768"):
                function(path)


def test_a_large_file_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 2) + bytes(1000))
    with pytest.raises(RefusedFile, match="larger than"):
        open_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, suffix: str) -> None:
    pixels = random.Random(1).randbytes(64 * 64 * 3)
    path = save(tmp_path / f"a{suffix}", Image.frombytes("RGB", (64, 64), pixels))
    data = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(RefusedFile, match=rf"a\{suffix} is"):
            open_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much damage that it overlooks
def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "a.img"
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.frombytes("RGB", (32, 32), chance.randbytes(3072)).save(
            buffer, kind, **({} if kind == "BMP" else {"exif": exif})
        )
        for _ in range(120):
            data = bytearray(buffer.getvalue())
            for _ in range(chance.randrange(1, 12)):
                data[chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 80))] = chance.randrange(
                    256
                )
            path.write_bytes(data)
            for function in (open_image, read_image_info):
                try:
                    function(path)
                except RefusedFile as refusal:
                    assert "a.img" in str(refusal)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.png"):
        with pytest.raises(RefusedFile, match=path.name):
            open_image(path)


def copies(path: Path) -> dict[str, bytes]:
    """Every way in which a picture is written anew, by name: the import, its thumbnail, and each format."""
    image = open_image(path)
    clean = clean_copy(path, 16)
    return {suffix: encoded(image, suffix) for suffix in (".png", ".webp", ".jpg")} | {
        "import": clean.data,
        "thumbnail": clean.thumbnail or thumbnail_file(path, 4),
    }


@pytest.mark.parametrize("way", [".png", ".webp", ".jpg", "import"])
def test_importing_keeps_pixels_and_drops_everything_else(tmp_path: Path, way: str) -> None:
    canary = "CANARY-51.5007-N"
    exif = Image.Exif()
    exif[0x010E] = canary
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", canary)
    picture = Image.new("RGB", (32, 16), RED)
    source_png = save(tmp_path / "s.png", picture, exif=exif, pnginfo=notes, icc_profile=canary.encode())
    source_jpg = save(tmp_path / "s.jpg", picture, exif=exif, comment=canary, xmp=canary.encode(), quality=95)
    source_jpg.write_bytes(source_jpg.read_bytes() + b"PK\x03\x04" + canary.encode())
    for source in (source_png, source_jpg):
        assert canary.encode() in source.read_bytes()
        target = tmp_path / "target"
        data = copies(source)[way]
        target.write_bytes(data)
        assert canary.encode() not in data
        assert b"PK\x03\x04" not in data
        clean = Image.open(target)
        assert clean.size == (16, 32)
        assert not clean.getexif()
        assert not {"icc_profile", "comment", "xmp", "parameters"} & set(clean.info)
        red, green, blue = clean.convert("RGB").getpixel((8, 8))  # type: ignore[misc]
        assert red > 245
        assert max(green, blue) < 10


def test_importing_keeps_transparency_where_the_format_has_it(tmp_path: Path) -> None:
    source = save(tmp_path / "s.png", half_clear("RGBA"))
    for way, data in copies(source).items():
        if way == "thumbnail":  # there is none of so small a picture
            continue
        (tmp_path / "t").write_bytes(data)
        image = open_image(tmp_path / "t")
        if way == ".jpg":
            assert image.mode == "RGB"
        else:
            assert image.getpixel((1, 0)) == (255, 0, 0, 0)
    assert clean_copy(source, 16).has_alpha
    opaque = save(tmp_path / "o.png", Image.new("RGBA", (2, 1), RED))
    clean = clean_copy(opaque, 16)
    assert not clean.has_alpha and Image.open(io.BytesIO(clean.data)).mode == "RGB"


def test_a_refused_import_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(png(8, 8))
    with pytest.raises(RefusedFile):
        (tmp_path / "t.png").write_bytes(clean_copy(tmp_path / "s.png", 16).data)
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


SEGMENT = struct.Struct(">2sH")


def jpeg_segment(marker: bytes, data: bytes) -> bytes:
    return SEGMENT.pack(marker, len(data) + 2) + data


def test_the_place_of_a_photo_and_its_press_data_do_not_come_along(tmp_path: Path) -> None:
    """Coordinates are binary in EXIF, and IPTC, a second comment and a maker's segment are blocks of their own."""
    exif = Image.Exif()
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (51.0, 30.0, 2.52), "W", (0.0, 7.0, 39.0)
    exif.get_ifd(0x8769)[0x927C] = b"MAKERNOTE-CANARY"
    path = save(tmp_path / "s.jpg", Image.new("RGB", (32, 16), RED), exif=exif, quality=95)
    data = path.read_bytes()
    extra = b"".join(
        jpeg_segment(marker, text)
        for marker, text in [
            (b"\xff\xed", b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x50\0\x07CANARY1"),
            (b"\xff\xfe", b"CANARY2"),
            (b"\xff\xec", b"Ducky CANARY3"),
        ]
    )
    path.write_bytes(data[:2] + extra + data[2:])
    assert Image.open(path).getexif().get_ifd(0x8825)[2] == (51.0, 30.0, 2.52)
    for clean in copies(path).values():
        assert not any(word in clean for word in (b"CANARY", b"Photoshop", b"Ducky", b"Exif\0\0", b"MAKERNOTE"))
        assert not Image.open(io.BytesIO(clean)).getexif()


HIDDEN: dict[str, bytes] = {
    "zip behind a picture": b"PK\x03\x04 secret.txt PK\x05\x06" + bytes(18),
    "script behind a picture": b"<?php system($_GET[0]); ?>",
    "page behind a picture": b"<html><script>alert(1)</script>",
}


@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_what_hides_behind_or_inside_a_picture_is_not_imported(tmp_path: Path, case: str, kind: str) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (32, 32), RED), format=kind)
    path.write_bytes(path.read_bytes() + HIDDEN[case])
    assert not [way for way, clean in copies(path).items() if HIDDEN[case] in clean]
    inside = save(tmp_path / "b.png", Image.new("RGB", (8, 8), RED))
    data = inside.read_bytes()
    inside.write_bytes(data[:33] + png_chunk(b"zzZz", HIDDEN[case]) + data[33:])
    assert HIDDEN[case] in inside.read_bytes()
    assert not [way for way, clean in copies(inside).items() if HIDDEN[case] in clean]


NO_PICTURES: dict[str, tuple[bytes, str]] = {
    "magic bytes and then a script": (b"\xff\xd8\xff<?php system($_GET[0]); ?>", "broken or cut off|not a PNG"),
    "magic bytes of a PNG and then a page": (b"\x89PNG\r\n\x1a\n<html>", "broken or cut off|not a PNG"),
    "page": (b"<!doctype html><p>not found", "It is a web page"),
    "drawing": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "It is an SVG drawing"),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(90), r"It is a program"),
    "Windows program": (b"MZ\x90\0\3\0\0\0" + bytes(90), r"It is a program"),
    "script": (b"#!/bin/sh\nid", "It is a script"),
    "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0", "It is a Python pickle"),
    "archive": (b"PK\x03\x04" + bytes(40), "It is a zip archive"),
    "weights": ((40).to_bytes(8, "little") + b'{"a":{}}', "It is a safetensors file"),
    "animation": (b"GIF89a\1\0\1\0\0\0\0;", r"It is a picture of another format \(gif\)"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG"),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp"])
@pytest.mark.parametrize("case", NO_PICTURES)
def test_a_picture_ending_on_something_else_is_refused_by_what_it_is(tmp_path: Path, case: str, suffix: str) -> None:
    data, reason = NO_PICTURES[case]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    for work in (open_image, read_image_info, lambda source: clean_copy(source, 256)):
        with pytest.raises(RefusedFile, match=reason):
            work(path)


def test_a_text_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20)))
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, data=b"\0abc", extra=text))
    with pytest.raises(RefusedFile, match=r"a\.png"):
        open_image(path)


def test_a_picture_without_pixels_and_one_with_a_million_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)))
    with pytest.raises(RefusedFile, match=r"a\.png"):
        open_image(path)
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    path.write_bytes(png(1, 1, data=b"\0abc", extra=frames))
    assert open_image(path).size == (1, 1)
