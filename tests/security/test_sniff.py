"""What a file is by its first bytes: every kind is recognised, and none is taken for another."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from security.errors import RefusedFile
from security.sniff import PICKLED, RUNNABLE, SNIFF_BYTES, UNKNOWN, Kind, open_regular, sniff, sniff_file
from tests.security.weight_files import entry, write_one_tensor, write_weights


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, kind)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred(mode: str = "w:") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("a.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return buffer.getvalue()


CONTENTS: dict[str, tuple[bytes, Kind, str]] = {
    **{f"pickle {protocol}": (pickle.dumps({"a": [1, 2]}, protocol), Kind.PICKLE, "pickle") for protocol in range(6)},
    "pickle of a list, protocol 0": (pickle.dumps([1, 2, 3], 0), Kind.PICKLE, "pickle"),
    "pickle of a global": (b"cposixpath\njoin\n(S'a'\ntR.", Kind.PICKLE, "pickle"),
    "pickle of an instance": (b"(S'a'\nios\npath\n.", Kind.PICKLE, "pickle"),
    "torch": (zipped("archive/data.pkl", "archive/version"), Kind.TORCH_ZIP, "PyTorch"),
    "newer torch": (zipped("m/.format_version", "m/data.pkl"), Kind.TORCH_ZIP, "PyTorch"),
    "zip": (zipped("a.png"), Kind.ZIP, "zip"),
    "empty zip": (zipped(), Kind.ZIP, "empty zip"),
    "split zip": (b"PK\x07\x08PK\x03\x04", Kind.ARCHIVE, "split"),
    "tar": (tarred(), Kind.ARCHIVE, "tar"),
    "tar.gz": (tarred("w:gz"), Kind.ARCHIVE, "gzip"),
    "gzip": (gzip.compress(b"a"), Kind.ARCHIVE, "gzip"),
    "bzip2": (bz2.compress(b"a"), Kind.ARCHIVE, "bzip2"),
    "xz": (lzma.compress(b"a"), Kind.ARCHIVE, "xz"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", Kind.ARCHIVE, "7z"),
    "rar": (b"Rar!\x1a\x07\x01\x00", Kind.ARCHIVE, "RAR"),
    "gguf": (b"GGUF\x03\0\0\0", Kind.OTHER_WEIGHTS, "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", Kind.OTHER_WEIGHTS, "HDF5"),
    "numpy": (b"\x93NUMPY\x01\x00", Kind.NUMPY, "NumPy"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", Kind.POINTER, "never downloaded"),
    **{f"{kind} picture": (picture(kind), Kind.PICTURE, "picture") for kind in ("PNG", "JPEG", "BMP", "WEBP")},
    **{f"{kind} picture": (picture(kind), Kind.OTHER_PICTURE, "another format") for kind in ("GIF", "TIFF", "ICO")},
    "html": (b"<!DOCTYPE html><html>log in</html>", Kind.WEB_PAGE, "web page"),
    "html, upper case": (b"\xef\xbb\xbf \r\n<HTML lang=en>", Kind.WEB_PAGE, "web page"),
    "html behind a comment": (b"<!-- a -->\n<head>", Kind.WEB_PAGE, "web page"),
    "xhtml": (b'<?xml version="1.0"?><html xmlns="x">', Kind.WEB_PAGE, "web page"),
    "html script": (b"<script>alert(1)</script>", Kind.WEB_PAGE, "web page"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Kind.WEB_PAGE, "SVG"),
    "svg behind xml": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg onload="x"/>', Kind.WEB_PAGE, "SVG"),
    "xml": (b'<?xml version="1.0"?><a/>', Kind.OTHER, "XML"),
    "shell": (b"#!/bin/sh\nid\n", Kind.SCRIPT, "script"),
    "shell behind a byte order mark": (b"\xef\xbb\xbf#!/bin/sh\n", Kind.SCRIPT, "script"),
    "php": (b"<?php system($_GET[0]);", Kind.SCRIPT, "script"),
    "batch": (b"@echo off\r\ndel x", Kind.SCRIPT, "script"),
    "python": (b"import os\nos.listdir()", Kind.SCRIPT, "script"),
    "python from": (b"from os import path\n", Kind.SCRIPT, "script"),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(99), Kind.PROGRAM, "ELF"),
    "pe": (b"MZ\x90\x00\x03\x00", Kind.PROGRAM, "Windows"),
    "mach-o": (b"\xcf\xfa\xed\xfe\x07\0\0\1", Kind.PROGRAM, "Mach-O"),
    "java": (b"\xca\xfe\xba\xbe\0\0\0\x34", Kind.PROGRAM, "Java"),
    "wasm": (b"\0asm\1\0\0\0", Kind.PROGRAM, "WebAssembly"),
    "shortcut": (b"L\0\0\0\x01\x14\x02\0\0\0\0\0", Kind.PROGRAM, "shortcut"),
    "python bytecode": (b"\xa7\x0d\x0d\x0a" + bytes(12) + b"\xe3", Kind.PROGRAM, "compiled Python"),
    "json": (b'\n {"error": "no"}', Kind.JSON, "JSON"),
    "mp4": (b"\0\0\0\x18ftypmp42" + bytes(16), Kind.OTHER, "video"),
    "mp3": (b"ID3\x04" + bytes(99), Kind.OTHER, "sound"),
    "pdf": (b"%PDF-1.7\n", Kind.OTHER, "pdf"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(20), Kind.ARCHIVE, "lz4"),
    "debian package": (b"!<arch>\ndebian-binary   ", Kind.PROGRAM, "deb"),
    "empty": (b"", Kind.UNKNOWN, ""),
    "zeros": (bytes(SNIFF_BYTES), Kind.UNKNOWN, ""),
    "a caption": (b"1girl, solo, import of goods, from the side", Kind.UNKNOWN, ""),
    "another caption": (b"MZ-style logo, (red:1.2), BMW", Kind.UNKNOWN, ""),
    "tags in brackets": (b"(smile), (Lp), hat", Kind.UNKNOWN, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENTS)
def test_every_kind_is_told_by_its_content(tmp_path: Path, case: str) -> None:
    data, kind, words = CONTENTS[case]
    path = tmp_path / "model.safetensors"  # the name says nothing
    path.write_bytes(data)
    content = sniff_file(path)
    assert content.kind == kind
    assert words in content.words
    assert (content == UNKNOWN) == (kind is Kind.UNKNOWN)
    assert sniff(data[:SNIFF_BYTES]) == content


@pytest.mark.parametrize("length", [2, 127, 128, 384, 640, 896, 1152, 1408, 4096, 90_000])
def test_a_safetensors_file_is_never_taken_for_a_pickle(tmp_path: Path, length: int) -> None:
    """A header of 128, 384 ... bytes begins with the bytes of a pickle; real files have such headers."""
    start = length.to_bytes(8, "little") + b'{"__metadata__":{'
    assert sniff(start).kind is Kind.SAFETENSORS
    path = write_weights(tmp_path / "m.safetensors", {"a": entry("U8", [1], 0, 1)}, 1)
    assert sniff_file(path).kind is Kind.SAFETENSORS
    assert sniff((2**60).to_bytes(8, "little") + b"{").kind is not Kind.SAFETENSORS


def test_what_can_run_code_is_in_the_sets_that_decide() -> None:
    by_kind = {kind for _, kind, _ in CONTENTS.values()}
    assert {Kind.PICKLE, Kind.TORCH_ZIP, Kind.ZIP, Kind.NUMPY} == PICKLED <= by_kind
    assert {Kind.SCRIPT, Kind.PROGRAM, Kind.WEB_PAGE} == RUNNABLE <= by_kind


def test_hostile_beginnings_take_no_time() -> None:
    start = time.perf_counter()
    for data in (
        b"(" * SNIFF_BYTES,
        b"<" * SNIFF_BYTES,
        b"<!--" * 256,
        b"import " * 140,
        b"c" * SNIFF_BYTES,
        b"I" * 1024,
    ):
        for _ in range(20):
            sniff(data)
    assert time.perf_counter() - start < 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices as on Linux and macOS")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(RefusedFile, match="not a regular file"):
            open_regular(path)
    with pytest.raises(RefusedFile, match="cannot be read"):
        sniff_file(tmp_path / "gone")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as on Linux and macOS")
def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    """Between the check of the name and the opening, a file may be replaced."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom security.errors import RefusedFile\nfrom security import sniff\n"
        "path = Path(sys.argv[1])\nreal = os.open\n"
        "def swap(*given, **more):\n    path.unlink(missing_ok=True)\n    os.mkfifo(path)\n    return real(*given, **more)\n"
        "os.open = swap\n"
        "try:\n    sniff.open_regular(path)\nexcept RefusedFile as error:\n    sys.stdout.write(str(error))\n"
    )
    path = write_one_tensor(tmp_path / "m.safetensors")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=20, check=True, cwd=root
    )
    assert "not a regular file" in done.stdout
