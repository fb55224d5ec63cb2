"""The door of the page, tried on a real Gradio server over HTTP."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from security import web
from security.errors import RefusedConfig, RefusedRequest
from security.login import Credentials
from security.policy import MAX_LOGIN_FAILURES, RATE_WINDOW_SECONDS
from security.web import ROUTES, Audience, DoorSettings
from tests.security.conftest import PASSWORD
from tests.security.page_server import Page, served_page

# Every route of Gradio 6.31 and what the door does with it. A new Gradio that brings another one fails the test below,
# which is the moment to read what the route does. Braces are its parameters, as FastAPI writes them.
OPEN_ROUTES = {
    "GET /", "HEAD /", "GET /config", "GET /config/", "GET /static/{path:path}", "GET /assets/{path:path}",
    "GET /svelte/{path:path}", "GET /favicon.ico", "GET /robots.txt", "GET /theme.css", "GET /gradio_api/theme.css",
    "GET /gradio_api/startup-events", "GET /gradio_api/info", "GET /gradio_api/info/", "GET /gradio_api/app_id",
    "GET /gradio_api/app_id/", "GET /gradio_api/queue/data", "POST /gradio_api/queue/join",
    "POST /gradio_api/run/{api_name}", "POST /gradio_api/run/{api_name}/", "POST /gradio_api/cancel",
    "POST /gradio_api/reset", "POST /gradio_api/reset/", "POST /gradio_api/component_server",
    "POST /gradio_api/component_server/", "GET /gradio_api/heartbeat/{session_hash}", "POST /gradio_api/upload",
    "GET /gradio_api/upload_progress", "GET /gradio_api/file={path_or_url:path}",
    "HEAD /gradio_api/file={path_or_url:path}", "GET /files/{path:path}", "HEAD /files/{path:path}",
}  # fmt: skip
CLOSED_ROUTES = {
    # Gradio's own login. The door has its own, with brakes, and Gradio's is never switched on.
    "POST /login", "POST /login/", "GET /logout", "GET /gradio_api/user", "GET /gradio_api/user/",
    "GET /gradio_api/login_check", "GET /gradio_api/login_check/", "GET /gradio_api/token", "GET /gradio_api/token/",
    # Show or keep what a visitor typed, or lend out the host's account.
    "GET /gradio_api/deep_link", "GET /gradio_api/runs", "GET /gradio_api/runs/",
    "POST /gradio_api/run-history/connect", "GET /gradio_api/run-history/buckets",
    "GET /gradio_api/run-history/records",
    "GET /gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}",
    # For programs; the page does not use them.
    "GET /gradio_api/openapi.json", "POST /gradio_api/api/{api_name}", "POST /gradio_api/api/{api_name}/",
    "POST /gradio_api/call/{api_name}", "POST /gradio_api/call/{api_name}/", "POST /gradio_api/call/v2/{api_name}",
    "POST /gradio_api/call/v2/{api_name}/", "GET /gradio_api/call/{api_name}/{event_id}",
    "GET /gradio_api/call/v2/{api_name}/{event_id}", "GET /gradio_api/queue/status", "GET /gradio_api/file/{path:path}",
    # Fetch for the visitor, run tools, or edit the program from the page.
    "GET /gradio_api/proxy={url_path:path}", "HEAD /gradio_api/proxy={url_path:path}", "GET /gradio_api/dev/reload",
    "POST /gradio_api/process_recording", "POST /gradio_api/vibe-edit", "POST /gradio_api/vibe-edit/",
    "POST /gradio_api/undo-vibe-edit", "POST /gradio_api/undo-vibe-edit/", "GET /gradio_api/vibe-code",
    "GET /gradio_api/vibe-code/", "POST /gradio_api/vibe-code", "POST /gradio_api/vibe-code/",
    "POST /gradio_api/vibe-starter-queries", "POST /gradio_api/vibe-starter-queries/",
    "GET /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
    # Watch other visitors.
    "GET /monitoring", "GET /monitoring/summary", "GET /monitoring/{key}",
    # Streams of audio and video: not used, and open for 0 checks.
    "POST /gradio_api/stream/{event_id}", "POST /gradio_api/stream/{event_id}/close",
    "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
    "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
    "GET /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
    # For installing the page as an app; switched off.
    "GET /manifest.json", "GET /pwa_icon", "GET /pwa_icon/{size}",
    "POST /files/{path:path}",
}  # fmt: skip


def real_routes(routes: list[Any]) -> set[str]:
    """ "METHOD path" of every route of the app, included routers too."""
    found = set()
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            found |= real_routes(included.routes)
        else:
            found |= {f"{method} {route.path}" for method in route.methods}
    return found


def example_of(route: str) -> tuple[str, str]:
    """A request for a route: parameters replaced by plain words."""
    method, path = route.split(" ")
    return method, re.sub(r"\{[^}]*\}", "x1", path)


def test_every_route_of_gradio_is_classified(local_page: Page) -> None:
    assert real_routes(local_page.app.routes) == OPEN_ROUTES | CLOSED_ROUTES


def test_closed_routes_answer_404_and_open_ones_do_not_mention_it(local_page: Page) -> None:
    with local_page.client() as client:
        for route in sorted(CLOSED_ROUTES):
            method, path = example_of(route)
            status = client.request(method, path).status_code
            assert status == (405 if path.startswith("/files/") else 404), route
            assert client.request(method, path).text in ("Not found", "Method not allowed", ""), route
        for route in sorted(OPEN_ROUTES - {"GET /gradio_api/queue/data", "GET /gradio_api/heartbeat/{session_hash}"}):
            method, path = example_of(route)
            response = client.request(method, path)
            assert response.status_code != 405, route
            assert response.text != "Not found", route


def test_the_allow_list_lets_nothing_else_through(local_page: Page) -> None:
    for path in (
        "/openapi.json", "/docs", "/redoc", "/gradio_api", "/gradio_api/", "//gradio_api/token", "/gradio_api//token",
        "/gradio_api/./token", "/gradio_api/x/../token", "/GRADIO_API/TOKEN", "/gradio_api/token%2f", "/.git/config",
        "/gradio_api/mcp/", "/gradio_api/profiling/traces", "/gradio_api/run/a/b", "/gradio_api/heartbeat/../token",
        "/static", "/gradio_api/file=http://127.0.0.1/x", "/gradio_api/file=https:%2f%2fevil.example",
        "/gradio_api/file=//evil.example",
        "/gradio_api/file=HTTP://evil.example", "/gradio_api/file=file:///etc/passwd", "/gradio_api/file=%20http://x/",
        "/gradio_api/file=",
    ):  # fmt: skip
        assert raw_request(local_page, "GET", path, {"Host": "127.0.0.1"})[0] == 404, path
    with local_page.client() as client:
        assert client.get("/?deep_link=abc").status_code == 404
        assert client.get("/gradio_api/info?x=1&deep_link=").status_code == 404
        assert client.post("/").status_code == 405
        assert client.delete("/gradio_api/upload").status_code == 405
        assert client.options("/config").status_code == 405


def raw_request(
    page: Page, method: str, target: str, headers: dict[str, str] | list[tuple[str, str]], body: bytes = b""
) -> tuple[int, bytes]:
    """Sends a request exactly as written, past the corrections of HTTP libraries. Returns status and answer."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "Connection: close"]
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer


