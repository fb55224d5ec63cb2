"""Downloads into quarantine, against a real HTTPS server: counted, hashed, and refused when anything differs."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from security.errors import Cancelled, FailedDownload, Interrupted
from security.fetch import Fetched, Wanted, promote
from security.policy import MIB
from tests.hubs.bench import DATA, ETAG, FILE, ONCE, ROOT, SHA256, Bench, honest
from tests.hubs.server import FAST, Reply, page, redirect

# The plain case


def test_file_is_fetched_checked_and_promoted(bench: Bench, tmp_path: Path) -> None:
    bench.serve(redirect("https://cdn-lfs.hf.co/x?Signature=s"))
    bench.hubs.on("cdn-lfs.hf.co", "/x", honest())
    fetched = bench.fetch()
    assert (fetched.size, fetched.sha256, fetched.host, fetched.etag) == (len(DATA), SHA256, "cdn-lfs.hf.co", ETAG)
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.stat().st_mode & 0o7777 == 0o600
    assert bench.told[-1] == (len(DATA), len(DATA))
    assert [have for have, _ in bench.told] == sorted(have for have, _ in bench.told)
    target = tmp_path / "models" / "x.safetensors"
    promote(fetched, target)
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o111 == 0 and target.stat().st_nlink == 1
    assert bench.names() == []


def test_part_is_private_and_says_what_it_is(bench: Bench) -> None:
    bench.leave_part(100_000)
    for suffix in (".part", ".part.json"):
        assert bench.one(suffix).stat().st_mode & 0o7777 == 0o600
    note = json.loads(bench.one(".part.json").read_text())
    assert note == {"url": FILE, "etag": ETAG, "size": len(DATA), "sha256": SHA256}


def test_signed_query_is_not_written_down(bench: Bench) -> None:
    bench.serve(honest(stop_after=1000))
    with pytest.raises(Interrupted):
        bench.fetch(locate=lambda network: network.parse(FILE + "?Signature=verysecret"))
    assert not any(b"verysecret" in path.read_bytes() for path in bench.folder.iterdir())


def test_checksum_may_be_in_capitals(bench: Bench) -> None:
    bench.serve(honest())
    assert bench.fetch(Wanted("x.safetensors", len(DATA), SHA256.upper())).sha256 == SHA256


def test_git_checksum_of_a_small_file(bench: Bench) -> None:
    """The value is what `git hash-object` prints for this content."""
    body = b"hello world\n"
    wanted = Wanted("config.json", len(body), None, git_sha1="3b18e512dba79e4c8300dd08aeb37f8e728b8dad")
    bench.serve(Reply(body=body))
    assert bench.fetch(wanted).sha256 == hashlib.sha256(body).hexdigest()
    bench.serve(Reply(body=b"hello w0rld\n"))
    with pytest.raises(FailedDownload, match="git sha1"):
        bench.fetch(wanted)
    assert b"w0rld" not in b"".join(path.read_bytes() for path in bench.folder.glob("*.part"))


def test_empty_file(bench: Bench) -> None:
    bench.serve(Reply())
    assert bench.fetch(Wanted("x.safetensors", 0, hashlib.sha256().hexdigest())).size == 0


# What the server gets wrong

REFUSED_BODIES: list[tuple[str, Wanted, Reply, str]] = [
    ("another content", Wanted("x", len(DATA), SHA256), Reply(body=DATA[::-1]), "its sha256 is"),
    ("one bit", Wanted("x", len(DATA), SHA256), Reply(body=DATA[:-1] + b"\x00"), "its sha256 is"),
    ("longer by list", Wanted("x", len(DATA) - 1, None), honest(), "announces .* the hub's list says"),
    ("shorter by list", Wanted("x", len(DATA) + 1, None), honest(), "announces .* the hub's list says"),
    ("length cut", Wanted("x", len(DATA), SHA256), honest(announced=1000), "announces 1000 bytes"),
    ("length cut, no list", Wanted("x", None, SHA256), honest(announced=1000), "its sha256 is"),
    ("chunks too long", Wanted("x", len(DATA) - 1, None), honest(chunked=True), "larger than"),
    ("chunks too short", Wanted("x", len(DATA) + 1, None), honest(chunked=True), "it has .* bytes and the hub's list says"),
    ("endless, too long", Wanted("x", len(DATA) - 1, None), honest(announced=None), "larger than"),
    ("no length at all", Wanted("x", None, None), honest(announced=None), "how long"),
    ("over the cap, told", Wanted("x", None, None, max_bytes=MIB), honest(), "at most 1 MiB"),
    ("over the cap, in chunks", Wanted("x", None, None, max_bytes=MIB), honest(chunked=True), "larger than the 1048576"),
    ("over the cap, endless", Wanted("x", None, SHA256, max_bytes=MIB), honest(announced=None), "larger than the 1048576"),
    ("packed", Wanted("x", len(DATA), SHA256), Reply(body=gzip.compress(DATA), headers=[("Content-Encoding", "gzip")]), "packed"),
    ("length and chunks", Wanted("x", len(DATA), SHA256), honest(chunked=True, announced=5), "two ways"),
    ("web page", Wanted("x", None, None), page(), "web page"),
]  # fmt: skip
"""(what it is, what the hub's list says, what the server sends, words of the refusal)."""


@pytest.mark.parametrize(
    ("wanted", "reply", "words"), [row[1:] for row in REFUSED_BODIES], ids=[row[0] for row in REFUSED_BODIES]
)
def test_body_is_refused_and_deleted(bench: Bench, wanted: Wanted, reply: Reply, words: str) -> None:
    bench.serve(reply)
    with pytest.raises(FailedDownload, match=words) as caught:
        bench.fetch(wanted, patience=FAST)
    assert not isinstance(caught.value, Interrupted)
    assert len(bench.hubs.seen) == 1  # it would be wrong the next time too
    assert all(path.stat().st_size == 0 for path in bench.folder.iterdir() if not path.name.endswith(".json"))


ACCEPTED_BODIES: list[tuple[str, Wanted, Reply]] = [
    ("size and checksum", Wanted("x", len(DATA), SHA256), honest()),
    ("size only", Wanted("x", len(DATA), None), honest()),
    ("checksum only", Wanted("x", None, SHA256), honest()),
    ("length of the answer only", Wanted("x", None, None), honest()),
    ("chunks", Wanted("x", len(DATA), SHA256), honest(chunked=True)),
    ("chunks, nothing known", Wanted("x", None, None), honest(chunked=True)),
    ("no length, size known", Wanted("x", len(DATA), None), honest(announced=None)),
    ("no length, checksum known", Wanted("x", None, SHA256), honest(announced=None)),
    ("exactly the cap", Wanted("x", None, None, max_bytes=len(DATA)), honest(chunked=True)),
]


@pytest.mark.parametrize(
    ("wanted", "reply"), [row[1:] for row in ACCEPTED_BODIES], ids=[row[0] for row in ACCEPTED_BODIES]
)
def test_body_is_taken_as_it_is(bench: Bench, wanted: Wanted, reply: Reply) -> None:
    bench.serve(reply)
    assert bench.fetch(wanted).path.read_bytes() == DATA


def test_fifty_gigabytes_are_refused_before_the_first_byte(bench: Bench) -> None:
    """By the hub's list without any request; by the answer's length without reading its body."""
    with pytest.raises(FailedDownload, match="50000 MiB and at most 32768 MiB"):
        bench.fetch(Wanted("x", 50_000 * MIB, SHA256))
    assert bench.hubs.seen == []
    bench.serve(honest(announced=50_000 * MIB))
    with pytest.raises(FailedDownload, match="50000 MiB and at most 32768 MiB"):
        bench.fetch(Wanted("x", None, SHA256))
    assert bench.told == []


@pytest.mark.parametrize(
    "wanted", [Wanted("x", 1, "abc"), Wanted("x", 1, None, git_sha1="f" * 64), Wanted("x", 1, "g" * 64)]
)
def test_checksums_that_are_none_are_refused(bench: Bench, wanted: Wanted) -> None:
    with pytest.raises(FailedDownload, match="hex digits"):
        bench.fetch(wanted)


# Several at once


def test_one_file_is_written_by_one_at_a_time(bench: Bench) -> None:
    bench.serve(honest(piece=100_000, pause=0.05))
    results: list[Fetched] = []
    started = threading.Event()
    other = Bench(bench.hubs, bench.folder)
    other.told = Notifying(started)
    thread = threading.Thread(target=lambda: results.append(other.fetch()))
    thread.start()
    assert started.wait(10)
    with pytest.raises(FailedDownload, match="being downloaded already"):
        bench.fetch()
    arguments = bench.child_arguments()
    child = subprocess.run(
        [sys.executable, "-m", "tests.hubs.download", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "being downloaded already" in child.stderr
    thread.join()
    assert results[0].path.read_bytes() == DATA
    assert len(bench.hubs.seen) == 1


class Notifying(list[tuple[int, "int | None"]]):
    """A list that tells when something is put in."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, item: tuple[int, int | None]) -> None:
        super().append(item)
        self._event.set()


def test_different_files_come_side_by_side(bench: Bench) -> None:
    """Four downloads that take 1.5 seconds each don't take six."""
    for number in range(4):
        bench.hubs.on("huggingface.co", f"/{number}", Reply(body=DATA, piece=600_000, pause=0.3))
    start = time.monotonic()

    def one(number: int) -> None:
        bench.fetch(
            Wanted(f"{number}.safetensors", len(DATA), SHA256),
            locate=lambda network: network.parse(f"https://huggingface.co/{number}"),
            patience=replace(ONCE, connect=10, answer=10),
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == DATA for path in bench.folder.glob("*.whole")] == [True] * 4
    assert time.monotonic() - start < 4 * 1.4


# Stopping


def test_cancelled_download_keeps_what_came(bench: Bench) -> None:
    bench.serve(honest(piece=100_000, pause=0.05))
    with pytest.raises(Cancelled):
        bench.fetch(cancelled=lambda: bool(bench.told) and bench.told[-1][0] > 200_000)
    have = bench.one(".part").stat().st_size
    assert 200_000 < have < len(DATA)
    bench.hubs.seen.clear()
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert bench.hubs.seen[0].headers["range"] == f"bytes={have}-"


def test_hashing_an_old_part_can_be_cancelled(bench: Bench) -> None:
    bench.leave_part(2_400_000)
    with pytest.raises(Cancelled):
        bench.fetch(cancelled=lambda: True)
    assert bench.hubs.seen == []
    assert bench.one(".part").stat().st_size == 2_400_000
