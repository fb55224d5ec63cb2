"""What the tests of downloads share: a manager over the loopback hubs, tokens, waiting, and what lies in the library."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from security.policy import Service
from security.secrets import Secret
from tests.hubs.models import sdxl_checkpoint
from tests.hubs.server import Hubs
from trainer.models.downloads import Downloads
from trainer.models.jobfiles import Download
from trainer.workspace import Workspace

REPO = "someone/tiny-xl"
DATA = sdxl_checkpoint(filler=300_000)
Make = Callable[..., Downloads]


class Tokens:
    """Where tokens come from, without a keyring."""

    def __init__(self, **texts: str) -> None:
        self.known = {Service[name]: Secret(text, f"{name} token") for name, text in texts.items()}

    def get(self, service: Service) -> Secret | None:
        """The token of a hub."""
        return self.known.get(service)


@contextlib.contextmanager
def managers(hubs: Hubs, workspace: Workspace) -> Iterator[Make]:
    """Makes download managers as the program does at each start, and closes them at the end."""
    made: list[Downloads] = []

    def new(tokens: Tokens | None = None, **options: str) -> Downloads:
        made.append(Downloads(workspace, hubs.network(), tokens or Tokens(), **options))
        return made[-1]

    yield new
    assert all(downloads.shutdown(20) for downloads in made)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something to be so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def fetched(downloads: Downloads, text: str, *, file: str = "", **options: object) -> Download:
    """Plans, starts and waits."""
    job_id = downloads.start(downloads.plan(text, file=file), **options)
    assert downloads.wait(30)
    return downloads.get(job_id)


def in_library(workspace: Workspace) -> set[str]:
    """Names of what lies in the models folder."""
    return {path.name for path in workspace.models_dir.iterdir()}


def slow() -> dict[str, object]:
    """A body that takes some seconds."""
    return {"piece": 16_384, "pause": 0.05}
