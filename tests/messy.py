"""A folder of 300 messy real pictures, as people have them: photos of scikit-image and scikit-learn and the embedded ink
pictures, cut into many windows and damaged in known ways. The same call gives the same files.

    from tests.messy import build_messy
    messy = build_messy(tmp_path / "heap")
    messy.kinds["broken"]   # names, relative to the folder, by what is wrong with them
"""

from __future__ import annotations

import functools
import io
import random
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import skimage
import sklearn
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from trainer.demo import DATASETS

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 90}

SUBJECTS: dict[str, tuple[str, str]] = {
    "astronaut.png": (
        "1girl, solo, smile, short hair, brown hair, spacesuit, flag, looking at viewer",
        "a smiling astronaut",
    ),
    "camera.png": ("1boy, solo, coat, camera, tripod, greyscale, outdoors", "a man with a camera on a lawn"),
    "chelsea.png": (
        "cat, animal focus, no humans, whiskers, green eyes, close-up",
        "a tabby cat that looks at the camera",
    ),
    "coffee.png": ("coffee, cup, saucer, spoon, table, still life, no humans", "a cup of coffee on a wooden table"),
    "rocket.jpg": ("rocket, launch, night, sky, no humans, scenery", "a rocket on its launch pad at night"),
    "hubble_deep_field.jpg": ("space, galaxy, star (sky), no humans, scenery", "hundreds of galaxies in black space"),
    "retina.jpg": ("retina, medical, orange theme, no humans", "the back of a human eye"),
    "ihc.png": ("tissue, microscope, purple theme, no humans", "stained tissue under a microscope"),
    "motorcycle_left.png": ("motorcycle, garage, indoors, no humans", "a motorcycle in a crowded garage"),
    "moon.png": ("moon, crater, space, greyscale, no humans", "craters of the moon"),
    "brick.png": ("brick wall, texture, greyscale, no humans", "a brick wall"),
    "grass.png": ("grass, texture, greyscale, no humans", "grass from above"),
    "gravel.png": ("gravel, stone, texture, greyscale, no humans", "small stones"),
    "coins.png": ("coin, greyscale, no humans, still life", "old coins in rows"),
    "page.png": ("text, page, greyscale, no humans", "a page of a mathematics book"),
    "logo.png": ("logo, snake, simple background, no humans", "a logo with two snakes"),
    "china.jpg": (
        "temple, architecture, east asian architecture, outdoors, day, no humans",
        "a temple with a tiled roof",
    ),
    "flower.jpg": ("flower, petals, blurry background, outdoors, no humans", "a pink flower in a garden"),
}
"""The photos, each with tags and with a sentence."""


@dataclass
class Messy:
    """The folder, and names of files by kind; a file is of one kind. `good`: nothing is wrong with the picture."""

    folder: Path
    kinds: dict[str, list[str]] = field(default_factory=dict)

    @property
    def pictures(self) -> list[str]:
        """All files that are or claim to be pictures."""
        return [name for kind, names in self.kinds.items() if kind not in ("junk", "orphan_caption") for name in names]

    def put(self, kind: str, name: str, data: bytes) -> str:
        """Writes a file and notes its kind."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists(), name
        path.write_bytes(data)
        self.kinds.setdefault(kind, []).append(name)
        return name

    def caption(self, name: str, text: str, *, ending: str = ".txt", encoding: str = "utf-8") -> None:
        """Writes the caption of a picture."""
        path = self.folder / name
        path.with_name(path.stem + ending).write_bytes(text.encode(encoding))


@functools.cache
def photo(name: str) -> Image.Image:
    """One of SUBJECTS, in RGB."""
    with Image.open((_SKIMAGE if (_SKIMAGE / name).is_file() else _SKLEARN) / name) as image:
        whole = image.convert("RGB")
    whole.thumbnail((1000, 700), Image.Resampling.LANCZOS)  # the largest is soft
    return whole


@functools.cache
def ink(index: int) -> Image.Image:
    """One of the embedded ink pictures, in RGB."""
    with Image.open(sorted(DATASETS["ink"].glob("*.png"))[index]) as image:
        return image.convert("RGB")


def encoded(image: Image.Image, **options: Any) -> bytes:
    """The file of a picture; a fast PNG unless told otherwise."""
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG", "compress_level": 1} | options))
    return buffer.getvalue()


@dataclass(frozen=True)
class Window:
    """A part of a photo, unlike all others."""

    subject: str
    image: Image.Image
    tags: str
    sentence: str


class Windows:
    """Hands out parts of the photos, one after the other; two of one photo share less than half of the smaller one."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._taken: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in SUBJECTS}
        self._turn = 0

    def next(self, least: int = 112, most: int = 260) -> Window:
        """A part with sides of `least` to `most` pixels; the fuller the photos, the smaller."""
        for attempt in range(3000):
            name = list(SUBJECTS)[self._turn % len(SUBJECTS)]
            self._turn += 1
            image, limit = photo(name), most - int((most - least) * min(1, attempt / 300))
            width, height = (self._random.randint(least, max(least, min(limit, side - 2))) for side in image.size)
            if width >= image.width or height >= image.height:
                continue
            left, top = self._random.randint(0, image.width - width), self._random.randint(0, image.height - height)
            box = (left, top, left + width, top + height)
            if any(_overlap(box, other) > 0.5 for other in self._taken[name]):
                continue
            cut = image.crop(box)
            if numpy.asarray(cut.convert("L")).std() < 12:
                continue  # a piece of night sky shows nothing
            self._taken[name].append(box)
            return Window(name.partition(".")[0], cut, *SUBJECTS[name])
        raise AssertionError("the photos are used up")


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Common area as a share of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0, width) * max(0, height) / smaller


