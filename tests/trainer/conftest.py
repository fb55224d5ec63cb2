"""What several tests share: models of every family, a workspace, and managers of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.hubs.server import Hubs
from tests.trainer.downloading import Make, managers
from trainer.families import get_family
from trainer.families.base import ModelFamily
from trainer.workspace import Workspace


@pytest.fixture(scope="module", params=sorted(tiny.BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, made once for each test file."""
    return tiny.BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def family(folder: Path) -> ModelFamily:
    """Its family."""
    return get_family(folder.name)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty one."""
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def make(hubs: Hubs, workspace: Workspace) -> Iterator[Make]:
    """Makes download managers over the loopback hubs."""
    with managers(hubs, workspace) as new:
        yield new
