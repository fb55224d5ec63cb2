"""The served page from outside: what it answers, to whom, how it starts and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ui.served import REPOSITORY, Served, served

on_posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX systems do")
HOSTILE = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "GRADIO_SHARE": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_RUN_HISTORY": "True",
    "GRADIO_VIBE_MODE": "1",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_ROOT_PATH": "/elsewhere",
}
"""An environment that would open the page to others or break it, were it not cleaned."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("serve") / "workspace", **HOSTILE) as running:
        yield running


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page with --listen: others can reach it, so it has a password."""
    with served(tmp_path_factory.mktemp("listen") / "workspace", "--listen") as running:
        yield running


def client(page: Served) -> httpx.Client:
    return httpx.Client(base_url=page.address, trust_env=False, timeout=30)


def test_the_page_says_one_line_with_its_address(page: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", page.link)
    time.sleep(0.5)  # for what might follow
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    assert page.output[0] == f"Safelight is ready: {page.link}\n"
    assert [line.partition(":")[0] for line in page.output[1:]] == (["Note"] if as_root else [])


def test_the_page_is_there_and_calls_for_nothing_outside(page: Served) -> None:
    text = client(page).get("/").text
    assert "Safelight" in text
    assert '"named_endpoints":{}' in text.replace(" ", "")
    assert "/elsewhere" not in text
    assert str(page.workspace) not in text


def test_torch_is_not_loaded_for_the_page(page: Served) -> None:
    maps = Path(f"/proc/{page.process.pid}/maps")
    if not maps.exists():
        pytest.skip("only Linux tells which libraries a process has loaded")
    assert "libtorch" not in maps.read_text()


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/monitoring",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/token",
        "/gradio_api/dev/reload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/login",
    ],
)
def test_side_doors_are_shut(page: Served, path: str) -> None:
    assert client(page).get(path).status_code in (403, 404)


def test_other_hosts_and_other_sites_are_refused(page: Served) -> None:
    with client(page) as visitor:
        assert visitor.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert visitor.get("/config", headers={"Origin": "https://evil.example"}).status_code == 403
        upload = visitor.post("/gradio_api/upload", headers={"Origin": "https://evil.example"}, files={"files": b"x"})
        assert upload.status_code == 403


def test_it_listens_on_loopback_only(page: Served) -> None:
    rows = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False).stdout if _has_ss() else ""
    if not rows:
        pytest.skip("there is no `ss` to ask who listens where")
    listening = [line.split()[3] for line in rows.splitlines() if line.split()[3].endswith(f":{page.port}")]
    assert listening == [f"127.0.0.1:{page.port}"]


def _has_ss() -> bool:
    import shutil

    return shutil.which("ss") is not None


def test_a_page_that_others_reach_has_a_key_and_a_password(open_page: Served) -> None:
    assert "/?key=" in open_page.link
    with client(open_page) as visitor:
        for path in ("/", "/config", "/safelight/datasets/ink/x.png", "/gradio_api/info", "/gradio_api/queue/data"):
            assert visitor.get(path).status_code == 401, path
        assert "gradio_config" not in visitor.get("/").text
        assert visitor.post("/gradio_api/component_server", json={}).status_code == 401
        welcome = visitor.get(open_page.link, follow_redirects=True)
        assert welcome.status_code == 200
        assert "key=" not in str(welcome.url)
        assert visitor.get("/config").status_code == 200
    log = open_page.workspace / "logs" / "safelight.log"
    assert open_page.link.split("key=")[1] not in log.read_text()


def test_a_taken_port_is_one_sentence(page: Served, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_to_its_end("--port", port, "--workspace", str(tmp_path / "w"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {port} can't be used" in done.stderr


def test_a_workspace_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    done = run_to_its_end("--port", "0", "--workspace", str(REPOSITORY / "ui" / "workspace"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch.py", "--no-venv", "--no-browser", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_signals_end_it_with_exit_code_0(tmp_path: Path, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup the suite ignores SIGHUP, and its children would too
    try:
        with served(tmp_path / "workspace") as page:
            assert page.end(number) == 0
    finally:
        signal.signal(number, before)
    assert not list((tmp_path / "workspace" / "cache" / "page").iterdir())
