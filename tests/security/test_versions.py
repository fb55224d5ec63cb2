"""The oldest safe versions of packages."""

from __future__ import annotations

from importlib import metadata

import pytest

from security.policy import FLOORS
from security.versions import version_faults


def test_the_environment_of_the_tests_is_new_enough() -> None:
    assert version_faults() == []


ORDER = [
    ("2.9.1", "2.10.0", True), ("2.10.0", "2.10.0", False), ("2.10", "2.10.0", False), ("2.13.0+cpu", "2.10.0", False),
    ("2.10.0rc1", "2.10.0", True), ("2.10.0.dev20260101+cu130", "2.10.0", True), ("2.10.0.post1", "2.10.0", False),
    ("10.0", "9.9", False), ("2.11.0a1", "2.10.0", False), ("2.10.0a1", "2.10.0", True), ("2.10.0-beta.2", "2.10.0", True),
    ("unknown", "1.0", True),
]  # fmt: skip


@pytest.mark.parametrize(("installed", "floor", "is_old"), ORDER)
def test_versions_are_compared_by_number(
    monkeypatch: pytest.MonkeyPatch, installed: str, floor: str, is_old: bool
) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    faults = version_faults({"torch": floor})
    assert bool(faults) is is_old
    if is_old:
        assert f"torch {installed}" in faults[0]
        assert f"torch>={floor}" in faults[0]


def test_missing_packages_are_passed_over() -> None:
    assert version_faults({"no-such-package-here": "1.0"}) == []


def test_every_floor_names_a_real_package_that_is_met_or_absent() -> None:
    for package in FLOORS:
        try:
            assert metadata.version(package)
        except metadata.PackageNotFoundError:
            assert package in ("torch", "urllib3", "requests")
