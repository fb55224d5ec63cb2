"""Reads the hash-locked requirements: which packages belong to this machine, in which version, with which SHA-256 sums."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

MAIN_LOCK = "requirements.txt"
CU126_LOCK = "security/requirements-cu126.txt"
"""What torch's build for CUDA 12.6 brings, which the other builds don't need."""
CUDA_PART = re.compile(r"nvidia-|cuda-|triton$")
"""Names of the packages that only a CUDA build of torch needs."""
_ENTRY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)(?: ; (.*?))?((?: --hash=sha256:[0-9a-f]{64})*)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One entry: the normalised name, the version, the condition ("" for everywhere) and the hashes of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def holds_here(self) -> bool:
        """Whether this Python on this system needs it."""
        return not self.marker or Marker(self.marker).evaluate()


def read_lock(path: Path) -> list[Pin]:
    """All entries of a requirements file. Raises ValueError with the line for anything that is not an exact version."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    pins = []
    for line in text.splitlines():
        entry = " ".join(line.split())
        if not entry or entry.startswith("#"):
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{path.name} has a line that is no exact version: {entry}")
        hashes = tuple(re.findall(r"sha256:([0-9a-f]{64})", match[4]))
        pins.append(Pin(canonicalize_name(match[1]), match[2], match[3] or "", hashes))
    return pins


def pins_of_this_machine(repository: Path) -> list[Pin]:
    """What has to be installed here. Parts of CUDA count only if the installed torch names them."""
    pins = [pin for pin in read_lock(repository / MAIN_LOCK) if pin.holds_here]
    others = [pin for pin in pins if not CUDA_PART.match(pin.name)]
    needs = " ".join(_requires("torch"))
    if "nvidia-cudnn-cu12" in needs:
        return others + [pin for pin in read_lock(repository / CU126_LOCK) if pin.holds_here]
    return pins if "nvidia-cudnn-cu" in needs else others


def _requires(package: str) -> list[str]:
    try:
        return [text for text in metadata.requires(package) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []
