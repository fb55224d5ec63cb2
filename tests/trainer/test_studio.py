"""The datasets of a workspace: made, copied, renamed, deleted; captions, crops, masks and pictures, all with undo."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from security.errors import SafelightError
from trainer.dataset.history import Edit
from trainer.dataset.settings import DatasetSettings, Mark, mask_path
from trainer.dataset.studio import Dataset, Studio, caption_name, mask_name
from trainer.tasks import TaskControl
from trainer.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def hats(studio: Studio) -> Dataset:
    """Three pictures: one with a caption, one in a sub-folder, two that share a caption file."""
    dataset = studio.create("hats")
    (dataset.path / "10_red").mkdir()
    for name in ("a.png", "10_red/b.png", "c.png", "c.jpg"):
        Image.new("RGB", (40, 30), "red").save(dataset.path / name)
    (dataset.path / "a.txt").write_text("a  hat,\nred", encoding="utf-8")
    (dataset.path / "c.txt").write_text("c", encoding="utf-8")
    (dataset.path / "notes.md").write_text("mine", encoding="utf-8")
    return dataset


def content(folder: Path) -> dict[str, bytes]:
    """All files but the history's."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if "history" not in name and "/blobs/" not in name}


# ---- datasets ----


def test_datasets_come_and_go(studio: Studio, hats: Dataset) -> None:
    assert [info.name for info in studio.datasets()] == ["ink", "ink_heldout", "hats"]
    assert hats.pictures() == ["10_red/b.png", "a.png", "c.jpg", "c.png"] and not hats.builtin
    hats.set_captions("x", {"a.png": "changed"})
    renamed = studio.rename("hats", "caps")
    assert renamed.name == "caps" and renamed.captions()["a.png"] == "changed"
    renamed.history.undo()  # the history comes along
    assert renamed.captions()["a.png"] == "a hat, red"
    with pytest.raises(SafelightError, match="no dataset named 'hats'"):
        studio.open("hats")
    studio.delete("caps")
    assert [info.name for info in studio.datasets()] == ["ink", "ink_heldout"]


@pytest.mark.parametrize("name", ["hats", "HATS", "ink", "../x", "", ".hidden", "a/b", "con", "x" * 300])
def test_bad_and_taken_names_are_refused(studio: Studio, hats: Dataset, name: str) -> None:
    for work in (studio.create, lambda name: studio.copy("hats", name), lambda name: studio.rename("hats", name)):
        with pytest.raises(SafelightError):
            work(name)
    assert len(studio.datasets()) == 3 and len(hats.pictures()) == 4


def test_a_free_name_is_found(studio: Studio, hats: Dataset) -> None:
    assert studio.free_name("caps") == "caps"
    assert studio.free_name("Hats") == "Hats-2"
    studio.create("hats-2")
    assert studio.free_name("hats") == "hats-3"


def test_a_copy_has_everything_but_the_history(studio: Studio, hats: Dataset) -> None:
    hats.set_settings("s", DatasetSettings("hat_v1", {"10_red": 3}))
    hats.set_marks("m", {"a.png": Mark((0.1, 0.2), 2)})
    hats.set_masks("k", {"10_red/b.png": b"mask"})
    (hats.path / "link.png").symlink_to(hats.path / "a.png")
    told: list[tuple[int, int]] = []
    copy = studio.copy("hats", "caps", lambda done, total: told.append((done, total)))
    assert copy.settings == DatasetSettings("hat_v1", {"10_red": 3}, made_from="hats")
    assert copy.marks == hats.marks and copy.masks() == {"10_red/b.png"} and copy.history.edits() == []
    original = content(hats.path)
    del original["link.png"]
    assert content(copy.path).keys() == original.keys()
    assert all(content(copy.path)[name] == data for name, data in original.items() if name != ".safelight/dataset.json")
    assert told == [(number, len(original)) for number in range(len(original))]
    copy.set_captions("x", {"a.png": "other"})
    assert hats.captions()["a.png"] == "a hat, red"


def test_a_copy_that_is_cancelled_leaves_nothing(studio: Studio, hats: Dataset) -> None:
    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studio.copy("hats", "caps", cancel)
    assert [path.name for path in studio.workspace.datasets_dir.iterdir()] == ["hats"]


