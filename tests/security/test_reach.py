"""Names, addresses, rights and patience: the small parts that decide who reaches the page and how."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from security import patience
from security.errors import RefusedConfig
from security.hosts import check_host_name, host_of_origin, is_ip_address
from security.interfaces import network_addresses, ranked
from security.privileges import refuse_root_sharing, root_warning
from tests.security.real_page import RealPage, real_page

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.mark.parametrize("name", ["lora.example.org", "LAB", "my-pc.local", "a1.b2", "x" * 63 + ".example"])
def test_host_names_are_taken_in_small_letters(name: str) -> None:
    assert check_host_name(name) == name.lower()


BAD_NAMES = [
    "", "https://lora.example.org", "lora.example.org:8443", "lora.example.org/", "*.example.org", "*", "localhost",
    "LOCALHOST", "192.168.1.5", "1", "[::1]", "::1", "a b", "a..b", ".a", "a.", "-a", "a-", "ä.example", "a_b", "a\n",
    "x" * 64, "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "w" * 63, "user@host", "a%2eb",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_anything_but_a_bare_host_name_is_refused(name: str) -> None:
    with pytest.raises(RefusedConfig, match="is not a host name"):
        check_host_name(name)


def test_the_host_of_an_origin() -> None:
    assert host_of_origin("https://Lab.example:8443") == "lab.example"
    for origin in ("null", "", "lab.example", "ftp://lab.example", "https://lab.example/x", "https://u@lab.example"):
        assert host_of_origin(origin) == "", origin
    assert is_ip_address("192.168.1.5")
    assert is_ip_address("[fe80::1]")
    assert not is_ip_address("lab.example")


def test_addresses_of_this_machine_are_its_own_and_can_be_reached() -> None:
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    found = network_addresses()
    assert set(found) <= own
    assert len(found) == len(set(found))
    for address in found:
        parsed = ipaddress.ip_address(address)
        assert not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def test_the_likeliest_address_comes_first() -> None:
    texts = {"lo": "127.0.0.1", "docker0": "172.17.0.1", "eth1": "10.1.2.3", "wlan0": "192.168.1.5", "x": "169.254.3.4"}
    found = [(name, ipaddress.IPv4Address(text)) for name, text in texts.items()]
    assert ranked(found, "") == ["10.1.2.3", "192.168.1.5", "172.17.0.1"]
    assert ranked([*found, *found], "docker0") == ["172.17.0.1", "10.1.2.3", "192.168.1.5"]
    assert ranked(found[:1], "lo") == []


ASK = """
import os, sys
from security.errors import RefusedConfig
from security.privileges import refuse_root_sharing, root_warning
if sys.argv[1] != "0":
    os.setuid(int(sys.argv[1]))
print(bool(root_warning()))
for share, allow_root in ((False, False), (True, True), (True, False)):
    try:
        refuse_root_sharing(share=share, allow_root=allow_root)
        print("goes on")
    except RefusedConfig as error:
        print(error)
"""


def ask_as(user: int) -> list[str]:
    command = [sys.executable, "-c", ASK, str(user)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become root")


@needs_root
def test_root_is_warned_and_shares_only_on_demand() -> None:
    assert root_warning()
    warned, local, allowed, refused = ask_as(0)
    assert (warned, local, allowed) == ("True", "goes on", "goes on")
    assert "--allow-root" in refused


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there is no root here")
def test_other_users_are_not_bothered() -> None:
    user = NOBODY if os.geteuid() == 0 else 0  # 0: stay who we are
    assert ask_as(user) == ["False", "goes on", "goes on", "goes on"]


@needs_root
def test_the_program_refuses_to_share_as_root(tmp_path: Path) -> None:
    command = [sys.executable, "launch.py", "--no-venv", "--no-browser", "--share", "--workspace", str(tmp_path / "w")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--allow-root" in done.stderr
    refuse_root_sharing(share=True, allow_root=True)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealPage:
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(patience, "MAX_CONNECTIONS", 12)
    with real_page(tmp_path) as running:
        yield running  # type: ignore[misc]


def closed_after(connection: socket.socket, seconds: float) -> float | None:
    """How long until the server closes a connection, None if it does not in time."""
    began = time.monotonic()
    connection.settimeout(seconds)
    try:
        return time.monotonic() - began if connection.recv(1) == b"" else None
    except TimeoutError:
        return None


def test_who_never_finishes_a_request_head_is_cut_off(page: RealPage) -> None:
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", page.port)) as slow:
            slow.sendall(sent)
            waited = closed_after(slow, 5)
            assert waited is not None
            assert waited >= 0.3
    with socket.create_connection(("127.0.0.1", page.port)) as slow:
        slow.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            slow.recv(65536)  # what is left of the answer
        slow.setblocking(True)
        slow.sendall(b"GET /robots.txt HTTP/1.1\r\nHost")  # ends uvicorn's own waiting for an idle connection
        waited = closed_after(slow, 5)
        assert waited is not None
        assert waited >= 0.3
    with page.owner() as owner, socket.create_connection(("127.0.0.1", page.port)) as listening:
        cookie = "; ".join(f"{name}={value}" for name, value in owner.cookies.items())
        request = f"GET /gradio_api/heartbeat/x1 HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n"
        listening.sendall(request.encode())
        time.sleep(0.3)
        assert b"ALIVE" in listening.recv(65536)
        assert closed_after(listening, 0.8) is None  # who has asked for something is left alone


def test_too_many_connections_are_told_to_come_back(page: RealPage) -> None:
    crowd = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(12)]
    with page.client() as visitor:
        time.sleep(0.1)
        assert visitor.get("/login").status_code == 503
        for connection in crowd:
            connection.close()
        time.sleep(0.8)
        assert visitor.get("/login").status_code == 200
