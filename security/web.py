"""The door of the served page: which hosts, origins, routes and visitors are let in, and what browsers are told.

Gradio has no such checks of its own. The door is an allow-list: a route that a new Gradio version brings stays shut
until it is written down in ROUTES.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.errors import RefusedConfig, RefusedRequest
from security.login import Credentials, login_page
from security.policy import (
    MAX_ANONYMOUS_REQUESTS_PER_WINDOW,
    MAX_LOGIN_BODY_BYTES,
    MAX_REQUEST_BODY_BYTES,
    MAX_REQUESTS_PER_WINDOW,
    MAX_UPLOAD_BYTES,
    RATE_WINDOW_SECONDS,
    SESSION_SECONDS,
)


class Audience(StrEnum):
    """Who may use a route."""

    ANYONE = "anyone"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Route:
    """Paths that are let through: the whole path matches `pattern`, the method is one of `methods`."""

    pattern: re.Pattern[str]
    methods: tuple[str, ...]
    audience: Audience = Audience.OWNER


_GET = ("GET", "HEAD")
_UPLOAD_PATH = "/gradio_api/upload"
_FILE_PREFIX = "/gradio_api/file="

ROUTES: tuple[Route, ...] = (
    Route(re.compile(r"/"), _GET),
    Route(re.compile(r"/config/?"), _GET),
    Route(re.compile(r"/(static|assets|svelte)/[^\\]+"), _GET),
    Route(re.compile(r"/favicon\.ico|/robots\.txt"), _GET, Audience.ANYONE),
    Route(re.compile(r"(/gradio_api)?/theme\.css"), _GET),
    # Gradio asks for this one itself at launch, without a session; all it does is to start the queue, once.
    Route(re.compile(r"/gradio_api/startup-events"), _GET, Audience.ANYONE),
    Route(re.compile(r"/gradio_api/(info|app_id)/?"), _GET),
    Route(re.compile(r"/gradio_api/queue/data"), _GET),
    Route(re.compile(r"/gradio_api/queue/join"), ("POST",)),
    Route(re.compile(r"/gradio_api/run/[\w-]+/?"), ("POST",)),
    Route(re.compile(r"/gradio_api/(cancel|reset/?|component_server/?)"), ("POST",)),
    Route(re.compile(r"/gradio_api/heartbeat/\w+"), _GET),
    Route(re.compile(_UPLOAD_PATH), ("POST",)),
    Route(re.compile(r"/gradio_api/upload_progress"), _GET),
    # Of a local file only: with an address after "file=", the server would fetch it or send the visitor there.
    Route(re.compile(_FILE_PREFIX + r"(?!\s*//|\s*[\w+.-]+:[\\/]{2}).+", re.IGNORECASE), _GET),
)
"""Everything that the page needs of Gradio 6.31. All other routes answer 404."""

_OWN_FILE = Route(re.compile(r".*", re.DOTALL), _GET)
_DROPPED_HEADERS = frozenset(
    name.encode()
    for name in (
        "forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server",
        "x-original-url", "x-rewrite-url", "x-original-host", "x-host",
        "cookie", "authorization",
    )
)  # fmt: skip
"""Headers with which a visitor could make Gradio write foreign addresses into the page, and those with secrets."""

_PAGE_CSP = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Gradio needs inline scripts; what this prevents is loading from and sending to any other host."""
_FILE_CSP = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""A served file is looked at or downloaded, it never runs."""

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9.-]{0,252}))(?::\d{1,5})?")
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_SHARE_HOST = re.compile(r"[a-z0-9]{6,64}\.gradio\.live")
_LOGIN_BODY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How far the page reaches. Without `credentials` it answers on loopback names only.

    `listens`: any IP address may be the host, as with --listen. `shared`: names of Gradio's share links may.
    `host_names`: further names, without a port. Raises RefusedConfig if one of them is set without `credentials`.
    `file_prefixes`: paths such as "/files/" below which the page serves files by routes of its own (GET, logged in).
    """

    credentials: Credentials | None = None
    listens: bool = False
    shared: bool = False
    host_names: tuple[str, ...] = ()
    file_prefixes: tuple[str, ...] = ()
    max_upload_bytes: int = MAX_UPLOAD_BYTES

    def __post_init__(self) -> None:
        if self.credentials is None and (self.listens or self.shared or self.host_names):
            raise RefusedConfig("A page that others can reach needs a password. Set one, or do not listen or share.")
        assert all(re.fullmatch(r"/[\w-]+/", prefix) for prefix in self.file_prefixes), self.file_prefixes