def build_messy(folder: Path, seed: int = 0) -> Messy:
    """Writes the heap into a new folder: 300 files that are or claim to be pictures, captions beside most, and junk."""
    folder.mkdir(parents=True)
    messy, windows = Messy(folder), Windows(seed)
    for part in (_copies, _bad_looking, _sizes, _broken, _odd_files, _odd_names, _good):  # the larger windows first
        part(messy, windows)
    _captions(messy, windows)
    _junk(messy)
    return messy


_FOLDERS = ("", "", "10_cat and coffee", "3_space", "walls/evening", "walls", "2023-05 Phone")
_WRITERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (".jpg", _JPEG), (".png", {}), (".JPG", _JPEG), (".webp", {"format": "WEBP", "quality": 90, "method": 0}),
    (".jpeg", _JPEG), (".PNG", {}), (".bmp", {"format": "BMP"}),
)  # fmt: skip


def _good(messy: Messy, windows: Windows) -> None:
    for number in range(92):
        window = windows.next()
        ending, options = _WRITERS[number % len(_WRITERS)]
        place = _FOLDERS[number % len(_FOLDERS)]
        name = f"{place}{'/' if place else ''}{window.subject}_{number:03d}{ending}"
        messy.put("good", name, encoded(window.image, **options))
        messy.caption(name, window.tags if number % 3 else f"{window.sentence}, number {number}")
    for index in range(24):
        name = messy.put("good", f"drawings/ink {index + 1}.png", encoded(ink(index)))
        messy.caption(name, (sorted(DATASETS["ink"].glob("*.txt"))[index]).read_text(encoding="utf-8"))


def _odd_names(messy: Messy, windows: Windows) -> None:
    names = (
        "Ünïcödé ☃ 写真.png", unicodedata.normalize("NFD", "café crème.jpg"), "spaces  and, commas (1).JPG", "UPPER.JPEG",
        "-dash first.png", "semi;colon & amp%20.png", "two.dots.in.it.png", "quote'and\"quote.jpg", "=1+1.png",
        "<b>bold<b>.png", "{{7*7}} ${x}.png", "🙂🙂.webp", "#hash?query.png", "x" * 140 + ".jpg", "CON.png", "trailing .png",
    )  # fmt: skip
    for name in names:
        window = windows.next()
        ending = Path(name).suffix.lower()
        options = _JPEG if ending in (".jpg", ".jpeg") else {"format": "WEBP"} if ending == ".webp" else {}
        messy.put("odd_name", name, encoded(window.image, **options))
        messy.caption(name, window.tags)


