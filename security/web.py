"""The door of the served page: which hosts, origins, routes and visitors are let in, and what belongs to which login.

Gradio has no such checks of its own. The door is an allow-list: a route that a new Gradio version brings stays shut
until it is written down in ROUTES.
"""

from __future__ import annotations

import json
import logging
import re
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.answers import FILE_PREFIX, bounce, login_form, recorded, until_ended, with_cookie, with_headers
from security.bodies import json_object, paced, read_body, replayed
from security.errors import RefusedConfig, RefusedRequest
from security.hosts import LOOPBACK_NAMES, check_host_name, host_of_origin, is_ip_address
from security.login import Credentials
from security.ownership import Kind, Ownership, paths_in
from security.policy import (
    BODY_IDLE_SECONDS,
    BODY_SECONDS,
    MAX_ANONYMOUS_REQUESTS_PER_WINDOW,
    MAX_LOGIN_BODY_BYTES,
    MAX_REQUEST_BODY_BYTES,
    MAX_REQUESTS_PER_WINDOW,
    MAX_UPLOAD_BYTES,
    SESSION_SECONDS,
)
from security.sharing import Sharing
from security.visits import RateLimit, Visit

logger = logging.getLogger("safelight.door")


class Audience(StrEnum):
    """Who may use a route."""

    ANYONE = "anyone"
    OWNER = "owner"


class Names(StrEnum):
    """Where a request to a route names things that must belong to the login that asks."""

    NOWHERE = "nowhere"
    BODY = "body"  # JSON: session_hash, event_id
    INPUTS = "inputs"  # the same, and the files among the inputs of an event
    JOIN = "join"  # the same; the answer names the event
    QUERY = "query"  # session_hash
    PATH = "path"  # session_hash, the last part
    UPLOAD = "upload"  # upload_id in the query; the answer names the files
    PROGRESS = "progress"  # upload_id in the query
    PIECE = "piece"  # the same, at the page's own route for uploads
    FILE = "file"  # the path behind "file="


@dataclass(frozen=True, slots=True)
class Route:
    """Paths that are let through: the whole path matches `pattern`, the method is one of `methods`."""

    pattern: re.Pattern[str]
    methods: tuple[str, ...]
    audience: Audience = Audience.OWNER
    names: Names = Names.NOWHERE


_GET = ("GET", "HEAD")
_POST = ("POST",)

ROUTES: tuple[Route, ...] = (
    Route(re.compile(r"/"), _GET),
    Route(re.compile(r"/config/?"), _GET),
    Route(re.compile(r"/(static|assets|svelte)/[^\\]+"), _GET),
    Route(re.compile(r"/favicon\.ico|/robots\.txt"), _GET, Audience.ANYONE),
    Route(re.compile(r"(/gradio_api)?/theme\.css"), _GET),
    # Gradio asks for this one itself at launch, without a login; all it does is to start the queue, once.
    Route(re.compile(r"/gradio_api/startup-events"), _GET, Audience.ANYONE),
    Route(re.compile(r"/gradio_api/(info|app_id)/?"), _GET),
    Route(re.compile(r"/gradio_api/queue/data"), _GET, names=Names.QUERY),
    Route(re.compile(r"/gradio_api/queue/join"), _POST, names=Names.JOIN),
    Route(re.compile(r"/gradio_api/run/[\w-]+/?"), _POST, names=Names.INPUTS),
    Route(re.compile(r"/gradio_api/(cancel|reset/?|component_server/?)"), _POST, names=Names.BODY),
    Route(re.compile(r"/gradio_api/heartbeat/\w+"), _GET, names=Names.PATH),
    Route(re.compile(r"/gradio_api/upload"), _POST, names=Names.UPLOAD),
    Route(re.compile(r"/gradio_api/upload_progress"), _GET, names=Names.PROGRESS),
    # Of a local file only: with an address after "file=", the server would fetch it or send the visitor there.
    Route(re.compile(FILE_PREFIX + r"(?!\s*//|\s*[\w+.-]+:[\\/]{2}).+", re.IGNORECASE), _GET, names=Names.FILE),
)
"""Everything that the page needs of Gradio 6.31. All other routes answer 404."""

