"""What the project is built from: everything locked by hash, nothing installed on the side, and an audit that can fail."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import launch
from security import locks
from security.locks import Pin, pins_of_this_machine, read_lock
from security.policy import FLOORS
from ui.cli_doctor import check_hashes

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK_FILES = [
    "requirements.txt", "requirements-test.txt", "security/requirements-cu126.txt", ".github/requirements-audit.txt",
]  # fmt: skip
LOCK_SCRIPT = runpy.run_path(str(ROOT / ".github" / "lock.py"))
ENVIRONMENTS: list[dict[str, str]] = LOCK_SCRIPT["environments"]()
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))


def ids(environment: dict[str, str]) -> str:
    return "{sys_platform}-{platform_machine}-{python_version}".format(**environment)


@pytest.fixture(scope="module")
def pins() -> list[Pin]:
    return read_lock(ROOT / "requirements.txt")


# The lock


@pytest.mark.parametrize("name", LOCK_FILES)
def test_every_entry_has_a_hash_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = read_lock(ROOT / name)
    assert len(entries) > 10
    assert not [pin.name for pin in entries if not pin.hashes or len(set(pin.hashes)) != len(pin.hashes)]
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not re.search(r"://|git\+|@|^-|--index|--find|--trusted|<=|>=(?!.*')|~=", code, re.MULTILINE)


@pytest.mark.parametrize(
    "line", ["a>=1", "a", "a @ https://example.org/a.whl", "-e .", "--index-url x", "a==1 --hash=md5:00", "a==1 --hash"]
)
def test_anything_else_than_an_exact_version_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(f"# c\n{line}\n")
    with pytest.raises(ValueError, match="no exact version"):
        read_lock(tmp_path / "r.txt")


def test_entries_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(
        f"# c\nA_b.c==1.0 ; sys_platform == 'none' \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\nd==2\n"
    )
    first, second = read_lock(tmp_path / "r.txt")
    assert first == Pin("a-b-c", "1.0", "sys_platform == 'none'", ("a" * 64, "b" * 64)) and not first.holds_here
    assert second == Pin("d", "2", "", ()) and second.holds_here


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=ids)
def test_one_version_of_each_package_for_every_system(environment: dict[str, str], pins: list[Pin]) -> None:
    there = [pin.name for pin in pins if not pin.marker or Marker(pin.marker).evaluate(environment)]
    assert len(there) == len(set(there)) > 90


def test_what_packages_need_is_locked(pins: list[Pin]) -> None:
    """The closure: every requirement of an installed package is in the lock, in a version that the package accepts."""
    tests = read_lock(ROOT / "requirements-test.txt")
    locked = {pin.name: pin for pin in [*pins, *tests] if pin.holds_here}
    looked_at = 0
    for pin in locked.values():
        try:
            texts = metadata.requires(pin.name) or []
        except metadata.PackageNotFoundError:
            continue
        if metadata.version(pin.name).partition("+")[0] != pin.version:
            continue
        for need in map(Requirement, texts):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                entry = locked.get(canonicalize_name(need.name))
                assert entry is not None, f"{pin.name} needs {need}, which is not locked"
                assert need.specifier.contains(entry.version, prereleases=True), f"{pin.name} needs {need}: {entry}"
                looked_at += 1
    assert looked_at > 150


def test_torch_has_the_hashes_of_every_build_that_the_door_chooses(pins: list[Pin]) -> None:
    """CPU, CUDA 12.6 and, on Windows, CUDA 13.0 come from PyTorch's own indexes; there is a wheel for each Python."""
    torch = next(pin for pin in pins if pin.name == "torch")
    text = (ROOT / ".github" / "torch-wheels.txt").read_text(encoding="utf-8")
    wheels = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)}
    assert set(wheels.values()) <= set(torch.hashes) and len(set(wheels.values())) == len(wheels)
    builds = {"cpu": ("linux", "win32"), "cu126": ("linux", "win32"), "cu130": ("win32",)}
    assert set(builds) == set(launch.HASHED_INDEXES)
    for build, systems in builds.items():
        named = [name for name in wheels if name.startswith(f"torch-{torch.version}+{build}-")]
        for environment in LOCK_SCRIPT["environments"](systems):
            assert any(LOCK_SCRIPT["fits"](name, environment) for name in named), (build, ids(environment))


