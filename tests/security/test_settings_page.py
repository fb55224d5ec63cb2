"""Logins ended from the Settings tab, over HTTP on the whole page: the tab knows whose login asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.security.page_server import log_in
from tests.security.real_page import PASSWORD, RealPage, real_page


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPage]:
    with real_page(tmp_path_factory.mktemp("settings")) as running:
        yield running


def call(client: httpx.Client, name: str, argument: Any = None) -> dict[str, Any]:
    """Calls a function of the view, as the page's script does."""
    config = client.get("/config").json()
    view = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "view-access")
    body = {"component_id": view, "fn_name": name, "session_hash": f"settings{id(client)}", "data": argument}
    answer = client.post("/gradio_api/component_server", json=body)
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


def test_a_login_sees_itself_in_the_list_and_ends_another(page: RealPage) -> None:
    with page.owner() as one, page.owner() as other:
        lists = [call(client, "access_state")["logins"] for client in (one, other)]
        own = [[row["id"] for row in rows if row["own"]] for rows in lists]
        assert [len(ids) for ids in own] == [1, 1]
        assert own[0] != own[1]
        assert {row["id"] for row in lists[0]} == {row["id"] for row in lists[1]} == {*own[0], *own[1]}
        assert call(one, "end_login", {"login": own[1][0]})["text"] == "That login has ended."
        assert (one.get("/config").status_code, other.get("/config").status_code) == (200, 401)
        assert call(one, "access_state")["logins"][0]["own"]


def test_a_new_link_keeps_the_login_that_made_it(page: RealPage) -> None:
    old = page.entrance.credentials.key
    with page.owner() as one, page.owner() as other:
        call(one, "renew")
        assert (one.get("/config").status_code, other.get("/config").status_code) == (200, 401)
        assert other.get(f"/?key={old}").status_code == 401
        assert log_in(other, PASSWORD).status_code == 401
        new_password = next(line for line in page.told if line.startswith("Password: ")).removeprefix("Password: ")
        assert log_in(other, new_password).status_code == 303
        assert other.get("/config").status_code == 200


def test_only_who_is_logged_in_sees_the_link(page: RealPage) -> None:
    with page.owner() as owner, page.client() as stranger:
        ways = call(owner, "show_ways").get("ways", [])
        assert all(way["link"].endswith(page.entrance.credentials.key) for way in ways)
        assert page.entrance.credentials.key not in owner.get("/config").text + owner.get("/").text
        body = {"component_id": 1, "fn_name": "show_ways", "session_hash": "stranger", "data": None}
        assert stranger.post("/gradio_api/component_server", json=body).status_code == 401