def test_embedded_datasets_can_be_copied_and_not_changed(studio: Studio) -> None:
    ink = studio.open("ink")
    assert ink.builtin and len(ink.pictures()) == 30 == len(ink.captions()) and ink.revision == 0
    works: list[Callable[[], object]] = [
        lambda: ink.set_captions("x", {"01-rabbit-face.png": "x"}), lambda: ink.remove_pictures("x", ink.pictures()[:1]),
        lambda: ink.set_marks("x", {}), lambda: ink.history.edits(), lambda: studio.rename("ink", "x"),
        lambda: studio.delete("ink"), lambda: ink.caption_changes({}),
    ]  # fmt: skip
    for work in works:
        with pytest.raises(SafelightError, match="Copy it first"):
            work()
    copy = studio.copy("ink", "my ink")
    assert copy.captions() == ink.captions() and copy.settings.made_from == "ink"
    copy.set_captions("x", {copy.pictures()[0]: "mine"})


def test_nothing_is_renamed_or_deleted_while_a_task_works_on_it(studio: Studio, hats: Dataset) -> None:
    release = threading.Event()

    def work(control: TaskControl) -> str:
        release.wait(10)
        return ""

    studio.tasks.start("tag", "Tagging", "hats", work)
    for change in (lambda: studio.delete("hats"), lambda: studio.rename("hats", "caps")):
        with pytest.raises(SafelightError, match="'Tagging' is working on hats"):
            change()
    release.set()
    assert studio.tasks.wait(10)
    with hats.history.long("from another program"):
        for change in (lambda: studio.delete("hats"), lambda: studio.rename("hats", "caps")):
            with pytest.raises(SafelightError, match="'from another program' is not over"):
                change()
    studio.rename("hats", "caps")


def test_staging_is_emptied_also_after_a_crash(studio: Studio) -> None:
    with studio.staging() as folder:
        assert folder.is_relative_to(studio.workspace.cache_dir)
        left = folder.with_name("left")
        left.mkdir()
        os.utime(left, (time.time() - 90_000,) * 2)
        with studio.staging():
            assert folder.exists() and not left.exists()
    assert not folder.exists()


# ---- one dataset ----


def test_captions_are_written_and_removed(hats: Dataset) -> None:
    assert hats.captions() == {"a.png": "a hat, red", "c.jpg": "c", "c.png": "c"}
    before = hats.revision
    edit = hats.set_captions("tags", {"a.png": " two\n words ", "10_red/b.png": "b", "c.png": None})
    assert set(edit.files) == {"a.txt", "10_red/b.txt", "c.txt"} and hats.revision > before
    assert hats.captions() == {"a.png": "two words", "10_red/b.png": "b"}
    hats.history.undo()
    assert hats.captions() == {"a.png": "a hat, red", "c.jpg": "c", "c.png": "c"}
    with hats.history.long("long") as long:
        long.add(hats.caption_changes({"a.png": "one"}))
        long.add(hats.caption_changes({"a.png": "two", "c.png": ""}))
    assert hats.captions() == {"a.png": "two", "c.jpg": "", "c.png": ""}
    hats.history.undo()
    assert hats.captions()["a.png"] == "a hat, red"


def test_captions_that_cannot_be_read_are_named(hats: Dataset) -> None:
    (hats.path / "a.txt").write_bytes(b"\xff\xfe")
    (hats.path / "10_red" / "b.txt").write_bytes(b"x" * 70_000)
    faults = hats.caption_faults()
    assert "UTF-8" in faults["a.png"] and "70000" in faults["10_red/b.png"] and len(faults) == 2
    assert hats.captions().keys() == {"c.jpg", "c.png"}
    hats.set_captions("x", {"a.png": "new", "10_red/b.png": "new"})
    assert hats.caption_faults() == {}
    hats.history.undo()
    assert (hats.path / "a.txt").read_bytes() == b"\xff\xfe"


@pytest.mark.parametrize(
    "name", ["none.png", "../a.png", "a.txt", "notes.md", ".safelight/x.png", "/etc/x.png", "", "10_red"]
)
def test_only_pictures_of_the_dataset_are_touched(hats: Dataset, name: str) -> None:
    before = content(hats.path)
    works: list[Callable[[], Edit]] = [
        lambda: hats.set_captions("x", {"a.png": "x", name: "x"}), lambda: hats.remove_pictures("x", ["a.png", name]),
        lambda: hats.set_masks("x", {name: b"x"}), lambda: hats.move_pictures("x", {name: "d.png"}),
    ]  # fmt: skip
    for work in works:
        with pytest.raises(SafelightError):
            work()
    assert content(hats.path) == before


