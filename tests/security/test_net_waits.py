"""Waits for a hub that end: drips, silence, stalls and the user's own stop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from security.errors import Cancelled, Interrupted, SafelightError
from tests.hubs.bench import FILE, IMPATIENT, PATH, body_of
from tests.hubs.server import (
    FAST,
    Hubs,
    Reply,
    json_reply,
)

# Waits that end


def timed(action: Callable[[], object]) -> tuple[SafelightError, float]:
    """The error that `action` ends with, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(SafelightError) as caught:
        action()
    return caught.value, time.monotonic() - start


def test_dripping_headers_end(hubs: Hubs) -> None:
    """Each byte comes in time; only the whole is too slow."""
    hubs.on("huggingface.co", PATH, Reply(body=b"data", header_pause=0.1))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "did not answer" in str(error)
    assert 0.4 < seconds < 5


def test_silence_instead_of_headers_ends(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(raw=b"H", header_pause=20.0))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "did not answer" in str(error)
    assert seconds < 5


@pytest.mark.parametrize("stopped", [False, True])
def test_slow_name_look_up_ends(hubs: Hubs, stopped: bool) -> None:
    """The system's look-up can't be interrupted, so it is left alone."""
    release = threading.Event()

    def resolve(host: str) -> list[str]:
        release.wait(30)
        return hubs.resolve(host)

    start = time.monotonic()
    network = hubs.network(FAST if stopped else IMPATIENT, resolve=resolve)
    error, seconds = timed(lambda: body_of(network, FILE, cancelled=lambda: stopped and time.monotonic() - start > 0.2))
    release.set()
    assert isinstance(error, Cancelled if stopped else Interrupted)
    assert seconds < 5 and hubs.dials == []


def test_silence_instead_of_tls_ends(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        network = hubs.network(IMPATIENT)
        monkeypatch.setattr(
            network, "_dial", lambda _a, _p, seconds: socket.create_connection(("127.0.0.1", port), timeout=seconds)
        )
        error, seconds = timed(lambda: body_of(network, FILE))
    assert isinstance(error, Interrupted) and "did not answer" in str(error)
    assert seconds < 5


def test_dripping_tls_ends(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake record of 16 KiB that comes one byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def drip() -> None:
            with server.accept()[0] as client:
                for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 1000:
                    try:
                        client.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        port = server.getsockname()[1]
        network = hubs.network(IMPATIENT)
        monkeypatch.setattr(
            network, "_dial", lambda _a, _p, seconds: socket.create_connection(("127.0.0.1", port), timeout=seconds)
        )
        error, seconds = timed(lambda: body_of(network, FILE))
        thread.join()
    assert isinstance(error, Interrupted)
    assert seconds < 5


def test_stalled_body_ends(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=bytes(200), piece=100, pause=20.0))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "Nothing came for" in str(error)
    assert seconds < 5


def test_dripping_body_ends(hubs: Hubs) -> None:
    """A byte every now and then keeps a read timeout from ever firing; the least speed does not let it pass."""
    hubs.on("huggingface.co", PATH, Reply(body=bytes(5000), piece=1, pause=0.02))
    patience = replace(FAST, throughput_window=0.5, throughput_bytes_per_second=1000)
    error, seconds = timed(lambda: body_of(hubs.network(patience), FILE))
    assert isinstance(error, Interrupted) and "are the least" in str(error)
    assert 0.4 < seconds < 5


def test_steady_body_is_fast_enough(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=bytes(2000), piece=100, pause=0.02))
    patience = replace(FAST, throughput_window=0.1, throughput_bytes_per_second=20)
    assert body_of(hubs.network(patience), FILE) == bytes(2000)


def test_slow_reader_is_not_taken_for_a_slow_hub(hubs: Hubs) -> None:
    """Writing to a slow disk between two reads is no fault of the hub."""
    hubs.on("huggingface.co", PATH, Reply(body=bytes(300_000)))
    network = hubs.network(replace(FAST, idle=0.5, throughput_window=0.5, throughput_bytes_per_second=1_000_000))
    count = 0
    with network.open(network.parse(FILE)) as response:
        for piece in response.chunks():
            time.sleep(0.6 if count == 0 else 0.03)
            count += len(piece)
    assert count == 300_000


def test_body_has_a_last_moment(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", replace(json_reply("x" * 2000), piece=10, pause=0.05))
    network = hubs.network(replace(IMPATIENT, json_total=0.5))
    error, seconds = timed(lambda: network.get_json(network.parse("https://huggingface.co/j")))
    assert isinstance(error, Interrupted) and "did not finish within" in str(error)
    assert 0.4 < seconds < 5


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"data", header_pause=0.1),
        Reply(raw=b"H", header_pause=20.0),
        Reply(body=bytes(10_000), piece=10, pause=0.1),
        Reply(body=bytes(10_000), piece=10, pause=0.1, chunked=True),
        Reply(body=bytes(200), piece=100, pause=20.0),
    ],
    ids=["headers", "silence", "body", "chunks", "stall"],
)
def test_cancelling_ends_any_wait(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", PATH, reply)
    start = time.monotonic()
    error, seconds = timed(lambda: body_of(hubs.network(), FILE, cancelled=lambda: time.monotonic() - start > 0.3))
    assert isinstance(error, Cancelled)
    assert seconds < 5