def _odd_files(messy: Messy, windows: Windows) -> None:
    for orientation in range(2, 9):
        window = windows.next()
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "A phone"
        name = messy.put(
            "exif", f"IMG_{orientation:04d}.JPG", encoded(_turned_back(window.image, orientation), **_JPEG, exif=exif)
        )
        messy.caption(name, window.tags)
    for number in range(6):
        window = windows.next()
        name = messy.put(
            "cmyk", f"print/{window.subject} cmyk {number}.jpg", encoded(window.image.convert("CMYK"), **_JPEG)
        )
        messy.caption(name, window.tags)
    for number in range(4):
        window = windows.next()
        wide = numpy.asarray(window.image.convert("L"), dtype=numpy.uint16) * 257
        name = messy.put("16_bit", f"scan_{number}.png", encoded(Image.fromarray(wide)))
        messy.caption(name, window.tags)
    for number in range(7):
        window = windows.next(most=200)
        frames = [ImageOps.posterize(window.image, bits) for bits in (4, 3, 2)]
        options = {"format": "WEBP", "method": 0} if number < 4 else {}
        data = encoded(window.image, **options, save_all=True, append_images=frames, duration=100)
        name = messy.put("animated", f"moving {number}{'.webp' if number < 4 else '.png'}", data)
        messy.caption(name, window.tags)
    for number in range(10):
        window = windows.next()
        name = messy.put("transparent", f"cutouts/{window.subject} {number}.png", encoded(cut_out(window.image)))
        messy.caption(name, window.tags)
    for number in range(3):
        palette = ink(24 + number).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
        name = messy.put(
            "transparent", f"cutouts/palette {number}.png", encoded(palette, transparency=palette.getpixel((0, 0)))
        )
        messy.caption(name, "ink drawing, no humans")


