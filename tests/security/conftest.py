"""Pages behind the Door that the tests of one module share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from security.login import Credentials
from security.sharing import Sharing
from security.web import DoorSettings
from tests.security.page_server import Page, served_page

PASSWORD = "correct horse battery"
SHARE_HOST = "abcdef0123456789ab.gradio.live"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    """Gradio asks its own address at launch; a proxy of the environment must not stand between."""
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    yield
    if before is None:
        del os.environ["NO_PROXY"]
    else:
        os.environ["NO_PROXY"] = before


@pytest.fixture(scope="module")
def local_page(picture: Path) -> Iterator[Page]:
    """The page as it is by default: loopback only, no password."""
    with served_page(DoorSettings(file_prefixes=("/files/",)), picture) as page:
        yield page


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials(PASSWORD, base_delay_seconds=0.0)


@pytest.fixture(scope="module")
def guarded_page(picture: Path, credentials: Credentials) -> Iterator[Page]:
    """The page as it is with --listen and --share: with a password."""
    sharing = Sharing(12)
    sharing.begin(f"https://{SHARE_HOST}")
    settings = DoorSettings(
        credentials=credentials, listens=True, sharing=sharing, host_names=("lab.example",), file_prefixes=("/files/",)
    )
    with served_page(settings, picture) as page:
        yield page
