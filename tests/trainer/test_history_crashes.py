"""The history under force: any sequence of edits, kill -9 at every step, two programs at once, full disks, hostile files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.errors import SafelightError
from tests.trainer.histories import FILES, LARGE, Bench, quick_folder, redo_all, undo_all
from trainer.dataset import history, history_plan, history_store
from trainer.dataset.history import Content, History
from trainer.dataset.history_store import Store

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="fork and kill as on Linux and macOS")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, if there is such a place."""
    quick = quick_folder()
    yield quick or tmp_path
    if quick is not None:
        shutil.rmtree(quick)


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_store, "INLINE_BYTES", 64)
    monkeypatch.setattr(history_plan, "INLINE_BYTES", 64)
    monkeypatch.setattr(history, "settle_later", lambda one: None)  # no thread of this process in its children


# ---- any sequence of edits ----

NAMES = ["a.txt", "a.png", "sub/b.png", "sub/b.txt", "x/y/c.png", ".safelight/masks/a.png.png", ".safelight/marks.json"]
CHANGE = st.one_of(
    st.none(),
    st.binary(max_size=3),
    st.integers(65, 70).map(lambda size: b"%d" % size * 40),  # large ones, of few sizes and moments
    st.sampled_from(NAMES[:5]).map(lambda name: ("from", name)),
    st.binary(max_size=2).map(lambda data: ("staged", data)),
)
STEP = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), CHANGE, min_size=1, max_size=4),
    st.sampled_from(["undo", "redo", "undo", "undo", "begin", "end", "settle"]),
)


def contents(bench: Bench, changes: dict[str, object], now: dict[str, bytes], number: int) -> dict[str, Content]:
    """What a drawn edit means here: moves only from files that it takes away, each to one place."""
    meant: dict[str, Content] = {}
    for name, change in changes.items():
        if isinstance(change, bytes) or change is None:
            meant[name] = change
        elif change[0] == "staged":  # type: ignore[index]
            meant[name] = bench.staged(f"{number}-{len(meant)}", change[1])  # type: ignore[index]
        elif change[1] in now and change[1] in changes and change[1] != name:  # type: ignore[index]
            source = bench.folder / change[1]  # type: ignore[index]
            if source not in meant.values():
                meant[name] = source
    while lost := [name for name, content in meant.items() if _stays(bench, content, meant)]:
        del meant[lost[0]]
    return meant


def _stays(bench: Bench, content: Content, meant: dict[str, Content]) -> bool:
    inside = isinstance(content, Path) and content.is_relative_to(bench.folder)
    return inside and content.relative_to(bench.folder).as_posix() not in meant  # type: ignore[union-attr]


def after(now: dict[str, bytes], meant: dict[str, Content]) -> dict[str, bytes]:
    """What the files must be then, by a model of a few lines."""
    new = dict(now)
    for name, content in meant.items():
        if isinstance(content, Path):
            inside = content.parent.name != "cache"
            old = next((one for one in now if content.as_posix().endswith(f"/set/{one}")), "") if inside else ""
            new[name] = now[old] if inside else content.read_bytes()
        elif content is None:
            new.pop(name, None)
        else:
            new[name] = content
    return new


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=12))
def test_any_sequence_of_edits_undone_gives_back_the_same_bytes(
    tmp_path: Path, steps: list[str | dict[str, object]]
) -> None:
    bench = Bench(Path(tempfile.mkdtemp(dir=tmp_path)))
    model, open_edits = dict(FILES), []
    for number, step in enumerate(steps):
        if isinstance(step, dict):
            meant = contents(bench, step, model, number)
            wanted = after(model, meant)
            (open_edits[-1][1].add if open_edits and number % 2 else lambda one: bench.history.apply("edit", one))(
                meant
            )
            model = wanted
        elif step == "begin" and not open_edits:
            opened = bench.history.long("long")
            open_edits.append((opened, opened.__enter__()))
        elif step == "end" and open_edits:
            open_edits.pop()[0].__exit__(None, None, None)
        elif step == "settle":
            bench.history.settle()
        elif step in ("undo", "redo"):
            try:
                edit = getattr(bench.history, step)()
                assert not edit.left
            except SafelightError:
                pass
            model = bench.files()
        assert bench.files() == model
    for opened, _ in open_edits:
        opened.__exit__(None, None, None)
    top = dict(model)
    undone = [edit for edit in bench.history.edits() if edit.undone]
    undo_all(bench.history)
    assert bench.files() == FILES
    redo_all(bench.history)
    assert undone or bench.files() == top
    undo_all(bench.history)
    assert bench.files() == FILES


