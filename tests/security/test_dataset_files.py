"""Datasets, captions and patterns of somebody hostile: no link leads out, nothing fills the memory or shuts the tab."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
from PIL import Image

from security.errors import RefusedConfig, SafelightError
from security.patterns import MAX_REPLACED_CHARACTERS, Pattern, replace_text
from security.policy import FREE_DISK_RESERVE_BYTES
from trainer.config.schema import TrainConfig
from trainer.dataset.export import Layout, export_dataset, export_to
from trainer.dataset.incoming import folder_bundle, sorted_out, table_captions
from trainer.dataset.masks import read_mask
from trainer.dataset.prepare import Crop, PrepareOptions, prepare_dataset
from trainer.dataset.settings import own_folder
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import MAX_WAITING, TaskControl, Tasks
from trainer.workspace import Workspace

needs_links = pytest.mark.skipif(os.name == "nt", reason="making links needs rights on Windows")
BOMBS = [(r"(?=(.*))", r"\1"), (r"(.*)", r"\1" * 1900), (".", "b" * 4000), ("(?P<a>a*)", r"\g<a>" * 700)]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def dataset(studio: Studio) -> Dataset:
    """One picture with a caption, whose history has three steps."""
    made = studio.create("pets")
    Image.new("RGB", (64, 64), "red").save(made.path / "cat.png")
    for text in ("a cat", "a red cat", "a red square"):
        made.set_captions("Caption", {"cat.png": text})
    return made


class Kept:
    """A target of an export that keeps it in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def add(self, path: str, data: bytes) -> None:
        self.files[path] = data


# ---- links ----------------------------------------------------------------------------------------------------------


