"""The door of a page with a password: logins, the cookie, the link with the key, logging out, guessing."""

from __future__ import annotations

import re

import pytest

from security import web
from security.login import Credentials
from security.policy import MAX_LOGIN_FAILURES
from security.web import ROUTES, Audience
from tests.security.conftest import PASSWORD, SHARE_HOST
from tests.security.page_server import Page, log_in, raw_request
from tests.security.test_web import NAVIGATION


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
        right = log_in(client, PASSWORD)
        assert (right.status_code, right.headers["location"]) == (303, "./")
        cookie = right.headers["set-cookie"].lower()
        assert cookie.startswith(f"safelight-{guarded_page.port}=")
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert "domain" not in cookie
        assert "path=/" in cookie
        assert "max-age=43200" in cookie
        assert "gradio_config" in client.get("/").text
        assert client.get("/config").status_code == 200
        assert client.get("/login").status_code == 303
        assert client.get("/files/seen").status_code == 200
        assert "cookie" not in guarded_page.seen_headers
        token = client.cookies[f"safelight-{guarded_page.port}"]
        assert client.get("/logout").status_code == 404
        assert client.get("/config").status_code == 200
        gone = client.post("/logout")
        assert gone.status_code == 303
        assert "max-age=0" in gone.headers["set-cookie"].lower()
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
        assert (response.status_code, response.headers["location"]) == (303, "./?tab=runs&run=a%26b")
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert client.get("/config").status_code == 200
    with guarded_page.client() as phone:
        link = {"Sec-Fetch-Site": "cross-site", **NAVIGATION}
        assert phone.get(f"/?key={credentials.key}", headers=link).status_code == 303


def test_the_cookie_is_secure_on_https(guarded_page: Page, credentials: Credentials) -> None:
    name = f"__Host-safelight-{guarded_page.port}"
    for headers in ({"Host": SHARE_HOST}, {"Host": "lab.example", "X-Forwarded-Proto": "https"}):
        status, answer = raw_request(guarded_page, "GET", f"/?key={credentials.key}", headers)
        cookie = re.search(rb"set-cookie: ([^=]+)=([^;]+);(.*)\r\n", answer, re.IGNORECASE)
        assert cookie is not None
        assert (status, cookie[1].decode()) == (303, name)
        assert {part.strip().lower() for part in cookie[3].split(b";")} >= {b"secure", b"httponly", b"path=/"}
        own = {**headers, "Cookie": f"{name}={cookie[2].decode()}"}
        assert raw_request(guarded_page, "GET", "/config", own)[0] == 200
        # a cookie of that name can only come from this host over https; without the prefix it opens nothing here
        bare = {**headers, "Cookie": f"safelight-{guarded_page.port}={cookie[2].decode()}"}
        assert raw_request(guarded_page, "GET", "/config", bare)[0] == 401


def test_a_link_on_another_site_leads_to_the_page_in_two_steps(guarded_page: Page) -> None:
    """Browsers keep a strict cookie back at first, so the front page asks once more, from itself."""
    with guarded_page.client() as client:
        from_elsewhere = {"Sec-Fetch-Site": "cross-site", **NAVIGATION}
        first = client.get("/?tab=runs&run=%22%3E%3Cb%3E", headers=from_elsewhere)
        assert first.status_code == 401
        assert 'http-equiv="refresh" content="0;url=./?tab=runs&amp;run=%22%3E%3Cb%3E"' in first.text
        assert "default-src 'none'" in first.headers["content-security-policy"]
        second = client.get("/?tab=runs", headers={"Sec-Fetch-Site": "same-origin", **NAVIGATION})
        assert 'name="password"' in second.text


