"""Finding pictures, choosing buckets, ordering batches, making captions."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from security.errors import RefusedPath, SafelightError
from trainer.config.schema import DatasetConfig
from trainer.dataset.batches import BatchPlan, PlacedPicture
from trainer.dataset.buckets import Placement, bucket_sizes, place
from trainer.dataset.captions import read_caption, training_caption, with_trigger
from trainer.dataset.scan import (
    Picture,
    find_dataset,
    scan_folder,
)
from trainer.workspace import Workspace


def placed_pictures(sizes: list[tuple[int, int]], repeats: int = 1) -> list[PlacedPicture]:
    from pathlib import Path

    table = bucket_sizes(512, 64, 2.0)
    return [
        PlacedPicture(Picture(Path(f"{number}.png"), size, "", True, repeats, f"{number:064d}"), place(size, table))
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("resolution", "step"), [(64, 16), (512, 64), (1024, 64), (768, 64)])
def test_buckets_have_the_area_and_shape_asked_for(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, step, 2.0)
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution * resolution
        assert max(width, height) / min(width, height) <= 2.0
        assert (height, width) in sizes


def test_one_to_one_means_squares_only() -> None:
    assert bucket_sizes(512, 64, 1.0) == [(512, 512)]


@pytest.mark.parametrize("size", [(3000, 1000), (512, 512), (40, 90), (1, 4000), (1021, 1333)])
def test_a_picture_covers_its_bucket_and_is_cut_in_the_middle(size: tuple[int, int]) -> None:
    placement = place(size, bucket_sizes(512, 64, 2.0))
    assert placement.resized[0] >= placement.bucket[0] and placement.resized[1] >= placement.bucket[1]
    assert min(placement.resized[0] - placement.bucket[0], placement.resized[1] - placement.bucket[1]) == 0
    assert abs((placement.resized[0] - placement.bucket[0]) - 2 * placement.left) <= 1


def test_the_nearest_shape_is_chosen() -> None:
    assert (
        place((2000, 1000), bucket_sizes(512, 64, 2.0)).bucket == (704, 320)
        or place((2000, 1000), bucket_sizes(512, 64, 2.0)).bucket[0] > 600
    )
    assert place((1000, 1000), bucket_sizes(512, 64, 2.0)).bucket == (512, 512)


def test_mirroring_swaps_what_was_cut_left_and_right() -> None:
    placement = Placement((100, 100), (70, 64), (64, 64), 1, 0)
    assert placement.mirrored().left == 5
    assert placement.mirrored().mirrored() == placement


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_an_epoch_shows_every_picture_as_often_as_its_repeats(batch_size: int) -> None:
    placed = placed_pictures([(512, 512)] * 7 + [(1000, 500)] * 5 + [(500, 1000)], repeats=2)
    plan = BatchPlan(placed, batch_size, seed=1)
    for epoch in range(3):
        numbers = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        seen = [sample for number in numbers for sample in plan.batch(number)]
        assert sorted((sample.index, sample.repeat) for sample in seen) == [(i, r) for i in range(13) for r in range(2)]
        for number in numbers:
            assert len({placed[sample.index].placement.bucket for sample in plan.batch(number)}) == 1


def test_epochs_and_seeds_differ_and_the_past_can_be_asked_again() -> None:
    placed = placed_pictures([(512, 512)] * 16)
    plan = BatchPlan(placed, 4, seed=1)
    first = [plan.batch(number) for number in range(4)]
    second = [plan.batch(number) for number in range(4, 8)]
    assert first != second
    assert [plan.batch(number) for number in range(4)] == first
    assert [BatchPlan(placed, 4, seed=2).batch(number) for number in range(4)] != first


def test_four_batches_of_one_hold_what_a_batch_of_four_does() -> None:
    placed = placed_pictures([(512, 512)] * 8)
    whole, single = BatchPlan(placed, 4, seed=3), BatchPlan(placed, 1, seed=3)
    for number in range(6):
        assert whole.batch(number) == [single.batch(4 * number + part)[0] for part in range(4)]


def test_captions_are_shuffled_dropped_and_triggered_as_asked() -> None:
    settings = DatasetConfig(shuffle_tags=True, keep_tokens=1)
    caption = "mira, red hat, smile, garden, rain, night"
    texts = {training_caption(caption, settings, 1, step, "a") for step in range(40)}
    assert len(texts) > 10
    assert all(text.startswith("mira, ") and sorted(text.split(", ")) == sorted(caption.split(", ")) for text in texts)
    dropped = DatasetConfig(caption_dropout_rate=0.25)
    empty = sum(training_caption("x", dropped, 1, step, "a") == "" for step in range(2000))
    assert 430 < empty < 570
    assert training_caption("b, a", DatasetConfig(), 1, 2, "a") == "b, a"
    assert with_trigger("a cat", "mira") == "mira, a cat"
    assert with_trigger("hat, mira, cat, mira", "mira") == "mira, hat, cat"
    assert with_trigger("in the garden, mira smiles", "mira") == "in the garden, mira smiles"
    assert with_trigger("mira smiles, mira", "mira") == "mira smiles, mira"
    assert with_trigger("", "mira") == "mira"
    assert with_trigger("a cat", "") == "a cat"


def test_a_folder_is_read_with_repeats_and_reasons(tmp_path) -> None:
    (tmp_path / "5_hats").mkdir()
    Image.new("RGB", (70, 50), "red").save(tmp_path / "5_hats" / "a.png")
    (tmp_path / "5_hats" / "a.txt").write_text("a red\n hat ", encoding="utf-8")
    Image.new("L", (64, 64)).save(tmp_path / "b.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "notes.md").write_text("not a picture", encoding="utf-8")
    scan = scan_folder(tmp_path, DatasetConfig(repeats=2, trigger_word="mira"))
    found = {picture.path.name: picture for picture in scan.pictures}
    assert found["a.png"].repeats == 5 and found["b.jpg"].repeats == 2
    assert found["a.png"].caption == "mira, a red hat" and found["a.png"].size == (70, 50)
    assert found["b.jpg"].caption == "mira" and not found["b.jpg"].has_caption
    reasons = dict(scan.skipped)
    assert set(reasons) == {"tiny.png", "broken.png"}
    assert "8x8" in reasons["tiny.png"]


def test_foreign_names_and_folders_are_refused(tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    with pytest.raises(SafelightError, match="no dataset named"):
        find_dataset(workspace, "nothing")
    for text in (str(tmp_path / "nothing"), "D:\\pics\\10_mira", "pics\\mira", "D:pics", "pics/mira"):
        with pytest.raises(SafelightError) as refused:
            find_dataset(workspace, text)
        assert str(refused.value).startswith(f"There is no folder {text} on this machine. Choose a dataset")
    for text in ("\\\\server\\share", "//server/share"):
        with pytest.raises(RefusedPath, match="another machine"):
            find_dataset(workspace, text)
    if sys.platform != "win32":
        with pytest.raises(SafelightError, match="belongs to the system"):
            find_dataset(workspace, "/proc/self")


def test_a_dataset_may_be_given_by_any_path_to_it(tmp_path, monkeypatch) -> None:
    workspace = Workspace.open(tmp_path / "space")
    (tmp_path / "my set" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for text in (str(tmp_path / "my set"), "my set/a/..", f"{tmp_path}/my set/"):
        assert find_dataset(workspace, text) == (tmp_path / "my set").resolve()
    assert find_dataset(workspace, "my set/a") == (tmp_path / "my set" / "a").resolve()


def test_a_caption_is_a_text(tmp_path) -> None:
    for data, reason in ((b"\xff\xfe", "not UTF-8"), (b"\x7fELF\x02\x01\x01\0\0", "NUL"), (b"x" * 70_000, "at most")):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(SafelightError, match=reason):
            read_caption(tmp_path / "a.png", ".txt")