GOOD_HOSTS = ["127.0.0.1:PORT", "localhost:PORT", "[::1]:PORT", "LOCALHOST:PORT", "127.0.0.1", "localhost:9000"]
BAD_HOSTS = [
    "evil.example", "evil.example:PORT", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example@127.0.0.1",
    "192.168.1.5:PORT", "0.0.0.0:PORT", "[::2]:PORT", "127.1:PORT", "2130706433", "abcdef0123.gradio.live",
    "lab.example", "localhost:PORT:1", "localhost/", "127.0.0.1:x", "",
]  # fmt: skip


def test_only_loopback_names_are_answered(local_page: Page) -> None:
    for host in GOOD_HOSTS:
        assert (
            raw_request(local_page, "GET", "/theme.css", {"Host": host.replace("PORT", str(local_page.port))})[0] == 200
        )
    for host in BAD_HOSTS:
        if host == "localhost ":
            continue  # HTTP itself drops the space
        status, answer = raw_request(
            local_page, "GET", "/theme.css", {"Host": host.replace("PORT", str(local_page.port))}
        )
        assert status == 400, host
        assert b"--" not in answer.split(b"\r\n\r\n", 1)[1], "the style sheet itself"
    twice = [("Host", "127.0.0.1"), ("Host", "evil.example")]
    assert raw_request(local_page, "GET", "/theme.css", twice)[0] == 400


