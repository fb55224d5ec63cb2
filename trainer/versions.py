"""What a run's numbers depend on besides its settings: Safelight's own code and the packages that compute."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from pathlib import Path

from trainer.workspace import REPOSITORY_DIR

PACKAGES = (
    *(
        "torch",
        "diffusers",
        "transformers",
        "tokenizers",
        "peft",
        "safetensors",
        "numpy",
        "pillow",
        "imagehash",
        "scipy",
    ),
    *("accelerate", "bitsandbytes", "came-pytorch", "lion-pytorch", "prodigyopt", "prodigy-plus-schedule-free"),
    *("pytorch-optimizer", "schedulefree", "torchao"),
)
"""What computes in a training, as the index of packages calls it; those that are not installed are left out."""
CODE = ("trainer", "security")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@functools.cache
def package_versions() -> dict[str, str]:
    """Package -> version."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_version() -> dict[str, str]:
    """`code_sha256`: a hash over the code that trains, edits that are in no commit included; `commit`: "" if unknown."""
    whole = hashlib.sha256()
    files = sorted(path for layer in CODE for path in (REPOSITORY_DIR / layer).rglob("*.py"))
    for path in files:
        name = path.relative_to(REPOSITORY_DIR).as_posix()
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {"commit": commit_of(REPOSITORY_DIR / ".git"), "code_sha256": whole.hexdigest()}


def commit_of(git_dir: Path) -> str:
    """The commit that a repository stands at, read from its files; "" where there is none, as in a copy without it."""
    try:
        head = (git_dir / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head if _COMMIT.fullmatch(head) else ""
        name = head.removeprefix("ref: ")
        if (git_dir / name).is_file():
            found = (git_dir / name).read_text(encoding="utf-8").strip()
        else:
            packed = (git_dir / "packed-refs").read_text(encoding="utf-8")
            found = next((line.split(" ")[0] for line in packed.splitlines() if line.endswith(f" {name}")), "")
    except (OSError, UnicodeDecodeError):
        return ""
    return found if _COMMIT.fullmatch(found) else ""
