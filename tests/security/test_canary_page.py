"""Canaries in the served page, as its own process: what it answers, prints, logs and shows of itself to other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.test_canaries import shapes, traces
from tests.ui.served import Served, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
IN_ENVIRONMENT, TYPED, UNREAD, CIVITAI = (shapes(number) for number in (901, 902, 903, 904))
TOKENS = {
    "HF_TOKEN": IN_ENVIRONMENT["Hugging Face"],
    "HF_HUB_TOKEN": UNREAD["Hugging Face JWT"],
    "CIVITAI_TOKEN": CIVITAI["Civitai"],
}
BADLY_TYPED = TYPED["signs"][:15] + " " + TYPED["signs"][15:]
ALL = [*TOKENS.values(), BADLY_TYPED]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "tmp").mkdir()
    with served(folder / "workspace", TMPDIR=str(folder / "tmp"), HF_HOME=str(folder / "hf"), **TOKENS) as running:
        yield running


class Visit:
    """A browser that keeps every byte it was sent."""

    def __init__(self, page: Served) -> None:
        self.client = httpx.Client(base_url=page.address, trust_env=False, timeout=30)
        self.bytes = b""
        config = self.get("/config").json()
        self.views = {item["props"].get("elem_id"): item["id"] for item in config["components"]}

    def get(self, path: str) -> httpx.Response:
        answer = self.client.get(path)
        self.bytes += answer.content + str(answer.headers).encode()
        return answer

    def call(self, view: str, name: str, argument: Any = None) -> dict[str, Any]:
        body = {"component_id": self.views[view], "fn_name": name, "session_hash": "canary", "data": argument}
        answer = self.client.post("/gradio_api/component_server", json=body)
        self.bytes += answer.content
        told: dict[str, Any] = answer.json()
        return told


def found(data: bytes) -> list[str]:
    return [token for token in ALL if any(trace in data for trace in traces(token))]


def test_nothing_that_the_page_gives_away_has_a_token(page: Served) -> None:
    visit = Visit(page)
    state = visit.call("view-tokens", "tokens_state")
    assert [row["source"] for row in state["services"]] == [
        "HF_TOKEN in the environment",
        "CIVITAI_TOKEN in the environment",
    ]
    refused = visit.call("view-tokens", "save_token", {"service": "Hugging Face", "token": BADLY_TYPED})
    assert "another sign that no token has" in refused["error"]
    for token in ALL:
        for service in (token, "Civitai"):
            assert "error" in visit.call(
                "view-tokens", "save_token", {"service": service, "token": f"{token}\n{token}"}
            )
        # what is sent as a name comes back in the error; here without the token
        assert "***" in visit.call("view-models", "remove", {"name": token})["error"]
    assert "no such run" in visit.call("view-models", "remove", {"name": "no such run"})["error"]
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/app_id", "/theme.css", f"/{TOKENS['HF_TOKEN']}"):
        visit.get(path)
    assert len(visit.bytes) > 100_000
    assert found(visit.bytes) == []


def test_nothing_that_the_page_leaves_behind_has_a_token(page: Served) -> None:
    visit = Visit(page)
    for token in ALL:
        visit.call("view-tokens", "save_token", {"service": token, "token": token[:20] + "\0"})
    folder = page.workspace.parent
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith("logs/safelight.log") for name in files)
    assert {name: lost for name, data in files.items() if (lost := found(data))} == {}
    assert found("".join(page.output).encode()) == []


def test_other_programs_of_this_user_see_no_token_of_the_page(page: Served) -> None:
    shown = b""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _belongs(process, page.process.pid):
            shown += (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert b"launch.py" in shown and b"HF_TOKEN=*" in shown
    assert found(shown) == []


def _belongs(process: Path, page_id: int) -> bool:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(process.name) == page_id or int(fields[1]) == page_id


def test_forgetting_on_the_page_forgets_what_came_from_the_environment(page: Served) -> None:
    visit = Visit(page)
    assert "is forgotten" in visit.call("view-tokens", "forget_token", {"service": "Civitai"})["text"]
    assert json.dumps(visit.call("view-tokens", "tokens_state")).count("in the environment") == 1
    assert "no Civitai token" in visit.call("view-tokens", "check_token", {"service": "Civitai"})["error"]
