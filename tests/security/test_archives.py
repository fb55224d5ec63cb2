"""Zip archives: honest ones come out whole, hostile ones not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from security import archives
from security.archives import unpack
from security.errors import Cancelled, RefusedFile
from security.policy import FREE_DISK_RESERVE_BYTES, MAX_ARCHIVE_RATIO
from tests.security.zip_files import DEFLATED, HOSTILE, Member, deflate, write_zip, zip_bytes

SUFFIXES = (".png", ".txt")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_whole_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, reason = HOSTILE[case]
    source = tmp_path / "set.zip"
    source.write_bytes(make())
    with pytest.raises(RefusedFile, match=reason) as refusal:
        unpack(source, tmp_path / "out", SUFFIXES)
    assert "set.zip" in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_sound_archive_comes_out_with_its_folders(tmp_path: Path) -> None:
    source = write_zip(
        tmp_path / "set.zip",
        Member("5_hats/", b"", mode=stat.S_IFDIR | 0o777),
        Member("5_hats/a.png", b"\x89PNG pixels" * 99, DEFLATED),
        Member("5_hats/a.txt", "ein roter Hut, schön".encode()),
        Member("Zoe\u0308.PNG", b"1"),
        Member("empty.txt", b"", DEFLATED),
        comment=b"made by hand",
    )
    done = unpack(source, tmp_path / "out", SUFFIXES)
    assert contents(tmp_path / "out") == {
        "5_hats/a.png": b"\x89PNG pixels" * 99,
        "5_hats/a.txt": "ein roter Hut, schön".encode(),
        "Zoë.png": b"1",
        "empty.txt": b"",
    }
    assert sorted(path.relative_to(done.folder).as_posix() for path in done.files) == sorted(contents(done.folder))
    assert done.skipped == ()
    if sys.platform != "win32":
        for path in done.folder.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_other_kinds_and_hidden_files_stay_in_the_archive_and_are_listed(tmp_path: Path) -> None:
    source = write_zip(
        tmp_path / "set.zip",
        *[
            Member(name)
            for name in ("a.png", "run.exe", "a.png.exe", "inner.zip", "README", "page.svg", "a.png ", "b.png.")
        ],
        *[Member(name) for name in ("__MACOSX/._a.png", ".hidden.png", ".git/x.txt", "d/.x.png")],
        Member("what?.png", b"1"),
        Member("what*.png", b"2"),
        Member("CON.txt", b"3"),
        Member("-rf.txt", b"4"),
    )
    done = unpack(source, tmp_path / "out", SUFFIXES)
    assert contents(done.folder) == {
        "a.png": b"text", "what_.png": b"1", "_CON.txt": b"3", "rf.txt": b"4",
    }  # fmt: skip
    assert dict(done.skipped) == {
        "run.exe": "a .exe file",
        "a.png.exe": "a .exe file",
        "inner.zip": "a .zip file",
        "README": "a file without an ending",
        "page.svg": "a .svg file",
        "a.png ": "a .png  file",
        "b.png.": "a . file",
        "what*.png": "its name is not possible here, and the nearest one is taken",
        "4 hidden files": "names with a dot in front, or of macOS",
    }


def test_what_macos_and_git_add_does_not_spoil_a_deep_archive(tmp_path: Path) -> None:
    """macOS repeats each file one folder deeper, and gives folders an icon whose name ends in a carriage return."""
    source = write_zip(
        tmp_path / "set.zip",
        *[Member(name) for name in ("a/b/c/d/x.png", "__MACOSX/a/b/c/d/._x.png", ".git/refs/remotes/origin/new/x")],
        *[Member(name) for name in ("a/Icon\r", "__MACOSX/a/._Icon\r")],
    )
    done = unpack(source, tmp_path / "out", SUFFIXES)
    assert set(contents(done.folder)) == {"a/b/c/d/x.png"}
    assert done.skipped == (("4 hidden files", "names with a dot in front, or of macOS"),)


def python_zip(path: Path, *, streamed: bool = False, zip64: bool = False) -> Path:
    """An archive of Python's own module; `streamed`: its sizes come after each file."""
    buffer = io.BytesIO()
    if streamed:
        buffer.seekable = lambda: False  # type: ignore[method-assign]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("10_mira") if not streamed else None
        for name in ("10_mira/a.png", "10_mira/ü.txt"):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as member:
                member.write(os.urandom(1000) + name.encode())
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("zip64", [False, True])
def test_archives_of_python_come_out_as_python_reads_them(tmp_path: Path, streamed: bool, zip64: bool) -> None:
    source = python_zip(tmp_path / "set.zip", streamed=streamed, zip64=zip64)
    done = unpack(source, tmp_path / "out", SUFFIXES)
    with zipfile.ZipFile(source) as archive:
        expected = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    assert contents(done.folder) == expected


@pytest.mark.skipif(not shutil.which("zip"), reason="Info-ZIP is not installed")
def test_archives_of_info_zip_come_out_too(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "sub/ü.txt"):
        (tmp_path / "in" / name).write_bytes(os.urandom(3000) + bytes(9000))
    subprocess.run(["zip", "-qr", "../set.zip", "."], cwd=tmp_path / "in", check=True)
    assert contents(unpack(tmp_path / "set.zip", tmp_path / "out", SUFFIXES).folder) == contents(tmp_path / "in")


