"""Which pictures are held out: by content and seed, as many as asked for, and never with a twin in training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from security.errors import SafelightError
from security.images import open_image
from trainer.config.schema import DatasetConfig
from trainer.dataset.measures import fingerprint_of, measure
from trainer.dataset.scan import Picture, scan_folder
from trainer.dataset.similar import Fingerprint
from trainer.dataset.sources import Role, Source
from trainer.dataset.splitting import (
    Divided,
    Relatives,
    choose_held_out,
    divide,
    find_relatives,
    num_held_out,
    twins,
)


def blobs(seed: int, side: int = 96) -> Image.Image:
    """A picture that looks like no other one: smooth coloured noise."""
    numbers = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(numbers).resize((side, side), Image.Resampling.BICUBIC)


def dataset(folder: Path, pictures: dict[str, Image.Image]) -> list[Picture]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / name, quality=90)
        (folder / name).with_suffix(".txt").write_text(f"picture {name}", encoding="utf-8")
    return list(scan_folder(folder, DatasetConfig()).pictures)


PRINTS: dict[str, Fingerprint] = {}


def print_of(picture: Picture) -> Fingerprint:
    """By content, so that a picture that many tests use is looked at once."""
    if picture.content_hash not in PRINTS:
        PRINTS[picture.content_hash] = fingerprint_of(open_image(picture.path))
    return PRINTS[picture.content_hash]


def relatives_of(pictures: Sequence[Picture]) -> Relatives:
    return find_relatives(pictures, print_of)


def source(name: str, role: Role = Role.TRAINING) -> Source:
    return Source(name, Path(name), role, Fraction(1), "")


def split(pictures: list[Picture], share: float, seed: int = 1) -> set[str]:
    chosen = choose_held_out(pictures, find_relatives(pictures, print_of), share=share, seed=seed)
    return {picture.name for picture in pictures if picture.content_hash in chosen}


@pytest.fixture(scope="module")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    return dataset(tmp_path_factory.mktemp("set") / "a", {f"{number:02d}.png": blobs(number) for number in range(30)})


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(10, 0.15, 2), (15, 0.1, 2), (30, 0.05, 2), (30, 0.5, 15), (3, 0.01, 1), (3, 0.5, 1), (1, 0.5, 0), (30, 0.0, 0)],
)
def test_as_many_are_held_out_as_the_share_says(count: int, share: float, expected: int, distinct) -> None:
    assert num_held_out(count, share) == expected
    if expected:
        assert len(split(distinct[:count], share)) == expected


def test_training_and_held_out_share_nothing_and_lose_nothing(distinct) -> None:
    for share in (0.05, 0.15, 0.5):
        divided = divide([(source("a"), distinct)], relatives_of, share=share, seed=3)
        trained = {one.name for one in divided.trained[0][1]}
        held_out = {one.name for _, one in divided.held_out}
        assert not trained & held_out
        assert trained | held_out == {one.name for one in distinct}


def test_the_choice_follows_from_content_and_seed_alone(distinct, tmp_path) -> None:
    chosen = split(distinct, 0.2, seed=5)
    shuffled = list(distinct)
    random.Random(0).shuffle(shuffled)
    assert split(shuffled, 0.2, seed=5) == chosen
    assert split(distinct, 0.2, seed=6) != chosen
    renamed = dataset(tmp_path / "b", {f"z{number:02d}.png": blobs(number) for number in range(30)})
    by_content = {one.content_hash: one.name for one in distinct}
    again = split(renamed, 0.2, seed=5)
    assert {by_content[one.content_hash] for one in renamed if one.name in again} == chosen


def test_a_picture_more_changes_the_choice_by_little(distinct, tmp_path) -> None:
    before = split(distinct[:20], 0.25)
    after = split(distinct[:21], 0.25)
    assert len(before & after) >= len(before) - 1


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_mirrored_and_cropped_pictures_stay_on_one_side(seed: int, tmp_path) -> None:
    """Every other picture has a twin of another kind; no twins are ever divided."""
    pictures, families = {}, []
    for number in range(12):
        picture = blobs(100 + number, side=160)
        twin = {
            0: lambda one: one,
            1: ImageOps.mirror,
            2: lambda one: one.crop((16, 8, 150, 150)),
            3: lambda one: ImageOps.mirror(one.resize((90, 90))),
        }[number % 4](picture)
        pictures |= {f"{number:02d}.png": picture, f"{number:02d}-twin.jpg": twin}
        families.append({f"{number:02d}.png", f"{number:02d}-twin.jpg"})
    held_out = split(dataset(tmp_path / "set", pictures), 0.3, seed)
    assert len(held_out) == 6
    assert all(family <= held_out or not family & held_out for family in families)


def test_the_same_picture_in_two_datasets_stays_on_one_side(distinct) -> None:
    scanned = [(source("a"), distinct[:10]), (source("b"), distinct[5:15])]
    divided = divide(scanned, relatives_of, share=0.4, seed=2)
    trained = {one.content_hash for _, pictures in divided.trained for one in pictures}
    assert not trained & {one.content_hash for _, one in divided.held_out}
    assert {number for number, _ in divided.held_out} == {0, 1}


def test_regularisation_pictures_are_never_held_out_nor_are_their_twins(distinct, tmp_path) -> None:
    mirrored = dataset(
        tmp_path / "prior", {f"m{number}.png": ImageOps.mirror(blobs(number)) for number in range(0, 30, 2)}
    )
    divided = divide(
        [(source("a"), distinct), (source("prior", Role.REGULARISATION), mirrored)], relatives_of, share=0.5, seed=1
    )
    assert divided.trained[1][1] == mirrored
    names = {one.name for number, one in divided.held_out if number == 0}
    assert len(names) == len(divided.held_out) == 15
    assert names == {f"{number:02d}.png" for number in range(1, 30, 2)}


def test_a_dataset_always_keeps_something_to_train(distinct) -> None:
    for seed in range(6):
        divided = divide(
            [(source("a"), distinct[:9]), (source("b"), distinct[9:10])], relatives_of, share=0.5, seed=seed
        )
        assert all(pictures for _, pictures in divided.trained)
        assert len(divided.held_out) == 5


def test_pictures_that_are_all_alike_can_not_be_split(tmp_path) -> None:
    alike = dataset(tmp_path / "set", {f"{number}.png": blobs(1, 80 + 4 * number) for number in range(5)})
    with pytest.raises(SafelightError, match=r"validation.split is 0.2, but nothing of the 5 pictures"):
        split(alike, 0.2)
    flat = dataset(
        tmp_path / "flat", {f"{number}.png": Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(4)}
    )
    with pytest.raises(SafelightError, match="so alike"):
        split(flat, 0.25)


def test_a_group_larger_than_the_share_is_held_out_whole_when_there_is_no_other_way(tmp_path) -> None:
    pairs = {f"{number}-{copy}.png": blobs(number, 80 + 8 * copy) for number in range(3) for copy in range(2)}
    held_out = split(dataset(tmp_path / "set", pairs), 0.1)
    assert len(held_out) == 2
    assert len({name[0] for name in held_out}) == 1


def sides(divided: Divided) -> dict[str, bool]:
    trained = {one.content_hash: False for _, pictures in divided.trained for one in pictures}
    return trained | {one.content_hash: True for _, one in divided.held_out}


def test_a_run_that_goes_on_keeps_its_sides(distinct, tmp_path) -> None:
    first = divide([(source("a"), distinct[:20])], relatives_of, share=0.25, seed=4)
    held_out = {one.name for _, one in first.held_out}
    out = sorted(held_out)[0]
    more = dataset(tmp_path / "more", {"new.png": blobs(77), "twin.png": ImageOps.mirror(blobs(int(out[:2])))})
    # another seed and share, new pictures: known ones stay, a new one that looks like a held-out one joins it
    again = divide([(source("a"), [*distinct[:20], *more])], relatives_of, share=0.5, seed=9, earlier=sides(first))
    assert {one.name for _, one in again.held_out} == held_out | {"twin.png"}
    assert "new.png" in {one.name for one in again.trained[0][1]}


def test_twins_of_trained_pictures_are_found_in_a_held_out_folder(distinct, tmp_path) -> None:
    folder = dataset(
        tmp_path / "held", {"new.png": blobs(500), "mirrored.png": ImageOps.mirror(blobs(3)), "same.jpg": blobs(4)}
    )
    assert twins(folder, distinct, print_of) == ["mirrored.png", "same.jpg"]
    assert twins(folder, [], print_of) == []


def test_the_fingerprint_alone_is_that_of_the_checks(tmp_path) -> None:
    framed = Image.new("RGB", (120, 90), "black")
    framed.paste(blobs(2, 60), (30, 15))
    see_through = blobs(3).convert("RGBA")
    see_through.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (96, 1))))
    for image in (blobs(1), framed, see_through, blobs(4, 1200)):
        assert fingerprint_of(image) == measure(image).fingerprint
