"""Pictures at several sizes and crops: each as often as it should be seen, in turn, and encoded as it is shown."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_dataset, tiny_sdxl
from tests.trainer.test_plan import pictures, source
from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import DatasetConfig
from trainer.dataset.batches import BatchPlan, PlacedPicture
from trainer.dataset.buckets import Placement, fit, moved
from trainer.dataset.cache import load_pixels
from trainer.dataset.complaints import picture_complaints
from trainer.dataset.placing import place_alone, place_pictures
from trainer.dataset.scan import Picture
from trainer.dataset.settings import Mark
from trainer.dataset.sources import Role
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.runs import RunFolder
from trainer.setup import prepare
from trainer.step_inputs import condition
from trainer.workspace import Workspace


def settings(**values: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"resolution": 64, **values})


def placed(own: list[Picture], **values: Any) -> list[PlacedPicture]:
    return place_pictures([(source(), own)], settings(**values), 32)


# --- places of a crop ---


def test_places_are_spread_over_all_the_way_that_a_crop_can_move() -> None:
    resting = fit((100, 64), (64, 64))
    assert (resting.resized, resting.left) == ((100, 64), 18)
    places = moved(resting, [(number + 0.5) / 4 for number in range(4)])
    assert [(one.left, one.top) for one in places] == [(4, 0), (13, 0), (23, 0), (32, 0)]  # floor(37 (k + 1/2) / 4)
    assert all((one.resized, one.bucket, one.original) == ((100, 64), (64, 64), (100, 64)) for one in places)
    assert moved(resting, [0.0, 0.9999]) == [
        Placement((100, 64), (100, 64), (64, 64), 0, 0),
        Placement((100, 64), (100, 64), (64, 64), 36, 0),
    ]


def test_a_crop_that_can_not_move_is_one_and_one_that_can_a_little_is_few() -> None:
    assert len(moved(fit((64, 64), (64, 64)), [0.1, 0.4, 0.7])) == 1
    assert len(moved(fit((65, 64), (64, 64)), [0.1, 0.4, 0.7])) == 2


def test_crops_depend_on_the_picture_alone() -> None:
    wide = pictures(3, (160, 64))
    first = placed(wide, random_crops=4, aspect_buckets=False)
    again = placed(list(reversed(wide)), random_crops=4, aspect_buckets=False)
    assert {(one.picture.name, one.placement) for one in first} == {(one.picture.name, one.placement) for one in again}
    assert len({one.placement.left for one in first}) > 4  # not all pictures are cut at the same places


def test_a_crop_chosen_by_hand_stays() -> None:
    (chosen,) = pictures(1, (160, 64))
    marked = Picture(**{**vars(chosen), "mark": Mark((0.2, 0.5), 1.0)})
    (one,) = placed([marked], random_crops=4, aspect_buckets=False)
    assert one.placement == fit((160, 64), (64, 64), (0.2, 0.5))


def test_held_out_pictures_have_one_size_and_the_middle() -> None:
    wide = pictures(2, (160, 64))
    crops = settings(random_crops=4, more_resolutions=(96,), aspect_buckets=False)
    plain = settings(aspect_buckets=False)
    assert place_alone([(0, one) for one in wide], crops, 32) == place_alone([(0, one) for one in wide], plain, 32)


# --- turns ---


@pytest.mark.parametrize("repeats", [1, 2])
def test_every_picture_is_seen_as_often_as_ever_and_its_crops_in_turn(repeats: int) -> None:
    own = placed(pictures(5, (160, 64), repeats), random_crops=3, aspect_buckets=False)
    assert len(own) == 15 and sum(one.looks for one in own) == 5 * repeats
    plan = BatchPlan(own, 2, 1)
    crops_of: dict[str, list[int]] = {}
    for epoch in range(6):
        samples = [own[sample.index] for batch in plan._epoch_batches(epoch) for sample in batch]
        assert Counter(one.picture.name for one in samples) == {f"{number}.png": repeats for number in range(5)}
        for one in sorted(samples, key=lambda one: one.crop_number):
            crops_of.setdefault(one.picture.name, []).append(one.crop_number)
    for crops in crops_of.values():
        assert Counter(crops) == {0: 2 * repeats, 1: 2 * repeats, 2: 2 * repeats}
        for turn in range(0, len(crops), 3):
            assert len(set(crops[turn : turn + 3])) == 3  # none twice before all have been seen


def test_samples_of_other_crops_and_sizes_have_names_of_their_own() -> None:
    own = placed(pictures(2, (320, 128)), random_crops=2, more_resolutions=(96,), aspect_buckets=False)
    plan = BatchPlan(own, 2, 1)
    by_name: dict[str, set[int]] = {}
    for epoch in range(4):
        for batch in plan._epoch_batches(epoch):
            assert len({own[sample.index].placement.bucket for sample in batch}) == 1
            for sample in batch:
                by_name.setdefault(sample.sample_id, set()).add(sample.index)
    assert len(by_name) == len(own) == 8
    assert all(len(indices) == 1 for indices in by_name.values())


def test_plain_runs_keep_the_names_of_their_samples() -> None:
    own = placed(pictures(1))
    assert BatchPlan(own, 1, 1).batch(0)[0].sample_id == f"{own[0].picture.content_hash[:16]}:0"


# --- sizes ---


def test_a_further_size_takes_the_pictures_that_are_large_enough() -> None:
    own = [*pictures(2, (64, 64)), *pictures(2, (128, 128), first=2), *pictures(1, (40, 40), first=4)]
    found = placed(own, resolution=96, more_resolutions=(128, 64))
    sizes: dict[str, set[tuple[int, int]]] = {}
    for one in found:
        sizes.setdefault(one.picture.name, set()).add(one.placement.bucket)
    assert sizes["0.png"] == sizes["1.png"] == {(96, 96), (64, 64)}
    assert sizes["2.png"] == sizes["3.png"] == {(96, 96), (128, 128), (64, 64)}
    assert sizes["4.png"] == {(96, 96)}  # never dropped: the first size takes all, enlarged if need be
    assert [one.size_number for one in found] == sorted(one.size_number for one in found)
    assert all(one.placement.enlargement <= 1 for one in found if one.size_number > 0)


def test_regularisation_pictures_are_seen_as_often_at_all_sizes_together() -> None:
    scanned = [
        (source(), pictures(3, (128, 128), repeats=2)),
        (source(Role.REGULARISATION), [*pictures(4, (64, 64), first=3), *pictures(1, (128, 128), first=7)]),
    ]
    found = place_pictures(scanned, settings(more_resolutions=(128,), random_crops=3), 32)
    looks = {kind: sum(one.looks for one in found if one.is_prior is kind) for kind in (False, True)}
    assert looks[False] == looks[True] == 3 * 2 * 2
    assert {one.looks for one in found if one.is_prior} == {Fraction(12, 6)}


def test_sizes_that_come_twice_are_refused() -> None:
    for further in ([512], [768, 768]):
        with pytest.raises(ConfigError, match=r"dataset\.more_resolutions names (512|768) a second time"):
            parse_config({"dataset": {"resolution": 512, "more_resolutions": further}})
    assert parse_config({"dataset": {"more_resolutions": ["768"]}}).dataset.more_resolutions == (768,)


def test_complaints_count_pictures_and_not_their_sizes_and_crops() -> None:
    own = [*pictures(2, (320, 128)), *pictures(1, (40, 40), first=2)]
    found = placed(own, resolution=128, random_crops=3, more_resolutions=(64,), aspect_buckets=False)
    texts = [text for _, text in picture_complaints(found, 2)]
    assert len(texts) == 1 and texts[0].startswith("1 pictures are smaller")
    bare = Picture(**{**vars(pictures(1, (320, 128))[0]), "has_caption": False})
    several = placed([bare], resolution=128, random_crops=3, more_resolutions=(64,), aspect_buckets=False)
    assert len(several) == 6
    assert picture_complaints(several, 2)[0][1].startswith("1 pictures have no caption file")
    shapes = pictures(1, (320, 128)) + pictures(3, (128, 320), first=1)
    alone = placed(shapes, resolution=128, random_crops=3)
    assert any("1 pictures are alone" in text for _, text in picture_complaints(alone, 2))


# --- encoded as shown ---


def test_each_crop_and_size_is_encoded_and_told_to_the_model_as_it_is(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 2, size=(190, 100))
    config = parse_config(
        {
            "model": {"base": str(tiny_sdxl(tmp_path / "xl")), "precision": "fp32"},
            "dataset": {
                "folder": str(folder),
                "resolution": 96,
                "more_resolutions": [64],
                "random_crops": 2,
                "aspect_buckets": False,
                "flip_augmentation": True,
            },
            "training": {"device": "cpu", "max_train_steps": 1},
        }
    )
    workspace = Workspace.open(tmp_path / "space")
    folder_of_run = RunFolder.create(workspace, config)
    run = prepare(config, find_inputs(config, workspace), folder_of_run, workspace, lambda event: None, Control())
    assert len(run.pictures.placed) == 8 and len(run.pictures.latents) == 16
    for index, one in enumerate(run.pictures.placed):
        for flip in (False, True):
            pixels = load_pixels(one.picture.path, one.placement, flip=flip)
            expected = run.family.encode_images(run.components, pixels)
            assert torch.equal(run.pictures.latents[index, flip], expected.cpu())
            told = condition(run, run.pictures, [index], [flip], [one.picture.caption]).time_ids
            shown = one.placement.mirrored() if flip else one.placement
            assert told is not None
            assert told[0].tolist() == [100, 190, shown.top, shown.left, *reversed(one.placement.bucket)]
    lefts = [one.placement.left for one in run.pictures.placed if one.picture.name == "000.png"]
    assert len(set(lefts)) == 4
