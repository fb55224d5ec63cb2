"""`doctor`: checks what Safelight stands on and says what to mend."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from security.errors import FailedCommand, SafelightError
from security.locks import pins_of_this_machine
from security.processes import run
from security.roots import Root
from security.sandbox import probe
from security.versions import version_faults
from trainer.workspace import REPOSITORY_DIR, Workspace

FREE_DISK_WANTED = 5_000_000_000
"""Bytes: room for a base model of SDXL's size is rather 7 GB, for checkpoints and caches of a run some hundred MB."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `ok` is False only for what keeps Safelight from working."""

    name: str
    ok: bool
    detail: str


def doctor(workspace: Path | None, *, as_json: bool) -> int:
    """Runs every check. Returns 0 if all are well, else 1."""
    looks: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_hashes,
        check_security_floors,
        check_torch,
        check_sandbox,
        lambda: check_workspace(workspace),
        check_browser,
    ]
    checks = []
    for look in looks:
        check = look()
        checks.append(check)
        if not as_json:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}", flush=True)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    return 0 if all(check.ok for check in checks) else 1


def check_python() -> Check:
    """Version and place of the interpreter. Which versions do is launch.py's to say: it would not have come here."""
    return Check(
        "Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}"
    )


def check_packages() -> Check:
    """Installed versions against requirements.txt; another version works perhaps, a missing one never."""
    missing, differing, pins = [], [], pins_of_this_machine(REPOSITORY_DIR)
    for pin in pins:
        try:
            found = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(pin.name)
            continue
        if found.partition("+")[0] != pin.version:
            differing.append(f"{pin.name} {found} (tested: {pin.version})")
    if missing:
        return Check("packages", False, f"missing: {', '.join(missing)}. Delete .venv and start again to install them.")
    if differing:
        return Check("packages", True, f"{len(pins)} there, but in other versions: {', '.join(differing)}")
    return Check("packages", True, f"all {len(pins)} at their pinned versions")


def check_hashes() -> Check:
    """What launch.py wrote down after it had installed: whether every file had one of the hashes in requirements.txt."""
    try:
        marker = json.loads(Path(sys.prefix, "safelight.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Check("package hashes", True, "unknown: this Python was not set up by launch.py")
    if marker.get("torch_hash") == "checked":
        return Check("package hashes", True, "launch.py let in only files with a SHA-256 of requirements.txt")
    return Check(
        "package hashes", True, f"torch and its parts were taken from {marker.get('torch_index')} without known hashes"
    )


def check_security_floors() -> Check:
    """Versions with known security holes."""
    faults = version_faults()
    return Check("security floors", not faults, "; ".join(faults) or "no package with a known hole")


def check_torch() -> Check:
    """Which build of torch is there and what it can compute on. Importing it takes some seconds."""
    import torch

    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("torch", True, f"{version} on {', '.join(names)}")
    if torch.backends.mps.is_available():
        return Check("torch", True, f"{version} on Apple's GPU")
    threads = f"{version} on the CPU with {torch.get_num_threads()} threads"
    if has_nvidia_gpu():
        return Check("torch", False, f"{threads}, although there is an NVIDIA GPU. Delete .venv and start again.")
    return Check("torch", True, threads)


def check_sandbox() -> Check:
    """Whether runs and the converter can be confined. Training works without, so a system that can't is no fault."""
    return Check("sandbox", True, probe().detail)


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    try:
        return "GPU" in run(["nvidia-smi", "--list-gpus"], timeout_seconds=30).stdout
    except FailedCommand:
        return False


def check_workspace(path: Path | None) -> Check:
    """Whether the workspace can be written, and what room it has."""
    try:
        workspace = Workspace.open(path)
        root = Root(workspace.path)
        probe = root.child("doctor.tmp")
        root.write_text_atomic(probe, "written by doctor")
        root.remove_tree(probe)
    except (SafelightError, OSError) as error:
        return Check("workspace", False, str(error))
    free = shutil.disk_usage(workspace.path).free
    if free < FREE_DISK_WANTED:
        wanted = FREE_DISK_WANTED / 1e9
        return Check(
            "workspace", False, f"{workspace.path} has {free / 1e9:.1f} GB free; make room for {wanted:.0f} GB."
        )
    return Check("workspace", True, f"{workspace.path}, {free / 1e9:.0f} GB free")


def check_browser() -> Check:
    """Chromium is only needed for the browser tests."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return Check("Chromium", True, found or "not found; only the browser tests need it")
