"""The folders that paths cannot leave, and the paths that users type."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from security import roots
from security.errors import RefusedPath
from security.roots import Root, refuse_unsafe_workspace, resolve_user_file, resolve_user_folder, resolve_user_path

REPOSITORY = Path(roots.__file__).resolve().parents[1]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and modes as on Linux and macOS")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with a file inside and a secret outside."""
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    (tmp_path / "inside" / "sub" / "a.txt").write_text("hello")
    (tmp_path / "secret.txt").write_text("secret")
    return Root(tmp_path / "inside")


def test_child_joins_names_and_relative_paths(root: Root) -> None:
    assert root.child("sub", "a.txt") == root.path / "sub" / "a.txt"
    assert root.child("sub/new.txt") == root.path / "sub" / "new.txt"
    with root.open_read("sub/a.txt") as file:
        assert file.read() == b"hello"


OUTSIDE = [
    "..", ".", "", "../secret.txt", "sub/../../secret.txt", "sub/..", "/etc/passwd", "sub//a.txt", "sub/",
    "..\\secret.txt", "C:\\x", "a\0b", "~", "~/x", "-rf", "nul", "CON.txt", "a:b", "\uff0e\uff0e",
    "sub/\uff0e\uff0e\uff0fsecret.txt",
]  # fmt: skip


@pytest.mark.parametrize("relative", OUTSIDE)
def test_child_refuses_to_leave(root: Root, relative: str) -> None:
    with pytest.raises(RefusedPath):
        root.child(relative)
    with pytest.raises(RefusedPath):
        root.open_read(relative)
    if Path(root.path, relative) != root.path / "sub" / "a.txt":  # Path itself turns "sub//a.txt" into that
        with pytest.raises(RefusedPath):
            root.write_bytes_atomic(Path(root.path, relative), b"x")


def test_child_needs_a_name(root: Root) -> None:
    with pytest.raises(RefusedPath):
        root.child()


@posix_only
def test_existing_files_with_odd_names_can_be_reached(root: Root) -> None:
    (root.path / "-what?.png").write_text("x")
    assert root.child("-what?.png").is_file()


@posix_only
def test_links_are_refused_at_every_step(root: Root, tmp_path: Path) -> None:
    (root.path / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root.path / "linked").symlink_to(tmp_path)
    (root.path / "inner").symlink_to(root.path / "sub")
    (root.path / "dangling").symlink_to(tmp_path / "nowhere")
    for relative in ("link.txt", "linked", "linked/secret.txt", "inner/a.txt", "dangling"):
        with pytest.raises(RefusedPath, match="is a link"):
            root.child(relative)
        with pytest.raises(RefusedPath, match="is a link"):
            root.write_text_atomic(root.path / relative, "x")
        with pytest.raises(RefusedPath, match="is a link"):
            root.remove_tree(root.path / relative)
    assert (tmp_path / "secret.txt").read_text() == "secret"