# ---- killed ----


def in_child(work: Callable[[], object]) -> int:
    """Runs work in a process of its own. Returns the signal that ended it, 0 if none did."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Runs work in a child that is killed before its `number`th write to the disk. Returns whether it came so far."""
    left = number

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return count

    def patched() -> None:
        for name in ("replace", "unlink", "pwrite", "ftruncate"):
            setattr(os, name, counted(getattr(os, name)))
        transaction = Store.transaction

        def committed(store: Store) -> object:
            return counted(lambda: None)() or transaction(store)

        Store.transaction = committed  # type: ignore[assignment, method-assign]
        Store.expect = counted(Store.expect)  # type: ignore[assignment, method-assign]
        Store.carried_out = counted(Store.carried_out)  # type: ignore[assignment, method-assign]
        work()

    return in_child(patched) == signal.SIGKILL


def long_work(bench: Bench) -> None:
    with bench.history.long("long") as edit:
        for mark in (b"1", b"2"):
            edit.add({"a.txt": mark, f"{mark.decode()}.png": bench.staged(mark.decode(), b"picture" + mark)})


def twice(bench: Bench) -> None:
    bench.history.apply("one", bench.every_kind(b"1"))
    bench.history.undo()
    bench.history.apply("two", {"a.txt": b"2", "sub/b.png": None})


WORKS: dict[str, tuple[Callable[[Bench], object], Callable[[Bench], object]]] = {
    "apply": (lambda bench: None, lambda bench: bench.history.apply("all", bench.every_kind(b"1"))),
    "undo": (lambda bench: bench.history.apply("all", bench.every_kind(b"1")), lambda bench: bench.history.undo()),
    "apply after undo": (twice, lambda bench: (bench.history.undo(), bench.history.apply("x", bench.every_kind(b"3")))),
    "redo": (
        lambda bench: (bench.history.apply("all", bench.every_kind(b"1")), bench.history.undo()),
        lambda bench: bench.history.redo(),
    ),
    "long": (lambda bench: None, long_work),
}


@posix_only
@pytest.mark.parametrize(("before", "work"), WORKS.values(), ids=WORKS)
def test_killed_at_any_step_an_edit_is_whole_or_undone(
    tmp_path: Path, before: Callable[[Bench], object], work: Callable[[Bench], object]
) -> None:
    whole = Bench(tmp_path / "whole")
    before(whole)
    allowed = [whole.files()]
    if work is long_work:
        allowed += [{**FILES, "a.txt": b"1", "1.png": b"picture1"}]
    if before is twice:
        whole.history.undo()
        allowed.append(whole.files())
        whole.history.redo()
    work(whole)
    allowed.append(whole.files())
    number, went_on = 0, True
    seen = set()
    while went_on:
        bench = Bench(tmp_path / str(number))
        before(bench)
        went_on = killed_at(number, lambda bench=bench: work(bench))  # type: ignore[misc]
        bench.history.recover()
        files = bench.files()
        assert files in allowed, f"killed at {number}"
        seen.add(allowed.index(files))
        undo_all(bench.history)
        assert bench.files() == FILES, f"killed at {number}"
        redo_all(bench.history)
        undo_all(bench.history)
        assert bench.files() == FILES, f"killed at {number}"
        number += 1
    assert number > 10 and seen == set(range(len(allowed)))


