"""The whole page of Safelight, served in this process as `python launch.py --listen` serves it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from security.login import Credentials
from tests.security.page_server import free_port
from trainer.jobs import Jobs
from trainer.workspace import Workspace
from ui.entrance import Entrance
from ui.server import ServeOptions, _entrance, _launch, _services
from ui.services import Services

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class RealPage:
    """A running page. `told` is what it said on the terminal."""

    address: str
    port: int
    app: Any
    services: Services
    entrance: Entrance
    told: list[str]

    def client(self) -> httpx.Client:
        """An HTTP client with a cookie jar that follows no redirects."""
        return httpx.Client(base_url=self.address, trust_env=False, timeout=30)

    @contextlib.contextmanager
    def owner(self) -> Iterator[httpx.Client]:
        """A client that has logged in with the link."""
        with self.client() as client:
            assert client.get(f"/?key={self.entrance.credentials.key}").status_code == 303
            yield client


@contextlib.contextmanager
def real_page(folder: Path, *, base_delay_seconds: float = 0.0, **options: Any) -> Iterator[RealPage]:
    """Serves the page with a password, over a fresh workspace in `folder`; closes it at the end."""
    told: list[str] = []
    workspace = Workspace.open(folder / "workspace")
    jobs = Jobs(workspace)
    port = free_port()
    serve = ServeOptions(port=port, open_browser=False, **{"listen": True, **options})
    entrance = _entrance(serve, port, Credentials(PASSWORD, base_delay_seconds=base_delay_seconds))
    entrance._tell = told.append
    services = _services(serve, workspace, jobs, entrance)
    page = _launch(serve, port, services)
    try:
        yield RealPage(f"http://127.0.0.1:{port}", port, page.app, services, entrance, told)
    finally:
        page.close(verbose=False)
        jobs.shutdown(30)
