"""Every route of the served page, what it answers to strangers and to the owner, and what Gradio alone would have answered.

`python -m tests.security.route_table` prints both tables as Markdown, from a page that it serves for that.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from security.web import DOOR_ROUTES
from tests.security.real_page import RealPage, real_page

OPEN_ROUTES: dict[str, tuple[str, int]] = {
    "GET /": ("/", 200),
    "HEAD /": ("/", 200),
    "GET /config": ("/config", 200),
    "GET /config/": ("/config/", 200),
    "GET /static/{path:path}": ("/static/img/logo.svg", 200),
    "GET /assets/{path:path}": ("/assets/x1.js", 404),
    "GET /svelte/{path:path}": ("/svelte/x1.js", 404),
    "GET /favicon.ico": ("/favicon.ico", 200),
    "GET /robots.txt": ("/robots.txt", 200),
    "GET /theme.css": ("/theme.css", 200),
    "GET /gradio_api/theme.css": ("/gradio_api/theme.css", 200),
    "GET /gradio_api/startup-events": ("/gradio_api/startup-events", 200),
    "GET /gradio_api/info": ("/gradio_api/info", 200),
    "GET /gradio_api/info/": ("/gradio_api/info/", 200),
    "GET /gradio_api/app_id": ("/gradio_api/app_id", 200),
    "GET /gradio_api/app_id/": ("/gradio_api/app_id/", 200),
    "GET /gradio_api/queue/data": ("/gradio_api/queue/data?session_hash=x1", 200),
    "POST /gradio_api/queue/join": ("/gradio_api/queue/join", 422),
    "POST /gradio_api/run/{api_name}": ("/gradio_api/run/x1", 422),
    "POST /gradio_api/run/{api_name}/": ("/gradio_api/run/x1/", 422),
    "POST /gradio_api/cancel": ("/gradio_api/cancel", 422),
    "POST /gradio_api/reset": ("/gradio_api/reset", 422),
    "POST /gradio_api/reset/": ("/gradio_api/reset/", 422),
    "POST /gradio_api/component_server": ("/gradio_api/component_server", 400),
    "POST /gradio_api/component_server/": ("/gradio_api/component_server/", 400),
    "GET /gradio_api/heartbeat/{session_hash}": ("/gradio_api/heartbeat/x1", 200),
    "POST /gradio_api/upload": ("/gradio_api/upload", 400),
    "GET /gradio_api/upload_progress": ("/gradio_api/upload_progress?upload_id=x1", 404),
    "GET /gradio_api/file={path_or_url:path}": ("/gradio_api/file=/etc/hostname", 403),
    "HEAD /gradio_api/file={path_or_url:path}": ("/gradio_api/file=/etc/hostname", 403),
    "GET /safelight/runs/{run}/{path:path}": ("/safelight/runs/x1/config.toml", 404),
    "HEAD /safelight/runs/{run}/{path:path}": ("/safelight/runs/x1/config.toml", 404),
    "GET /safelight/datasets/{dataset}/{path:path}": ("/safelight/datasets/ink/01-rabbit-face.png", 200),
    "HEAD /safelight/datasets/{dataset}/{path:path}": ("/safelight/datasets/ink/01-rabbit-face.png", 200),
    "GET /safelight/loras/{name}": ("/safelight/loras/x1.safetensors", 404),
    "HEAD /safelight/loras/{name}": ("/safelight/loras/x1.safetensors", 404),
    "GET /safelight/exports/{key}/{name}": ("/safelight/exports/x1/x1.zip", 404),
    "HEAD /safelight/exports/{key}/{name}": ("/safelight/exports/x1/x1.zip", 404),
    "POST /safelight/upload": ("/safelight/upload?upload_id=x1&name=a.exe&at=0&size=1", 415),
}
"""Routes that the door lets the owner use: an example of each, and what the page answers to it. Statuses of 400 and
422 are the page's own words about an empty body, 404 about a name that there is not."""