@posix_only
@pytest.mark.parametrize(
    ("old", "new"), [("a long caption", "short"), ("short", "a long caption"), ("same size", "SAME SIZE")]
)
def test_captions_written_in_place_are_not_torn(tmp_path: Path, old: str, new: str) -> None:
    names = [f"{number}.txt" for number in range(history.DURABLE_FILES + 1)]
    number, went_on, torn = 0, True, 0
    while went_on:
        bench = Bench(tmp_path / str(number), {name: f"{old} {name}".encode() for name in names})
        before, want = bench.files(), {name: f"{new} {name}".encode() for name in names}
        bench.write("apart.txt", b"mine")
        if number == 0:
            os.link(bench.folder / names[0], tmp_path / "second name")
        went_on = killed_at(number, lambda bench=bench, want=want: bench.history.apply("new", want))  # type: ignore[misc]
        found = bench.files()
        torn += any(found[name] not in (before[name], want[name]) for name in names)
        bench.history.recover()
        assert bench.files() in ({**before, "apart.txt": b"mine"}, {**want, "apart.txt": b"mine"}), (
            f"killed at {number}"
        )
        undo_all(bench.history)
        assert bench.files() == {**before, "apart.txt": b"mine"}
        number += 1
    assert number > 2 * len(names)
    assert (torn > 0) == (len(new) < len(old))  # else this test has not met what it is about
    assert (tmp_path / "second name").read_bytes() == f"{old} {names[0]}".encode()


