"""Works out and writes the hash-locked requirements: `python .github/lock.py [--upgrade] [--check]`, with uv on the PATH.

The roots with their versions are what a person edits; what they bring, the markers and all hashes are made from these.
Without --upgrade the versions of what is brought stay. --check writes nothing and ends with 1 if anything would change.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {
    ("linux", "Linux", "posix"): ("x86_64", "aarch64"),
    ("darwin", "Darwin", "posix"): ("arm64",),
    ("win32", "Windows", "nt"): ("AMD64",),
}
"""What Safelight is made for: `sys_platform`, `platform_system` and `os_name` of the markers, and the processors."""
BROUGHT = "# What those bring"
CUDA_BROUGHT = "# What torch brings on Linux with its CUDA build"
CUDA_PART = re.compile(r"nvidia-|cuda-|triton$")
TORCH_CU126_NEEDS = """\
cuda-bindings>=12.9.4,<13
cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==12.6.3
nvidia-cudnn-cu12==9.10.2.21
nvidia-cusparselt-cu12==0.7.1
nvidia-nccl-cu12==2.29.3
nvidia-nvshmem-cu12==3.4.5
triton==3.7.1
"""
"""What the CUDA 12.6 build of torch 2.13.0 requires on Linux, by its metadata in public lock files."""


@dataclass(frozen=True)
class Package:
    """One entry of a lock: `marker` is empty where it holds everywhere, `hashes` are those of the files that fit."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        condition = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join(
            [f"{self.name}=={self.version}{condition}", *(f"--hash=sha256:{h}" for h in self.hashes)]
        )


