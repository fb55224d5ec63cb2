"""Disks that are full, links in the way, and files that take their place: nothing is lost or overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import security.fetch
import security.parts
from security.errors import FailedDownload, Interrupted, RefusedPath
from security.fetch import Fetched, Wanted, promote
from security.policy import FREE_DISK_RESERVE_BYTES, MIB
from tests.hubs.bench import DATA, ROOT, Bench, honest
from tests.hubs.server import FAST, Reply

# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 2 MiB. Needs root on Linux; elsewhere the test with a limit on file sizes has to do."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    made = (
        mount
        and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False).returncode == 0
    )
    if not made:
        pytest.skip("no small disk: mounting needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_part_and_goes_on_when_there_is_room(
    bench: Bench, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC from a real disk. The check of the free space is told another number, so that the disk does fill."""
    bench.folder = small_disk
    monkeypatch.setattr(security.parts, "FREE_DISK_RESERVE_BYTES", -10 * MIB)
    bench.serve(honest())
    with pytest.raises(FailedDownload, match=r"is full.*is kept\. Make room") as caught:
        bench.fetch(patience=FAST)
    assert not isinstance(caught.value, Interrupted)
    assert len(bench.hubs.seen) == 1
    have = bench.one(".part").stat().st_size
    assert 1_000_000 < have < len(DATA)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    bench.hubs.seen.clear()
    assert bench.fetch().path.read_bytes() == DATA
    assert bench.hubs.seen[0].headers["range"] == f"bytes={have}-"


def test_disk_without_room_for_the_reserve_gets_nothing(bench: Bench, small_disk: Path) -> None:
    bench.folder = small_disk
    bench.serve(honest())
    with pytest.raises(FailedDownload, match=r"MiB free .* needs 2 MiB more, and 2048 MiB stay free"):
        bench.fetch()
    assert bench.told == []


def test_file_too_large_for_the_disk_is_told(bench: Bench) -> None:
    """EFBIG, by a limit on the size of files in a child process; a USB stick with FAT does the same at 4 GiB."""
    bench.serve(honest())
    code = (
        "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000)); "
        "runpy.run_module('tests.hubs.download', run_name='__main__')"
    )
    arguments = bench.child_arguments()
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "can't hold a file as large as x.safetensors" in child.stderr
    assert bench.one(".part").stat().st_size == 1_000_000


