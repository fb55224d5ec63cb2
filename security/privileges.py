"""Whether the program runs with more rights than it needs."""

from __future__ import annotations

import os

from security.errors import RefusedConfig


def root_warning() -> str:
    """What to tell somebody who runs the program as root; "" for everybody else, and on Windows."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return ""
    return (
        "Safelight runs as root: a fault in it, or in a library, could change anything on this machine. "
        "Run it as a user of its own. In a container or on a rented machine that holds nothing else, root is usual."
    )


def refuse_root_sharing(*, share: bool, allow_root: bool) -> None:
    """Raises RefusedConfig for a public link to a program that runs as root, unless that was asked for."""
    if share and not allow_root and root_warning():
        raise RefusedConfig(
            "--share makes this machine reachable from everywhere, and Safelight runs as root. Start it as another user; "
            "or, in a container or on a rented machine that holds nothing else, add --allow-root."
        )