def test_parts_of_cuda_are_locked_for_linux_alone(pins: list[Pin]) -> None:
    parts = [pin for pin in pins if locks.CUDA_PART.match(pin.name)]
    assert len(parts) > 15 and {pin.marker for pin in parts} == {"sys_platform == 'linux'"}
    lines = [line for line in launch.read_requirements(launch.REQUIREMENTS) if launch.CUDA_PART.match(line)]
    assert {line.partition("==")[0] for line in lines} == {pin.name for pin in parts}
    older = {pin.name for pin in read_lock(ROOT / locks.CU126_LOCK)}
    assert {"nvidia-cudnn-cu12", "triton"} <= older and not [name for name in older if not locks.CUDA_PART.match(name)]


@pytest.mark.parametrize(
    ("needs", "there", "absent"),
    [
        (["nvidia-cudnn-cu13==9"], "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
        (["nvidia-cudnn-cu12==9"], "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
        (["filelock"], "torch", "nvidia-cudnn-cu13"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="parts of CUDA are packages on Linux alone")
def test_doctor_asks_for_the_parts_that_the_build_needs(
    needs: list[str], there: str, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda package: needs)
    names = {pin.name for pin in pins_of_this_machine(ROOT)}
    assert there in names and absent not in names


MARKERS = [
    ('{"torch_hash": "checked"}', "only files with a SHA-256 of requirements.txt"),
    (
        '{"torch_hash": "unknown", "torch_index": "https://example.org/rocm"}',
        "from https://example.org/rocm without known",
    ),
    ("damaged", "not set up by launch.py"),
]


@pytest.mark.parametrize(("marker", "detail"), MARKERS)
def test_doctor_says_whether_hashes_were_checked(
    marker: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "safelight.json").write_text(marker)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert detail in check_hashes().detail


def test_floors_lie_below_the_locked_versions(pins: list[Pin]) -> None:
    locked = {pin.name: pin.version for pin in pins}
    assert set(map(canonicalize_name, FLOORS)) <= set(locked), "a floor for a package that nobody installs"
    for package, floor in FLOORS.items():
        assert Version(locked[canonicalize_name(package)]) >= Version(floor), package


def test_pip_itself_is_locked() -> None:
    assert re.fullmatch(r"pip==\d+\.\d+(\.\d+)? --hash=sha256:[0-9a-f]{64}", launch.PIP)


# The script that makes the lock; with the network's answers replaced by a small one


WHEELS = [
    ("a-1-cp312-cp312-manylinux_2_28_x86_64.whl", True), ("a-1-cp312-cp312-musllinux_1_2_x86_64.whl", False),
    ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", False), ("a-1-cp39-abi3-manylinux2014_x86_64.whl", True),
    ("a-1-cp313-abi3-manylinux2014_x86_64.whl", False), ("a-1-py3-none-any.whl", True),
    ("a-1-py2.py3-none-any.whl", True), ("a-1-cp312-cp312t-manylinux_2_28_x86_64.whl", False),
    ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", False), ("a-1-cp312-cp312-macosx_11_0_arm64.whl", False),
    ("a-1-cp312-cp312-win_amd64.whl", False), ("a-1-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl", True),
]  # fmt: skip


@pytest.mark.parametrize(("wheel", "fits"), WHEELS)
def test_only_wheels_that_fit_are_locked(wheel: str, fits: bool) -> None:
    here = next(one for one in ENVIRONMENTS if ids(one) == "linux-x86_64-3.12")
    assert LOCK_SCRIPT["fits"](wheel, here) is fits


def wheel(name: str, digest: str) -> dict[str, Any]:
    return {"url": f"https://example.org/{name}", "hashes": {"sha256": digest * 64}}


def test_condition_is_kept_only_where_it_decides_something() -> None:
    files = [wheel("a-1-py3-none-any.whl", "b"), wheel("a-1-py3-none-any.whl", "a")]
    for marker, kept in [
        ("", ""),
        ("python_version >= '3'", ""),
        ("sys_platform == 'linux'", "sys_platform == 'linux'"),
    ]:
        entry = LOCK_SCRIPT["locked"]({"name": "a", "version": "1", "marker": marker, "wheels": files}, ENVIRONMENTS)
        assert entry.marker == kept
    nobody = {"name": "a", "version": "1", "marker": "sys_platform == 'emscripten'", "wheels": files}
    assert LOCK_SCRIPT["locked"](nobody, ENVIRONMENTS) is None


def test_package_without_a_wheel_stops_the_lock() -> None:
    package = {"name": "a", "version": "1", "wheels": [wheel("a-1-cp311-cp311-win_amd64.whl", "a")]}
    with pytest.raises(SystemExit, match="a 1 has no wheel for linux x86_64"):
        LOCK_SCRIPT["locked"](package, ENVIRONMENTS)


# No other way in


def product_files() -> Iterator[Path]:
    for folder in ("security", "trainer", "ui"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def installs(tree: ast.AST) -> list[int]:
    """Lines that name pip or another installer as a program, module or argument."""
    words = {"pip", "pip3", "uv", "uvx", "pipx", "conda", "ensurepip", "easy_install", "apt", "apt-get", "npm", "sudo"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words:
            found.append(node.lineno)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [node.lineno for name in names if name.split(".")[0] in ("pip", "ensurepip", "uv")]
    return found


def test_nothing_but_the_door_installs_packages() -> None:
    assert not {path.name: lines for path in product_files() if (lines := installs(ast.parse(path.read_text("utf-8"))))}


@pytest.mark.parametrize(
    "code", ["run(['pip', 'install', 'x'])", "run([p, '-m', 'pip'])", "import pip", "import pip._internal"]
)
def test_the_search_for_installers_sees_one(code: str) -> None:
    assert installs(ast.parse(code))


def test_the_door_installs_from_locks_alone() -> None:
    """Every `pip install` of launch.py wants hashes, but for an index that the user names and nobody knows hashes of."""
    tree = ast.parse(Path(launch.__file__).read_text(encoding="utf-8"))
    calls = [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and "'install'" in ast.unparse(node)
    ]
    calls = [call for call in calls if call.startswith("self.pip(")]
    assert len(calls) == 2 and sum("self.torch.split()[0]" in call for call in calls) == 1
    assert "extra-index" not in Path(launch.__file__).read_text(encoding="utf-8")


def test_no_submodule_brings_code_of_others() -> None:
    assert not (ROOT / ".gitmodules").exists()
    done = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert not [line for line in done.stdout.splitlines() if line.startswith("160000")]


# The workflow


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in WORKFLOW["jobs"].items():
        yield from ((name, step) for step in job["steps"])


def test_workflow_can_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOW[True] and set(WORKFLOW[True]) == {"push", "pull_request", "schedule"}
    assert not [name for name, job in WORKFLOW["jobs"].items() if "permissions" in job or "secrets" in job]
    for _, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            assert "checkout" not in step["uses"] or step["with"]["persist-credentials"] is False
        assert "${{ github.event" not in str(step), "text of a stranger would become part of a command"


def test_audit_covers_every_lock_and_cannot_pass_by_skipping() -> None:
    commands = [step["run"] for name, step in steps() if name == "audit" and "run" in step]
    audits = [command for command in commands if command.startswith("pip-audit")]
    assert {command.rpartition(" ")[2] for command in audits} == set(LOCK_FILES[:3])
    for command in audits:
        assert "--strict" in command and "--require-hashes" in command and "--ignore" not in command
        assert not re.search(r"\|\||;|&", command)
    assert "continue-on-error" not in str(WORKFLOW["jobs"]["audit"]) and "if" not in WORKFLOW["jobs"]["audit"]
    [canary] = [command for command in commands if "audit-canary.txt" in command]
    assert canary.startswith("! pip-audit") and "grep -E" in canary
    [tool] = [command for command in commands if "pip install" in command]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(tool.split())


def test_updates_are_proposed_after_a_week() -> None:
    settings = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    assert {one["package-ecosystem"] for one in settings["updates"]} == {"pip", "github-actions"}
    assert all(
        one["cooldown"]["default-days"] >= 7 and one["schedule"]["interval"] == "weekly" for one in settings["updates"]
    )
    folders = {folder for one in settings["updates"] for folder in [one.get("directory"), *one.get("directories", [])]}
    assert {"/", "/.github"} <= folders
