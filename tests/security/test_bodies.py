"""Request bodies: bounded in bytes and time, one meaning. The messages are those that a web server hands to an app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from security import bodies
from security.bodies import json_object, paced, read_body, replayed
from security.errors import RefusedRequest


def sender(*parts: bytes | float, disconnect: bool = False) -> Callable[[], Any]:
    """A `receive` that hands out these parts; a number is a pause in seconds."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for number, part in enumerate(parts):
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                more = any(isinstance(later, bytes) for later in parts[number + 1 :])
                yield {"type": "http.request", "body": part, "more_body": disconnect or more}
        yield {"type": "http.disconnect"}

    stream = messages()

    async def receive() -> dict[str, Any]:
        return await anext(stream)

    return receive


async def everything(receive: Callable[[], Any]) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def refused(work: Any) -> int:
    with pytest.raises(RefusedRequest) as refusal:
        asyncio.run(work)
    return refusal.value.status


def test_a_body_is_read_up_to_its_limit_and_in_time() -> None:
    assert asyncio.run(read_body(sender(b"ab", b"", b"cd"), 4, 5)) == b"abcd"
    assert refused(read_body(sender(b"ab", b"cde"), 4, 5)) == 413
    assert refused(read_body(sender(b"ab", disconnect=True), 4, 5)) == 400
    assert refused(read_body(sender(b"ab", 0.5, b"cd"), 4, 0.05)) == 408


def test_a_read_body_can_be_read_once_more() -> None:
    async def twice() -> tuple[bytes, str]:
        receive = sender(b"ab", b"cd")
        again = replayed(await read_body(receive, 9, 5), receive)
        body = await everything(again)
        return body, (await again())["type"]

    assert asyncio.run(twice()) == (b"abcd", "http.disconnect")


def test_an_upload_is_counted_and_may_not_stand_still_or_trickle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(everything(paced(sender(b"ab", b"cd"), 4))) == b"abcd"
    assert refused(everything(paced(sender(b"ab", b"cde"), 4))) == 413
    monkeypatch.setattr(bodies, "BODY_IDLE_SECONDS", 0.05)
    assert refused(everything(paced(sender(b"ab", 0.5, b"cd"), 4))) == 408
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    async def trickle(bytes_per_second: int) -> int:
        receive = paced(sender(*[b"x" * bytes_per_second] * 200), 10**9)
        for second in range(200):
            now[0] += 1.0
            try:
                await receive()
            except RefusedRequest:
                return second
        return 200

    assert asyncio.run(trickle(4096)) == 200
    assert asyncio.run(trickle(1)) == 60


def test_waiting_for_the_visitor_to_leave_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_IDLE_SECONDS", 0.05)

    async def stay() -> str:
        receive = paced(sender(b"all", 0.3), 9)
        await receive()
        return str((await receive())["type"])

    assert asyncio.run(stay()) == "http.disconnect"


JSON = "application/json"


def test_a_json_body_is_an_object_with_one_meaning() -> None:
    assert asyncio.run(json_object(b'{"a":{"b":[1]}}', "Application/JSON; charset=utf-8")) == {"a": {"b": [1]}}
    large = b'{"a":"' + b"x" * (2 * bodies._IN_THREAD_BYTES) + b'"}'
    assert asyncio.run(json_object(large, JSON))["a"].startswith("xx")
    for body in (
        b"",
        b"[1]",
        b'"x"',
        b"{",
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":1}}',
        b"[" * 200_000,
        b"\xff{}",
        b"\xef\xbb\xbf{}",
    ):
        assert refused(json_object(body, JSON)) == 400, body[:20]
    for content_type in ("", "text/plain", "multipart/form-data; boundary=x", "application/jsonx", "application/xml"):
        assert refused(json_object(b"{}", content_type)) == 415