def test_a_session_is_asked_for_without_using_anything(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        assert client.get("/session").status_code == 401
        assert log_in(client, PASSWORD).status_code == 303
        assert client.get("/session").status_code == 204


def test_a_proxy_may_send_its_own_name_as_origin(guarded_page: Page) -> None:
    """A proxy that rewrites Host but not Origin; only names that were allowed at start count."""
    with guarded_page.client() as client:
        assert log_in(client, PASSWORD).status_code == 303
        body = {"data": ["abc"], "fn_index": guarded_page.functions["upper"], "session_hash": "proxied"}
        for origin, status in (
            ("https://lab.example", 200),
            ("https://lab.example:8443", 200),
            ("https://evil.lab.example", 403),
        ):
            answer = client.post("/gradio_api/run/predict", json=body, headers={"Origin": origin})
            assert answer.status_code == status, origin


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
        assert log_in(client, PASSWORD).status_code == 303
        for origin in ("null", "http://evil.example"):
            assert client.post("/login", data={"password": PASSWORD}, headers={"Origin": origin}).status_code == 403
            assert client.post("/logout", headers={"Origin": origin}).status_code == 403
        assert client.post("/logout", headers={"Sec-Fetch-Site": "cross-site", **NAVIGATION}).status_code == 403
        assert client.get("/config").status_code == 200


def test_other_sites_read_and_change_nothing_whatever_gradio_allows_them(guarded_page: Page) -> None:
    """On other hosts than localhost, Gradio itself tells browsers that any site may read with the visitor's cookies."""
    with guarded_page.client() as client:
        cookie = log_in(client, PASSWORD).headers["set-cookie"].partition(";")[0]
        for host in ("192.168.1.5:7860", "[fe80::1]:7860", "lab.example"):
            for method, path in (("GET", "/"), ("GET", "/config"), ("GET", "/login"), ("POST", "/gradio_api/upload")):
                evil = {"Host": host, "Cookie": cookie, "Origin": "https://evil.example", "Content-Length": "0"}
                status, answer = raw_request(guarded_page, method, path, evil)
                assert status == 403, (host, path)
                assert answer.endswith(b"\r\nRequests from other web sites are refused.")


def test_odd_logins_are_answered_calmly(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        assert client.post("/login", content=b"password=" + b"x" * 5000).status_code == 413
        assert client.post("/login", content=b"\xff\xfe=%ff").status_code == 401
        assert client.post("/login", json={"password": PASSWORD}).status_code == 401
        assert client.post("/login", content=b"a=1&b=2&c=3&d=4&e=5&password=" + PASSWORD.encode()).status_code == 400
        assert client.put("/login").status_code == 405
        assert log_in(client, PASSWORD).status_code == 303


def test_guessing_is_stopped_and_the_key_still_works(guarded_page: Page, credentials: Credentials) -> None:
    with guarded_page.client() as client:
        statuses = [log_in(client, f"guess number {number}").status_code for number in range(MAX_LOGIN_FAILURES)]
        assert set(statuses) == {401}
        locked = log_in(client, PASSWORD)
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
        assert log_in(stranger, PASSWORD).status_code == 429
        assert owner.get("/config").status_code == 200
        assert stranger.get(f"/?key={credentials.key}").status_code == 303


def test_misleading_headers_and_secrets_do_not_reach_the_page(guarded_page: Page) -> None:
    sent = {
        "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Original-URL": "/x",
        "X-Gradio-Server": "http://evil.example",
        "Cookie": "other=1", "X-Rewrite-URL": "/x", "Authorization": "Bearer canary", "X-Harmless": "1",
    }  # fmt: skip
    with guarded_page.client() as client:
        sent["Cookie"] = log_in(client, PASSWORD).headers["set-cookie"].partition(";")[0] + "; other=1"
        assert client.get("/files/seen", headers=sent).text == "seen"
        assert guarded_page.seen_headers["x-harmless"] == "1"
        assert not {name.lower() for name in sent if name != "X-Harmless"} & set(guarded_page.seen_headers)
        assert "evil.example" not in client.get("/", headers=sent).text


def test_cookies_of_other_programs_on_this_machine_do_not_lock_anybody_out(guarded_page: Page) -> None:
    with guarded_page.client() as client:
        log_in(client, PASSWORD)
        own = f"safelight-{guarded_page.port}={client.cookies[f'safelight-{guarded_page.port}']}"
    others = ['state={"a": 1}', "a b=c", "list[0]=x", "=", "flag", "odd=\xe9\xff", "long=" + "x" * 9000]
    for other in others:
        for cookie in (f"{other}; {own}", f"{own}; {other}"):
            headers = {"Host": "127.0.0.1", "Cookie": cookie}
            assert raw_request(guarded_page, "GET", "/session", headers)[0] == 204, cookie
    for cookie in (own.upper(), "x" + own, own[:-1], own.replace("=", "==", 1)):
        headers = {"Host": "127.0.0.1", "Cookie": cookie}
        assert raw_request(guarded_page, "GET", "/session", headers)[0] == 401, cookie
