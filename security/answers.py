"""What the door answers by itself, and the headers that it puts on every answer of the page."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from html import escape

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Send

from security.login import login_page

FILE_PREFIX = "/gradio_api/file="
_PAGE_CSP = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Gradio needs inline scripts; what this prevents is loading from and sending to any other host."""
_FILE_CSP = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""A served file is looked at or downloaded, it never runs."""
_BOUNCE_CSP = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
_BOUNCE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={address}">
<title>Safelight</title></head><body><p><a href="{address}">Open Safelight</a></p></body></html>
"""


def login_form(message: str, status: int) -> Response:
    """The login page, with a message above the form if there is one."""
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; form-action 'self'; frame-ancestors 'none'"
    # With "no-referrer", browsers send "Origin: null" with the form, which looks like an attack.
    headers = {"content-security-policy": policy + "; base-uri 'none'", "referrer-policy": "same-origin"}
    return HTMLResponse(login_page(message, nonce), status, headers)


def bounce(address: str) -> Response:
    """A page that opens `address` at once.

    After a click on another site's link, browsers keep a strict cookie back. They send it when this page, which is our
    own, asks again; so a login is not asked for twice.
    """
    return HTMLResponse(
        _BOUNCE.format(address=escape(address, quote=True)), 401, {"content-security-policy": _BOUNCE_CSP}
    )


def with_cookie(response: Response, name: str, token: str, seconds: int, *, https: bool) -> Response:
    """Sets the login cookie: not for scripts, not for requests that another site causes, for this host alone."""
    response.set_cookie(name, token, max_age=seconds, path="/", httponly=True, samesite="strict", secure=https)
    return response


def with_headers(send: Send, path: str, is_own_file: bool) -> Send:
    """Adds the security headers to a response. Only static files and routes of our own may be kept by the browser."""
    is_static = path.startswith(("/assets/", "/static/", "/svelte/"))
    is_file = is_own_file or path.startswith(FILE_PREFIX)

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            headers["x-frame-options"] = "DENY"
            headers["cross-origin-resource-policy"] = "same-origin"
            headers.setdefault("referrer-policy", "no-referrer")
            headers.setdefault("content-security-policy", _FILE_CSP if is_file else _PAGE_CSP)
            if not is_static and not (is_own_file and "cache-control" in headers):
                headers["cache-control"] = "no-store"
        await send(message)

    return answer


def recorded(send: Send, record: Callable[[bytes], None]) -> Send:
    """Holds a successful answer back until it is whole and `record` has seen it, so that nobody can be faster."""
    held: list[Message] = []

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            held.clear()
            await send(message)
            return
        if message["type"] == "http.response.start" or held:
            held.append(message)
            if message["type"] == "http.response.start" or message.get("more_body", False):
                return
            record(b"".join(part.get("body", b"") for part in held))
            waiting = held[:]
            held.clear()
            for part in waiting:
                await send(part)
            return
        await send(message)

    return answer


def until_ended(send: Send, goes_on: Callable[[], bool]) -> Send:
    """Ends a stream of events when its login has ended, instead of sending what comes next."""
    over = False

    async def answer(message: Message) -> None:
        nonlocal over
        if over:
            return
        if message["type"] == "http.response.body" and not goes_on():
            over = True
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return answer