def test_a_large_archive_of_the_64_bit_kind_is_read(tmp_path: Path) -> None:
    extra = struct.pack("<2HQQ", 1, 16, 4, 4)
    full = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}
    member = Member("a.txt", b"text", central=full, local=full, central_extra=extra, local_extra=extra)
    write_zip(tmp_path / "set.zip", member, zip64=True)
    assert contents(unpack(tmp_path / "set.zip", tmp_path / "out", SUFFIXES).folder) == {"a.txt": b"text"}


def test_names_of_old_programs_are_read(tmp_path: Path) -> None:
    """Windows writes the code page of DOS, old .NET backslashes, macOS UTF-8 without saying so."""
    source = write_zip(
        tmp_path / "set.zip",
        Member(b"Gr\x81n.png", central={"flags": 0}, local={"flags": 0}),
        Member("Zoë.png", central={"flags": 0}, local={"flags": 0}),
        Member("sub\\a.png"),
    )
    assert set(contents(unpack(source, tmp_path / "out", SUFFIXES).folder)) == {"Grün.png", "Zoë.png", "sub/a.png"}


@pytest.mark.parametrize(("name", "encoding"), [("表.png", "cp932"), ("10_ソ/ソ.txt", "cp932"), ("誠.png", "gbk")])
def test_a_backslash_inside_a_letter_of_an_old_code_page_is_no_folder(tmp_path: Path, name: str, encoding: str) -> None:
    raw = name.encode(encoding)
    assert b"\\" in raw
    source = write_zip(tmp_path / "set.zip", Member(raw, central={"flags": 0}, local={"flags": 0}))
    done = unpack(source, tmp_path / "out", SUFFIXES)
    assert done.skipped == ()
    assert [len(path.relative_to(done.folder).parts) for path in done.files] == [len(name.split("/"))]


def test_a_bomb_is_stopped_early_and_in_little_memory(tmp_path: Path) -> None:
    """250 MiB of zeros in 250 kB. It announces its true size, so only the ratio gives it away."""
    packer_input = bytes(250 << 20)
    source = write_zip(tmp_path / "set.zip", Member("a.txt", packer_input, raw=deflate(packer_input), method=DEFLATED))
    del packer_input
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(RefusedFile, match=f"over {MAX_ARCHIVE_RATIO} times"):
        unpack(source, tmp_path / "out", SUFFIXES)
    assert time.perf_counter() - start < 3.0
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_flat_picture_may_shrink_a_lot_while_it_is_small(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", Member("flat.png", bytes(1 << 20), DEFLATED))
    assert contents(unpack(source, tmp_path / "out", SUFFIXES).folder) == {"flat.png": bytes(1 << 20)}


def test_a_late_fault_takes_back_what_was_written(tmp_path: Path) -> None:
    members = [Member(f"{number}.png", b"fine") for number in range(20)]
    source = write_zip(tmp_path / "set.zip", *members, Member("bad.png", b"x" * 99, DEFLATED, raw=deflate(b"y" * 99)))
    with pytest.raises(RefusedFile, match=r"bad\.png.*checksum"):
        unpack(source, tmp_path / "out", SUFFIXES)
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", *[Member(f"{number}.png") for number in range(9)])
    asked = iter([False] * 5 + [True] * 9)
    with pytest.raises(Cancelled, match=r"set\.zip"):
        unpack(source, tmp_path / "out", SUFFIXES, lambda: next(asked))
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_full_disk_is_told_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_zip(tmp_path / "set.zip", Member("a.png", bytes(1000)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=FREE_DISK_RESERVE_BYTES + 999))
    with pytest.raises(RefusedFile, match="Make room first"):
        unpack(source, tmp_path / "out", SUFFIXES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=FREE_DISK_RESERVE_BYTES + 1000))
    real = archives.Root.create_file

    class Full(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def create_full(self: archives.Root, relative: str) -> io.BytesIO:
        real(self, relative).close()
        return Full()

    monkeypatch.setattr(archives.Root, "create_file", create_full)
    with pytest.raises(RefusedFile, match="The disk is full"):
        unpack(source, tmp_path / "out", SUFFIXES)
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_the_time_and_links_of_the_source_do_not_matter(tmp_path: Path) -> None:
    """The archive is opened once: what stands at its path afterwards is not read."""
    source = write_zip(tmp_path / "set.zip", *[Member(f"{number}.png", b"first") for number in range(3)])
    other = zip_bytes([Member("../evil.png")])

    def swap() -> bool:
        source.unlink(missing_ok=True)
        source.write_bytes(other)
        return False

    done = unpack(source, tmp_path / "out", SUFFIXES, swap)
    assert set(contents(done.folder).values()) == {b"first"}


def test_every_cut_and_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """No damage leads to another exception, to a file outside, or to other contents under a checked name."""
    members = [Member("a.png", b"abc" * 50, DEFLATED), Member("d/b.txt", b"hello world")]
    whole = zip_bytes(members)
    wanted = {"a.png": b"abc" * 50, "d/b.txt": b"hello world"}
    variants = [whole[:cut] for cut in range(len(whole))]
    variants += [
        whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :] for at in range(len(whole)) for bit in (1, 128)
    ]
    refused = 0
    for data in variants:
        (tmp_path / "set.zip").write_bytes(data)
        try:
            done = unpack(tmp_path / "set.zip", tmp_path / "out", SUFFIXES)
        except RefusedFile:
            refused += 1
        else:
            found = contents(done.folder)
            assert all(found[name] == wanted[name] for name in found.keys() & wanted.keys())
            assert set(found.values()) <= set(wanted.values())
            shutil.rmtree(done.folder)
        assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]
    assert refused > len(variants) * 0.85  # times, modes and versions do not matter