class Door:
    """ASGI middleware: `launch(app_kwargs={"middleware": [Middleware(Door, settings=DoorSettings(...))]})`."""

    def __init__(self, app: ASGIApp, settings: DoorSettings) -> None:
        self._app = app
        self._settings = settings
        self._rate = _RateLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # Gradio's page uses no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        visit = _Visit(scope)
        is_own_file = visit.path.startswith(self._settings.file_prefixes)
        answer = _with_headers(send, visit.path, is_own_file)
        try:
            self._check_address(visit)
            response = await self._own_answer(visit, receive)
            if response is None:
                inner_scope, inner_receive = self._inner(scope, visit, receive)
        except RefusedRequest as error:
            response = PlainTextResponse(str(error), error.status)
        if response is not None:
            await response(scope, receive, answer)
            return
        await self._app(inner_scope, inner_receive, answer)

    def _check_address(self, visit: _Visit) -> None:
        """Host, origin and fetch metadata. Raises RefusedRequest.

        A foreign host name means DNS rebinding: a web site whose name points at this machine. A foreign origin means
        that another site's script or form sends the request. The port of Host may differ from ours: of a forwarded port
        (ssh -L, containers) the browser knows no other, and a port cannot be forged into another site's origin.
        """
        match = _HOST.fullmatch(visit.host)
        if match is None or not self._knows_host(match[1]):
            raise RefusedRequest("This address is not one of the page's own. Use the one in the terminal.", 400)
        origins = visit.headers.getlist("origin")
        if any(origin.lower() not in (f"http://{visit.host}", f"https://{visit.host}") for origin in origins):
            raise RefusedRequest("Requests from other web sites are refused.", 403)
        if visit.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            navigates = visit.headers.get("sec-fetch-mode") == "navigate"
            on_top = visit.headers.get("sec-fetch-dest") == "document"
            if not (navigates and on_top and visit.path == "/" and visit.method == "GET"):
                raise RefusedRequest("Requests from other web sites are refused.", 403)

    def _knows_host(self, name: str) -> bool:
        settings = self._settings
        if name in _LOOPBACK_NAMES or name in settings.host_names:
            return True
        if settings.shared and _SHARE_HOST.fullmatch(name):
            return True
        return settings.listens and _is_ip_address(name)

    async def _own_answer(self, visit: _Visit, receive: Receive) -> Response | None:
        """The door's own answer (login, redirect, refusal), or None to let the request in. Raises RefusedRequest."""
        credentials = self._settings.credentials
        if credentials is None:
            self._rate.count("", MAX_REQUESTS_PER_WINDOW)
            self._audience(visit)
            return None
        if visit.path == "/" and visit.method == "GET" and (key := visit.query.get("key")):
            if credentials.check_key(key[0]):
                return _logged_in(credentials, visit, visit.address_without("key"))
            self._rate.count("", MAX_ANONYMOUS_REQUESTS_PER_WINDOW)
            return _login_form("This link has expired. Use the newest one, or the password.", 401)
        is_owner = visit.token != "" and credentials.has_session(visit.token)
        if is_owner:
            self._rate.count(visit.token, MAX_REQUESTS_PER_WINDOW)
        else:
            self._rate.count("", MAX_ANONYMOUS_REQUESTS_PER_WINDOW)
        if visit.path == "/login":
            return await _login(credentials, visit, receive, is_owner)
        if visit.path == "/logout" and visit.method == "POST":
            credentials.close_session(visit.token)
            return _with_cookie(RedirectResponse("login", 303), visit, "", 0)
        if not is_owner and visit.path == "/" and visit.method in _GET:
            return _login_form("", 401)
        if self._audience(visit) is Audience.OWNER and not is_owner:
            raise RefusedRequest("Log in first.", 401)
        return None

    def _audience(self, visit: _Visit) -> Audience:
        """Who may use the route of a request. Raises RefusedRequest: 404 if it is closed, 405 for another method."""
        if "deep_link" in visit.query:  # would show the inputs of another session
            raise RefusedRequest("Not found", 404)
        is_own_file = visit.path.startswith(self._settings.file_prefixes)
        matching = [_OWN_FILE] if is_own_file else [route for route in ROUTES if route.pattern.fullmatch(visit.path)]
        if not matching:
            raise RefusedRequest("Not found", 404)
        for route in matching:
            if visit.method in route.methods:
                return route.audience
        raise RefusedRequest("Method not allowed", 405)

    def _inner(self, scope: Scope, visit: _Visit, receive: Receive) -> tuple[Scope, Receive]:
        """What the page itself gets to see: no misleading headers, no session, no more body than allowed."""
        is_upload = visit.path == _UPLOAD_PATH
        limit = self._settings.max_upload_bytes if is_upload else MAX_REQUEST_BODY_BYTES
        if int(visit.headers.get("content-length", "0")) > limit:  # the server refuses what is no number
            raise RefusedRequest(f"The request is larger than {limit} bytes. Choose large files by their path.", 413)
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS]
        return {**scope, "headers": headers}, _capped(receive, limit)


