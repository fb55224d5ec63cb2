"""Answers of the hubs: what statuses mean, what is tried again, which bodies are refused, what is never told."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from security.errors import Cancelled, FailedDownload, Interrupted, NeedsLogin, SafelightError
from security.net import Retries
from security.policy import PATIENCE
from security.secrets import Secret
from security.statuses import retry_after
from tests.hubs.bench import FILE, IMPATIENT, PATH, TOKEN, body_of
from tests.hubs.server import (
    FAST,
    Hubs,
    Reply,
    Seen,
    json_reply,
    only_with_query,
    only_with_token,
    page,
    redirect,
)


@pytest.fixture
def token() -> Secret:
    return Secret(TOKEN, "Hugging Face token")


# What statuses mean

STATUSES: list[tuple[int, list[tuple[str, str]], bool, type[SafelightError], str, str]] = [
    (401, [], False, NeedsLogin, "wants a token for a/b", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "RepoNotFound")], False, NeedsLogin, "does not exist or is private", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "GatedRepo")], False, NeedsLogin, "accept terms first.*make a token", "https://huggingface.co/a/b"),
    (403, [("X-Error-Code", "GatedRepo")], True, NeedsLogin, r"accept terms first.*accept them\.$", "https://huggingface.co/a/b"),
    (401, [], True, NeedsLogin, "does not know your token any more", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "RepoNotFound")], True, NeedsLogin, "Your token does not open a/b", "https://huggingface.co/a/b"),
    (403, [], True, NeedsLogin, "Your token does not open a/b", "https://huggingface.co/a/b"),
    (403, [("cf-mitigated", "challenge")], True, FailedDownload, "took this program for a robot", ""),
    (404, [], False, FailedDownload, "no such file or model", ""),
    (404, [("X-Error-Code", "EntryNotFound")], False, FailedDownload, "no such file in this model", ""),
    (404, [("X-Error-Code", "RevisionNotFound")], False, FailedDownload, "no such version of this model", ""),
    (404, [("X-Error-Code", "RepoNotFound")], True, FailedDownload, "no such model", ""),
    (410, [], False, FailedDownload, "no such file", ""),
    (451, [], False, FailedDownload, "legal reasons", ""),
    (400, [], False, FailedDownload, "status 400", ""),
    (204, [], False, FailedDownload, "status 204", ""),
    (300, [], False, FailedDownload, "status 300", ""),
    (304, [], False, FailedDownload, "status 304", ""),
    (429, [], False, Interrupted, "too many requests from here. Try again in a while", ""),
    (429, [("Retry-After", "999999999")], False, Interrupted, "Try again in a while", ""),
    (429, [("Retry-After", "1")], False, Interrupted, "Try again in 1 seconds", ""),
    (500, [], False, Interrupted, "fault of its own", ""),
    (502, [], False, Interrupted, "fault of its own", ""),
    (503, [("Retry-After", "1")], False, Interrupted, "fault of its own", ""),
]  # fmt: skip
"""(status, headers, had a token, error, words, link)."""


@pytest.mark.parametrize(("status", "headers", "with_token", "kind", "words", "link"), STATUSES)
def test_status_is_told_plainly(
    hubs: Hubs,
    token: Secret,
    status: int,
    headers: list[tuple[str, str]],
    with_token: bool,
    kind: type[SafelightError],
    words: str,
    link: str,
) -> None:
    hubs.on("huggingface.co", PATH, Reply(status, b"" if status in (204, 304) else b"no", headers))
    with pytest.raises(kind, match=words) as caught:
        body_of(hubs.network(), FILE + "?private=thing", token if with_token else None)
    assert type(caught.value) is kind
    assert getattr(caught.value, "link", "") == link
    assert "private=thing" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_signed_address_that_ran_out_is_worth_another_try(hubs: Hubs, status: int) -> None:
    hubs.on(
        "huggingface.co",
        PATH,
        redirect("https://cdn-lfs.hf.co/x?Expires=1"),
        redirect("https://cdn-lfs.hf.co/x?Expires=2"),
    )
    hubs.on("cdn-lfs.hf.co", "/x", only_with_query("Expires=2", Reply(body=b"data"), Reply(status)))
    network = hubs.network()
    with pytest.raises(Interrupted, match="may have run out"):
        body_of(network, FILE)
    assert body_of(network, FILE) == b"data"


def test_token_opens_what_it_should(hubs: Hubs, token: Secret) -> None:
    hubs.on("huggingface.co", PATH, only_with_token(TOKEN, Reply(body=b"data"), Reply(401)))
    assert body_of(hubs.network(), FILE, token) == b"data"
    with pytest.raises(NeedsLogin):
        body_of(hubs.network(), FILE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-5", None), ("1e9", None), ("9" * 40, None)],
)
def test_retry_after_is_read(text: str, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 57 < (retry_after(later) or 0) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


# Trying again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_busy_hub_is_asked_again(hubs: Hubs, status: int) -> None:
    hubs.on("huggingface.co", "/j", Reply(status), Reply(status), json_reply({"ok": 1}))
    network = hubs.network()
    assert network.get_json(network.parse("https://huggingface.co/j")) == {"ok": 1}
    assert len(hubs.seen) == 3


def test_broken_connection_is_tried_again(hubs: Hubs) -> None:
    whole = json_reply(list(range(1000)))
    hubs.on(
        "huggingface.co", "/j", replace(whole, stop_after=100), replace(whole, announced=99_999), Reply(raw=b""), whole
    )
    network = hubs.network()
    assert network.get_json(network.parse("https://huggingface.co/j")) == list(range(1000))
    assert len(hubs.seen) == 4


def test_tries_end_with_the_last_fault(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", Reply(500))
    network = hubs.network(replace(FAST, attempts=3))
    with pytest.raises(Interrupted, match="status 500"):
        network.get_json(network.parse("https://huggingface.co/j"))
    assert len(hubs.seen) == 3


@pytest.mark.parametrize("reply", [Reply(404), Reply(401), page(), Reply(body=b"{"), Reply(400)])
def test_what_will_not_get_better_is_asked_once(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", "/j", reply)
    network = hubs.network()
    with pytest.raises(FailedDownload):
        network.get_json(network.parse("https://huggingface.co/j"))
    assert len(hubs.seen) == 1


def test_pauses_double_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("security.net.time.monotonic", lambda: now[0])
    monkeypatch.setattr("security.net.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    retries = Retries(
        replace(PATIENCE, attempts=9, first_pause=1.0, longest_pause=10.0, longest_retry_after=120.0), None
    )
    pauses = []
    for wait in (None, None, None, None, None, 30.0, 0.0):
        before = now[0]
        retries.wait(Interrupted("x", wait))
        pauses.append(round(now[0] - before, 3))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 30.0, 1.0]
    with pytest.raises(Interrupted):
        retries.wait(Interrupted("the hub wants more time than anybody has", 3600.0))
    retries.progressed()
    before = now[0]
    retries.wait(Interrupted("x"))
    assert now[0] - before == pytest.approx(1.0)


def test_waiting_for_the_next_try_can_be_cancelled(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", Reply(500))
    network = hubs.network(replace(FAST, first_pause=30.0, longest_pause=30.0))
    start = time.monotonic()
    with pytest.raises(Cancelled):
        network.get_json(network.parse("https://huggingface.co/j"), cancelled=lambda: time.monotonic() - start > 0.2)
    assert time.monotonic() - start < 2


# Bodies

REFUSED_ANSWERS: list[tuple[str, Reply, str]] = [
    ("gzip", Reply(body=gzip.compress(bytes(50_000)), headers=[("Content-Encoding", "gzip")]), "packed answer"),
    ("gzip chain", Reply(body=b"x", headers=[("Content-Encoding", "gzip, gzip")]), "packed answer"),
    ("brotli after identity", Reply(headers=[("Content-Encoding", "identity"), ("Content-Encoding", "br")]), "packed"),
    ("length and chunks", Reply(body=b"0123456789", chunked=True, announced=5), "in two ways"),
    ("two lengths", Reply(body=b"data", headers=[("Content-Length", "3")]), "announces its answer's length as"),
    ("negative length", Reply(announced=-1), "announces its answer's length as"),
    ("length with a sign", Reply(announced=None, headers=[("Content-Length", "+4")]), "length as"),
    ("length as a list", Reply(announced=None, headers=[("Content-Length", "4, 4")]), "length as"),
    ("packed transfer", Reply(announced=None, headers=[("Transfer-Encoding", "gzip, chunked")]), "in two ways"),
    ("twice chunked", Reply(chunked=True, headers=[("Transfer-Encoding", "chunked")]), "in two ways"),
    ("web page", page(), "a web page"),
    ("web page in capitals", Reply(content_type="TEXT/HTML"), "a web page"),
    ("xhtml", Reply(content_type="application/xhtml+xml"), "a web page"),
    (
        "a line that hides a header",
        Reply(headers=[("X\r\nno header at all", "x"), ("Content-Encoding", "gzip")]),
        "malformed",
    ),
    ("a folded header", Reply(headers=[("X", "a\r\n Content-Encoding: gzip")]), "malformed"),
    ("a header without a name", Reply(headers=[("", "x"), ("Content-Encoding", "gzip")]), "malformed"),
    ("part", Reply(206, b"data", [("Content-Range", "bytes 0-3/10")]), "with a part"),
    ("unasked 416", Reply(416), "with a part"),
]
"""(what it is, the answer, words of the refusal): refused before any of the body is read."""

BROKEN_ANSWERS: list[tuple[str, Reply]] = [
    ("shorter than announced", Reply(body=b"data", announced=10)),
    ("reset", Reply(body=bytes(100_000), stop_after=50_000, reset=True)),
    ("reset in chunks", Reply(body=bytes(100_000), stop_after=50_000, chunked=True, reset=True)),
    ("end in chunks", Reply(body=bytes(100_000), stop_after=50_000, chunked=True)),
    ("end", Reply(body=bytes(100_000), stop_after=50_000)),
    ("chunks without an end", Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n")),
    (
        "chunks that are none",
        Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\ndata\r\n0\r\n\r\n"),
    ),
    ("no HTTP", Reply(raw=b"220 ftp.example ready\r\n")),
    ("nothing", Reply(raw=b"")),
    ("half a head", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le")),
    ("a header line of 70 kB", Reply(headers=[("X-Long", "x" * 70_000)])),
    ("200 headers", Reply(headers=[(f"X-{number}", "x") for number in range(200)])),
]


@pytest.mark.parametrize(
    ("reply", "words"), [row[1:] for row in REFUSED_ANSWERS], ids=[row[0] for row in REFUSED_ANSWERS]
)
def test_answer_is_refused(hubs: Hubs, reply: Reply, words: str) -> None:
    hubs.on("huggingface.co", PATH, reply)
    with pytest.raises(FailedDownload, match=words) as caught:
        body_of(hubs.network(), FILE)
    assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize("reply", [row[1] for row in BROKEN_ANSWERS], ids=[row[0] for row in BROKEN_ANSWERS])
def test_broken_answer_is_interrupted(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", PATH, reply)
    with pytest.raises(Interrupted):
        body_of(hubs.network(), FILE)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_body_is_what_was_sent(hubs: Hubs, data: bytes, chunked: bool) -> None:
    """Also when it looks packed: nothing is decoded."""
    packed = gzip.compress(data)
    hubs.on("huggingface.co", PATH, Reply(body=packed, chunked=chunked, piece=1000))
    assert body_of(hubs.network(), FILE) == packed


def test_answer_longer_than_announced_ends_at_its_length(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=b"0123456789", announced=4))
    assert body_of(hubs.network(), FILE) == b"0123"


def test_json_that_is_announced_too_long_is_not_read(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", replace(json_reply("x"), announced=3000))
    network = hubs.network()
    with pytest.raises(FailedDownload, match="longer than 2000 bytes"):
        network.get_json(network.parse("https://huggingface.co/j"), max_bytes=2000)


@pytest.mark.parametrize("reply", [json_reply("x" * 3000), replace(json_reply("x" * 3000), chunked=True)])
def test_json_is_bounded(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", "/j", reply)
    network = hubs.network()
    with pytest.raises(FailedDownload, match="longer than 2000 bytes"):
        network.get_json(network.parse("https://huggingface.co/j"), max_bytes=2000)
    assert network.get_json(network.parse("https://huggingface.co/j"), max_bytes=4000) == "x" * 3000


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"<html>", b'{"a": 1} x'])
def test_what_is_no_json_is_refused(hubs: Hubs, body: bytes) -> None:
    hubs.on("huggingface.co", "/j", Reply(body=body, content_type="application/json"))
    network = hubs.network()
    with pytest.raises(FailedDownload, match="not JSON"):
        network.get_json(network.parse("https://huggingface.co/j"))


# Nothing secret is told


def test_no_fault_tells_the_token_or_the_query(
    hubs: Hubs, token: Secret, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    signed = "https://cdn-lfs.hf.co/x?Signature=verysecretsignature"
    network = hubs.network(replace(IMPATIENT, connect=0.3, answer=0.3))
    replies = [
        *(Reply(status) for status in (400, 401, 403, 404, 429, 451, 500)),
        *(reply for _, reply, _ in REFUSED_ANSWERS),
        *(reply for _, reply in BROKEN_ANSWERS),
        redirect("https://evil.example/?Signature=verysecretsignature"),
        redirect("https://user:verysecretsignature@evil.example/"),
        redirect(signed),
        Reply(body=b"x", header_pause=0.1),
    ]
    told = []
    for reply in replies:
        for host, path, text in (("huggingface.co", PATH, FILE), ("cdn-lfs.hf.co", "/x", signed)):
            hubs.on("huggingface.co", PATH, redirect(signed))
            hubs.on(host, path, reply)
            with pytest.raises(SafelightError) as caught:
                network.get_json(network.parse(FILE + "?Signature=verysecretsignature"), token=token)
            error: BaseException | None = caught.value
            while error is not None:
                told.append(f"{error!r} {text}" if host == "" else repr(error))
                error = None if error.__suppress_context__ else error.__cause__ or error.__context__
    told.append(caplog.text)
    told.extend(capfd.readouterr())
    assert len(told) > 60
    assert not any("verysecretsignature" in text or TOKEN in text for text in told)


def test_token_does_not_stay(hubs: Hubs, token: Secret) -> None:
    """A Network keeps nothing of a request, so one object can serve all threads and users."""
    hubs.on("huggingface.co", "/j", lambda seen: json_reply(seen.token))
    network = hubs.network()
    url = network.parse("https://huggingface.co/j")
    for _ in range(3):
        assert network.get_json(url, token=token) == f"Bearer {TOKEN}"
        assert network.get_json(url) is None
    kept = {name: repr(value) for name, value in vars(network).items() if name not in ("_resolve", "_dial")}
    assert TOKEN not in json.dumps(kept)


def test_connections_are_closed_at_once(hubs: Hubs) -> None:
    """Also while somebody still holds the answer, and when it was left half-read."""
    hubs.on("huggingface.co", PATH, Reply(body=bytes(10_000_000)))
    network = hubs.network()
    with network.open(network.parse(FILE)) as response:
        next(response.chunks())
        connection = response._channel.connection
        assert connection.fileno() >= 0
    assert connection.fileno() == -1


def test_many_threads_share_one_network(hubs: Hubs) -> None:
    def number(seen: Seen) -> Reply:
        return json_reply(seen.path)

    results: list[object] = []
    network = hubs.network(replace(FAST, connect=10, answer=10))
    for index in range(12):
        hubs.on("huggingface.co", f"/{index}", number)
    threads = [
        threading.Thread(
            target=lambda index=index: results.append(
                network.get_json(network.parse(f"https://huggingface.co/{index}"))
            )
        )
        for index in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == sorted(f"/{index}" for index in range(12))
