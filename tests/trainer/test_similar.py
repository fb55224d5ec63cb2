"""Likeness of pictures, judged on real photos damaged in known ways."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tests.messy import Windows, cut_out, ink, photo
from trainer.dataset.measures import measure
from trainer.dataset.similar import Fingerprint, Pair, Relation, find_alike, find_similar, groups

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "china.jpg",
    "flower.jpg",
    "moon.png",
    "coins.png",
)


def printed(image: Image.Image) -> Fingerprint:
    return measure(image).fingerprint


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.crop(
        (int(left * image.width), int(top * image.height), int(right * image.width), int(bottom * image.height))
    )


@pytest.fixture(scope="module")
def photos() -> dict[str, Fingerprint]:
    return {name: printed(photo(name)) for name in PHOTOS}


DAMAGES: dict[str, tuple[Callable[[Image.Image], Image.Image], Relation]] = {
    "saved at quality 10": (lambda image: jpeg(image, 10), Relation.SAME),
    "scaled to a third": (lambda image: image.resize((image.width // 3, image.height // 3)), Relation.SAME),
    "stretched": (lambda image: image.resize((image.width * 6 // 5, image.height)), Relation.SAME),
    "blurred": (lambda image: image.filter(ImageFilter.GaussianBlur(2)), Relation.SAME),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), Relation.SAME),
    "without colour": (lambda image: image.convert("L").convert("RGB"), Relation.SAME),
    "with a border": (lambda image: ImageOps.expand(image, (0, image.height // 8), "black"), Relation.SAME),
    "mirrored": (ImageOps.mirror, Relation.MIRRORED),
    "turned": (lambda image: image.transpose(Image.Transpose.ROTATE_90), Relation.TURNED),
    "upside down": (ImageOps.flip, Relation.TURNED),
    "rim cut off": (cut(0.1, 0.1, 0.9, 0.9), Relation.PART),
    "one side cut off": (cut(0.2, 0.0, 1.0, 1.0), Relation.PART),
    "corner cut out": (cut(0.0, 0.33, 0.67, 1.0), Relation.PART),
    "mirrored and cut": (lambda image: ImageOps.mirror(cut(0.1, 0.1, 0.9, 0.9)(image)), Relation.PART),
}


@pytest.mark.parametrize("way", DAMAGES)
def test_a_damaged_photo_is_found_again(photos: dict[str, Fingerprint], way: str) -> None:
    damage, relation = DAMAGES[way]
    for name in ("astronaut.png", "chelsea.png", "china.jpg"):
        pairs = find_similar({"damaged": printed(damage(photo(name)))}, photos)
        assert [(pair.second, pair.relation) for pair in pairs] == [(name, relation)], name


def test_different_pictures_are_not_alike(photos: dict[str, Fingerprint]) -> None:
    """Photos, parts of photos that overlap by half at most, and drawings that are all black shapes on white."""
    windows = Windows(seed=7)
    pool = photos | {f"ink {index}": printed(ink(index)) for index in range(30)}
    parts = [windows.next(least=180) for _ in range(40)]
    pool |= {f"part {number}": printed(part.image) for number, part in enumerate(parts) if part.subject != "retina"}
    whole_and_part = {  # a window is a part of its photo
        (pair.first, pair.second)
        for pair in find_similar(pool)
        if not (pair.first in photos and pair.second.startswith("part")) and pair.second not in photos
    }
    assert not whole_and_part


def test_a_part_is_found_from_both_sides() -> None:
    whole, part = printed(photo("coffee.png")), printed(cut(0.1, 0.1, 0.9, 0.9)(photo("coffee.png")))
    for pictures in ({"a": whole, "b": part}, {"a": part, "b": whole}):
        assert [pair.relation for pair in find_similar(pictures)] == [Relation.PART]
    for first, second in ((whole, part), (part, whole)):
        (pair,) = find_similar({"mine": first}, {"theirs": second})
        assert (pair.first, pair.second, pair.relation) == ("mine", "theirs", Relation.PART)


def test_flat_pictures_are_like_nothing() -> None:
    flat = {tone: printed(Image.new("RGB", (90, 60), tone)) for tone in ("black", "white", "grey")}
    assert all(one.is_flat for one in flat.values())
    assert not find_similar(flat) and not find_similar(flat, flat) and not find_similar({})


def test_round_cut_outs_are_not_alike_because_they_are_round() -> None:
    windows = Windows(seed=3)
    assert not find_similar({f"{number}": printed(cut_out(windows.next().image)) for number in range(16)})


def test_progress_can_stop_the_comparison(photos: dict[str, Fingerprint]) -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        find_similar(photos, progress=stop)
    assert seen == [(number, len(photos)) for number in range(4)]


def test_a_fingerprint_survives_being_kept(photos: dict[str, Fingerprint]) -> None:
    one = photos["moon.png"]
    assert Fingerprint.from_bytes(one.to_bytes()) == one
    with pytest.raises(ValueError, match="a fingerprint has 4096 bytes"):
        Fingerprint.from_bytes(one.to_bytes()[:-8])


def test_answers_of_a_tagger_are_compared_by_direction() -> None:
    answers = {"a": [1.0, 0.0, 0.2], "b": [2.0, 0.1, 0.4], "c": [0.0, 1.0, 0.0], "nothing": [0.0, 0.0, 0.0]}
    (pair,) = find_alike(answers)
    assert (pair.first, pair.second, pair.relation) == ("a", "b", Relation.ALIKE) and pair.likeness > 0.99
    assert not find_alike({"a": [1.0]}) and not find_alike({})


def test_groups_hang_together_through_others() -> None:
    names = [("a", "b"), ("e", "d"), ("c", "b"), ("x", "x")]
    for order in itertools.permutations(names):
        pairs = [Pair(first, second, Relation.SAME, 1.0) for first, second in order]
        assert groups(pairs) == [["a", "b", "c"], ["d", "e"], ["x"]]
    assert groups([]) == []
