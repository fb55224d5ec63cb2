"""Requests that a web server may refuse by itself, asked of the door directly."""

from __future__ import annotations

import asyncio
from typing import Any

from security import web
from security.web import DoorSettings


def ask_directly(scope: dict[str, Any]) -> list[Any]:
    """What the door sends for a request that a web server may refuse by itself. Fails if the page gets to see it."""
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the page was asked")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    base = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "scheme": "http", "headers": []}
    asyncio.run(web.Door(page, DoorSettings())({**base, **scope}, receive, send))
    return sent


def test_websockets_are_refused() -> None:
    assert ask_directly({"type": "websocket", "headers": [(b"host", b"127.0.0.1")]})[0]["type"] == "websocket.close"


def test_a_request_has_exactly_one_host() -> None:
    host = (b"host", b"127.0.0.1")
    for headers in ([], [host, host], [host, (b"host", b"evil.example")]):
        assert ask_directly({"headers": headers})[0]["status"] == 400
