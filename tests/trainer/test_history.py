"""The history of a dataset: edits of every kind, there and back, and what happens to files that others changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from security.errors import SafelightError
from tests.trainer.histories import FILES, LARGE, Bench, redo_all, undo_all
from trainer.dataset import history_plan, history_store
from trainer.dataset.history import History


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(history_store, "INLINE_BYTES", 64)
    monkeypatch.setattr(history_plan, "INLINE_BYTES", 64)
    return Bench(tmp_path)


def test_an_edit_of_every_kind_goes_back_and_forth(bench: Bench) -> None:
    picture = (bench.folder / "a.png").stat()
    edit = bench.history.apply("All  of\nit", bench.every_kind(b"1"))
    after = bench.files()
    assert after == {
        "a.txt": b"1", "notes.txt": b"", "sub/moved-1.png": b"picture a",
        "new-1/c.png": b"picture c1", ".safelight/masks/a.png.png": LARGE + b"1", ".safelight/dataset.json": b"{}1",
    }  # fmt: skip
    moved = (bench.folder / "sub/moved-1.png").stat()
    assert (moved.st_ino, moved.st_mtime_ns) == (picture.st_ino, picture.st_mtime_ns)  # moved, never copied
    assert not any(bench.cache.iterdir())
    assert edit.label == "All of it" and set(edit.files) == set(after) - {"notes.txt"} | {
        "a.png",
        "sub/b.png",
        "sub/b.txt",
    }
    for _ in range(3):
        undone = bench.history.undo()
        assert bench.files() == FILES and undone.undone and not undone.left
        assert not (bench.folder / "new-1").exists()  # folders that an edit made go with it
        assert not bench.history.redo().undone
        assert bench.files() == after


def test_edits_are_listed_and_named(bench: Bench) -> None:
    history = bench.history
    assert history.edits() == [] and history.next_steps() == (None, None) and history.revision == 0
    assert not (bench.folder / ".safelight").exists()  # looking makes nothing
    revisions = [0]
    for number in range(3):
        history.apply(f"edit {number}", {"a.txt": b"%d" % number})
        revisions.append(history.revision)
    history.undo()
    revisions.append(history.revision)
    assert revisions == sorted(set(revisions))
    assert [(edit.label, edit.undone, edit.files) for edit in bench.history.edits()] == [
        ("edit 2", True, ("a.txt",)), ("edit 1", False, ("a.txt",)), ("edit 0", False, ("a.txt",)),
    ]  # fmt: skip
    assert [edit.label for edit in history.edits(2)] == ["edit 2", "edit 1"]
    undo, redo = history.next_steps()
    assert undo is not None and redo is not None and (undo.label, redo.label) == ("edit 1", "edit 2")


def test_what_changes_nothing_is_no_edit(bench: Bench) -> None:
    edit = bench.history.apply("same", {"a.txt": b"a hat", "gone.txt": None})
    assert edit.files == () and edit.id == 0
    edit = bench.history.apply("one of two", {"a.txt": b"a hat", "sub/b.txt": b"new"})
    assert edit.files == ("sub/b.txt",)
    assert len(bench.history.edits()) == 1
    with pytest.raises(SafelightError, match="nothing to redo"):
        bench.history.redo()


def test_a_new_edit_loses_nothing_that_was_undone(bench: Bench) -> None:
    history = bench.history
    history.apply("import", {"c.png": bench.staged("c", b"picture c"), "c.txt": b"c"})
    history.apply("tag", {"c.txt": b"c, tagged", "a.txt": b"a hat, tagged"})
    history.undo()
    history.undo()
    history.apply("type", {"a.txt": b"typed"})
    assert [edit.label for edit in history.edits()] == ["type", "Taken back: 2 edits", "tag", "import"]
    assert bench.files() == {**FILES, "a.txt": b"typed"}
    history.undo()
    history.undo()
    assert bench.files() == {**FILES, "c.png": b"picture c", "c.txt": b"c, tagged", "a.txt": b"a hat, tagged"}
    assert undo_all(history) == 2 and bench.files() == FILES
    redo_all(history)
    assert bench.files() == {**FILES, "a.txt": b"typed"}


def test_what_an_undo_left_alone_was_not_taken_back(bench: Bench) -> None:
    history = bench.history
    history.apply("tag", {"a.txt": b"tagged", "sub/b.txt": b"tagged"})
    bench.write("a.txt", b"by hand")
    history.undo()
    history.apply("type", {"notes.txt": b"1"})
    assert [edit.files for edit in history.edits()] == [("notes.txt",), ("sub/b.txt",), ("a.txt", "sub/b.txt")]
    bench.write("a.txt", b"a hat")
    history.undo()
    history.undo()
    assert bench.files() == {**FILES, "sub/b.txt": b"tagged"}


OUTSIDE: dict[str, Callable[[Bench], object]] = {
    "changed": lambda bench: bench.write("a.txt", b"by hand"),
    "deleted": lambda bench: (bench.folder / "a.txt").unlink(),
    "a folder now": lambda bench: ((bench.folder / "a.txt").unlink(), (bench.folder / "a.txt").mkdir()),
    "a link now": lambda bench: (
        (bench.folder / "a.txt").unlink(), (bench.folder / "a.txt").symlink_to(bench.folder / "notes.txt"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_files_that_others_changed_are_left_and_named(bench: Bench, change: Callable[[Bench], object]) -> None:
    bench.history.apply("tag", {"a.txt": b"tagged", "sub/b.txt": b"tagged"})
    change(bench)
    before = bench.files()
    edit = bench.history.undo()
    assert edit.left == ("a.txt",) and bench.history.edits()[0].left == ("a.txt",)
    assert bench.files() == {**before, "sub/b.txt": b"b"}
    assert bench.history.redo().left == ("a.txt",)
    assert bench.files() == before


def test_a_picture_that_others_replaced_is_left(bench: Bench) -> None:
    bench.history.apply("import", {"c.png": bench.staged("c", b"picture c"), "d.png": bench.staged("d", b"picture d")})
    (bench.folder / "c.png").unlink()
    bench.write("c.png", b"PICTURE C")
    os.utime(bench.folder / "c.png", ns=(1, 1))
    assert bench.history.undo().left == ("c.png",)
    assert bench.files() == {**FILES, "c.png": b"PICTURE C"}
    bench.history.apply("remove", {"c.png": None})
    bench.history.undo()
    assert bench.files() == {**FILES, "c.png": b"PICTURE C"}


def test_what_others_put_back_counts_as_undone(bench: Bench) -> None:
    bench.history.apply("tag", {"a.txt": b"tagged", "sub/b.txt": b"tagged"})
    bench.write("a.txt", b"a hat")
    assert bench.history.undo().left == ()
    assert bench.files() == FILES


def test_swaps_and_chains_within_the_dataset(bench: Bench) -> None:
    swap = {
        "a.png": bench.folder / "sub/b.png",
        "sub/b.png": bench.folder / "a.png",
        "a.txt": bench.folder / "sub/b.txt",
    }
    bench.history.apply("swap", {**swap, "sub/b.txt": bench.folder / "a.txt"})
    swapped = {**FILES, "a.png": b"picture b", "sub/b.png": b"picture a", "a.txt": b"b", "sub/b.txt": b"a hat"}
    assert bench.files() == swapped
    bench.history.undo()
    assert bench.files() == FILES
    bench.history.redo()
    assert bench.files() == swapped


BAD_PATHS = [
    "", "/a.txt", "../a.txt", "sub/../a.txt", "a//b", "sub/", ".hidden", "sub/.hidden/a.txt", ".safelight",
    ".safelight/history.sqlite", ".safelight/blobs/1", ".safelight/masks/../history.sqlite", ".safelight/masks/.x/a",
    "a\0b", "a\\b", ".", "..", "sub",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("content", [b"x", None], ids=["write", "remove"])
def test_paths_that_lead_elsewhere_are_refused(bench: Bench, path: str, content: bytes | None) -> None:
    with pytest.raises(SafelightError):
        bench.history.apply("bad", {"a.txt": b"x", path: content})
    assert bench.files() == FILES and bench.history.edits() == []


def test_only_files_of_the_cache_are_moved_in(bench: Bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.png"
    elsewhere.write_bytes(b"mine")
    (bench.cache / "link.png").symlink_to(elsewhere)
    (bench.cache / "folder.png").mkdir()
    sources = [elsewhere, bench.cache / "link.png", bench.cache / "folder.png", bench.cache / "none.png"]
    for source in [*sources, bench.cache / ".." / "mine.png", bench.folder / "a.png"]:
        with pytest.raises(SafelightError):
            bench.history.apply("bad", {"x.png": source})
    one = bench.staged("one.png", b"1")
    with pytest.raises(SafelightError, match="two places"):
        bench.history.apply("bad", {"x.png": one, "y.png": one})
    assert bench.files() == FILES and elsewhere.read_bytes() == b"mine" and one.read_bytes() == b"1"


def test_links_on_the_way_are_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.txt").write_text("out")
    (bench.folder / "way").symlink_to(tmp_path / "out")
    for changes in ({"way/c.txt": b"x"}, {"way/new.txt": b"x"}, {"way/c.txt": None}):
        with pytest.raises(SafelightError, match="link"):
            bench.history.apply("bad", changes)
    assert (tmp_path / "out" / "c.txt").read_text() == "out" and not (tmp_path / "out" / "new.txt").exists()


def test_names_that_are_no_utf8_come_back(bench: Bench) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        bench.write(name, b"picture")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    bench.write("what: is this?.png", b"other")
    before = bench.files()
    assert (
        set(bench.history.apply("remove", {name: None, "what: is this?.png": None}).files)
        == before.keys() - FILES.keys()
    )
    assert bench.files() == FILES
    bench.history.undo()
    assert bench.files() == before


# ---- long edits ----


def test_a_long_edit_is_one_step(bench: Bench) -> None:
    with bench.history.long("tag all") as edit:
        assert edit.add({"a.txt": b"one"}).files == ("a.txt",)
        edit.add({"sub/b.txt": b"two", "c.png": bench.staged("c", b"c")})
        edit.add({"a.txt": b"three"})
        assert edit.add({"a.txt": b"three"}).files == ()
        assert bench.history.edits() == []  # it is listed when it is over
    assert [(one.label, one.files) for one in bench.history.edits()] == [("tag all", ("a.txt", "c.png", "sub/b.txt"))]
    assert bench.files() == {**FILES, "a.txt": b"three", "sub/b.txt": b"two", "c.png": b"c"}
    assert undo_all(bench.history) == 1 and bench.files() == FILES


def test_a_long_edit_keeps_what_was_done_before_an_exception(bench: Bench) -> None:
    with pytest.raises(KeyError), bench.history.long("tag all") as edit:
        edit.add({"a.txt": b"one"})
        raise KeyError("x")
    assert bench.files()["a.txt"] == b"one"
    assert undo_all(bench.history) == 1 and bench.files() == FILES
    with bench.history.long("nothing"):
        pass
    assert [edit.label for edit in bench.history.edits()] == ["tag all"]


def test_edits_during_a_long_one_can_all_be_undone_in_order(bench: Bench) -> None:
    history = bench.history
    history.apply("first", {"notes.txt": b"0"})
    with history.long("tag all") as edit:
        edit.add({"a.txt": b"one", "sub/b.txt": b"one"})
        bench.history.apply("type", {"a.txt": b"typed", "notes.txt": b"1"})
        edit.add({"a.txt": b"one again"})
        with pytest.raises(SafelightError, match="'tag all' is not over"):
            history.undo()
        bench.history.recover()  # it belongs to a living program, so nothing is done to it
        edit.add({"d.txt": b"more"})
    assert [one.label for one in history.edits()] == ["tag all", "type", "tag all", "first"]
    states = [bench.files()]
    for _ in range(4):
        assert history.undo().left == ()
        states.append(bench.files())
    texts = [(state["a.txt"], state["sub/b.txt"], state["notes.txt"]) for state in states]
    assert texts == [
        (b"one again", b"one", b"1"), (b"typed", b"b", b"1"), (b"one", b"b", b"0"), (b"a hat", b"b", b"0"),
        (b"a hat", b"b", b""),
    ]  # fmt: skip
    assert states[-1] == FILES


def test_a_picture_that_a_long_edit_moved_stays_with_its_place(bench: Bench) -> None:
    with bench.history.long("move all") as edit:
        edit.add({"z.png": bench.folder / "a.png", "a.png": None, "notes.txt": b"1"})
        bench.history.apply("remove", {"z.png": None})
        edit.add({"notes.txt": b"2"})
    assert [one.files for one in bench.history.edits()] == [("notes.txt",), ("z.png",), ("a.png", "z.png")]
    assert undo_all(bench.history) == 3 and bench.files() == FILES


def test_large_contents_that_nothing_needs_are_deleted(bench: Bench) -> None:
    blobs = bench.folder / ".safelight" / "blobs"
    with bench.history.long("masks") as edit:
        for number in range(3):
            edit.add({".safelight/masks/a.png.png": LARGE + b"%d" % number})
            bench.history.settle()
    assert list(blobs.glob("*")) == []
    bench.history.apply("mask", {".safelight/masks/a.png.png": LARGE})
    assert len(list(blobs.iterdir())) == 1 and bench.history.num_bytes > len(LARGE)


def test_history_is_forgotten_on_demand(bench: Bench) -> None:
    history = bench.history
    history.apply("remove", {"a.png": None, "sub/b.png": None})
    history.apply("tag", {"a.txt": b"x" * 60})
    before, kept = history.num_bytes, bench.files()
    with history.long("busy"), pytest.raises(SafelightError, match="not over"):
        bench.history.forget()
    history.forget()
    assert history.edits() == [] and bench.files() == kept and history.num_bytes < before
    assert list((bench.folder / ".safelight" / "blobs").glob("*")) == []
    with pytest.raises(SafelightError, match="nothing to undo"):
        history.undo()
    history.apply("again", {"a.txt": b"y"})
    assert undo_all(history) == 1 and bench.files() == kept


def test_locked_keeps_others_out_and_nests(bench: Bench) -> None:
    history = bench.history
    with history.locked(), history.locked():
        with pytest.raises(SafelightError, match="Another program"), History(bench.folder, bench.cache).locked(0):
            pass
        history.apply("inside", {"a.txt": b"1"})
        assert history.edits()[0].label == "inside"
    bench.history.apply("after", {"a.txt": b"2"})