CLOSED_ROUTES: dict[str, tuple[str, ...]] = {
    "Gradio's own login; the door has its own, with brakes, and Gradio's is never switched on": (
        "POST /login", "POST /login/", "GET /logout", "GET /gradio_api/user", "GET /gradio_api/user/",
        "GET /gradio_api/login_check", "GET /gradio_api/login_check/", "GET /gradio_api/token", "GET /gradio_api/token/",
    ),
    "shows or keeps what a visitor typed": (
        "GET /gradio_api/deep_link", "GET /gradio_api/runs", "GET /gradio_api/runs/",
    ),
    "for programs; the page does not use it": (
        "GET /gradio_api/openapi.json", "POST /gradio_api/api/{api_name}", "POST /gradio_api/api/{api_name}/",
        "POST /gradio_api/call/{api_name}", "POST /gradio_api/call/{api_name}/", "POST /gradio_api/call/v2/{api_name}",
        "POST /gradio_api/call/v2/{api_name}/", "GET /gradio_api/call/{api_name}/{event_id}",
        "GET /gradio_api/call/v2/{api_name}/{event_id}", "GET /gradio_api/queue/status",
        "GET /gradio_api/file/{path:path}",
    ),
    "fetches for the visitor, runs tools, or edits the program from the page": (
        "GET /gradio_api/proxy={url_path:path}", "HEAD /gradio_api/proxy={url_path:path}", "GET /gradio_api/dev/reload",
        "POST /gradio_api/process_recording", "POST /gradio_api/vibe-edit", "POST /gradio_api/vibe-edit/",
        "POST /gradio_api/undo-vibe-edit", "POST /gradio_api/undo-vibe-edit/", "GET /gradio_api/vibe-code",
        "GET /gradio_api/vibe-code/", "POST /gradio_api/vibe-code", "POST /gradio_api/vibe-code/",
        "POST /gradio_api/vibe-starter-queries", "POST /gradio_api/vibe-starter-queries/",
        "GET /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
    ),
    "watches other visitors": ("GET /monitoring", "GET /monitoring/summary", "GET /monitoring/{key}"),
    "streams of sound and film; not used, and Gradio checks nothing there": (
        "POST /gradio_api/stream/{event_id}", "POST /gradio_api/stream/{event_id}/close",
        "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
        "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
        "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
    ),
    "installs the page as an app; switched off": ("GET /manifest.json", "GET /pwa_icon", "GET /pwa_icon/{size}"),
}  # fmt: skip
"""Routes that Gradio has and the door keeps shut, by the reason."""


SWITCHED_OFF_ROUTES = (
    "POST /gradio_api/run-history/connect", "GET /gradio_api/run-history/buckets", "GET /gradio_api/run-history/records",
    "GET /gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}",
)  # fmt: skip
"""Routes that Gradio has by default and this page does not use: switched off, and shut if they were on."""


@dataclass(frozen=True)
class RouteRow:
    """A route ("GET /config") and the status that a stranger and a logged-in owner get. `why` it is shut, if it is."""

    route: str
    anonymous: int
    owner: int
    why: str


def real_routes(routes: list[Any], prefix: str = "") -> set[str]:
    """ "METHOD path" of every route of an app: included routers and mounted apps too."""
    found = set()
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if (included := getattr(route, "original_router", None)) is not None:
            found |= real_routes(included.routes, prefix)
        elif (inner := getattr(route, "routes", None)) is not None and not hasattr(route, "methods"):
            found |= real_routes(inner, path) or {f"MOUNT {path}"}
        elif getattr(route, "methods", None) is None:
            found.add(f"{type(route).__name__} {path}")
        else:
            found |= {f"{method} {path}" for method in route.methods}
    return found


def example_of(route: str) -> tuple[str, str]:
    """A request for a route: method and path, its parameters replaced by plain words."""
    method, path = route.split(" ")
    return method, OPEN_ROUTES[route][0] if route in OPEN_ROUTES else re.sub(r"\{[^}]*\}", "x1", path)


