"""Two logins at one page: what one opened, uploaded or started is closed to the other, and ends with its login."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from security.login import Credentials
from tests.security.conftest import PASSWORD
from tests.security.page_server import Page, log_in

FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def alice(guarded_page: Page) -> Iterator[httpx.Client]:
    with guarded_page.client() as client:
        assert log_in(client, PASSWORD).status_code == 303
        yield client


@pytest.fixture
def bob(guarded_page: Page) -> Iterator[httpx.Client]:
    with guarded_page.client() as client:
        assert log_in(client, PASSWORD).status_code == 303
        yield client


def run(client: httpx.Client, page: Page, session: str, name: str = "upper", data: Any = "abc") -> httpx.Response:
    body = {"data": [data], "fn_index": page.functions[name], "session_hash": session}
    return client.post("/gradio_api/run/predict", json=body)


def join(client: httpx.Client, page: Page, session: str, name: str = "queued", data: Any = "abc") -> httpx.Response:
    body = {"data": [data], "fn_index": page.functions[name], "session_hash": session}
    return client.post("/gradio_api/queue/join", json=body)


def outcome(client: httpx.Client, session: str) -> str:
    """Everything that Gradio's event stream says until it ends."""
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as events:
        return "\n".join(events.iter_lines())


def upload(client: httpx.Client, content: bytes, **query: str) -> str:
    answer = client.post("/gradio_api/upload", files={"files": ("a.txt", content)}, params=query)
    assert answer.status_code == 200
    path: str = answer.json()[0]
    return path


def test_a_page_session_belongs_to_the_login_that_used_it_first(
    guarded_page: Page, alice: httpx.Client, bob: httpx.Client
) -> None:
    assert run(alice, guarded_page, "alices1").json()["data"] == ["ABC"]
    event = join(alice, guarded_page, "alices1").json()["event_id"]
    component = {"component_id": guarded_page.asking_component, "fn_name": "whose", "data": None}
    cancel = {"session_hash": "alices1", "fn_index": 0, "event_id": event}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/gradio_api/run/predict", {"data": ["x"], "fn_index": 0, "session_hash": "alices1"}),
        ("POST", "/gradio_api/queue/join", {"data": ["x"], "fn_index": 0, "session_hash": "alices1"}),
        ("POST", "/gradio_api/component_server", {**component, "session_hash": "alices1"}),
        ("POST", "/gradio_api/component_server/", {**component, "session_hash": "alices1"}),
        ("POST", "/gradio_api/cancel", cancel),
        ("POST", "/gradio_api/cancel", {**cancel, "session_hash": "bobs1"}),
        ("POST", "/gradio_api/reset", {"event_id": event}),
        ("POST", "/gradio_api/reset/", {"event_id": event}),
        ("GET", "/gradio_api/queue/data?session_hash=alices1", {}),
        ("GET", "/gradio_api/heartbeat/alices1", {}),
    ]
    for method, path, body in requests:
        with bob.stream(method, path, json=body if method == "POST" else None) as answer:
            assert answer.status_code == 403, path
            assert b"belong" in answer.read()
    assert '"abc!"' in outcome(alice, "alices1")
    assert alice.post("/gradio_api/component_server", json={**component, "session_hash": "alices1"}).status_code == 200


def test_a_file_belongs_to_the_login_that_uploaded_it(
    guarded_page: Page, alice: httpx.Client, bob: httpx.Client
) -> None:
    path = upload(alice, b"alice's own")
    assert alice.get(f"/gradio_api/file={path}").text == "alice's own"
    assert bob.get(f"/gradio_api/file={path}").status_code == 403
    assert bob.head(f"/gradio_api/file={path}").status_code == 403
    assert join(bob, guarded_page, "bobs2", "reads", {"path": path, **FILE}).status_code == 403
    assert run(bob, guarded_page, "bobs2", "reads", {"path": path}).status_code == 403
    assert join(alice, guarded_page, "alices2", "reads", {"path": path, **FILE}).status_code == 200
    assert '"alice\'s own"' in outcome(alice, "alices2")
    # Gradio gives the same content the same path; then it is the upload of both
    assert upload(bob, b"alice's own") == path
    assert bob.get(f"/gradio_api/file={path}").status_code == 200


NOT_UPLOADED: list[Any] = [
    {"path": "/etc/hostname", **FILE},
    {"path": "/etc/hostname"},
    {"path": "http://127.0.0.1:1/x", **FILE},
    {"path": None, "url": "http://127.0.0.1:1/x"},
    [{"path": "/etc/hostname", **FILE}],
    {"deep": [{"er": {"path": "/etc/hostname", **FILE}}]},
    {"path": ["/etc/hostname"]},
]


