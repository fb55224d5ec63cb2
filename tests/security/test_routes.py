"""Every route of the real page is either let through on purpose or kept shut for a reason, and both is so over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from security.web import ROUTES
from tests.security.page_server import Page, raw_request
from tests.security.real_page import RealPage, real_page
from tests.security.route_table import (
    CLOSED_ROUTES,
    OPEN_ROUTES,
    SWITCHED_OFF_ROUTES,
    AttackRow,
    RouteRow,
    attack_table,
    example_of,
    real_routes,
    route_table,
)

SHUT = {route for routes in CLOSED_ROUTES.values() for route in routes}
ANYONE = {"GET /favicon.ico", "GET /robots.txt", "GET /gradio_api/startup-events"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPage]:
    with real_page(tmp_path_factory.mktemp("routes")) as running:
        yield running


@pytest.fixture(scope="module")
def rows(page: RealPage) -> dict[str, RouteRow]:
    return {row.route: row for row in route_table(page)}


def test_every_route_is_classified(page: RealPage) -> None:
    """A new Gradio that brings another route fails here, which is the moment to read what the route does."""
    found = real_routes(page.app.routes)
    assert found - set(OPEN_ROUTES) - SHUT == set(), "new routes: read what they do, then list them as open or closed"
    assert (set(OPEN_ROUTES) | SHUT) - found == set(), "listed, but no longer there"
    assert not set(OPEN_ROUTES) & SHUT


def test_what_is_switched_off_would_be_shut_too(local_page: Page) -> None:
    found = real_routes(local_page.app.routes)
    assert set(SWITCHED_OFF_ROUTES) <= found
    own = {"GET /files/{path:path}", "HEAD /files/{path:path}", "POST /files/{path:path}"}
    assert found - set(OPEN_ROUTES) - SHUT == {*SWITCHED_OFF_ROUTES, *own}
    with local_page.client() as client:
        for route in SWITCHED_OFF_ROUTES:
            method, path = example_of(route)
            assert client.request(method, path, json={} if method == "POST" else None).status_code == 404, route


def test_the_walk_sees_mounted_apps_and_sockets() -> None:
    def answer(_request: object) -> PlainTextResponse:
        return PlainTextResponse("")

    inner = Starlette(routes=[Route("/b", answer, methods=["POST"]), Mount("/deep", app=answer)])
    found = real_routes([Mount("/a", app=inner), WebSocketRoute("/socket", answer)])
    assert {"POST /a/b", "MOUNT /a/deep", "WebSocketRoute /socket"} <= found


def test_closed_routes_answer_404(rows: dict[str, RouteRow]) -> None:
    for route in SHUT - {"GET /logout", "POST /login"}:  # answered by the door itself
        assert (rows[route].anonymous, rows[route].owner) == (404, 404), route
        assert rows[route].why


def test_open_routes_answer_the_owner_and_nobody_else(rows: dict[str, RouteRow]) -> None:
    for route, (_, status) in OPEN_ROUTES.items():
        assert rows[route].owner == status, route
        assert rows[route].anonymous == (status if route in ANYONE else 401), route
        assert not rows[route].why


def test_the_doors_own_routes(rows: dict[str, RouteRow]) -> None:
    told = {
        route: (rows[route].anonymous, rows[route].owner) for route in ("GET /login", "GET /session", "POST /logout")
    }
    assert told == {"GET /login": (200, 303), "GET /session": (401, 204), "POST /logout": (303, 303)}


def test_every_open_pattern_lets_a_route_through() -> None:
    """A pattern that matches nothing any more would wait for a new route to fall into it."""
    for route in ROUTES:
        assert any(route.pattern.fullmatch(path.partition("?")[0]) for path, _ in OPEN_ROUTES.values()), route.pattern


def test_what_gradio_alone_lets_through_is_refused(page: RealPage) -> None:
    table: list[AttackRow] = attack_table(page)
    assert len(table) > 25
    for row in table:
        assert (row.anonymous, row.owner) == row.wanted, row.request


def test_the_allow_list_lets_nothing_else_through(page: RealPage) -> None:
    with page.owner() as owner:
        cookie = "; ".join(f"{name}={value}" for name, value in owner.cookies.items())
        for path in (
            "/openapi.json", "/docs", "/redoc", "/gradio_api", "/gradio_api/", "//gradio_api/token",
            "/gradio_api//token", "/gradio_api/./token", "/gradio_api/x/../token", "/GRADIO_API/TOKEN",
            "/gradio_api/token%2f", "/.git/config", "/gradio_api/mcp/", "/gradio_api/profiling/traces",
            "/gradio_api/run/a/b", "/gradio_api/heartbeat/../token", "/static", "/gradio_api/file=http://127.0.0.1/x",
            "/gradio_api/file=https:%2f%2fevil.example", "/gradio_api/file=//evil.example",
            "/gradio_api/file=HTTP://evil.example", "/gradio_api/file=file:///etc/passwd",
            "/gradio_api/file=%20http://x/", "/gradio_api/file=", "/safelight", "/login/", "/logout/", "/session/",
        ):  # fmt: skip
            status, _ = raw_request(page, "GET", path, {"Host": "127.0.0.1", "Cookie": cookie})
            assert status == 404, path
        assert owner.get("/gradio_api/info?x=1&deep_link=").status_code == 404
        assert owner.post("/").status_code == 405
        assert owner.delete("/gradio_api/upload").status_code == 405
        assert owner.options("/config").status_code == 405
        assert owner.post("/safelight/datasets/ink/01.png").status_code == 405