DOOR_ROUTES = {
    "/login": "GET shows the form, POST takes the password; for anyone",
    "/logout": "POST ends the own login",
    "/session": "GET answers 204 to a login that goes on, else 401; for anyone",
}
"""What the door answers itself, on a page with a password."""

_OWN_FILE = Route(re.compile(r".*", re.DOTALL), _GET)
_OWN_UPLOAD = Route(re.compile(r".*"), _POST, names=Names.PIECE)
_DROPPED_HEADERS = frozenset(
    name.encode()
    for name in (
        "forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server",
        "x-original-url", "x-rewrite-url", "x-original-host", "x-host", "x-gradio-server",
        "cookie", "authorization",
    )
)  # fmt: skip
"""Headers with which a visitor could make Gradio write foreign addresses into the page, and those with secrets."""

_login: ContextVar[str] = ContextVar("login", default="")


def current_login() -> str:
    """The id of the login whose request is being answered; "" outside of one and on a page without a password.

    For functions that Gradio's component_server runs; events of its queue run apart from their requests.
    """
    return _login.get()


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How far the page reaches. Without `credentials` it answers on loopback names only.

    `listens`: any IP address may be the host, as with --listen. `sharing`: the name of its link may, while it is open.
    `host_names`: further names, without a port, in small letters. Raises RefusedConfig if one of them is set without
    `credentials`, or for a host name that is none.
    `file_prefixes`: paths such as "/files/" below which the page serves files by routes of its own (GET, logged in).
    `upload_path`: where the page takes pieces of uploads (POST, logged in, an upload_id of the same login in the query).
    """

    credentials: Credentials | None = None
    listens: bool = False
    sharing: Sharing | None = None
    host_names: tuple[str, ...] = ()
    file_prefixes: tuple[str, ...] = ()
    upload_path: str = ""
    max_upload_bytes: int = MAX_UPLOAD_BYTES

    def __post_init__(self) -> None:
        if self.credentials is None and (self.listens or self.sharing or self.host_names):
            raise RefusedConfig("A page that others can reach needs a password. Set one, or do not listen or share.")
        assert all(re.fullmatch(r"/[\w-]+/", prefix) for prefix in self.file_prefixes), self.file_prefixes
        assert all(name == check_host_name(name) for name in self.host_names), self.host_names


class Door:
    """ASGI middleware: `launch(app_kwargs={"middleware": [Middleware(Door, settings=DoorSettings(...))]})`."""

    def __init__(self, app: ASGIApp, settings: DoorSettings) -> None:
        self._app = app
        self._settings = settings
        self._rate = RateLimit()
        self._owned = Ownership()
        if settings.credentials is not None:
            settings.credentials.when_a_login_ends(self._owned.forget)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # Gradio's page uses no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        visit = Visit(scope, self._settings.sharing.host if self._settings.sharing else "")
        answer = with_headers(send, visit.path, visit.path.startswith(self._settings.file_prefixes))
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await answer(message)

        try:
            response = await self._answered(scope, visit, receive, noticed)
        except RefusedRequest as error:  # also by the page's own reading of a body that turns out too long or too slow
            if started:
                raise
            # what comes after a request that is no good may be a part of it
            response = PlainTextResponse(
                str(error), error.status, {"connection": "close"} if error.status == 400 else None
            )
        if response is not None:
            await response(scope, receive, answer)

    async def _answered(self, scope: Scope, visit: Visit, receive: Receive, send: Send) -> Response | None:
        """The door's own answer, or None after the page has answered. Raises RefusedRequest."""
        self._check_address(visit)
        credentials = self._settings.credentials
        login = credentials.login_of(visit.token) if credentials and visit.token else ""
        response = await self._own_answer(visit, login, receive)
        if response is not None:
            return response
        route = self._route(visit)
        if credentials and route.audience is Audience.OWNER and not login:
            raise RefusedRequest("Log in first.", 401)
        inner_receive = await self._checked(route.names, visit, login, receive)
        inner_send = self._watched(route.names, login, send)
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS]
        token = _login.set(login)
        try:
            await self._app({**scope, "headers": headers}, inner_receive, inner_send)
        finally:
            _login.reset(token)
        return None

    def _check_address(self, visit: Visit) -> None:
        """Host, origin, fetch metadata and proxies. Raises RefusedRequest.

        A foreign host name means DNS rebinding: a web site whose name points at this machine. A foreign origin means
        that another site's script or form sends the request. The port of Host may differ from ours: of a forwarded port
        (ssh -L, containers) the browser knows no other, and a port cannot be forged into another site's origin.
        """
        if "transfer-encoding" in visit.headers and "content-length" in visit.headers:
            # a proxy in front may go by the other one, and take a part of this body for the next visitor's request
            raise RefusedRequest("The request gives two lengths.", 400)
        if not self._knows_host(visit):
            raise RefusedRequest("This address is not one of the page's own. Use the one in the terminal.", 400)
        for origin in visit.headers.getlist("origin"):
            if origin.lower() in (f"http://{visit.host}", f"https://{visit.host}"):
                continue
            if host_of_origin(origin) not in self._settings.host_names:  # a proxy may ask for the page by another host
                raise RefusedRequest("Requests from other web sites are refused.", 403)
        if visit.comes_from_elsewhere and not visit.follows_a_link:
            raise RefusedRequest("Requests from other web sites are refused.", 403)
        if self._settings.credentials is None and visit.came_by_proxy:
            raise RefusedRequest(
                "This page has no password and answers this machine only, but a proxy passed the request on. Start "
                "Safelight with --host-name and the proxy's name; it then asks for a password.",
                403,
            )

    def _knows_host(self, visit: Visit) -> bool:
        settings = self._settings
        if visit.host_name in LOOPBACK_NAMES or visit.host_name in settings.host_names or visit.is_shared:
            return True
        return settings.listens and is_ip_address(visit.host_name)

    async def _own_answer(self, visit: Visit, login: str, receive: Receive) -> Response | None:
        """The door's own answer (login, logout, redirect, refusal), or None to go on. Raises RefusedRequest."""
        credentials = self._settings.credentials
        if credentials is None:
            self._rate.count("", MAX_REQUESTS_PER_WINDOW)
            return Response(status_code=204) if visit.path == "/session" and visit.method == "GET" else None
        if visit.path == "/" and visit.method == "GET" and (key := visit.query.get("key")):
            if credentials.check_key(key[0]):
                return self._logged_in(credentials, visit, visit.address_without("key"))
            self._rate.count("", MAX_ANONYMOUS_REQUESTS_PER_WINDOW)
            return login_form("This link has expired. Use the newest one, or the password.", 401)
        self._rate.count(login, MAX_REQUESTS_PER_WINDOW if login else MAX_ANONYMOUS_REQUESTS_PER_WINDOW)
        if visit.path == "/login":
            return await self._login(credentials, visit, login, receive)
        if visit.path == "/logout" and visit.method == "POST":
            credentials.close_session(visit.token)
            logger.info("logged out: login %s", login or "(none)")
            return with_cookie(RedirectResponse("login", 303), visit.cookie_name, "", 0, https=visit.is_https)
        if visit.path == "/session" and visit.method == "GET":
            return Response(status_code=204 if login else 401)
        if not login and visit.path == "/" and visit.method in _GET:
            if visit.comes_from_elsewhere:
                return bounce(visit.address_without("key"))
            return login_form("", 401)
        return None

    async def _login(self, credentials: Credentials, visit: Visit, login: str, receive: Receive) -> Response:
        """GET shows the form, POST checks the password. Raises RefusedRequest."""
        if visit.method in _GET:
            return RedirectResponse("./", 303) if login else login_form("", 200)
        if visit.method != "POST":
            raise RefusedRequest("Method not allowed", 405)
        body = await read_body(receive, MAX_LOGIN_BODY_BYTES, BODY_IDLE_SECONDS)
        try:
            fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4)
        except ValueError:  # too many fields
            raise RefusedRequest("This is not the login form.", 400) from None
        try:
            if await credentials.check_password(fields.get("password", [""])[0]):
                return self._logged_in(credentials, visit, "./")
        except RefusedRequest as error:
            return login_form(str(error), error.status)
        logger.warning("a wrong password was typed %s", visit.place)
        return login_form("Wrong password. Try again.", 401)

    def _logged_in(self, credentials: Credentials, visit: Visit, address: str) -> Response:
        """Begins a login and sends the browser to an address of the page."""
        token = credentials.open_session(visit.place)
        logger.info("logged in %s: login %s", visit.place, credentials.login_of(token))
        return with_cookie(
            RedirectResponse(address, 303), visit.cookie_name, token, SESSION_SECONDS, https=visit.is_https
        )

    def _route(self, visit: Visit) -> Route:
        """The route of a request. Raises RefusedRequest: 404 if it is closed, 405 for another method."""
        if "deep_link" in visit.query:  # would show the inputs of another page
            raise RefusedRequest("Not found", 404)
        if visit.path == self._settings.upload_path:
            matching = [_OWN_UPLOAD]
        elif visit.path.startswith(self._settings.file_prefixes):
            matching = [_OWN_FILE]
        else:
            matching = [route for route in ROUTES if route.pattern.fullmatch(visit.path)]
        if not matching:
            raise RefusedRequest("Not found", 404)
        for route in matching:
            if visit.method in route.methods:
                return route
        raise RefusedRequest("Method not allowed", 405)

    async def _checked(self, names: Names, visit: Visit, login: str, receive: Receive) -> Receive:
        """The body for the page, when it is as allowed and everything that the request names belongs to the login.

        Raises RefusedRequest.
        """
        limit = self._settings.max_upload_bytes if names is Names.UPLOAD else MAX_REQUEST_BODY_BYTES
        if int(visit.headers.get("content-length", "0")) > limit:  # the server refuses what is no number
            raise RefusedRequest(f"The request is larger than {limit} bytes. Choose large files by their path.", 413)
        match names:
            case Names.BODY | Names.INPUTS | Names.JOIN:
                body = await read_body(receive, limit, BODY_SECONDS)
                sent = await json_object(body, visit.headers.get("content-type", ""))
                if sent.get("session_hash") is not None:
                    self._owned.claim(login, Kind.SESSION, sent["session_hash"])
                if sent.get("event_id") is not None:
                    self._owned.require(login, Kind.EVENT, [sent["event_id"]])
                if names is not Names.BODY:
                    self._owned.require(login, Kind.FILE, paths_in(sent.get("data")))
                return replayed(body, receive)
            case Names.QUERY:
                self._owned.claim(login, Kind.SESSION, visit.only("session_hash"))
            case Names.PATH:
                self._owned.claim(login, Kind.SESSION, visit.path.rpartition("/")[2])
            case Names.PROGRESS:
                self._owned.claim(login, Kind.UPLOAD, visit.only("upload_id"))
            case Names.PIECE:
                self._owned.claim(login, Kind.UPLOAD, visit.only("upload_id"))
            case Names.UPLOAD if "upload_id" in visit.query:
                self._owned.claim(login, Kind.UPLOAD, visit.only("upload_id"))
            case Names.FILE:
                self._owned.require(login, Kind.FILE, [visit.path[len(FILE_PREFIX) :]])
        return paced(receive, limit)

    def _watched(self, names: Names, login: str, send: Send) -> Send:
        """The way back: what Gradio gives out is recorded for the login, and streams end with it."""
        match names:
            case Names.UPLOAD:
                return recorded(send, lambda answer: self._owned.add(login, Kind.FILE, json.loads(answer)))
            case Names.JOIN:
                return recorded(
                    send, lambda answer: self._owned.add(login, Kind.EVENT, [json.loads(answer)["event_id"]])
                )
            case Names.QUERY | Names.PATH | Names.PROGRESS if credentials := self._settings.credentials:
                return until_ended(send, lambda: credentials.is_logged_in(login))
        return send