@posix_only
@pytest.mark.parametrize("swapped", ["sub", "sub/a.txt"])
def test_a_link_swapped_in_after_the_check_is_not_followed(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    (tmp_path / "a.txt").write_text("secret")

    def child_then_swap(self: Root, relative: str) -> Path:
        target = root.path / swapped
        target.rename(tmp_path / "moved")
        target.symlink_to(tmp_path if swapped == "sub" else tmp_path / "secret.txt")
        return self.path / relative

    monkeypatch.setattr(Root, "child", child_then_swap)
    with pytest.raises(RefusedPath, match="cannot be opened"):
        root.open_read("sub/a.txt")


WRITES: dict[str, Callable[[Root, Path], object]] = {
    "write": lambda root, path: root.write_bytes_atomic(path, b"new"),
    "create": lambda root, path: root.create_file(path.relative_to(root.path).as_posix()).close(),
    "remove": lambda root, path: root.remove_tree(path),
}


@posix_only
@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("name", ["a.txt", "new.txt", "tree"])
def test_a_folder_swapped_for_a_link_leads_no_write_outside(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    """The swap comes between the check of the path and its use, as another program could time it."""
    outside = tmp_path / "outside"
    (outside / "tree").mkdir(parents=True)
    (outside / "tree" / "kept.txt").write_text("kept")
    (outside / "a.txt").write_text("secret")
    before = sorted((path.relative_to(outside), path.is_file()) for path in outside.rglob("*"))
    real = Root.child

    def child_then_swap(self: Root, *parts: str) -> Path:
        path = real(self, *parts)
        if (root.path / "sub").is_dir() and not (root.path / "sub").is_symlink():
            (root.path / "sub").rename(tmp_path / "moved")
            (root.path / "sub").symlink_to(outside)
        return path

    monkeypatch.setattr(Root, "child", child_then_swap)
    with pytest.raises(RefusedPath, match=r"on the way is a file or link|is a folder, so|does not exist"):
        WRITES[way](root, root.path / "sub" / name)
    assert sorted((path.relative_to(outside), path.is_file()) for path in outside.rglob("*")) == before
    assert (outside / "a.txt").read_text() == "secret"


@posix_only
def test_deleting_stays_in_the_folder_that_was_opened(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the swap comes even later: after the folder was opened, before anything in it is deleted."""
    for folder in (root.path / "sub" / "tree", tmp_path / "outside" / "tree"):
        folder.mkdir(parents=True)
        (folder / "kept.txt").write_text("kept")

    def swap(target: Path, folder: int) -> None:
        (root.path / "sub").rename(tmp_path / "moved")
        (root.path / "sub").symlink_to(tmp_path / "outside")

    monkeypatch.setattr(roots, "_refuse_other_disks", swap)
    root.remove_tree(root.path / "sub" / "tree")
    assert (tmp_path / "outside" / "tree" / "kept.txt").exists()
    assert not (tmp_path / "moved" / "tree").exists()


@posix_only
def test_a_link_swapped_in_for_the_file_itself_is_replaced_not_followed(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Root.child

    def child_then_swap(self: Root, *parts: str) -> Path:
        (root.path / "sub" / "a.txt").unlink(missing_ok=True)
        path = real(self, *parts)
        path.symlink_to(tmp_path / "secret.txt")
        return path

    monkeypatch.setattr(Root, "child", child_then_swap)
    root.write_text_atomic(root.path / "sub" / "a.txt", "new")
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert not (root.path / "sub" / "a.txt").is_symlink()
    assert (root.path / "sub" / "a.txt").read_text() == "new"
    with pytest.raises(RefusedPath, match="is there already"):
        root.create_file("sub/a.txt")
    assert (tmp_path / "secret.txt").read_text() == "secret"


def test_a_new_file_is_private_and_overwrites_nothing(root: Root) -> None:
    with root.create_file("new/deeper/c.bin") as file:
        file.write(b"1")
    made = root.path / "new" / "deeper" / "c.bin"
    assert made.read_bytes() == b"1"
    with pytest.raises(RefusedPath, match="is there already"):
        root.create_file("new/deeper/c.bin")
    for bad in ("../c.bin", "new/../../c.bin", "/tmp/c.bin", "nul", "sub/a.txt/c.bin"):
        with pytest.raises(RefusedPath):
            root.create_file(bad)
    assert made.read_bytes() == b"1"
    if sys.platform != "win32":
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700


@posix_only
def test_pipes_and_devices_are_not_replaced(root: Root) -> None:
    os.mkfifo(root.path / "pipe")
    with pytest.raises(RefusedPath, match="not a regular file"):
        root.write_text_atomic(root.path / "pipe", "x")
    assert stat.S_ISFIFO((root.path / "pipe").stat().st_mode)


MOUNTS = """
import subprocess, sys
from pathlib import Path
from security.errors import RefusedPath
from security.roots import Root
root = Root(Path(sys.argv[1]))
disk = root.path / "set" / "disk"
disk.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
for removed in (disk, root.path / "set"):
    (disk / "kept.txt").write_text("kept")
    try:
        root.remove_tree(removed)
    except RefusedPath as refusal:
        sys.stdout.write(f"{refusal} {(disk / 'kept.txt').read_text()}\\n")
root.write_text_atomic(disk / "new.txt", "on the other disk")
(disk / "below").mkdir()
root.remove_tree(disk / "below")
sys.stdout.write(str(sorted(path.name for path in disk.iterdir())))
"""


def test_another_disk_that_is_mounted_inside_is_not_emptied(tmp_path: Path) -> None:
    """Reading and writing there is fine: containers mount their data that way."""
    own_mounts = ["unshare", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*own_mounts, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets nobody but root mount anything")
    done = subprocess.run(
        [*own_mounts, sys.executable, "-c", MOUNTS, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    first, second, listed = done.stdout.splitlines()
    assert "is another disk" in first and first.endswith("kept")
    assert "is another disk" in second and second.endswith("kept")
    assert listed == "['kept.txt', 'new.txt']"


@posix_only
def test_only_regular_files_are_opened(root: Root) -> None:
    os.mkfifo(root.path / "pipe")
    with pytest.raises(RefusedPath, match="not a regular file"):
        root.open_read("pipe")
    with pytest.raises(RefusedPath):
        root.open_read("sub")
    with pytest.raises(RefusedPath, match="does not exist"):
        root.open_read("missing.txt")


def test_writing_replaces_as_a_whole_and_makes_folders(root: Root) -> None:
    target = root.child("new", "deeper", "b.txt")
    root.write_text_atomic(target, "äöü")
    assert target.read_bytes() == "äöü".encode()
    root.write_bytes_atomic(target, b"2")
    assert target.read_bytes() == b"2"
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]
    if sys.platform != "win32":
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700


@posix_only
def test_writing_does_not_write_through_a_hard_link(root: Root, tmp_path: Path) -> None:
    os.link(tmp_path / "secret.txt", root.path / "hard.txt")
    root.write_text_atomic(root.path / "hard.txt", "new")
    assert (tmp_path / "secret.txt").read_text() == "secret"


def test_a_failed_write_leaves_the_old_file_and_no_rest(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        root.write_text_atomic(root.path / "sub" / "a.txt", "new")
    assert [path.name for path in (root.path / "sub").iterdir()] == ["a.txt"]
    assert (root.path / "sub" / "a.txt").read_text() == "hello"


def test_paths_may_be_given_as_the_root_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    monkeypatch.chdir(tmp_path)
    Root(Path("real")).write_text_atomic(Path("real") / "a.txt", "1")
    assert (tmp_path / "real" / "a.txt").read_text() == "1"
    if sys.platform != "win32":
        (tmp_path / "linked").symlink_to(tmp_path / "real")
        Root(tmp_path / "linked").write_text_atomic(tmp_path / "linked" / "a.txt", "2")
        assert (tmp_path / "real" / "a.txt").read_text() == "2"


def test_writing_outside_or_onto_a_folder_is_refused(root: Root, tmp_path: Path) -> None:
    for path in (tmp_path / "secret.txt", root.path, root.path / ".." / "secret.txt", root.path / "sub"):
        with pytest.raises(RefusedPath):
            root.write_text_atomic(path, "x")
    assert (tmp_path / "secret.txt").read_text() == "secret"


def test_remove_tree_stays_inside(root: Root, tmp_path: Path) -> None:
    for path in (root.path, tmp_path, root.path / "..", tmp_path / "secret.txt", root.path / "missing"):
        with pytest.raises(RefusedPath):
            root.remove_tree(path)
    if sys.platform != "win32":
        (root.path / "sub" / "out").symlink_to(tmp_path)
    root.remove_tree(root.path / "sub")
    assert not (root.path / "sub").exists()
    assert (tmp_path / "secret.txt").exists()
    root.write_text_atomic(root.path / "one.txt", "1")
    root.remove_tree(root.path / "one.txt")
    assert list(root.path.iterdir()) == []


def test_a_root_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RefusedPath, match="not a folder"):
        Root(tmp_path / "missing")


UNSAFE_WORKSPACES = [
    Path("/"), Path.home(), Path.home().parent, Path("~"), REPOSITORY, REPOSITORY.parent, REPOSITORY / "security",
    REPOSITORY / "ui" / "tabs", REPOSITORY / ".git", REPOSITORY / "tests" / "x",
]  # fmt: skip


@pytest.mark.parametrize("path", UNSAFE_WORKSPACES, ids=str)
def test_unsafe_workspaces_are_refused(path: Path) -> None:
    with pytest.raises(RefusedPath, match="workspace"):
        refuse_unsafe_workspace(path)


@posix_only
@pytest.mark.parametrize("path", ["/etc", "/etc/x", "/usr/share/x", "/proc/1", "/tmp", "/var", "/home", "/dev/x"])
def test_system_folders_are_no_workspace(path: str) -> None:
    with pytest.raises(RefusedPath, match="workspace"):
        refuse_unsafe_workspace(Path(path))


def test_good_workspaces_are_accepted(tmp_path: Path) -> None:
    refuse_unsafe_workspace(tmp_path / "new")
    refuse_unsafe_workspace(REPOSITORY / "workspace")
    refuse_unsafe_workspace(Path.home() / "safelight")


def test_a_workspace_that_is_a_file_or_a_link_to_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedPath, match="is a file"):
        refuse_unsafe_workspace(tmp_path / "file")
    if sys.platform != "win32":
        (tmp_path / "link").symlink_to(Path.home())
        with pytest.raises(RefusedPath, match="your home folder"):
            refuse_unsafe_workspace(tmp_path / "link")


def test_typed_paths_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures of mira").mkdir()
    (tmp_path / "m.safetensors").write_text("x")
    folder, file = tmp_path / "pictures of mira", tmp_path / "m.safetensors"
    assert resolve_user_folder(f"  {folder}/ ", None) == folder.resolve()
    assert resolve_user_folder(f'"{folder}"', [tmp_path]) == folder.resolve()
    assert resolve_user_file(str(file), [tmp_path]) == file.resolve()
    assert resolve_user_path(str(file), None) == file.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve_user_folder("~/pictures of mira", None) == folder.resolve()


REFUSED_TEXTS = {
    "": "empty",
    "pictures": "not a whole path",
    "../x": "not a whole path",
    "./x": "not a whole path",
    "~root/x": "another user",
    "\\\\server\\share": "another machine",
    "//server/share": "another machine",
    "file:///etc": "another machine",
    "/tmp/\0": "control characters",
    "/tmp/a\nb": "control characters",
    "/" + "a" * 5000: "over 4096 characters",
    "/definitely/missing": "does not exist",
}


@pytest.mark.parametrize("text", REFUSED_TEXTS, ids=range(len(REFUSED_TEXTS)))
def test_other_typed_texts_are_refused(text: str) -> None:
    with pytest.raises(RefusedPath, match=REFUSED_TEXTS[text]):
        resolve_user_path(text, None)


@posix_only
def test_typed_paths_stay_in_the_allowed_folders_also_through_links(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "allowed2").mkdir()
    (allowed / "out").symlink_to(tmp_path / "other")
    (allowed / "loop").symlink_to(allowed / "loop")
    for text in (tmp_path / "other", tmp_path / "allowed2", allowed / "out", allowed / ".." / "other"):
        with pytest.raises(RefusedPath, match="not inside"):
            resolve_user_folder(str(text), [allowed])
    with pytest.raises(RefusedPath, match="not inside"):
        resolve_user_path(str(allowed / "loop"), [allowed])
    with pytest.raises(RefusedPath, match="cannot be opened"):
        resolve_user_path(str(allowed / "loop"), None)
    with pytest.raises(RefusedPath, match="belongs to the system"):
        resolve_user_path("/proc/self/environ", None)
    with pytest.raises(RefusedPath, match="belongs to the system"):
        resolve_user_path("/dev/null", None)


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RefusedPath, match="is a file"):
        resolve_user_folder(str(tmp_path / "a.txt"), None)
    with pytest.raises(RefusedPath, match="is not a file"):
        resolve_user_file(str(tmp_path), None)


def test_a_visitor_learns_neither_what_exists_nor_where_home_is(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "import", tmp_path / "secret.txt"
    allowed.mkdir()
    outside.write_text("x")
    answers = set()
    for text in (str(outside), str(tmp_path / "nothing.txt"), "~/.ssh/id_rsa", "~/nothing", str(outside / "below")):
        with pytest.raises(RefusedPath) as refused:
            resolve_user_file(text, [allowed])
        answers.add(str(refused.value).replace(text, "TEXT"))
    assert answers == {"TEXT is not inside the folder import. Copy it there."}
    with pytest.raises(RefusedPath, match="does not exist"):
        resolve_user_file(str(allowed / "nothing.txt"), [allowed])