@posix_only
def test_killed_at_random_moments_nothing_is_torn(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {f"{number}.txt": b"start" for number in range(40)})
    start, dice = bench.files(), random.Random(7)

    def work() -> None:
        for mark in range(10_000):
            bench.history.apply(str(mark), dict.fromkeys(start, b"%d" % mark))

    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(0)
        time.sleep(0.01 + dice.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        bench.history.recover()
        assert len(set(bench.files().values())) == 1
    undo_all(bench.history)
    assert bench.files() == start


@posix_only
def test_a_power_cut_that_lost_files_is_mended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a large edit may be empty, missing or old then, since nothing waited for the disk."""
    names = [f"{number}.txt" for number in range(20)]
    bench.history.apply("captions", dict.fromkeys(names, b"text"))
    wanted = bench.files()
    bench.write("0.txt", b"")
    (bench.folder / "1.txt").unlink()
    bench.write("2.txt", b"by hand")
    bench.history.recover()
    assert bench.files() != wanted  # the machine was not started anew: these are changes of the user
    monkeypatch.setattr(history_store, "boot_name", lambda: "another start")
    monkeypatch.setattr(history, "boot_name", lambda: "another start")
    bench.history.recover()
    assert bench.files() == {**wanted, "2.txt": b"by hand"}
    bench.history.settle()
    (bench.folder / "3.txt").unlink()
    monkeypatch.setattr(history, "boot_name", lambda: "a third one")
    bench.history.recover()
    assert "3.txt" not in bench.files()  # settled: what is gone now was taken away by the user


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path)


@posix_only
def test_two_programs_at_once_lose_nothing(bench: Bench) -> None:
    def work(mark: str) -> None:
        for number in range(12):
            bench.history.apply(
                f"{mark}{number}", {"a.txt": mark.encode() + b"%d" % number, f"{mark}.txt": b"%d" % number}
            )

    children = []
    for mark in "xyz":
        child = os.fork()
        if child == 0:
            try:
                work(mark)
            finally:
                os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    edits = bench.history.edits()
    assert sorted(edit.label for edit in edits) == sorted(f"{mark}{number}" for mark in "xyz" for number in range(12))
    assert bench.files()["a.txt"] == edits[0].label.encode()
    assert undo_all(bench.history) == 36 and bench.files() == FILES


# ---- no room ----


@pytest.mark.parametrize("failing", ["replace", "unlink"])
def test_a_full_disk_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    function = getattr(os, failing)
    for number in range(20):
        left = number

        def fail_once(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, failing, fail_once)
            try:
                bench.history.apply("all", bench.every_kind(b"1"))
            except SafelightError as error:
                assert "disk is full" in str(error) and "Nothing was changed" in str(error)
        if left >= 0:
            break
        assert bench.files() == FILES and bench.history.edits() == []
    assert 0 < number < 20
    undo_all(bench.history)
    assert bench.files() == FILES


def test_a_disk_that_stays_full_is_told_and_the_rest_follows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fail(*arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        replace(*arguments, **options)  # type: ignore[arg-type]

    def no_room(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(os, "pwrite", no_room)
        with pytest.raises(SafelightError, match="the rest is then written by itself"):
            bench.history.apply("captions", {"a.txt": b"y", "sub/b.txt": b"y", "notes.txt": b"y"})
    assert b"y" in bench.files().values()
    bench.history.recover()
    undo_all(bench.history)
    assert bench.files() == FILES


# ---- files that somebody else made ----


def damaged(bench: Bench, data: bytes) -> None:
    (bench.folder / ".safelight" / "history.sqlite").write_bytes(data)


def sql(bench: Bench, text: str, *values: object) -> None:
    with sqlite3.connect(bench.folder / ".safelight" / "history.sqlite") as database:
        database.execute(text, values)
    database.close()


def linked(bench: Bench) -> None:
    path = bench.folder / ".safelight" / "history.sqlite"
    path.rename(bench.cache / "elsewhere")
    path.symlink_to(bench.cache / "elsewhere")


HARM: dict[str, Callable[[Bench], object]] = {
    "text": lambda bench: damaged(bench, b"this is no database, but it is long enough to be looked at" * 40),
    "cut off": lambda bench: damaged(bench, (bench.folder / ".safelight/history.sqlite").read_bytes()[:5000]),
    "a trigger": lambda bench: sql(bench, "CREATE TRIGGER t AFTER INSERT ON edits BEGIN DELETE FROM files; END"),
    "a view": lambda bench: sql(bench, "CREATE VIEW v AS SELECT 1"),
    "another table": lambda bench: sql(bench, "ALTER TABLE edits ADD COLUMN more TEXT"),
    "a table less": lambda bench: sql(bench, "DROP TABLE known"),
    "a link": linked,
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_history_is_named_and_can_be_set_aside(bench: Bench, harm: Callable[[Bench], object]) -> None:
    bench.history.apply("tag", {"a.txt": b"tagged", "a.png": None})
    harm(bench)
    before = bench.files()
    for work in (bench.history.undo, lambda: bench.history.apply("x", {"a.txt": b"1"}), bench.history.edits):
        with pytest.raises(SafelightError, match=r"history\.sqlite"):
            work()
        assert bench.files() == before
    aside = bench.history.set_aside()
    assert (
        aside is not None
        and (aside / "history.sqlite").exists()
        and (aside / "blobs" / "2").read_bytes() == b"picture a"
    )
    bench.history.apply("again", {"a.txt": b"1"})
    assert undo_all(bench.history) == 1 and bench.files() == before


PLANTED = [
    ("../secret.txt", ""), ("/tmp/secret.txt", ""), (".safelight/history.sqlite", ""), (".ssh/keys", ""),
    ("stolen.png", "cache:../secret.txt"), ("stolen.png", "own:../../secret.txt"), ("stolen.png", "own:history.sqlite"),
    ("stolen.png", "own:incoming/../history.sqlite"), ("stolen.png", "/etc/hostname"), ("way/x.txt", ""),
]  # fmt: skip


@pytest.mark.parametrize(("path", "source"), PLANTED)
def test_a_planted_history_reaches_nothing_outside(bench: Bench, tmp_path: Path, path: str, source: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    (bench.folder / "way").symlink_to(tmp_path)
    bench.history.apply("tag", {"a.txt": b"tagged"})
    everything = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".sqlite"}
    data, size = (None, len(b"secret")) if source else (b"planted", 7)
    sql(
        bench,
        "INSERT INTO contents(id, data, size, mtime_ns) VALUES(99, ?, ?, ?)",
        data,
        size,
        secret.stat().st_mtime_ns,
    )
    sql(bench, "INSERT INTO pending VALUES(?, NULL, 99, ?, 0, 9, 'x')", os.fsencode(path), source.encode() or None)
    sql(bench, "INSERT INTO edits VALUES(50, 50, 1.0, 'planted', 0)")
    sql(bench, "INSERT INTO files VALUES(50, ?, 99, NULL, 0)", os.fsencode(path))
    for work in (bench.history.recover, bench.history.undo, bench.history.redo):
        try:
            work()
        except SafelightError:
            continue
    now = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".sqlite"}
    assert now == everything


def test_the_limit_of_the_tests_is_one(bench: Bench) -> None:
    """Large contents lie in blobs/ here, or half of these tests would prove nothing."""
    bench.history.apply("mask", {".safelight/masks/a.png.png": LARGE})
    bench.history.undo()
    assert len(list((bench.folder / ".safelight" / "blobs").iterdir())) == 1
    assert isinstance(bench.history, History)