def test_a_shared_page_answers_its_own_names_too(guarded_page: Page) -> None:
    good = [
        "127.0.0.1:1",
        "192.168.1.5:7860",
        "[fe80::1]:7860",
        "abcdef0123456789ab.gradio.live",
        "lab.example",
        "lab.example:80",
    ]
    bad = [
        "evil.example",
        "gradio.live",
        "a.b.gradio.live",
        "abcdef.gradio.live.evil.example",
        "xlab.example",
        "999.1.1.1",
        "[::zz]",
    ]
    for host in good:
        assert raw_request(guarded_page, "GET", "/login", {"Host": host})[0] == 200, host
    for host in bad:
        assert raw_request(guarded_page, "GET", "/login", {"Host": host})[0] == 400, host


def test_foreign_origins_are_refused(local_page: Page) -> None:
    own = f"127.0.0.1:{local_page.port}"
    with local_page.client() as client:
        for origin in (f"http://{own}", f"https://{own}"):
            assert client.get("/theme.css", headers={"Origin": origin}).status_code == 200, origin
        for origin in (
            "null", "http://evil.example", f"http://localhost:{local_page.port}", "http://127.0.0.1", "http://127.0.0.1:1",
            f"http://{own}.evil.example", f"http://x@{own}", own, "", "file://", f"ftp://{own}",
        ):  # fmt: skip
            for method, path in (
                ("GET", "/theme.css"),
                ("POST", "/gradio_api/upload"),
                ("POST", "/gradio_api/run/upper"),
            ):
                assert client.request(method, path, headers={"Origin": origin}).status_code == 403, (origin, path)
        upload = client.post("/gradio_api/upload", files={"files": b"x"}, headers={"Origin": "http://evil.example"})
        assert upload.status_code == 403


NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FETCHES: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/", {"Sec-Fetch-Site": "none", **NAVIGATION}, 200),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", **NAVIGATION}, 200),
    ("GET", "/?tab=runs", {"Sec-Fetch-Site": "same-site", **NAVIGATION}, 200),
    ("GET", "/theme.css", {"Sec-Fetch-Site": "same-origin"}, 200),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site"}, 403),
    ("POST", "/", {"Sec-Fetch-Site": "cross-site", **NAVIGATION}, 403),
    ("GET", "/config", {"Sec-Fetch-Site": "cross-site", **NAVIGATION}, 403),
    ("GET", "/theme.css", {"Sec-Fetch-Site": "same-site"}, 403),
    ("POST", "/gradio_api/upload", {"Sec-Fetch-Site": "cross-site"}, 403),
    ("POST", "/gradio_api/queue/join", {"Sec-Fetch-Site": "same-site"}, 403),
]


def test_other_sites_may_only_link_to_the_page(local_page: Page) -> None:
    with local_page.client() as client:
        for method, path, headers, status in FETCHES:
            assert client.request(method, path, headers=headers).status_code == status, (method, path, headers)


