"""Services over an empty workspace, and the page built on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.jobs import Jobs
from trainer.workspace import Workspace
from ui.machine import Machine
from ui.services import Access, Library, Services


def make_services(folder: Path, access: Access | None = None) -> Services:
    """Services of a fresh workspace."""
    workspace = Workspace.open(folder / "workspace")
    return Services(workspace, Jobs(workspace), Machine(workspace.path), access or Access(), Library(workspace))


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
