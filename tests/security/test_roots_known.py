"""Files that a journal of the caller's makes last: written, moved and removed below a root, whatever they are called."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from security.errors import RefusedPath
from security.roots import Root
from tests.security.test_roots import OUTSIDE, posix_only


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with a file inside and a secret outside."""
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    (tmp_path / "inside" / "sub" / "a.txt").write_text("hello")
    (tmp_path / "secret.txt").write_text("secret")
    return Root(tmp_path / "inside")


@pytest.mark.parametrize(
    "relative", [text for text in OUTSIDE if text not in ("~", "~/x", "-rf", "nul", "CON.txt", "a:b")]
)
def test_known_files_stay_inside_too(root: Root, relative: str) -> None:
    if "\uff0e" in relative or relative == "C:\\x":
        return  # plain names where they stood before
    works = (
        lambda: root.known_child(relative),
        lambda: root.write_known(relative, b"x", durable=False),
        lambda: root.remove_file(relative),
        lambda: root.move_in(relative, root, "sub/a.txt"),
        lambda: root.move_in("new.txt", root, relative),
    )
    for work in works:
        with pytest.raises(RefusedPath):
            work()
    assert (root.path / "sub" / "a.txt").read_text() == "hello"
    assert (root.path.parent / "secret.txt").read_text() == "secret"


@posix_only
def test_known_files_may_have_names_that_are_not_safe_everywhere(root: Root) -> None:
    root.write_known("sub/what: is this?", b"x", durable=True)
    assert stat.S_IMODE((root.path / "sub/what: is this?").stat().st_mode) == 0o600
    root.move_in("-rf", root, "sub/what: is this?")
    assert (root.path / "-rf").read_bytes() == b"x"


@posix_only
def test_known_files_follow_no_link(root: Root) -> None:
    (root.path / "way").symlink_to(root.path.parent)
    (root.path / "link.txt").symlink_to(root.path.parent / "secret.txt")
    works = (
        lambda: root.write_known("way/secret.txt", b"x", durable=False),
        lambda: root.write_known("link.txt", b"x", durable=False),
        lambda: root.remove_file("way/secret.txt"),
        lambda: root.remove_file("link.txt"),
        lambda: root.move_in("a.txt", root, "way/secret.txt"),
        lambda: root.move_in("a.txt", root, "link.txt"),
        lambda: root.move_in("way/b.txt", root, "sub/a.txt"),
    )
    for work in works:
        with pytest.raises(RefusedPath):
            work()
    assert (root.path.parent / "secret.txt").read_text() == "secret" and (root.path / "sub" / "a.txt").exists()


def test_files_move_between_roots_and_leave_no_empty_folders(root: Root, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Root(tmp_path / "other")
    before = (root.path / "sub" / "a.txt").stat()
    other.move_in("x/y/b.txt", root, "sub/a.txt")
    moved = other.path / "x" / "y" / "b.txt"
    assert moved.read_text() == "hello" and moved.stat().st_mtime_ns == before.st_mtime_ns
    assert not (root.path / "sub").exists() and root.path.exists()
    other.remove_file("x/y/b.txt")
    assert list(other.path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        other.remove_file("x/y/b.txt")


@posix_only
def test_folders_and_devices_do_not_move(root: Root, tmp_path: Path) -> None:
    os.mkfifo(root.path / "pipe")
    for source in ("sub", "pipe"):
        with pytest.raises(RefusedPath):
            Root(tmp_path).move_in("new", root, source)


@posix_only
def test_files_move_to_another_disk(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, 0

    def other_disk(*arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(18, "Invalid cross-device link")
        replace(*arguments, **options)  # type: ignore[arg-type]

    (tmp_path / "other").mkdir()
    before = (root.path / "sub" / "a.txt").stat()
    monkeypatch.setattr(os, "replace", other_disk)
    Root(tmp_path / "other").move_in("b.txt", root, "sub/a.txt")
    moved = tmp_path / "other" / "b.txt"
    assert moved.read_text() == "hello" and moved.stat().st_mtime_ns == before.st_mtime_ns
    assert not (root.path / "sub").exists() and [path.name for path in moved.parent.iterdir()] == ["b.txt"]


def test_what_a_killed_program_left_is_removed(root: Root) -> None:
    for name in (".partial-0123456789abcdef", ".partial-mine", "partial-0123456789abcdef"):
        (root.path / "sub" / name).write_text("x")
    root.remove_partials("sub/a.txt")
    names = {path.name for path in (root.path / "sub").iterdir()}
    assert names == {"a.txt", ".partial-mine", "partial-0123456789abcdef"}
