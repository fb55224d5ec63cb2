"""A quarantine folder and a file to fetch into it from the loopback server: what the tests of downloads share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from security.errors import Interrupted
from security.fetch import Fetched, Wanted, fetch
from security.net import Network
from security.policy import Patience
from security.roots import Root
from security.secrets import Secret
from security.urls import SafeUrl
from tests.hubs.server import FAST, Answer, Hubs, Reply

DATA = bytes(range(251)) * 10_000  # 2.5 MB; no power of two, so a shifted copy differs everywhere
SHA256 = hashlib.sha256(DATA).hexdigest()
FILE = "https://huggingface.co/a/b/resolve/main/x.safetensors"
PATH = "/a/b/resolve/main/x.safetensors"
ETAG = '"0123abcd"'
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_testtokentesttokentesttokentest"
BUCKET = "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"
ONCE = replace(FAST, attempts=1)
IMPATIENT = replace(FAST, connect=0.7, answer=0.7, idle=0.5, json_total=1.0, attempts=1)


@dataclass
class Bench:
    """One quarantine folder and what happened in it."""

    hubs: Hubs
    folder: Path
    told: list[tuple[int, int | None]] = field(default_factory=list)
    located: int = 0

    def fetch(
        self,
        wanted: Wanted | None = None,
        *,
        patience: Patience = ONCE,
        token: Secret | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        locate: Callable[[Network], SafeUrl] = lambda network: network.parse(FILE),
    ) -> Fetched:
        network = self.hubs.network(patience)

        def counted() -> SafeUrl:
            self.located += 1
            return locate(network)

        return fetch(
            network,
            counted,
            Root(self.folder),
            wanted or Wanted("x.safetensors", len(DATA), SHA256),
            token=token,
            progress=lambda have, total: self.told.append((have, total)),
            cancelled=cancelled,
        )

    def serve(self, *answers: Answer) -> None:
        self.hubs.on("huggingface.co", PATH, *answers)

    def one(self, suffix: str) -> Path:
        """The only file with this ending."""
        (path,) = self.folder.glob(f"*{suffix}")
        return path

    def names(self) -> list[str]:
        """Endings of what lies in the folder, but for the lock."""
        return sorted(
            path.name.partition(".safetensors.")[2][13:] for path in self.folder.iterdir() if path.suffix != ".lock"
        )

    def leave_part(self, have: int, reply: Reply | None = None) -> None:
        """Breaks a download off after `have` bytes, and forgets the requests."""
        self.serve(replace(reply or Reply(body=DATA, etag=ETAG), stop_after=have))
        with pytest.raises(Interrupted):
            self.fetch()
        assert self.one(".part").stat().st_size == have
        self.hubs.seen.clear()

    def child_arguments(self, data: bytes = DATA) -> list[str]:
        """What `python -m tests.hubs.download` needs to fetch `data` into this folder."""
        sha256 = hashlib.sha256(data).hexdigest()
        return [
            str(self.hubs.port),
            str(self.hubs.ca_file),
            FILE,
            str(self.folder),
            "x.safetensors",
            str(len(data)),
            sha256,
        ]


def honest(**more: Any) -> Reply:
    """The file as it is, or with a fault."""
    return Reply(body=DATA, etag=ETAG, **more)


def body_of(
    network: Network, text: str, token: Secret | None = None, cancelled: Callable[[], bool] | None = None
) -> bytes:
    """The whole body of the answer to one GET request."""
    with network.open(network.parse(text), token=token, cancelled=cancelled) as response:
        return b"".join(response.chunks())