@needs_links
def test_a_caption_that_is_a_link_shows_and_exports_nothing(dataset: Dataset, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("private key")
    Image.new("RGB", (64, 64), "blue").save(dataset.path / "dog.png")
    (dataset.path / "dog.txt").symlink_to(secret)
    captions, faults = dataset.read_captions()
    assert captions == {"cat.png": "a red square"} and "is a link" in faults["dog.png"]
    kept = Kept()
    export_dataset(dataset, kept, Layout.FOLDERS, TaskControl())
    assert not any(b"private key" in data for data in kept.files.values())
    with pytest.raises(SafelightError, match="link"):
        dataset.set_captions("over it", {"dog.png": "x"})
    assert secret.read_text() == "private key"


@needs_links
def test_masks_behind_a_link_are_not_read(dataset: Dataset, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("L", (64, 64)).save(outside / "cat.png.png")
    (own_folder(dataset.path) / "masks").symlink_to(outside)
    for look in (dataset.masks, lambda: read_mask(dataset, "cat.png")):
        with pytest.raises(SafelightError, match="masks is a link"):
            look()


@needs_links
@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
def test_no_file_of_the_database_may_be_a_link(studio: Studio, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    own = own_folder(dataset.path)
    with sqlite3.connect(own / "history.sqlite") as database:
        database.execute("PRAGMA journal_mode=WAL")
    database.close()
    (own / f"history.sqlite{suffix}").unlink(missing_ok=True)
    (own / f"history.sqlite{suffix}").symlink_to(victim)
    assert "is a link" in studio.open("pets").history_fault
    assert victim.read_text() == "precious"


# ---- histories of strangers -----------------------------------------------------------------------------------------

COLUMNS = {
    "contents": ("sha256", "data", "size", "mtime_ns", "inode"),
    "edits": ("seq", "time", "label", "undone"),
    "files": ("path", "before", "after", "left"),
    "known": ("path", "content"),
    "pending": ("path", "have", "want", "source", "done", "step", "boot"),
    "numbers": ("name", "value"),
}
VALUES = [-1, 2**63 - 1, 1.5, float("inf"), "text", "../../x", b"\xff\xfe", b"../../x", b"/etc/passwd", b"", None]


WORK: list[Callable[[Dataset], object]] = [
    lambda found: found.history.edits(),
    lambda found: found.history.next_steps(),
    lambda found: found.revision,
    lambda found: found.history.undo(),
    lambda found: found.set_captions("x", {"cat.png": "new"}),
    lambda found: found.history.redo(),
]


@pytest.mark.parametrize("table", COLUMNS)
def test_odd_values_in_a_history_end_in_a_sentence(studio: Studio, dataset: Dataset, table: str) -> None:
    """Whatever stands in the database: it opens, the pictures can be looked at, and what fails says why."""
    path = own_folder(dataset.path) / "history.sqlite"
    good, chance = path.read_bytes(), random.Random(table)
    outside = sorted(entry for entry in studio.workspace.path.rglob("*") if not entry.is_relative_to(dataset.path))
    for column in COLUMNS[table]:
        for value in [5, *chance.sample(VALUES, 3)]:
            path.write_bytes(good)
            database = sqlite3.connect(path)
            try:
                if table == "pending":
                    row = (b"cat.txt", None, None, None, 0, 1, "other")
                    database.execute("INSERT OR REPLACE INTO pending VALUES(?, ?, ?, ?, ?, ?, ?)", row)
                assert database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                database.execute(f"UPDATE OR IGNORE {table} SET {column}=?", (value,))
                database.commit()
            except sqlite3.Error:
                continue
            finally:
                database.close()
            found = studio.open("pets")
            for work in WORK:
                try:
                    work(found)
                except SafelightError as error:
                    assert str(error)
            assert found.pictures() == ["cat.png"]
            found.history.set_aside()
            for old in own_folder(dataset.path).glob("damaged-*/history.sqlite"):
                old.unlink()
            assert studio.open("pets").history_fault == ""
    assert (
        sorted(entry for entry in studio.workspace.path.rglob("*") if not entry.is_relative_to(dataset.path)) == outside
    )


@pytest.mark.parametrize("number", [10**400, -(10**400), float("nan"), float("inf"), True, "1"])
def test_odd_numbers_in_the_marks_end_in_a_sentence(dataset: Dataset, number: object) -> None:
    (own_folder(dataset.path) / "marks.json").write_text(
        json.dumps({"version": 1, "marks": {"cat.png": {"focus": [0.5, number]}}})
    )
    with pytest.raises(SafelightError, match=r"marks\.json|number"):
        _ = dataset.marks


def test_no_more_tasks_wait_than_somebody_means_to_start() -> None:
    tasks, go = Tasks(), threading.Event()
    try:
        with pytest.raises(SafelightError, match="wait for their turn"):
            for number in range(MAX_WAITING + 3):  # one of each lane runs
                tasks.start("x", "x", "x", lambda _control: str(go.wait(30)), lane=str(number % 2))
    finally:
        go.set()
        assert tasks.shutdown(30)


def test_exports_and_versions_leave_the_reserve_of_the_disk(
    studio: Studio, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(total=1 << 40, used=0, free=FREE_DISK_RESERVE_BYTES + 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    options = PrepareOptions(crop=Crop.SQUARE)
    for work in (
        lambda: export_to(dataset, tmp_path / "x.zip", Layout.FOLDERS, TaskControl()),
        lambda: prepare_dataset(studio, dataset, "new", options, TrainConfig()),
        lambda: studio.copy("pets", "new"),
    ):
        with pytest.raises(SafelightError, match="Make room first"):
            work()
    assert not (tmp_path / "x.zip").exists() and [path.name for path in dataset.path.parent.iterdir()] == ["pets"]


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("find", "replacement"), BOMBS)
def test_no_replacement_fills_the_memory(find: str, replacement: str) -> None:
    with pytest.raises(RefusedConfig, match="far too long"):
        Pattern(find, seconds=5).replace("a" * 60_000, replacement)


def test_no_plain_replacement_fills_the_memory() -> None:
    with pytest.raises(RefusedConfig, match="far too long"):
        replace_text("a" * 60_000, "A", "\N{GRINNING FACE}" * 4000, ignore_case=True)
    assert replace_text("a cat. A cat", "a c", "b.", ignore_case=True) == "b.at. b.at"
    assert len(replace_text("a" * 500, "a", "b" * 1000, ignore_case=False)) == 500_000 < MAX_REPLACED_CHARACTERS


@pytest.mark.parametrize("find", ["a*", "(a)(b)?", "(?:)", r"\b", "(?=(a))", "(?<n>.)b", "b+?", "^|$", "(a)|(c)"])
@pytest.mark.parametrize("replacement", ["", "x", r"[\g<0>]", r"\\", r"\1-", r"\n"])
def test_what_is_replaced_is_what_the_package_would_replace(find: str, replacement: str) -> None:
    chance = random.Random(find + replacement)
    for _ in range(20):
        text = "".join(chance.choices("abc ,", k=chance.randrange(12)))
        try:
            wanted = regex.compile(find).sub(replacement, text)
        except regex.error:
            continue
        assert Pattern(find, seconds=5).replace(text, replacement) == wanted


@pytest.mark.parametrize(
    ("table", "captions"),
    [
        ("file_name,text\na.png,x,y,z\n", [("a.png", "x")]),
        ("file_name\na.png,x,y\n", None),
        ("\n\n", []),
    ],
)
def test_a_table_with_cells_beyond_its_head(tmp_path: Path, table: str, captions: object) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(table)
    if captions is None:
        with pytest.raises(SafelightError, match="no column of captions"):
            table_captions(path, "metadata.csv")
    else:
        assert table_captions(path, "metadata.csv") == captions


# ---- names ----------------------------------------------------------------------------------------------------------


def test_folders_without_end_are_walked(tmp_path: Path) -> None:
    deep = "d/" * 1900 + "x.png"
    assert [one.name for one in sorted_out({deep: tmp_path}).pictures] == ["x.png"]
    one_more = {deep: tmp_path, "d/y.png": tmp_path}
    assert len(sorted_out(one_more).pictures[0].name) == len(deep) - 2
    assert [one.name for one in sorted_out({"a/10_b/c/x.png": tmp_path}).pictures] == ["10_b/c/x.png"]


@needs_links
def test_a_deep_folder_of_this_machine_is_walked(tmp_path: Path) -> None:
    here, depth = Path.cwd(), 1100  # Python calls no function deeper than 1,000 times
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Image.new("RGB", (8, 8)).save("x.png")
        bundle = folder_bundle(tmp_path)
        assert [one.name for one in bundle.pictures] == ["d/" * depth + "x.png"] and not bundle.skipped
        Path("x.png").unlink()
    finally:
        while Path.cwd() != tmp_path:  # pytest itself could not delete it
            os.chdir("..")
            Path("d").rmdir()
        os.chdir(here)


@needs_links
@pytest.mark.parametrize("name", ["aux", "a:b", "e\u0301", "trail.", "x ", "\u202egpj", "a\nb", "\udcff", "A" * 200])
def test_a_folder_with_an_odd_name_does_not_shut_the_tab(studio: Studio, name: str) -> None:
    """It was put there by hand, where its name is allowed; new datasets get better ones."""
    (studio.workspace.datasets_dir / name).mkdir()
    assert studio.open(name).pictures() == []
    studio.delete(name)
    with pytest.raises(SafelightError):
        studio.open(name)


@pytest.mark.parametrize("name", ["..", "../datasets", ".", "", "pets/..", "pets/", ".hidden", "/etc"])
def test_no_name_of_a_dataset_leads_elsewhere(studio: Studio, dataset: Dataset, name: str) -> None:
    (studio.workspace.datasets_dir / ".hidden").mkdir()
    for work in (studio.open, studio.create, studio.delete, lambda text: studio.rename("pets", text)):
        with pytest.raises(SafelightError):
            work(name)
    assert dataset.path.is_dir()


def test_a_strangers_history_takes_nothing_from_the_cache(studio: Studio, dataset: Dataset) -> None:
    """Only what an import staged is moved in: the cache also holds uploads and exports of others."""
    secret = studio.workspace.cache_dir / "exports" / "others.png"
    secret.parent.mkdir()
    secret.write_bytes(b"of another dataset")
    with studio.staging():
        for source in ("cache:exports/others.png", "cache:../exports/others.png"):
            with sqlite3.connect(own_folder(dataset.path) / "history.sqlite") as database:
                row = database.execute("INSERT INTO contents(size, mtime_ns, inode) VALUES(18, 0, 0)").lastrowid
                values = (b"stolen.png", None, row, source.encode(), 0, 1, "other")
                database.execute("INSERT OR REPLACE INTO pending VALUES(?, ?, ?, ?, ?, ?, ?)", values)
            database.close()
            studio.open("pets")
            assert secret.read_bytes() == b"of another dataset" and not (dataset.path / "stolen.png").exists()
