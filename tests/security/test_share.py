"""A share link from its beginning to its end, in a process of its own with a stand-in for Gradio's tunnel program."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.security.page_server import raw_request
from tests.security.share_runner import HOST
from tests.ui.served import Served, start_command
from ui.qr import terminal_code

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")


def share(folder: Path, hours: float) -> Served:
    workspace = folder / "workspace"
    return start_command([sys.executable, "-m", "tests.security.share_runner", str(workspace), str(hours)], workspace)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Served]:
    page = share(tmp_path, 12)
    yield page
    if page.process.poll() is None:
        page.kill()


def tunnel_runs(page: Served) -> bool:
    try:
        os.kill(int((page.workspace.parent / "tunnel.pid").read_text()), 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{(page.workspace.parent / 'tunnel.pid').read_text().strip()}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def said(page: Served, pattern: str, seconds: float = 20.0) -> re.Match[str]:
    """The newest match in what the terminal was told, waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := list(re.finditer(pattern, "".join(page.output))):
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"{pattern} was not said:\n{''.join(page.output)}")


def ask(page: Served, path: str, host: str, cookie: str = "") -> tuple[int, bytes]:
    return raw_request(page, "GET", path, {"Host": host, "Cookie": cookie})


def cookie_in(answer: bytes) -> str:
    found = re.search(rb"set-cookie: ([^;]+);", answer, re.IGNORECASE)
    assert found is not None
    return found[1].decode()


def call(page: Served, client: httpx.Client, name: str) -> dict[str, str]:
    """Calls a function of the Settings tab."""
    config = client.get("/config").json()
    view = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "view-access")
    body = {"component_id": view, "fn_name": name, "session_hash": "settings", "data": None}
    answer: dict[str, str] = client.post("/gradio_api/component_server", json=body).json()
    return answer


def test_a_share_link_is_told_works_and_is_closed_from_the_page(shared: Served) -> None:
    link = said(shared, rf"Share link: (https://{HOST}/\?key=\S+)\n")[1]
    said(shared, r"The share link lives until [\w ]*\d\d:\d\d\.\n")
    said(shared, r"Anyone with a link")
    told = "".join(shared.output)
    assert terminal_code(link, "utf-8").splitlines()[5] in told
    old_key, old_password = link.partition("key=")[2], said(shared, r"Password: (\S+)\n")[1]
    assert tunnel_runs(shared)

    status, answer = ask(shared, f"/?key={old_key}", HOST)
    guest = cookie_in(answer)
    assert (status, guest.startswith("__Host-safelight-")) == (303, True)
    assert ask(shared, "/config", HOST, guest)[0] == 200
    assert ask(shared, "/login", "abcdef0123456789ac.gradio.live")[0] == 400

    with httpx.Client(base_url=shared.address, trust_env=False, timeout=30) as owner:
        assert owner.get(f"/?key={old_key}").status_code == 303
        assert call(shared, owner, "access_state")["shared"]
        assert "closed" in call(shared, owner, "stop_sharing")["text"]
        assert not tunnel_runs(shared)
        assert ask(shared, "/login", HOST)[0] == 400
        assert ask(shared, "/config", HOST, guest)[0] == 400
        stolen = guest.removeprefix("__Host-")
        assert ask(shared, "/config", f"127.0.0.1:{shared.port}", stolen)[0] == 401
        assert owner.get("/config").status_code == 200
    with httpx.Client(base_url=shared.address, trust_env=False, timeout=30) as late:
        assert late.get(f"/?key={old_key}").status_code == 401
        assert late.post("/login", data={"password": old_password}).status_code == 401
        new_link = said(shared, r"no longer work\. New: (\S+)\n")[1]
        assert late.get(new_link).status_code == 303
    assert shared.end(signal.SIGTERM) == 0


def test_a_share_link_ends_with_its_hours(tmp_path: Path) -> None:
    page = share(tmp_path, 4 / 3600)
    try:
        said(page, r"Share link: ")
        assert ask(page, "/login", HOST)[0] == 200
        assert tunnel_runs(page)
        said(page, r"The share link is closed\. The page goes on without it\.\n")
        assert not tunnel_runs(page)
        assert ask(page, "/login", HOST)[0] == 400
        assert ask(page, "/login", "127.0.0.1")[0] == 200
        assert page.end(signal.SIGTERM) == 0
    finally:
        if page.process.poll() is None:
            page.kill()


def test_the_tunnel_ends_with_the_program(shared: Served) -> None:
    assert tunnel_runs(shared)
    assert shared.end(signal.SIGTERM) == 0
    assert not tunnel_runs(shared)
