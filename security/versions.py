"""Compares the installed packages with the oldest versions that are safe to use. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

from security.policy import FLOORS


def version_faults(floors: Mapping[str, str] = FLOORS) -> list[str]:
    """One sentence per installed package that is older than its floor; an empty list if all is well.

    Packages that are not installed are passed over: what is missing is the installer's matter.
    """
    faults = []
    for package, floor in floors.items():
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if _sort_key(installed) < _sort_key(floor):
            faults.append(
                f"{package} {installed} has known security holes. Install {package} {floor} or later: "
                f'python -m pip install "{package}>={floor}"'
            )
    return faults


def _sort_key(version: str) -> tuple[tuple[int, ...], bool]:
    """Release numbers without trailing zeros, then False for pre-releases, which come before the release itself.

    "2.13.0+cpu" -> ((2, 13), True); "2.10.0rc1" -> ((2, 10), False). Follows PEP 440 as far as floors need it.
    """
    match = re.match(r"(?:\d+!)?v?(\d+(?:\.\d+)*)([^+]*)", version)
    if match is None:
        return (), False
    numbers = [int(part) for part in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), not re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|preview|dev)", match[2])
