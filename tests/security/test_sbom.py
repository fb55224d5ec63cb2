"""The bill of materials: valid CycloneDX, complete, and true about versions and hashes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from security.locks import read_lock
from security.policy import VERSION
from security.sbom import make_sbom
from trainer.workspace import REPOSITORY_DIR
from ui import cli


@pytest.fixture(scope="module")
def text() -> str:
    return make_sbom(REPOSITORY_DIR, VERSION)


@pytest.fixture(scope="module")
def sbom(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


def components(sbom: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in sbom["components"]}


def test_it_is_valid_by_the_strict_schema(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"library"', '"gadget"', 1)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_every_installed_package_is_in_it_with_its_version(sbom: dict[str, Any]) -> None:
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    assert {name: one["version"] for name, one in components(sbom).items()} == installed
    assert sbom["specVersion"] == "1.6" and sbom["metadata"]["component"]["version"] == VERSION


def test_components_have_address_licence_and_the_hashes_of_the_lock(sbom: dict[str, Any]) -> None:
    found = components(sbom)
    gradio = found["gradio"]
    assert gradio["purl"] == f"pkg:pypi/gradio@{metadata.version('gradio')}"
    assert gradio["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    pins = {pin.name: pin for pin in read_lock(REPOSITORY_DIR / "requirements.txt") if pin.holds_here}
    compared = 0
    for name, component in found.items():
        [place] = component["externalReferences"]
        listed = {one["content"] for one in place.get("hashes", [])}
        if name in pins and component["version"].partition("+")[0] == pins[name].version:
            assert listed == set(pins[name].hashes)
            compared += 1
        else:
            assert name not in pins or not listed, f"{name} is of another version than the lock, but has its hashes"
    assert compared > 80


def test_it_says_what_needs_what(sbom: dict[str, Any]) -> None:
    needs = {one["ref"]: set(one.get("dependsOn", [])) for one in sbom["dependencies"]}
    assert f"torch=={metadata.version('torch')}" in needs["safelight"]
    assert f"numpy=={metadata.version('numpy')}" in needs[f"peft=={metadata.version('peft')}"]
    assert f"mpmath=={metadata.version('mpmath')}" not in needs["safelight"]


def test_command_prints_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sbom"]) == 0
    assert json.loads(capsys.readouterr().out)["bomFormat"] == "CycloneDX"
    assert cli.main(["sbom", "--out", str(tmp_path / "sbom.json")]) == 0
    assert "CycloneDX 1.6" in capsys.readouterr().out
    assert json.loads((tmp_path / "sbom.json").read_text())["specVersion"] == "1.6"
    assert cli.main(["sbom", "--out", str(tmp_path / "none" / "sbom.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the backport is only installed for older Pythons")
def test_the_backport_of_importlib_metadata_changes_nothing() -> None:
    """keyring imports it, and then it answers for the standard module."""
    code = (
        "import importlib_metadata; from pathlib import Path; from security.sbom import make_sbom; "
        "print(len(make_sbom(Path('.'), '1')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_DIR, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000