def test_free_space_is_looked_at_while_it_comes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk meanwhile."""
    monkeypatch.setattr(security.fetch, "FREE_DISK_CHECK_BYTES", 500_000)
    enough = FREE_DISK_RESERVE_BYTES + 10 * MIB
    free = [enough, enough, 10 * MIB]
    usage = shutil.disk_usage(bench.folder)
    monkeypatch.setattr(security.parts.shutil, "disk_usage", lambda _: usage._replace(free=free.pop(0)))
    bench.serve(honest())
    with pytest.raises(FailedDownload, match="10 MiB free"):
        bench.fetch()
    assert free == []
    assert 1_000_000 <= bench.one(".part").stat().st_size < 1_200_000


# Files that somebody put in the way


def test_planted_link_is_not_written_through(bench: Bench, tmp_path: Path) -> None:
    bench.leave_part(1000)
    part, victim = bench.one(".part"), tmp_path / "victim"
    for plant in (os.symlink, os.link):
        victim.write_bytes(b"precious")
        part.unlink(missing_ok=True)
        plant(victim, part)
        bench.serve(honest())
        if plant is os.symlink:
            with pytest.raises(RefusedPath, match="is a link"):
                bench.fetch()
            part.unlink()
        else:
            assert bench.fetch().path.read_bytes() == DATA
        assert victim.read_bytes() == b"precious"


def test_link_that_appears_between_is_not_followed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own check has passed; O_EXCL and O_NOFOLLOW are what is left."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    real = security.parts.Part.remove

    def plant(part: security.parts.Part) -> None:
        real(part)
        part.path.symlink_to(victim)

    monkeypatch.setattr(security.parts.Part, "remove", plant)
    bench.serve(honest())
    with pytest.raises(FailedDownload, match="File exists"):
        bench.fetch()
    assert victim.read_bytes() == b"precious"


def test_link_that_appears_in_place_of_a_part_is_not_followed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(DATA[:5])
    bench.leave_part(1000)
    real = security.parts.Part._read_note

    def plant(part: security.parts.Part) -> security.parts.Note:
        part.path.unlink()
        part.path.symlink_to(victim)
        return real(part)

    monkeypatch.setattr(security.parts.Part, "_read_note", plant)
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert victim.read_bytes() == DATA[:5]


# Promoting


@pytest.fixture
def fetched(bench: Bench) -> Fetched:
    bench.serve(honest())
    return bench.fetch()


def test_promoting_never_overwrites_another_file(fetched: Fetched, tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    for other in (b"mine", DATA[::-1], b""):
        target.write_bytes(other)
        with pytest.raises(FailedDownload, match="exists and is another file"):
            promote(fetched, target)
        assert target.read_bytes() == other
    assert fetched.path.read_bytes() == DATA  # still there, for when the user made room


def test_promoting_over_the_same_file_keeps_it(fetched: Fetched, tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    target.write_bytes(DATA)
    inode = target.stat().st_ino
    promote(fetched, target)
    assert target.stat().st_ino == inode
    assert not fetched.path.exists()


def test_promotion_that_was_interrupted_is_finished(fetched: Fetched, tmp_path: Path) -> None:
    """The program ended between giving the file its new name and taking the old one away."""
    target = tmp_path / "x.safetensors"
    os.link(fetched.path, target)
    promote(fetched, target)
    assert target.read_bytes() == DATA
    assert not fetched.path.exists() and target.stat().st_nlink == 1


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_promoting_follows_no_link(fetched: Fetched, tmp_path: Path, kind: str) -> None:
    target, victim = tmp_path / "x.safetensors", tmp_path / "victim"
    if kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(victim)
    if kind == "link":
        victim.write_bytes(DATA)
    with pytest.raises(FailedDownload, match="exists and is another file"):
        promote(fetched, target)
    assert target.is_symlink() or target.is_dir()
    assert victim.exists() == (kind == "link")


def test_promoting_compares_the_content_once_more(fetched: Fetched, tmp_path: Path) -> None:
    fetched.path.write_bytes(DATA[:-1] + b"\x00")
    with pytest.raises(FailedDownload, match="changed in quarantine"):
        promote(fetched, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_promoting_a_link_is_refused(fetched: Fetched, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    fetched.path.rename(real)
    fetched.path.symlink_to(real)
    with pytest.raises(FailedDownload, match="could not be put in its place"):
        promote(fetched, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_two_promotions_to_one_place(bench: Bench, tmp_path: Path) -> None:
    """Whoever comes second finds a file; nobody's file is lost."""
    target = tmp_path / "x.safetensors"
    bodies = [bytes([number]) * 1000 for number in range(8)]
    files = []
    for number, body in enumerate(bodies):
        bench.serve(Reply(body=body))
        files.append(bench.fetch(Wanted(f"{number}", None, None)))
    lost: list[FailedDownload] = []

    def one(fetched: Fetched) -> None:
        try:
            promote(fetched, target)
        except FailedDownload as error:
            lost.append(error)

    threads = [threading.Thread(target=one, args=(fetched,)) for fetched in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    assert target.read_bytes() in bodies
    assert sum(fetched.path.exists() for fetched in files) == 7


@pytest.mark.parametrize("there", [False, True])
def test_promoting_on_disks_without_second_names(
    fetched: Fetched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """exFAT and some network folders answer EPERM to os.link."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(security.fetch.os, "link", no_links)
    target = tmp_path / "x.safetensors"
    if there:
        target.write_bytes(b"mine")
        with pytest.raises(FailedDownload, match="another file"):
            promote(fetched, target)
        assert target.read_bytes() == b"mine"
    else:
        promote(fetched, target)
        assert target.read_bytes() == DATA
        assert not fetched.path.exists()


def test_promoting_to_another_disk_is_told(fetched: Fetched, small_disk: Path) -> None:
    with pytest.raises(FailedDownload, match="must be on one disk"):
        promote(fetched, small_disk / "x.safetensors")
    assert fetched.path.read_bytes() == DATA
