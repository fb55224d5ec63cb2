"""What holds for every test: no outside network, a workspace of its own, and a reason for each one that is skipped."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hubs.bench import Bench
    from tests.hubs.server import Hubs

# Set before any test module is imported, because some libraries read the environment when they are.
os.environ["SAFELIGHT_WORKSPACE"] = tempfile.mkdtemp(prefix="safelight-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["SAFELIGHT_WORKSPACE"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For several processes: what a file's tests share is made once, and one browser is enough for a machine."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "browser" if file.startswith("tests/browser/") else file

    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped with a reason on a machine without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no NVIDIA GPU")


@pytest.fixture(autouse=True, scope="session")
def no_outside_network() -> Iterator[None]:
    """Any connection from this process to an address outside this machine is a fault of the test."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse_outside(address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host and host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0") and not host.startswith("127."):
            raise AssertionError(f"a test tried to connect to {address}; tests stay on this machine")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse_outside(address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse_outside(address)
        return connect_ex(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what a test does to the environment out of the next one."""
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", os.environ["SAFELIGHT_WORKSPACE"])


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hubs]:
    """One HTTPS server that stands in for the hubs in all tests."""
    from tests.hubs.server import loopback_hubs

    with loopback_hubs() as running:
        yield running


@pytest.fixture
def hubs(hub_server: Hubs) -> Hubs:
    """That server, with nothing to give out yet. `hubs.network()` is the product's Network on it."""
    hub_server.clear()
    return hub_server


@pytest.fixture
def bench(hubs: Hubs, tmp_path: Path) -> Bench:
    """A private quarantine folder in front of that server."""
    from tests.hubs.bench import Bench

    folder = tmp_path / "quarantine"
    folder.mkdir(mode=0o700)
    return Bench(hubs, folder)