def test_security_headers_are_on_every_answer(local_page: Page) -> None:
    with local_page.client() as client:
        for path in ("/", "/config", "/theme.css", "/gradio_api/token", f"/gradio_api/file={local_page.shown_file}"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["x-frame-options"] == "DENY", path
            assert headers["referrer-policy"] == "no-referrer", path
            assert headers["cross-origin-resource-policy"] == "same-origin", path
            assert headers["cache-control"] == "no-store", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
        assert "sandbox" in client.get(f"/gradio_api/file={local_page.shown_file}").headers["content-security-policy"]
        own = client.get("/files/a.png").headers
        assert "sandbox" in own["content-security-policy"]
        assert own["cache-control"] == "private, no-cache"
        static = client.get("/static/fonts/SourceSansPro/SourceSansPro-Regular.woff2")
        assert static.status_code == 200
        assert "no-store" not in static.headers.get("cache-control", "")
        assert raw_request(local_page, "GET", "/", {"Host": "evil.example"})[1].count(b"nosniff") == 1


def test_the_page_itself_works(local_page: Page) -> None:
    with local_page.client() as client:
        html = client.get("/").text
        config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", html)[1])  # type: ignore[index]
        functions = [item["id"] for item in config["dependencies"] if item["targets"][0][1] == "click"]
        body = {"data": ["abc"], "fn_index": functions[0], "session_hash": "s1"}
        assert client.post("/gradio_api/run/predict", json=body).json()["data"] == ["ABC"]
        assert client.post("/gradio_api/queue/join", json={**body, "fn_index": functions[1]}).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s1") as events:
            assert any('"abc!"' in line for line in events.iter_lines())
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello")}).json()
        assert client.get(f"/gradio_api/file={uploaded[0]}").text == "hello"
        assert client.get(f"/gradio_api/file={local_page.shown_file}").content.startswith(b"\x89PNG")
        assert client.head(f"/gradio_api/file={local_page.shown_file}").status_code == 200
        assert client.get("/gradio_api/file=/etc/hostname").status_code == 403
        asset = re.search(r'"\./(assets/[^"]+)"', html) or re.search(r"(assets/[\w.-]+\.js)", html)
        assert asset is not None
        assert client.get("/" + asset[1]).status_code == 200


def test_misleading_headers_and_secrets_do_not_reach_the_page(local_page: Page) -> None:
    sent = {
        "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Original-URL": "/x",
        "Cookie": "other=1", "X-Rewrite-URL": "/x", "Authorization": "Bearer canary", "X-Harmless": "1",
    }  # fmt: skip
    with local_page.client() as client:
        assert client.get("/files/seen", headers=sent).text == "seen"
        assert local_page.seen_headers["x-harmless"] == "1"
        assert not {name.lower() for name in sent if name != "X-Harmless"} & set(local_page.seen_headers)
        assert "evil.example" not in client.get("/", headers=sent).text


def test_bodies_have_a_limit_also_without_a_length(local_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_REQUEST_BODY_BYTES", 100_000)
    large = {"data": ["x" * 200_000], "fn_index": 0, "session_hash": "s1"}
    with local_page.client() as client:
        assert client.post("/gradio_api/run/predict", json=large).status_code == 413
        chunks = (b"x" * 20_000 for _ in range(10))
        response = client.post("/gradio_api/run/predict", content=chunks, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 413)
    for length in ("-1", "1e9", "0x10", "٣"):
        headers = {"Host": "127.0.0.1", "Content-Length": length.encode().decode("latin-1")}
        assert raw_request(local_page, "POST", "/gradio_api/run/predict", headers)[0] == 400, length


def test_uploads_have_their_own_limit(picture: Path) -> None:
    with served_page(DoorSettings(max_upload_bytes=50_000), picture) as page, page.client() as client:
        assert client.post("/gradio_api/upload", files={"files": b"x" * 10_000}).status_code == 200
        assert client.post("/gradio_api/upload", files={"files": b"x" * 60_000}).status_code == 413


def test_requests_have_a_rate(local_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_REQUESTS_PER_WINDOW", 0)
    with local_page.client() as client:
        assert client.get("/theme.css").status_code == 429
        monkeypatch.undo()
        assert client.get("/theme.css").status_code == 200


def test_the_rate_counts_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = web._RateLimit()
    for _ in range(3):
        rate.count("a", 3)
    with pytest.raises(RefusedRequest):
        rate.count("a", 3)
    rate.count("b", 3)
    now[0] += RATE_WINDOW_SECONDS
    rate.count("a", 3)


def test_a_page_that_others_can_reach_needs_a_password() -> None:
    for settings in ({"listens": True}, {"shared": True}, {"host_names": ("lab.example",)}):
        with pytest.raises(RefusedConfig, match="needs a password"):
            DoorSettings(**settings)
    with pytest.raises(AssertionError):
        DoorSettings(file_prefixes=("",))


# ---- with a password ------------------------------------------------------------------------------------------------


def log_in(client: httpx.Client, password: str = PASSWORD) -> httpx.Response:
    return client.post("/login", data={"password": password})


def test_without_a_login_nothing_is_shown(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        front = client.get("/")
        assert front.status_code == 401
        assert 'name="password"' in front.text
        assert "gradio" not in front.text.lower()
        for route in sorted(OPEN_ROUTES):
            method, path = example_of(route)
            anyone = any(r.audience is Audience.ANYONE and r.pattern.fullmatch(path) for r in ROUTES)
            response = client.request(method, path)
            assert (response.status_code == 401) is not anyone, route
            if not anyone and path != "/":
                assert response.text in ("Log in first.", ""), route
        assert client.get(f"/gradio_api/file={guarded_page.shown_file}").status_code == 401
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert client.get("/gradio_api/token").status_code == 404


def test_what_anyone_may_ask_for_is_harmless() -> None:
    anyone = [route.pattern.pattern for route in ROUTES if route.audience is Audience.ANYONE]
    assert anyone == [r"/favicon\.ico|/robots\.txt", r"/gradio_api/startup-events"]


def test_the_password_opens_the_page_and_logout_closes_it(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        assert client.get("/login").status_code == 200
        wrong = log_in(client, "wrong password")
        assert wrong.status_code == 401
        assert "Wrong password" in wrong.text
        assert "set-cookie" not in wrong.headers
        right = log_in(client)
        assert (right.status_code, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"].lower()
        assert cookie.startswith(f"safelight-{guarded_page.port}=")
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "secure" not in cookie
        assert "gradio_config" in client.get("/").text
        assert client.get("/config").status_code == 200
        assert client.get("/login").status_code == 303
        assert client.get("/files/seen").status_code == 200
        assert "cookie" not in guarded_page.seen_headers
        token = client.cookies[f"safelight-{guarded_page.port}"]
        assert client.get("/logout").status_code == 404
        assert client.get("/config").status_code == 200
        assert client.post("/logout").status_code == 303
        assert client.get("/config").status_code == 401
        stolen = {"Cookie": f"safelight-{guarded_page.port}={token}"}
        assert client.get("/config", headers=stolen).status_code == 401
    with guarded_page.client() as other:
        for value in ("", "x", '"', "a;b", "\\", token):
            assert other.get("/config", headers={"Cookie": f"safelight-{guarded_page.port}={value}"}).status_code == 401


def test_the_key_link_logs_in_once_and_leaves_the_address(guarded_page: Page, credentials: Credentials) -> None:
    with guarded_page.client() as client:
        for wrong in ("x", credentials.key + "x", credentials.key[:-1], "%00", ""):
            response = client.get(f"/?key={wrong}")
            assert response.status_code == 401
            assert "set-cookie" not in response.headers
        assert client.head(f"/?key={credentials.key}").status_code == 401
        assert client.get(f"/config?key={credentials.key}").status_code == 401
        response = client.get(f"/?tab=runs&key={credentials.key}&run=a%26b")
        assert (response.status_code, response.headers["location"]) == (303, "/?tab=runs&run=a%26b")
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert client.get("/config").status_code == 200
    with guarded_page.client() as phone:
        link = {"Sec-Fetch-Site": "cross-site", **NAVIGATION}
        assert phone.get(f"/?key={credentials.key}", headers=link).status_code == 303


def test_the_cookie_is_secure_on_https(guarded_page: Page, credentials: Credentials) -> None:
    share = {"Host": "abcdef0123456789ab.gradio.live"}
    _, answer = raw_request(guarded_page, "GET", f"/?key={credentials.key}", share)
    assert b"303" in answer
    assert b"; secure" in answer.lower()
    proxied = {"Host": "lab.example", "X-Forwarded-Proto": "https"}
    assert b"; secure" in raw_request(guarded_page, "GET", f"/?key={credentials.key}", proxied)[1].lower()


def test_the_login_form_can_be_used_by_a_browser(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        page = client.get("/login")
        policy = page.headers["content-security-policy"]
        nonce = re.search(r"'nonce-([\w-]+)'", policy)
        assert nonce is not None
        assert f'<style nonce="{nonce[1]}">' in page.text
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        # With no-referrer a browser would send "Origin: null" with the form, and the door would refuse it.
        assert page.headers["referrer-policy"] == "same-origin"
        assert client.get("/login").headers["content-security-policy"] != policy
        form = {"Origin": guarded_page.address, "Sec-Fetch-Site": "same-origin", **NAVIGATION}
        assert client.post("/login", data={"password": PASSWORD}, headers=form).status_code == 303


def test_other_sites_cannot_log_in_or_out(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        assert log_in(client).status_code == 303
        for origin in ("null", "http://evil.example"):
            assert client.post("/login", data={"password": PASSWORD}, headers={"Origin": origin}).status_code == 403
            assert client.post("/logout", headers={"Origin": origin}).status_code == 403
        assert client.post("/logout", headers={"Sec-Fetch-Site": "cross-site", **NAVIGATION}).status_code == 403
        assert client.get("/config").status_code == 200


def test_odd_logins_are_answered_calmly(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        assert client.post("/login", content=b"password=" + b"x" * 5000).status_code == 413
        assert client.post("/login", content=b"\xff\xfe=%ff").status_code == 401
        assert client.post("/login", json={"password": PASSWORD}).status_code == 401
        assert client.post("/login", content=b"a=1&b=2&c=3&d=4&e=5&password=" + PASSWORD.encode()).status_code == 400
        assert client.put("/login").status_code == 405
        assert log_in(client).status_code == 303


def test_guessing_is_stopped_and_the_key_still_works(guarded_page: Page, credentials: Credentials) -> None:
    with guarded_page.client() as client:
        statuses = [log_in(client, f"guess number {number}").status_code for number in range(MAX_LOGIN_FAILURES)]
        assert set(statuses) == {401}
        locked = log_in(client)
        assert locked.status_code == 429
        assert "Wait 15 min" in locked.text
        assert client.get(f"/?key={credentials.key}").status_code == 303
        assert client.get("/config").status_code == 200
    credentials._failures = 0


def test_strangers_share_a_small_rate_and_the_owner_keeps_his(
    guarded_page: Page, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded_page.client() as owner, guarded_page.client() as stranger:
        assert owner.get(f"/?key={credentials.key}").status_code == 303
        monkeypatch.setattr(web, "MAX_ANONYMOUS_REQUESTS_PER_WINDOW", 0)
        assert stranger.get("/").status_code == 429
        assert log_in(stranger).status_code == 429
        assert owner.get("/config").status_code == 200
        assert stranger.get(f"/?key={credentials.key}").status_code == 303