def _turned_back(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels as a camera stores them that says so in its EXIF orientation: upright again when it is obeyed."""
    turn = Image.Transpose
    back = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE, 6: turn.ROTATE_90,
            7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
    return image.transpose(back[orientation])


def cut_out(image: Image.Image) -> Image.Image:
    """An ellipse of it; the rest is transparent."""
    alpha = Image.new("L", image.size)
    ImageDraw.Draw(alpha).ellipse(
        (image.width // 8, image.height // 8, image.width * 7 // 8, image.height * 7 // 8), fill=255
    )
    cut = image.convert("RGBA")
    cut.putalpha(alpha)
    return cut


def _copies(messy: Messy, windows: Windows) -> None:
    """Each beside its original, which is of the kind `original`."""

    def half(image: Image.Image) -> Image.Image:
        return image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)

    def inner(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.crop((width // 10, height // 10, width * 9 // 10, height * 9 // 10))

    ways: Sequence[tuple[str, int, Callable[[Image.Image], Image.Image], dict[str, Any]]] = (
        ("duplicate", 8, lambda image: image, {}),
        ("resaved", 8, half, {"format": "JPEG", "quality": 40}),
        ("mirrored", 8, ImageOps.mirror, _JPEG),
        ("turned", 3, lambda image: image.transpose(Image.Transpose.ROTATE_90), _JPEG),
        ("cropped", 4, inner, _JPEG),
    )
    for kind, count, way, options in ways:
        for number in range(count):
            window = windows.next(least=180)
            original = messy.put("original", f"download ({kind} {number}).png", encoded(window.image))
            messy.caption(original, window.tags)
            ending = ".jpg" if options else ".png"
            copy = messy.put(kind, f"download ({kind} {number}) copy{ending}", encoded(way(window.image), **options))
            if number % 2:
                messy.caption(copy, window.tags if number % 4 == 1 else f"{window.tags}, copy")


def _bad_looking(messy: Messy, windows: Windows) -> None:
    for number in range(8):
        window = windows.next(least=200)
        blurred = window.image.filter(ImageFilter.GaussianBlur(4))
        name = messy.put("blurred", f"shaky_{number}.jpg", encoded(blurred, **_JPEG))
        messy.caption(name, window.tags)
    for number in range(6):
        window = windows.next(least=200)
        wide = ImageOps.expand(window.image, (0, window.image.height // 8), (0, 0, 0))
        framed = ImageOps.expand(window.image, 14, (255, 255, 255))
        name = messy.put("border", f"screenshot {number}.jpg", encoded(wide if number % 2 else framed, **_JPEG))
        messy.caption(name, window.tags)
    for number, tone in enumerate(((0, 0, 0), (255, 255, 255), (127, 127, 127))):
        messy.put("blank", f"blank{number}.png", encoded(Image.new("RGB", (300, 200), tone)))


def _sizes(messy: Messy, windows: Windows) -> None:
    for number in range(6):
        tiny = windows.next(most=200).image.resize((8 + 4 * number, 30))
        messy.put("tiny", f"icons/icon{number}.png", encoded(tiny))
    for number in range(5):
        window = windows.next()
        strip = window.image.resize((1400, 150)) if number % 2 else window.image.resize((130, 1200))
        name = messy.put("extreme", f"banner {number}.jpg", encoded(strip, **_JPEG))
        messy.caption(name, window.tags)
    for number, size in enumerate(((6000, 4000), (3000, 5200))):
        window = windows.next(least=300)
        name = messy.put(
            "huge", f"camera/DSC_{number}.jpg", encoded(window.image.resize(size), format="JPEG", quality=75)
        )
        messy.caption(name, window.tags)


def _broken(messy: Messy, windows: Windows) -> None:
    image = windows.next(least=200).image
    jpeg, png = encoded(image, **_JPEG), encoded(image)
    webp, bmp = encoded(image, format="WEBP"), encoded(image, format="BMP")
    files = {
        "cut off.jpg": jpeg[: len(jpeg) // 2], "cut off.png": png[: len(png) * 2 // 3], "cut off.webp": webp[: len(webp) // 2],
        "cut off.bmp": bmp[: len(bmp) // 2], "empty.jpg": b"", "a page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "a text.png": b"this is no picture", "noise.jpg": random.Random(1).randbytes(5000),
        "moving.gif.png": encoded(image.convert("P"), format="GIF"), "scan.tif.jpg": encoded(image, format="TIFF"),
        "header only.png": png[:40], "bomb.png": _bomb(),
    }  # fmt: skip
    for name, data in files.items():
        messy.put("broken", name, data)
        messy.caption(name, "this picture can't be read")


def _bomb() -> bytes:
    """A PNG of some bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _captions(messy: Messy, windows: Windows) -> None:
    """Sound pictures whose captions are missing or odd; the rest up to 300 has none."""

    def put(kind: str) -> tuple[str, Window]:
        window = windows.next()
        number = len(messy.kinds.get(kind, []))
        return messy.put(kind, f"{kind} {number}.jpg", encoded(window.image, **_JPEG)), window

    for text in ("", "   \n", "\r\n"):
        messy.caption(put("empty_caption")[0], text)
    encodings = (
        ("utf-16", "a café in Zürich"), ("cp1252", "crème brûlée, café"), ("shift_jis", "桜, 女の子"),
        ("cp1251", "кот, чашка кофе"),
    )  # fmt: skip
    for encoding, text in encodings:
        messy.caption(put("foreign_caption")[0], text, encoding=encoding)
    name, window = put("bom_caption")
    messy.caption(name, f"{window.tags}\r\nsecond line\r\n", encoding="utf-8-sig")
    name, window = put("other_ending")
    messy.caption(name, window.tags, ending=".caption")
    name, window = put("other_ending")
    messy.caption(name, window.tags, ending=".TXT")
    for tags in ("solo, 2girls, smile", "solo, long hair, short hair", "no humans, 1boy, indoors, outdoors"):
        messy.caption(put("contradicting_caption")[0], tags)
    messy.caption(put("repeating_caption")[0], "cat, whiskers, cat, close-up")
    messy.caption(put("cut_caption")[0], "a photo of a cat that is lying on the")
    messy.caption(put("long_caption")[0], ", ".join(f"tag number {number}" for number in range(60)))
    messy.caption(put("writing_caption")[0], "cat, watermark, web address")
    while len(messy.pictures) < 300:
        put("no_caption")


def _junk(messy: Messy) -> None:
    messy.put("orphan_caption", "deleted picture.txt", b"a caption without its picture")
    messy.put("orphan_caption", "walls/notes.txt", b"remember the milk")
    for name, data in {
        "Thumbs.db": b"\xd0\xcf\x11\xe0", ".DS_Store": b"\0\0\0\1Bud1", "__MACOSX/._IMG_0002.JPG": b"\0\5\x16\7",
        "readme.md": b"# hi",
        "moving.gif": encoded(ink(0).convert("P"), format="GIF"), "scan.tiff": encoded(ink(1), format="TIFF"),
        "program.exe": b"MZ\x90\0", "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }.items():  # fmt: skip
        messy.put("junk", name, data)