@pytest.mark.parametrize("value", NOT_UPLOADED)
def test_no_event_takes_a_file_that_was_not_uploaded(guarded_page: Page, alice: httpx.Client, value: Any) -> None:
    session = secrets.token_hex(8)
    for send in (run, join):
        answer = send(alice, guarded_page, session, "reads", value)
        assert answer.status_code == 403
        assert answer.text == "This file does not belong to your login."
    assert run(alice, guarded_page, session, data="path").json()["data"] == ["PATH"]


def test_how_far_an_upload_is_belongs_to_its_login(alice: httpx.Client, bob: httpx.Client) -> None:
    upload(alice, b"x", upload_id="alicesupload")
    with bob.stream("GET", "/gradio_api/upload_progress?upload_id=alicesupload") as progress:
        assert progress.status_code == 403
    taken = bob.post("/gradio_api/upload?upload_id=alicesupload", files={"files": ("a.txt", b"y")})
    assert taken.status_code == 403
    with alice.stream("GET", "/gradio_api/upload_progress?upload_id=alicesupload") as progress:
        assert progress.status_code == 200


ODD: list[tuple[str, bytes, str, int]] = [
    ("/gradio_api/run/predict", b'{"data":["x"],"session_hash":"a","session_hash":"b"}', "application/json", 400),
    ("/gradio_api/run/predict", b'{"data":["x"],"session_hash":["a"]}', "application/json", 400),
    ("/gradio_api/run/predict", b'{"data":["x"],"session_hash":"a/../b"}', "application/json", 400),
    ("/gradio_api/run/predict", b'{"data":["x"],"session_hash":""}', "application/json", 400),
    ("/gradio_api/run/predict", b'{"data":["x"],"event_id":"deadbeef"}', "application/json", 403),
    ("/gradio_api/run/predict", b'["x"]', "application/json", 400),
    ("/gradio_api/run/predict", b"[" * 100_000, "application/json", 400),
    ("/gradio_api/run/predict", b"\xff\xfe{\x00}\x00", "application/json", 400),
    ("/gradio_api/run/predict", b'{"data":["x"]}', "text/plain", 415),
    ("/gradio_api/queue/join", b'{"data":["x"]}', "", 415),
    ("/gradio_api/component_server", b"--b--", "multipart/form-data; boundary=b", 415),
]


@pytest.mark.parametrize(("path", "body", "content_type", "status"), ODD)
def test_a_body_has_one_meaning_or_none(
    alice: httpx.Client, path: str, body: bytes, content_type: str, status: int
) -> None:
    assert alice.post(path, content=body, headers={"Content-Type": content_type}).status_code == status


def test_an_address_names_one_session(alice: httpx.Client) -> None:
    for query in ("", "?session_hash=", "?session_hash=a&session_hash=b", "?session_hash=a%00"):
        assert alice.get(f"/gradio_api/queue/data{query}").status_code == 400, query
    assert alice.get("/gradio_api/upload_progress").status_code == 400


def test_functions_of_the_page_know_who_asks(
    guarded_page: Page, credentials: Credentials, alice: httpx.Client, bob: httpx.Client
) -> None:
    body = {"component_id": guarded_page.asking_component, "fn_name": "whose", "data": None}
    told = [
        client.post("/gradio_api/component_server", json={**body, "session_hash": session}).json()["login"]
        for client, session in ((alice, "alices5"), (bob, "bobs5"), (alice, "alices5"))
    ]
    assert told[0] == told[2] != told[1]
    assert {told[0], told[1]} <= {login.id for login in credentials.logins()}


def test_everything_of_a_login_ends_with_it(
    guarded_page: Page, credentials: Credentials, alice: httpx.Client, bob: httpx.Client
) -> None:
    path = upload(alice, b"for a while")
    assert run(alice, guarded_page, "alices6").status_code == 200
    assert alice.post("/logout").status_code == 303
    assert alice.get(f"/gradio_api/file={path}").status_code == 401
    assert Path(path).is_file()
    assert bob.get(f"/gradio_api/file={path}").status_code == 403
    assert run(bob, guarded_page, "alices6").status_code == 200  # the name is free again, its page is gone


def test_a_stream_ends_with_its_login(guarded_page: Page, credentials: Credentials, alice: httpx.Client) -> None:
    body = {"component_id": guarded_page.asking_component, "fn_name": "whose", "data": None, "session_hash": "alices7"}
    login = alice.post("/gradio_api/component_server", json=body).json()["login"]
    assert join(alice, guarded_page, "alices7", "slow", "a secret").status_code == 200
    heard: list[str] = []
    listening = threading.Thread(target=lambda: heard.append(outcome(alice, "alices7")))
    listening.start()
    time.sleep(0.3)
    assert credentials.end_login(login)
    assert not credentials.end_login(login)
    listening.join(15)
    assert not listening.is_alive()
    assert heard
    assert "a secret" not in heard[0]
