"""The door of the page without a password, tried on a real Gradio server over HTTP."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from security import web
from security.errors import RefusedConfig, RefusedRequest
from security.policy import RATE_WINDOW_SECONDS
from security.sharing import Sharing
from security.visits import RateLimit
from security.web import DoorSettings
from tests.security.conftest import SHARE_HOST
from tests.security.page_server import Page, raw_request, served_page

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


def test_a_request_of_two_lengths_ends_the_connection(local_page: Page) -> None:
    """Programs in front of the page may go by the other length, and take the rest for another visitor's request."""
    hidden = b"GET /theme.css HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    head = b"POST /gradio_api/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", local_page.port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_shared_page_answers_its_own_names_too(guarded_page: Page) -> None:
    good = [
        "127.0.0.1:1",
        "192.168.1.5:7860",
        "[fe80::1]:7860",
        SHARE_HOST,
        SHARE_HOST.upper(),
        "lab.example",
        "lab.example:80",
    ]
    bad = [
        "evil.example",
        "gradio.live",
        "a.b.gradio.live",
        "abcdef0123456789ac.gradio.live",
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
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.html", b"<script>")}).json()[0]
        for path in ("/", "/config", "/theme.css", "/gradio_api/token", f"/gradio_api/file={uploaded}"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["x-frame-options"] == "DENY", path
            assert headers["referrer-policy"] == "no-referrer", path
            assert headers["cross-origin-resource-policy"] == "same-origin", path
            assert headers["cache-control"] == "no-store", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
        served = client.get(f"/gradio_api/file={uploaded}")
        assert served.status_code == 200
        assert "sandbox" in served.headers["content-security-policy"]
        assert served.headers["content-disposition"].startswith("attachment")
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
        body = {"data": ["abc"], "fn_index": local_page.functions["upper"], "session_hash": "s1"}
        assert client.post("/gradio_api/run/predict", json=body).json()["data"] == ["ABC"]
        body["fn_index"] = local_page.functions["queued"]
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s1") as events:
            assert any('"abc!"' in line for line in events.iter_lines())
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello")}).json()
        assert client.get(f"/gradio_api/file={uploaded[0]}").text == "hello"
        assert client.head(f"/gradio_api/file={uploaded[0]}").status_code == 200
        asset = re.search(r'"\./(assets/[^"]+)"', html) or re.search(r"(assets/[\w.-]+\.js)", html)
        assert asset is not None
        assert client.get("/" + asset[1]).status_code == 200


def test_only_what_was_uploaded_is_served(local_page: Page) -> None:
    assert Path(local_page.shown_file).is_file()
    with local_page.client() as client:
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello again")}).json()[0]
        for path in (
            local_page.shown_file,
            "/etc/hostname",
            uploaded + "x",
            f"{uploaded}/%2e%2e/a.txt",
            f"/{uploaded}",
        ):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404), path
        assert client.get(f"/gradio_api/file={uploaded}").status_code == 200


def test_a_proxy_in_front_of_a_page_without_a_password_is_told_so(local_page: Page) -> None:
    with local_page.client() as client:
        for name in ("X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-ProxyContextPath", "X-Real-IP", "Via"):
            refusal = client.get("/config", headers={name: "x"})
            assert refusal.status_code == 403, name
            assert "--host-name" in refusal.text
        assert client.get("/config").status_code == 200


def test_a_session_answer_costs_nothing(local_page: Page) -> None:
    with local_page.client() as client:
        assert client.get("/session").status_code == 204
        assert client.post("/session").status_code == 404
        assert client.get("/login").status_code == 404
        assert client.post("/logout").status_code == 404


def test_bodies_have_a_limit_also_without_a_length(local_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_REQUEST_BODY_BYTES", 100_000)
    large = {"data": ["x" * 200_000], "fn_index": 0, "session_hash": "s1"}
    with local_page.client() as client:
        assert client.post("/gradio_api/run/predict", json=large).status_code == 413
        chunks = (b"x" * 20_000 for _ in range(10))
        response = client.post("/gradio_api/run/predict", content=chunks, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
    for length in ("-1", "1e9", "0x10", "٣"):
        headers = {"Host": "127.0.0.1", "Content-Length": length.encode().decode("latin-1")}
        assert raw_request(local_page, "POST", "/gradio_api/run/predict", headers)[0] == 400, length


def test_uploads_have_their_own_limit(picture: Path) -> None:
    with served_page(DoorSettings(max_upload_bytes=50_000), picture) as page, page.client() as client:
        assert client.post("/gradio_api/upload", files={"files": b"x" * 10_000}).status_code == 200
        assert client.post("/gradio_api/upload", files={"files": b"x" * 60_000}).status_code == 413


def test_an_upload_without_a_length_is_counted(picture: Path) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
    with served_page(DoorSettings(max_upload_bytes=50_000), picture) as page, page.client() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        for size, status in ((2, 200), (8, 413)):
            parts = [head, *(b"x" * 10_000 for _ in range(size)), b"\r\n--b--\r\n"]
            assert client.post("/gradio_api/upload", content=iter(parts), headers=headers).status_code == status


def test_requests_have_a_rate(local_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_REQUESTS_PER_WINDOW", 0)
    with local_page.client() as client:
        assert client.get("/theme.css").status_code == 429
        monkeypatch.undo()
        assert client.get("/theme.css").status_code == 200


def test_the_rate_counts_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = RateLimit()
    for _ in range(3):
        rate.count("a", 3)
    with pytest.raises(RefusedRequest):
        rate.count("a", 3)
    rate.count("b", 3)
    now[0] += RATE_WINDOW_SECONDS
    rate.count("a", 3)


def test_a_page_that_others_can_reach_needs_a_password() -> None:
    for settings in ({"listens": True}, {"sharing": Sharing(1)}, {"host_names": ("lab.example",)}):
        with pytest.raises(RefusedConfig, match="needs a password"):
            DoorSettings(**settings)
    with pytest.raises(AssertionError):
        DoorSettings(file_prefixes=("",))