def status_of(client: httpx.Client, method: str, path: str, **options: Any) -> int:
    """The status alone; a stream of events is not waited for."""
    if method == "POST" and not options:
        options = {"json": {}}
    with client.stream(method, path, **options) as answer:
        return answer.status_code


def route_table(page: RealPage) -> list[RouteRow]:
    """What every route of the app, and every one of the door's own, answers."""
    why = {route: reason for reason, routes in CLOSED_ROUTES.items() for route in routes}
    own = [f"{'POST' if path == '/logout' else 'GET'} {path}" for path in DOOR_ROUTES]
    rows = []
    with page.client() as stranger, page.owner() as owner:
        for route in sorted(real_routes(page.app.routes) - {"GET /logout", "POST /login"}) + sorted(own):
            method, path = example_of(route)
            anonymous = status_of(stranger, method, path)
            rows.append(RouteRow(route, anonymous, status_of(owner, method, path), why.get(route, "")))
    return rows


@dataclass(frozen=True)
class AttackRow:
    """A request, what Gradio 6.31 with its own login answers to it, and what the page answers a stranger and an owner.

    `wanted` are the statuses that the test demands, of both; "-" where the request makes no sense.
    """

    request: str
    gradio: str
    anonymous: str
    owner: str
    wanted: tuple[str, str]


def attack_table(page: RealPage) -> list[AttackRow]:
    """The requests that the door was built against, sent to a running page by a stranger, an owner and another owner."""
    with page.client() as stranger, page.owner() as owner, page.owner() as other:
        return [*_reading(stranger, owner), *_taking(page, stranger, owner, other), *_forging(page, stranger, owner)]


def _row(request: str, gradio: str, anonymous: int | str, owner: int | str, wanted: str) -> AttackRow:
    wanted_anonymous, _, wanted_owner = wanted.partition("/")
    return AttackRow(request, gradio, str(anonymous), str(owner), (wanted_anonymous, wanted_owner))


def _reading(stranger: httpx.Client, owner: httpx.Client) -> Iterator[AttackRow]:
    front = stranger.get("/")
    shown = "shows the page" if "gradio" in front.text.lower() else front.status_code
    yield _row("the front page", "shown with the values of its fields", shown, owner.get("/").status_code, "401/200")
    for path, gradio in (
        ("/config", "401 / 200"),
        ("/openapi.json", "200 / 200"),
        ("/gradio_api/runs", "200 / 200"),
        ("/gradio_api/run-history/records", "answered without a login"),
        ("/gradio_api/token", "200 / 200"),
        ("/gradio_api/user", "200 / 200"),
        ("/monitoring", "401 / 200"),
        ("/gradio_api/deep_link?session_hash=x1", "401 / answered"),
        ("/?deep_link=x1", "401 / answered"),
        ("/gradio_api/heartbeat/x2", "200 / 200"),
        ("/gradio_api/stream/x/1/1/playlist.m3u8", "404 / 404, without a check"),
        ("/gradio_api/file=http://127.0.0.1:1/", "401 / 403"),
        ("/gradio_api/file=/etc/hostname", "401 / 403"),
        ("/gradio_api/proxy=http://127.0.0.1:1/", "401 / 403"),
    ):
        wanted = {"/config": "401/200", "/gradio_api/heartbeat/x2": "401/200", "/?deep_link=x1": "401/404"}.get(path)
        wanted = wanted or ("401/403" if path.endswith("/etc/hostname") else "404/404")
        yield _row(f"GET {path}", gradio, status_of(stranger, "GET", path), status_of(owner, "GET", path), wanted)
    cancel = {"session_hash": "x1", "fn_index": 0, "event_id": "x1"}
    statuses = [status_of(client, "POST", "/gradio_api/cancel", json=cancel) for client in (stranger, owner)]
    yield _row("cancel of an event that is not one's own", "200 / 200", statuses[0], statuses[1], "401/403")


