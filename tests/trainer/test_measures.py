"""Sharpness, borders, transparency and colours, judged on real photos damaged in known ways."""

from __future__ import annotations

import io

import numpy
import pytest
from PIL import Image, ImageFilter, ImageOps

from tests.messy import SUBJECTS, ink, photo
from trainer.dataset.measures import Measures, find_border, measure, measures_from_bytes
from trainer.dataset.quality import LEAST_CONTRAST, LEAST_EDGES, LEAST_SHARPNESS

PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "brick.png",
    "grass.png",
    "coins.png",
    "china.jpg",
)


def looks_blurred(image: Image.Image, resolution: int = 512) -> bool:
    edges, sharpness = measure(image).at(resolution)
    return edges < LEAST_EDGES or sharpness < LEAST_SHARPNESS


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


@pytest.mark.parametrize("name", SUBJECTS)
def test_blur_is_seen_and_sharpness_too(name: str) -> None:
    image = photo(name).copy()
    image.thumbnail((512, 512))
    assert not looks_blurred(image)
    assert looks_blurred(blurred(image, 2.5))


def test_drawings_are_sharp_until_they_are_blurred() -> None:
    for index in range(0, 30, 6):
        assert not looks_blurred(ink(index)) and looks_blurred(blurred(ink(index), 2.5))


def test_a_blurred_background_is_no_fault() -> None:
    image = blurred(photo("astronaut.png"), 6)
    image.paste(photo("astronaut.png").crop((150, 50, 330, 260)), (150, 50))
    assert not looks_blurred(image)


def test_blur_counts_at_the_size_that_is_trained() -> None:
    soft = measure(blurred(photo("china.jpg").resize((1200, 800), Image.Resampling.BICUBIC), 2))
    assert soft.at(1024)[1] < LEAST_SHARPNESS < soft.at(256)[1]
    assert soft.at(300) == soft.at(256) and soft.at(4096) == soft.at(1024)


@pytest.mark.parametrize("name", PHOTOS)
def test_letterboxes_and_frames_are_measured(name: str) -> None:
    image = photo(name)
    bar = image.height // 8
    for found, sides in (
        (find_border(ImageOps.expand(image, (0, bar), "black")), (0, bar, 0, bar)),
        (find_border(ImageOps.expand(image, (0, bar, 0, 0), "navy")), (0, bar, 0, 0)),
        (find_border(ImageOps.expand(image, 12, "white")), (12, 12, 12, 12)),
    ):
        assert numpy.abs(numpy.subtract(found, sides)).max() <= 2, (found, sides)


def test_a_border_may_be_uneven_and_in_a_large_picture() -> None:
    framed = ImageOps.expand(photo("astronaut.png").resize((2600, 2600)), (0, 300), "black")
    buffer = io.BytesIO()
    framed.save(buffer, format="JPEG", quality=30)
    left, top, right, bottom = find_border(Image.open(buffer).convert("RGB"))
    assert (left, right) == (0, 0) and 298 <= top <= 306 and 298 <= bottom <= 306


def test_plain_backgrounds_are_no_borders() -> None:
    for index in range(30):
        assert find_border(ink(index)) == (0, 0, 0, 0), index
    for name in SUBJECTS:
        assert find_border(photo(name)) == (0, 0, 0, 0), name
    small = Image.new("RGB", (400, 300), "white")
    small.paste(photo("coffee.png").resize((30, 20)), (200, 100))
    assert find_border(small) == (0, 0, 0, 0)
    assert find_border(Image.new("RGB", (400, 300), "white")) == (0, 0, 0, 0)


def test_transparency_mode_colour_and_contrast() -> None:
    image = photo("chelsea.png")
    opaque = measure(image.convert("RGBA"))
    assert (opaque.transparent, opaque.mode) == (0.0, "RGBA")
    half = image.convert("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, image.width // 2, image.height))
    assert measure(half).transparent == pytest.approx(0.5, abs=0.01)
    assert measure(image.convert("CMYK")).mode == "CMYK"
    wide = measure(Image.fromarray(numpy.asarray(image.convert("L"), dtype=numpy.uint16) * 257))
    assert (
        wide.mode.startswith("I") and wide.colour == 0 and abs(wide.contrast - measure(image.convert("L")).contrast) < 1
    )
    assert measure(image).colour > 20 and measure(photo("camera.png")).colour == 0
    assert measure(Image.new("RGB", (80, 60), (10, 60, 90))).contrast < LEAST_CONTRAST


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2), (9, 9), (2000, 3)])
def test_pictures_of_any_size_can_be_measured(size: tuple[int, int]) -> None:
    found = measure(photo("coffee.png").resize(size))
    assert (found.width, found.height) == size


def test_measures_survive_being_kept() -> None:
    found = measure(photo("coffee.png"))
    assert measures_from_bytes(found.to_bytes()) == found
    assert isinstance(found, Measures) and (found.width, found.height) == (600, 400)
    with pytest.raises((ValueError, TypeError, KeyError)):
        measures_from_bytes(b"{}\n")
