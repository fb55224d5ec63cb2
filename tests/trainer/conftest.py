"""What several tests of the model families share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from trainer.families import get_family
from trainer.families.base import ModelFamily


@pytest.fixture(scope="module", params=sorted(tiny.BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, made once for each test file."""
    return tiny.BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def family(folder: Path) -> ModelFamily:
    """Its family."""
    return get_family(folder.name)
