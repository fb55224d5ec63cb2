"""Request bodies: read with a limit in bytes and in time, and understood in exactly one way."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.types import Message, Receive

from security.errors import RefusedRequest
from security.policy import BODY_GRACE_SECONDS, BODY_IDLE_SECONDS, MIN_BODY_BYTES_PER_SECOND

_IN_THREAD_BYTES = 256 * 1024
"""Parsing more than this takes milliseconds, during which the page of others should go on."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body. Raises RefusedRequest: 413 beyond `limit` bytes, 408 after `seconds`, 400 if it breaks off."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedRequest("The request broke off.", 400)
                body += message.get("body", b"")
                if len(body) > limit:
                    raise RefusedRequest(f"The request is larger than {limit} bytes.", 413)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RefusedRequest("The request took too long.", 408) from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out a body that was read before, and then what comes after it."""
    handed_out = False

    async def again() -> Message:
        nonlocal handed_out
        if handed_out:
            return await receive()
        handed_out = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def paced(receive: Receive, limit: int) -> Receive:
    """Counts a body as it comes, since its length may not be announced, and how fast it comes.

    Raises RefusedRequest: 413 beyond `limit` bytes, 408 when it stands still or only trickles.
    """
    received = 0
    began = time.monotonic()
    complete = False

    async def counted() -> Message:
        nonlocal received, complete
        if complete:  # what is waited for now is the visitor leaving
            return await receive()
        try:
            async with asyncio.timeout(BODY_IDLE_SECONDS):
                message = await receive()
        except TimeoutError:
            raise RefusedRequest("The request took too long.", 408) from None
        received += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if received > limit:
            raise RefusedRequest(f"The request is larger than {limit} bytes.", 413)
        slow = received < (time.monotonic() - began - BODY_GRACE_SECONDS) * MIN_BODY_BYTES_PER_SECOND
        if slow and not complete:
            raise RefusedRequest("The request comes too slowly.", 408)
        return message

    return counted


async def json_object(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in a body. Raises RefusedRequest (415, 400) for anything else.

    Names that come twice are refused: two programs may each take another of the two.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusedRequest("Only JSON is taken here.", 415)
    try:
        value = await asyncio.to_thread(_parse, body) if len(body) > _IN_THREAD_BYTES else _parse(body)
    except (ValueError, RecursionError):
        raise RefusedRequest("The request is not valid JSON.", 400) from None
    if not isinstance(value, dict):
        raise RefusedRequest("The request is not a JSON object.", 400)
    return value


def _parse(body: bytes) -> Any:
    return json.loads(body.decode("utf-8"), object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found
