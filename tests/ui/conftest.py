"""Services over an empty workspace, and the page built on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from security.net import Network
from security.tokens import TokenStore
from trainer.dataset.studio import Studio
from trainer.jobs import Jobs
from trainer.models.downloads import Downloads
from trainer.workspace import Workspace
from ui.machine import Machine
from ui.services import Access, Library, Services


def make_services(folder: Path, access: Access | None = None) -> Services:
    """Services of a fresh workspace."""
    workspace = Workspace.open(folder / "workspace")
    machine, library = Machine(workspace.path), Library(workspace)
    tokens = TokenStore(environment={"HF_HOME": str(folder)}, env_file=folder / ".env", find_keyring=lambda: None)
    network = Network()
    downloads = Downloads(workspace, network, tokens)
    return Services(
        workspace, Jobs(workspace), machine, access or Access(), library, tokens, network, downloads, Studio(workspace)
    )


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = make_services(tmp_path)
    yield made
    assert made.jobs.shutdown(30)


@pytest.fixture
def shared_services(tmp_path: Path) -> Iterator[Services]:
    """The same for a page that others can reach."""
    made = make_services(tmp_path, Access(listen=True))
    (made.workspace.path / "import").mkdir()
    yield made
    assert made.jobs.shutdown(30)