def environments(systems: Iterable[str] = ("linux", "darwin", "win32")) -> list[dict[str, str]]:
    """The values of the markers on each supported Python, system and processor."""
    return [
        {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": system,
            "platform_system": name,
            "os_name": os_name,
            "platform_machine": machine,
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        for (system, name, os_name), machines in SYSTEMS.items()
        if system in systems
        for machine in machines
        for python in PYTHONS
    ]


def fits(wheel: str, environment: dict[str, str]) -> bool:
    """Whether a wheel can be installed there, by its name. glibc and macOS may be as new as the wheel asks for."""
    minor = int(environment["python_version"].partition(".")[2])
    platforms = {
        "linux": r"any|(manylinux\w*|linux)_" + environment["platform_machine"],
        "darwin": r"any|macosx_\d+_\d+_(arm64|universal2)",
        "win32": r"any|win_amd64",
    }[environment["sys_platform"]]
    for tag in parse_wheel_filename(wheel)[3]:
        exact = tag.interpreter == f"cp3{minor}" and tag.abi in (f"cp3{minor}", "none")
        oldest = re.fullmatch(r"cp3(\d+)", tag.interpreter)
        stable = tag.abi == "abi3" and oldest is not None and int(oldest[1]) <= minor
        pure = tag.abi == "none" and tag.interpreter in ("py3", f"py3{minor}")
        if (exact or stable or pure) and re.fullmatch(platforms, tag.platform):
            return True
    return False


def resolve(requirements: str, constraints: str = "") -> list[dict[str, Any]]:
    """What uv makes of these requirements for every system at once, with all files of the index."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, kept, made = Path(folder, "in.txt"), Path(folder, "constraints.txt"), Path(folder, "pylock.toml")
        wanted.write_text(requirements, encoding="utf-8")
        kept.write_text(constraints, encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            str(wanted),
            "--constraint",
            str(kept),
            "--quiet",
            "--output-file",
            str(made),
        ]
        command += ["--universal", "--python-version", PYTHONS[0], "--format", "pylock.toml"]
        subprocess.run(command, check=True)
        packages: list[dict[str, Any]] = tomllib.loads(made.read_text(encoding="utf-8"))["packages"]
    return packages


def locked(package: dict[str, Any], where: list[dict[str, str]]) -> Package | None:
    """The entry for one resolved package; None where nobody needs it. Ends the program where there is no wheel."""
    text = package.get("marker", "")
    there = [environment for environment in where if not text or Marker(text).evaluate(environment)]
    if not there:
        return None
    wheels = {wheel["url"].rpartition("/")[2].replace("%2B", "+"): wheel for wheel in package.get("wheels", [])}
    lacking = [environment for environment in there if not any(fits(name, environment) for name in wheels)]
    if lacking:
        place = "{sys_platform} {platform_machine}, Python {python_version}".format(**lacking[0])
        sys.exit(f"{package['name']} {package['version']} has no wheel for {place}")
    used = [wheel for name, wheel in wheels.items() if any(fits(name, environment) for environment in there)]
    hashes = sorted({wheel["hashes"]["sha256"] for wheel in used})
    marker = "" if len(there) == len(where) else text
    return Package(package["name"], package["version"], marker, tuple(hashes))


def entries(text: str) -> dict[str, str]:
    """Names, as the file spells them, and versions of a requirements text without its hashes."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE))


def torch_wheels(version: str) -> set[str]:
    """Hashes of the wheels of PyTorch's own indexes, from the list beside this script."""
    text = (ROOT / ".github" / "torch-wheels.txt").read_text(encoding="utf-8")
    found = set(re.findall(rf"^([0-9a-f]{{64}})  torch-{re.escape(version)}\+\S+\.whl$", text, re.MULTILINE))
    if not found:
        sys.exit(f"torch-wheels.txt has no wheels of torch {version}: take them from the pages that it names")
    return found


def lock_main(text: str, *, upgrade: bool) -> str:
    """The new requirements.txt."""
    roots, _, rest = text.partition(BROUGHT)
    names = {canonicalize_name(name): name for name in entries(roots)}
    everything = resolve(constraints_of(roots), "" if upgrade else constraints_of(rest))
    usual, linux = environments(), environments(["linux"])
    found = []
    for package in everything:
        if is_cuda(package["name"]) and (entry := locked(package, linux)):
            found.append(replace(entry, marker="sys_platform == 'linux'"))
        elif entry := locked(package, usual):
            found.append(entry)
    by_root = {entry.name: entry for entry in found if entry.name in names}
    lines = [line for line in roots.splitlines() if line.startswith("#")]
    for name in sorted(names):
        entry = by_root[name]
        hashes = {*entry.hashes, *torch_wheels(entry.version)} if name == "torch" else entry.hashes
        lines.append(str(Package(names[name], entry.version, entry.marker, tuple(sorted(hashes)))))
    brought = [entry for entry in found if entry.name not in names]
    lines += ["", BROUGHT + ", for Linux, Windows and macOS:"]
    lines += [str(entry) for entry in brought if not is_cuda(entry.name)]
    lines += ["", CUDA_BROUGHT + ", version 13.0; `python launch.py` takes it only for that build:"]
    lines += [str(entry) for entry in brought if is_cuda(entry.name)]
    return "\n".join(lines) + "\n"


def constraints_of(text: str) -> str:
    """The pins of a lock with their markers: a package may have one version for each of several Pythons."""
    return "\n".join(re.findall(r"^[A-Za-z0-9_.-]+==[^\\\n]+", text, re.MULTILINE))


def is_cuda(name: str) -> bool:
    """Whether a package is a part of CUDA that torch brings."""
    return CUDA_PART.match(name) is not None


def lock_more(text: str, main: str, where: list[dict[str, str]], *, upgrade: bool) -> str:
    """A new lock of further roots, without what the lock `main` has already."""
    roots, _, rest = text.partition(BROUGHT)
    names = {canonicalize_name(name): name for name in entries(roots)}
    there = {canonicalize_name(name) for name in entries(main)}
    packages = resolve(constraints_of(roots), constraints_of(main) + "\n" + ("" if upgrade else constraints_of(rest)))
    found = [entry for package in packages if (entry := locked(package, where)) and entry.name not in there]
    lines = [line for line in roots.splitlines() if line.startswith("#")]
    lines += [str(entry) for entry in found if entry.name in names]
    lines += ["", BROUGHT, *(str(entry) for entry in found if entry.name not in names)]
    return "\n".join(lines) + "\n"


def lock_cu126(text: str, *, upgrade: bool) -> str:
    """The new security/requirements-cu126.txt."""
    packages = resolve(TORCH_CU126_NEEDS, "" if upgrade else constraints_of(text))
    header = "# What torch brings on Linux with its build for CUDA 12.6, which older NVIDIA drivers and cards need.\n"
    return header + "".join(
        f"{entry}\n" for package in packages if (entry := locked(package, environments(["linux"]))) is not None
    )


def lock_pip(text: str) -> str:
    """The new launch.py: the hash behind the version of pip that it names."""
    version = re.search(r'^PIP = "pip==([\d.]+)', text, re.MULTILINE)
    assert version is not None, "launch.py pins pip in a line of its own"
    [package] = resolve(f"pip=={version[1]}\n")
    entry = locked(package, environments())
    assert entry is not None
    return re.sub(
        r"^PIP = .*$", f'PIP = "{str(entry).replace(chr(92) + chr(10) + "    ", "")}"', text, flags=re.MULTILINE
    )


def main() -> int:
    """Writes the files, or says what would change in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions of what the roots bring")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a file would change")
    options = parser.parse_args()
    path = ROOT / "requirements.txt"
    whole = lock_main(path.read_text(encoding="utf-8"), upgrade=options.upgrade)
    makers: dict[Path, Callable[[str], str]] = {
        path: lambda _: whole,
        ROOT / "requirements-test.txt": lambda text: lock_more(text, whole, environments(), upgrade=options.upgrade),
        ROOT / ".github" / "requirements-audit.txt": lambda text: lock_more(
            text, "", environments(["linux"]), upgrade=options.upgrade
        ),
        ROOT / "security" / "requirements-cu126.txt": lambda text: lock_cu126(text, upgrade=options.upgrade),
        ROOT / "launch.py": lock_pip,
    }
    changed = []
    for file, make in makers.items():
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if (after := make(before)) != before:
            changed.append(file.relative_to(ROOT).as_posix())
            if not options.check:
                file.write_text(after, encoding="utf-8")
    print(f"{'would change' if options.check else 'changed'}: {', '.join(changed) or 'nothing'}")
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