def _taking(page: RealPage, stranger: httpx.Client, owner: httpx.Client, other: httpx.Client) -> Iterator[AttackRow]:
    upload = {"files": {"files": ("a.txt", b"of one login")}}
    refused = stranger.post("/gradio_api/upload", **upload).status_code
    answer = owner.post("/gradio_api/upload", **upload)
    yield _row("an upload", "401 / 200", refused, answer.status_code, "401/200")
    path = answer.json()[0]
    read = [client.get(f"/gradio_api/file={path}").status_code for client in (stranger, other)]
    yield _row("reading another login's upload by its path", "401 / 200", *read, "401/403")
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "y1"}
    sent = [client.post("/gradio_api/queue/join", json=body).status_code for client in (stranger, other)]
    yield _row("using another login's upload as an input", "401 / accepted", *sent, "401/403")
    component = min(page.app.get_blocks().blocks)
    call = {"data": [], "session_hash": "ofone", "component_id": component, "fn_name": "x"}
    assert owner.post("/gradio_api/component_server", json=call).status_code == 404
    heard = [status_of(client, "GET", "/gradio_api/queue/data?session_hash=ofone") for client in (stranger, other)]
    yield _row("listening to another login's session", "401 / 200", *heard, "401/403")
    joined = [client.post("/gradio_api/component_server", json=call).status_code for client in (stranger, other)]
    yield _row("calling functions in another login's session", "401 / 200", *joined, "401/403")


def _forging(page: RealPage, stranger: httpx.Client, owner: httpx.Client) -> Iterator[AttackRow]:
    evil = {"Origin": "http://evil.example"}
    for what, gradio, headers in (
        ("any request with a foreign Origin", "answered", evil),
        ("any request with Origin: null", "answered", {"Origin": "null"}),
        ("a request that another site's page causes", "answered", {"Sec-Fetch-Site": "cross-site"}),
    ):
        statuses = [client.get("/config", headers=headers).status_code for client in (stranger, owner)]
        yield _row(what, gradio, *statuses, "403/403")
    upload = {"files": {"files": ("a.txt", b"x")}, "headers": evil}
    statuses = [client.post("/gradio_api/upload", **upload).status_code for client in (stranger, owner)]
    yield _row("an upload that another site's form sends", "401 / 200", *statuses, "403/403")
    statuses = [client.get("/config", headers={"Host": "evil.example"}).status_code for client in (stranger, owner)]
    yield _row("a foreign name in Host (DNS rebinding)", "answered", *statuses, "400/400")
    forwarded = {"X-Forwarded-Host": "evil.example"}
    named = "names it" if "evil.example" in owner.get("/", headers=forwarded).text else "ignored"
    yield _row("X-Forwarded-Host: evil.example", "becomes the page's address", "-", named, "-/ignored")
    yield _row("GET /logout", "200, from any site", stranger.get("/logout").status_code,
               owner.get("/logout").status_code, "404/404")  # fmt: skip
    with page.client() as fresh:
        answer = fresh.post("/login", data={"password": "correct horse battery"})
    cookie = answer.headers.get("set-cookie", "").lower()
    strict = "strict, HttpOnly" if "samesite=strict" in cookie and "httponly" in cookie else cookie
    yield _row("the login cookie", "SameSite=None, and a copy without Secure", "-", strict, "-/strict, HttpOnly")


def markdown(rows: list[RouteRow] | list[AttackRow]) -> str:
    """A table for the documents."""
    if rows and isinstance(rows[0], RouteRow):
        lines = [f"| {row.route} | {row.anonymous} | {row.owner} | {row.why} |" for row in rows]  # type: ignore[union-attr]
        return "\n".join(["| route | stranger | owner | shut because |", "|---|---|---|---|", *lines])
    lines = [f"| {row.request} | {row.gradio} | {row.anonymous} | {row.owner} |" for row in rows]  # type: ignore[union-attr]
    return "\n".join(["| request | Gradio alone | stranger | owner |", "|---|---|---|---|", *lines])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, real_page(Path(folder)) as page:
        print(markdown(attack_table(page)), markdown(route_table(page)), sep="\n\n")