class _Visit:
    """The parts of a request that the door looks at."""

    def __init__(self, scope: Scope) -> None:
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._query_text = scope["query_string"].decode("latin-1")
        self.query = parse_qs(self._query_text, keep_blank_values=True)
        hosts = self.headers.getlist("host")
        self.host = hosts[0].lower() if len(hosts) == 1 else ""
        # A share link is https up to the tunnel's end, whatever this end of it says.
        self.is_https = scope["scheme"] == "https" or self.host.endswith(".gradio.live")
        # Cookies do not tell ports apart, so two programs on one machine need two names.
        port = (scope.get("server") or ("", 0))[1]
        self.cookie_name = f"safelight-{port}"
        self.token = self._cookie()

    def _cookie(self) -> str:
        """The session token that the browser sent, or ""."""
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load("; ".join(self.headers.getlist("cookie")))
        except CookieError:
            return ""
        return cookies[self.cookie_name].value if self.cookie_name in cookies else ""

    def address_without(self, name: str) -> str:
        """The path with all query parameters but one."""
        rest = [(key, value) for key, value in parse_qsl(self._query_text) if key != name]
        return "/" + ("?" + urlencode(rest) if rest else "")


async def _login(credentials: Credentials, visit: _Visit, receive: Receive, is_owner: bool) -> Response:
    """GET shows the form, POST checks the password. Raises RefusedRequest."""
    if visit.method in _GET:
        return RedirectResponse("./", 303) if is_owner else _login_form("", 200)
    if visit.method != "POST":
        raise RefusedRequest("Method not allowed", 405)
    try:
        async with asyncio.timeout(_LOGIN_BODY_SECONDS):
            body = await _read_body(receive)
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4)
    except TimeoutError:
        raise RefusedRequest("The request took too long.", 408) from None
    except RefusedRequest:
        raise
    except ValueError:  # too many fields
        raise RefusedRequest("This is not the login form.", 400) from None
    try:
        if await credentials.check_password(fields.get("password", [""])[0]):
            return _logged_in(credentials, visit, "/")
    except RefusedRequest as error:
        return _login_form(str(error), error.status)
    return _login_form("Wrong password. Try again.", 401)


async def _read_body(receive: Receive) -> bytes:
    """The body of a login. Raises RefusedRequest (413)."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_LOGIN_BODY_BYTES:
            raise RefusedRequest("The request is too large.", 413)
        if not message.get("more_body", False):
            return bytes(body)


def _login_form(message: str, status: int) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; form-action 'self'; frame-ancestors 'none'"
    # With "no-referrer", browsers send "Origin: null" with the form, which looks like an attack.
    headers = {"content-security-policy": policy + "; base-uri 'none'", "referrer-policy": "same-origin"}
    return HTMLResponse(login_page(message, nonce), status, headers)


def _logged_in(credentials: Credentials, visit: _Visit, address: str) -> Response:
    """Opens a session and sends the browser to an address of the page."""
    return _with_cookie(RedirectResponse(address, 303), visit, credentials.open_session(), SESSION_SECONDS)


def _with_cookie(response: Response, visit: _Visit, token: str, seconds: int) -> Response:
    """Sets the session cookie. Lax, not strict: a link with the key, opened from another app, must end logged in."""
    response.set_cookie(
        visit.cookie_name, token, max_age=seconds, path="/", httponly=True, samesite="lax", secure=visit.is_https
    )
    return response


def _capped(receive: Receive, limit: int) -> Receive:
    """Counts the body as it comes, since Content-Length may be missing. Raises RefusedRequest (413)."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise RefusedRequest(f"The request is larger than {limit} bytes.", 413)
        return message

    return counted


def _with_headers(send: Send, path: str, is_own_file: bool) -> Send:
    """Adds the security headers to a response. Only static files and routes of our own may be kept by the browser."""
    is_static = path.startswith(("/assets/", "/static/", "/svelte/"))
    is_file = is_own_file or path.startswith(_FILE_PREFIX)

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


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class _RateLimit:
    """Counts requests per visitor in windows of RATE_WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._window_end = 0.0

    def count(self, visitor: str, limit: int) -> None:
        """Counts one request. Raises RefusedRequest (429) beyond `limit`."""
        now = time.monotonic()
        if now >= self._window_end:
            self._counts.clear()
            self._window_end = now + RATE_WINDOW_SECONDS
        self._counts[visitor] = self._counts.get(visitor, 0) + 1
        if self._counts[visitor] > limit:
            raise RefusedRequest("Too many requests. Wait a few seconds.", 429)