@pytest.mark.parametrize("text", ["x" * 64_001, "a\0b"])
def test_texts_that_could_not_be_read_again_are_not_written(hats: Dataset, text: str) -> None:
    with pytest.raises(SafelightError, match=r"caption of a\.png"):
        hats.set_captions("x", {"c.png": "fine", "a.png": text})
    assert hats.captions()["c.png"] == "c"


def test_pictures_go_with_all_that_is_theirs_and_come_back(hats: Dataset) -> None:
    hats.set_marks("m", {"a.png": Mark((0.1, 0.2), 2), "c.png": Mark(zoom=3)})
    hats.set_masks("k", {"a.png": b"mask a"})
    before = content(hats.path)
    edit = hats.remove_pictures("Remove 2 pictures", ["a.png", "c.jpg"])
    assert set(edit.files) == {"a.png", "a.txt", "c.jpg", mask_name("a.png"), ".safelight/marks.json"}
    assert hats.pictures() == ["10_red/b.png", "c.png"] and hats.captions() == {"c.png": "c"}
    assert hats.marks == {"c.png": Mark(zoom=3)} and hats.masks() == set()
    hats.history.undo()
    assert content(hats.path) == before
    hats.remove_pictures("both", ["c.png", "c.jpg"])
    assert not (hats.path / "c.txt").exists()


def test_pictures_are_moved_with_all_that_is_theirs(hats: Dataset) -> None:
    hats.set_marks("m", {"a.png": Mark((0.1, 0.2), 2), "10_red/b.png": Mark(zoom=3)})
    hats.set_masks("k", {"a.png": b"mask a"})
    before = content(hats.path)
    hats.move_pictures("move", {"a.png": "20_blue/z.png", "10_red/b.png": "a.png"})
    assert hats.pictures() == ["20_blue/z.png", "a.png", "c.jpg", "c.png"]
    assert hats.captions()["20_blue/z.png"] == "a hat, red" and "a.png" not in hats.captions()
    assert hats.marks == {"20_blue/z.png": Mark((0.1, 0.2), 2), "a.png": Mark(zoom=3)}
    assert mask_path(hats.path, "20_blue/z.png").read_bytes() == b"mask a" and hats.masks() == {"20_blue/z.png"}
    hats.history.undo()
    assert content(hats.path) == before


@pytest.mark.parametrize(
    "moves",
    [
        {"a.png": "c.png"}, {"a.png": "A.png"}, {"a.png": "c.PNG"}, {"a.png": "a.jpg"}, {"a.png": "../x.png"},
        {"a.png": "x:y.png"}, {"a.png": "d.png", "c.png": "d.png"}, {"a.png": ".safelight/d.png"},
    ],
)  # fmt: skip
def test_moves_that_would_lose_something_are_refused(hats: Dataset, moves: dict[str, str]) -> None:
    before = content(hats.path)
    with pytest.raises(SafelightError):
        hats.move_pictures("x", moves)
    assert content(hats.path) == before


def test_marks_of_two_writers_at_once_are_all_kept(studio: Studio, hats: Dataset) -> None:
    for number in range(20):
        Image.new("RGB", (40, 40)).save(hats.path / f"{number}.png")
    threads = [
        threading.Thread(target=lambda name=name: studio.open("hats").set_marks("x", {name: Mark(zoom=2)}))  # type: ignore[misc]
        for name in [f"{number}.png" for number in range(20)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hats.marks) == 20
    hats.set_marks("middle", {"0.png": Mark(), "1.png": None})
    assert len(hats.marks) == 18


def test_a_damaged_history_hides_no_pictures(studio: Studio, hats: Dataset) -> None:
    hats.set_captions("x", {"a.png": "x"})
    (hats.path / ".safelight" / "history.sqlite").write_bytes(b"damaged" * 1000)
    dataset = studio.open("hats")
    assert "history.sqlite" in dataset.history_fault and dataset.revision == 0
    assert len(dataset.pictures()) == 4 and dataset.captions()["a.png"] == "x"
    with pytest.raises(SafelightError, match="damaged"):
        dataset.set_captions("x", {"a.png": "y"})
    dataset.history.set_aside()
    assert studio.open("hats").history_fault == ""
    studio.open("hats").set_captions("x", {"a.png": "y"})


def test_names_of_what_belongs_to_a_picture() -> None:
    assert caption_name("10_a/b.c.png") == "10_a/b.c.txt"
    assert mask_name("10_a/b.png") == ".safelight/masks/10_a/b.png.png"
