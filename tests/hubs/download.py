"""Downloads one file in a process of its own, so that a test can kill it: `python -m tests.hubs.download`."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from security.fetch import Wanted, fetch
from security.net import Network
from security.roots import Root
from tests.hubs.server import FAST, PUBLIC_ADDRESS, dial_to


def main(port: int, ca_file: Path, url: str, folder: Path, wanted: Wanted) -> None:
    """Fetches `url` from the server at `port` into `folder` and prints the result as JSON, progress line by line."""
    network = Network(
        resolve=lambda _: [PUBLIC_ADDRESS], dial=functools.partial(dial_to, port), ca_file=ca_file, patience=FAST
    )
    fetched = fetch(
        network,
        lambda: network.parse(url),
        Root(folder),
        wanted,
        token=None,
        progress=lambda have, _: print(have, flush=True),
        cancelled=lambda: False,
    )
    print(json.dumps({"path": str(fetched.path), "size": fetched.size, "sha256": fetched.sha256}), flush=True)


if __name__ == "__main__":
    port, ca_file, url, folder, name, size, sha256 = sys.argv[1:]
    main(int(port), Path(ca_file), url, Path(folder), Wanted(name, int(size), sha256))
