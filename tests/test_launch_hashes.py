"""What launch.py lets in: only files with a SHA-256 of requirements.txt, wherever they come from. Installs for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.door import assert_one_sentence, make_home, start


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose first start has installed everything."""
    home = make_home(tmp_path_factory.mktemp("hashes") / "home")
    assert start(home).returncode == 0
    return home


def make_wheel(folder: Path, name: str, version: str, code: str) -> None:
    """A wheel with one module, as somebody would make it who has a package's name but not its file."""
    folder.mkdir(exist_ok=True)
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", code)
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


def remove_package(home: Path, name: str) -> None:
    for path in [*(home / ".venv").rglob(f"{name}-*.dist-info"), *(home / ".venv").rglob(f"site-packages/{name}")]:
        shutil.rmtree(path)


def test_altered_package_is_refused(installed: Path, tmp_path: Path) -> None:
    """A file of the right name and version, but not the one that was locked, does not get in."""
    make_wheel(tmp_path / "index", "iniconfig", "2.3.1", "raise SystemExit('altered')")
    altered = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_CONFIG_FILE": os.devnull}
    (installed / ".venv" / "safelight.json").unlink()
    remove_package(installed, "iniconfig")
    done = start(installed, **altered)
    assert_one_sentence(done, "iniconfig==2.3.1 is not the file that requirements.txt means", "SHA-256 differs")
    assert not list((installed / ".venv").rglob("iniconfig*")) and not (installed / ".venv" / "safelight.json").exists()
    assert start(installed).returncode == 0


@pytest.mark.parametrize("others", [True, False], ids=["among others", "alone"])
def test_package_without_a_hash_is_refused(others: bool, installed: Path) -> None:
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text((before if others else "") + "pluggy==1.6.0\n")
    assert_one_sentence(start(installed), "pip failed", "hashes")
    assert not list((installed / ".venv").rglob("pluggy-1.6.0.dist-info"))
    requirements.write_text(before)
    assert start(installed).returncode == 0


def test_nothing_is_built_from_source(installed: Path, tmp_path: Path) -> None:
    """A source archive would run its setup.py, so it does not count even with the right hash."""
    (tmp_path / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    archive = tmp_path / "index" / "safelighttest-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "setup.py", "safelighttest-1.0/setup.py")
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    requirements.write_text(before + f"safelighttest==1.0 --hash=sha256:{digest}\n")
    done = start(installed, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(archive.parent), PIP_CONFIG_FILE=os.devnull)
    assert_one_sentence(done, "safelighttest==1.0 has no build for this system")
    assert not (tmp_path / "ran").exists()
    requirements.write_text(before)
    assert start(installed).returncode == 0


def test_mirror_of_the_user_is_used(installed: Path, tmp_path: Path) -> None:
    """Offline and mirrored installations keep working: where the files lie doesn't matter, what they are does."""
    make_wheel(tmp_path / "index", "safelighttest", "1.0", "")
    wheel = next((tmp_path / "index").iterdir())
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirements.write_text(
        before + f"safelighttest==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n"
    )
    done = start(installed, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index"), PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 0, done.stderr
    assert list((installed / ".venv").rglob("safelighttest-1.0.dist-info"))
    requirements.write_text(before)
    assert start(installed).returncode == 0
