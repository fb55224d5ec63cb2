"""What is known of pictures is read once, follows every change, and survives a damaged cache; thumbnails likewise."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from security.errors import RefusedFile
from trainer.dataset import cache_database
from trainer.dataset import facts as facts_module
from trainer.dataset.facts import PictureFacts, facts_of, remember_facts
from trainer.dataset.thumbnails import THUMBNAIL_SIDE, thumbnail_of
from trainer.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really opened."""
    opened: list[Path] = []
    read = facts_module.read_picture

    def counted(path: Path) -> bytes:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(facts_module, "read_picture", counted)
    return opened


def test_facts_are_right_and_read_once(workspace: Workspace, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (30, 20), (1, 2, 3, 4)).save(path)
    expected = PictureFacts(30, 20, "PNG", 1, True, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert [facts_of(workspace, path) for _ in range(3)] == [expected] * 3
    assert reads == [path]
    cache_database._databases.clear()  # as another program, or this one after a restart
    assert facts_of(workspace, path) == expected
    assert reads == [path]


def test_a_change_of_size_or_time_is_seen(workspace: Workspace, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    first = facts_of(workspace, path)
    then = path.stat().st_mtime_ns
    Image.new("RGB", (8, 8), "blue").save(path)
    os.utime(path, ns=(then + 1, then + 1))
    second = facts_of(workspace, path)
    assert second.num_bytes == first.num_bytes and second.sha256 != first.sha256
    Image.new("RGB", (9, 8), "blue").save(path)
    os.utime(path, ns=(then + 1, then + 1))
    assert facts_of(workspace, path).width == 9
    assert len(reads) == 3


def test_what_is_wrong_is_remembered_too(workspace: Workspace, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"<html>")
    for _ in range(2):
        with pytest.raises(RefusedFile, match="It is a web page"):
            facts_of(workspace, path)
    assert reads == [path]
    with pytest.raises(RefusedFile, match=r"gone\.png cannot be read"):
        facts_of(workspace, tmp_path / "gone.png")


def test_facts_that_were_handed_in_are_used(workspace: Workspace, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / os.fsdecode(b"b\xff.png")
    Image.new("RGB", (8, 8)).save(path)
    told = PictureFacts(8, 8, "PNG", 1, False, path.stat().st_size, "ab" * 32)
    remember_facts(workspace, [(path, told)])
    assert facts_of(workspace, path) == told
    assert reads == []


def test_a_damaged_cache_is_made_anew(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    known = facts_of(workspace, path)
    for damage in (b"no database at all" * 500, b"SQLite format 3\0" + bytes(4000)):
        cache_database._databases.clear()
        for left in workspace.cache_dir.glob("pictures.sqlite*"):
            left.unlink()
        (workspace.cache_dir / "pictures.sqlite").write_bytes(damage)
        assert facts_of(workspace, path) == known
        cache_database._databases.clear()
        assert facts_of(workspace, path) == known


def test_many_threads_ask_at_once(workspace: Workspace, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (number + 1, 2)).save(path)
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append([facts_of(workspace, path).width for path in paths]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(1, 41))] * 4


def test_programs_that_open_a_new_cache_at_once_don_t_throw_it_away(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    for _ in range(5):
        for left in workspace.cache_dir.glob("pictures.sqlite*"):
            left.unlink()
        threads = [
            threading.Thread(
                target=lambda: cache_database.CacheDatabase(
                    workspace.cache_dir, "pictures.sqlite", facts_module._TABLE, facts_module._VERSION
                ).write(f"REPLACE INTO pictures VALUES ({', '.join('?' * 11)})", [[path.name, *[1] * 10]])
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.messages == []


def test_thumbnails_are_made_once_per_content(workspace: Workspace, tmp_path: Path) -> None:
    path, second = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (600, 300), "red").save(path)
    second.write_bytes(path.read_bytes())
    small = thumbnail_of(workspace, path)
    assert Image.open(small).size == (THUMBNAIL_SIDE, 128) and small.suffix == ".webp"
    assert small.is_relative_to(workspace.cache_dir)
    made = small.stat().st_mtime_ns
    assert thumbnail_of(workspace, second) == small == thumbnail_of(workspace, path)
    assert small.stat().st_mtime_ns == made
    Image.new("RGB", (600, 300), "blue").save(path)
    assert thumbnail_of(workspace, path) != small
    tiny = tmp_path / "c.png"
    Image.new("RGB", (THUMBNAIL_SIDE, 4)).save(tiny)
    assert thumbnail_of(workspace, tiny) == tiny
    tiny.write_bytes(tiny.read_bytes()[:40])
    with pytest.raises(RefusedFile):
        thumbnail_of(workspace, tiny)
