"""Broken downloads go on where they ended, if the server can prove that the file is the same; else they start over."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from security.errors import FailedDownload, Interrupted, NeedsLogin
from security.fetch import Wanted
from security.policy import MIB
from tests.hubs.bench import DATA, ETAG, FILE, ROOT, Bench, honest
from tests.hubs.server import FAST, Reply, only_with_query, redirect

# Going on


def test_broken_transfer_goes_on_by_itself(bench: Bench) -> None:
    """Each attempt asks for the address anew and for the missing bytes only."""
    bench.serve(
        honest(stop_after=1_000_000), honest(stop_after=500_000), honest(announced=None, stop_after=9), honest()
    )
    fetched = bench.fetch(patience=FAST)
    assert fetched.path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
        "bytes=1500009-",
    ]
    assert all(seen.headers["if-range"] == ETAG for seen in bench.hubs.seen[1:])
    assert bench.located == 4


def test_new_start_of_the_program_goes_on(bench: Bench) -> None:
    bench.leave_part(1_000_000)
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == ["bytes=1000000-"]
    assert bench.told[-1] == (len(DATA), len(DATA))


def test_signed_address_that_ran_out_is_asked_for_anew(bench: Bench) -> None:
    """The first storage address breaks off and then answers 403; the hub gives out another one each time."""
    bench.serve(*(redirect(f"https://cdn-lfs.hf.co/x?Expires={number}") for number in (1, 1, 2)))
    expired = only_with_query("Expires=2", honest(), Reply(403))
    bench.hubs.on("cdn-lfs.hf.co", "/x", honest(stop_after=1_000_000), expired)
    assert bench.fetch(patience=FAST).path.read_bytes() == DATA
    storage = bench.hubs.requests_to("cdn-lfs.hf.co")
    assert [seen.headers.get("range") for seen in storage] == [None, "bytes=1000000-", "bytes=1000000-"]


REST = DATA[1_000_000:]


def part(told: str, body: bytes = REST, etag: str = ETAG, times: int = 1, chunked: bool = False) -> Reply:
    """A 206 that says of itself what `told` says."""
    return Reply(206, body, [("Content-Range", told)] * times, etag=etag, chunked=chunked)


RESTARTS: list[tuple[str, Reply, int]] = [
    ("range ignored", honest(ranges="ignore"), 1),
    ("another range", honest(ranges="wrong"), 2),
    ("416", honest(ranges="refuse"), 2),
    ("file has changed", Reply(body=DATA, etag='"other"'), 1),
    ("other tag on the part", part("bytes 1000000-2509999/2510000", etag='"other"'), 2),
    ("part of a longer file", part("bytes 1000000-2510000/2510001", REST + b"x"), 2),
    ("part that ends early", part("bytes 1000000-2509990/2510000", REST[:-9]), 2),
    ("part that ends early, in chunks", part("bytes 1000000-2509990/2510000", REST[:-9], chunked=True), 2),
    ("part of unknown size", part("bytes 1000000-2509999/*"), 2),
    ("part without a range", Reply(206, REST, etag=ETAG), 2),
    ("two ranges", part("bytes 1000000-2509999/2510000", times=2), 2),
    ("length that is not the range's", part("bytes 1000000-2509999/2510000", DATA), 2),
    ("other unit", part("pages 1000000-2509999/2510000"), 2),
]
"""(how the server answers a Range request, its answer, number of requests until the file is whole)."""


@pytest.mark.parametrize(("reply", "requests"), [row[1:] for row in RESTARTS], ids=[row[0] for row in RESTARTS])
def test_what_cannot_be_continued_starts_over(bench: Bench, reply: Reply, requests: int) -> None:
    bench.leave_part(1_000_000)
    bench.serve(reply, honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert bench.hubs.seen[0].headers["range"] == "bytes=1000000-"
    assert len(bench.hubs.seen) == requests
    assert requests == 1 or "range" not in bench.hubs.seen[1].headers


@pytest.mark.parametrize("etag", ["", 'W/"0123abcd"', "0123abcd", '""', '"a b"', '"a"b"'])
def test_weak_or_no_etag_starts_over(bench: Bench, etag: str) -> None:
    bench.leave_part(1_000_000, Reply(body=DATA, etag=etag))
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == [None]


@pytest.mark.parametrize(
    "change",
    [
        {"url": "https://huggingface.co/c/d"},
        {"size": 7},
        {"sha256": "0" * 64},
        {"etag": ""},
        {"more": 1},
        {"etag": None},
    ],
)
def test_part_of_something_else_starts_over(bench: Bench, change: dict[str, object]) -> None:
    bench.leave_part(1_000_000)
    path = bench.one(".part.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == [None]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"url": 1}'])
def test_damaged_note_starts_over(bench: Bench, text: str) -> None:
    bench.leave_part(1_000_000)
    bench.one(".part.json").write_text(text)
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == [None]


def test_part_that_was_changed_on_disk_is_found_out_and_fetched_anew(bench: Bench) -> None:
    bench.leave_part(1_000_000)
    with bench.one(".part").open("r+b") as file:
        file.seek(500_000)
        file.write(b"damaged")
    bench.serve(honest())
    assert bench.fetch(patience=replace(FAST, attempts=2)).path.read_bytes() == DATA
    assert [seen.headers.get("range") for seen in bench.hubs.seen] == ["bytes=1000000-", None]


def test_wrong_file_after_going_on_is_refused_in_the_end(bench: Bench) -> None:
    bench.leave_part(1_000_000)
    bench.serve(Reply(body=DATA[::-1], etag=ETAG))
    with pytest.raises(FailedDownload, match="its sha256 is") as caught:
        bench.fetch(patience=FAST)
    assert not isinstance(caught.value, Interrupted)
    assert len(bench.hubs.seen) == 2


def test_line_that_mixes_files_up_again_and_again_is_given_up(bench: Bench) -> None:
    """Otherwise two storage servers that disagree would keep the download going for ever."""
    bad = Reply(body=DATA[::-1], etag=ETAG)
    bench.serve(honest(stop_after=1_500_000), bad, honest(stop_after=1_500_000), bad, honest())
    with pytest.raises(FailedDownload, match="its sha256 is"):
        bench.fetch(patience=FAST)
    assert len(bench.hubs.seen) == 4


def test_part_that_is_too_long_starts_over(bench: Bench) -> None:
    bench.leave_part(1_000_000)
    with bench.one(".part").open("ab") as file:
        file.write(bytes(len(DATA)))
    bench.serve(honest())
    assert bench.fetch().path.read_bytes() == DATA


def test_complete_part_needs_no_second_download(bench: Bench) -> None:
    """The program ended between the last byte and the renaming."""
    bench.leave_part(len(DATA) - 1)
    with bench.one(".part").open("ab") as file:
        file.write(DATA[-1:])
    bench.serve(Reply(500))
    assert bench.fetch().path.read_bytes() == DATA
    assert bench.hubs.seen == []


def test_complete_file_that_was_not_promoted_is_found_again(bench: Bench) -> None:
    bench.serve(honest())
    first = bench.fetch()
    os.link(first.path, bench.folder.parent / "second name")  # the program ended while it was giving the file its place
    bench.hubs.seen.clear()
    assert bench.fetch() == replace(first, etag="", host="huggingface.co")
    assert bench.hubs.seen == []
    first.path.write_bytes(DATA[::-1])
    assert bench.fetch().path.read_bytes() == DATA
    assert len(bench.hubs.seen) == 1


def test_files_of_different_names_do_not_meet(bench: Bench) -> None:
    names = (
        "unet/model.safetensors",
        "vae/model.safetensors",
        "MODEL.safetensors",
        "\u00e9" * 300 + ".safetensors",
        "../../x",
        "",
    )
    for name in names:
        bench.serve(Reply(body=name.encode()))
        fetched = bench.fetch(Wanted(name, None, None))
        assert fetched.path.read_bytes() == name.encode()
        assert fetched.path.parent == bench.folder.resolve()
    assert len(list(bench.folder.glob("*.whole"))) == len(names)


def test_other_address_for_the_next_attempt_starts_over(bench: Bench) -> None:
    """The hub may name another file or mirror; what came from the first one is not mixed with it."""
    bench.serve(honest(stop_after=1_000_000))
    bench.hubs.on("hf.co", "/y", honest())
    texts = [FILE, "https://hf.co/y"]
    assert bench.fetch(patience=FAST, locate=lambda network: network.parse(texts.pop(0))).path.read_bytes() == DATA
    assert "range" not in bench.hubs.seen[-1].headers


def test_tries_end_unless_something_comes(bench: Bench) -> None:
    bench.serve(honest(stop_after=10))
    with pytest.raises(Interrupted):
        bench.fetch(patience=replace(FAST, attempts=3))
    assert len(bench.hubs.seen) == 3
    # A bad line that brings a megabyte each time is not given up.
    big = bytes(5_000_000)
    bench.hubs.seen.clear()
    bench.serve(Reply(body=big, etag=ETAG, stop_after=1_200_000))
    wanted = Wanted("big", len(big), hashlib.sha256(big).hexdigest())
    assert bench.fetch(wanted, patience=replace(FAST, attempts=2)).size == len(big)
    assert len(bench.hubs.seen) == 5


def test_refused_login_is_not_tried_again(bench: Bench) -> None:
    bench.serve(Reply(401))
    with pytest.raises(NeedsLogin):
        bench.fetch(patience=FAST)
    assert len(bench.hubs.seen) == 1


# A process that is killed


def test_download_of_a_killed_process_goes_on(bench: Bench) -> None:
    """SIGKILL in mid-download: the part is continued, and the bytes are the right ones."""
    data = os.urandom(8 * MIB)
    sha256 = hashlib.sha256(data).hexdigest()
    bench.serve(Reply(body=data, etag=ETAG, piece=128 * 1024, pause=0.05))
    arguments = bench.child_arguments(data)
    command = [sys.executable, "-m", "tests.hubs.download", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) > 2 * MIB:
                break
    finally:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
    have = bench.one(".part").stat().st_size
    assert 2 * MIB < have < len(data)
    assert bench.one(".part").read_bytes() == data[:have]
    bench.hubs.seen.clear()
    bench.serve(Reply(body=data, etag=ETAG))
    fetched = bench.fetch(Wanted("x.safetensors", len(data), sha256))
    assert fetched.path.read_bytes() == data
    (request,) = bench.hubs.seen
    assert (request.headers["range"], request.headers["if-range"]) == (f"bytes={have}-", ETAG)
