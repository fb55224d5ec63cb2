"""What is recorded of a model, and what is said when its files are no longer those that came."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from security.errors import SafelightError
from tests.hubs.models import sdxl_checkpoint, sha256
from trainer.demo import BASE_DIR
from trainer.models import files
from trainer.models.library import DEMO_NAME, find_model, import_model, list_models, remove_model
from trainer.models.provenance import (
    PROVENANCE_SUFFIX,
    Integrity,
    Provenance,
    integrity,
    read_provenance,
    record_provenance,
    verify_model,
)
from trainer.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def single(workspace: Workspace) -> Path:
    """A checkpoint in the library with its record."""
    path = workspace.models_dir / "tiny.safetensors"
    path.write_bytes(sdxl_checkpoint())
    record_provenance(
        workspace, "tiny", Provenance("Hugging Face: a/b@main", "https://huggingface.co/a/b", "c" * 40, "mit")
    )
    return path


@pytest.fixture
def folder(workspace: Workspace) -> Path:
    """An imported diffusers folder."""
    return import_model(workspace, BASE_DIR, "demo copy").path


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Changes the last byte of a file; with `keep_time` as somebody would who hides it."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    when = before.st_mtime_ns if keep_time else before.st_mtime_ns + 1_000_000
    os.utime(path, ns=(when, when))


def test_the_record_holds_where_it_came_from_and_every_file(workspace: Workspace, single: Path) -> None:
    text = (workspace.models_dir / f"tiny{PROVENANCE_SUFFIX}").read_text()
    values = json.loads(text)
    assert values["files"] == {
        "tiny.safetensors": {"size": single.stat().st_size, "sha256": sha256(single.read_bytes())}
    }
    recorded = read_provenance(workspace, "tiny")
    assert recorded and (recorded.source, recorded.revision, recorded.licence) == (
        "Hugging Face: a/b@main",
        "c" * 40,
        "mit",
    )
    assert abs(recorded.time - time.time()) < 60
    assert not [model for model in list_models(workspace) if "provenance" in model.name]


def test_an_unchanged_model_is_used_and_called_verified(workspace: Workspace, single: Path, folder: Path) -> None:
    for name in ("tiny", "demo copy"):
        assert verify_model(workspace, name) == []
        assert integrity(workspace, name) is Integrity.VERIFIED
        assert find_model(workspace, name).name == name
    listed = {model.name: model for model in list_models(workspace)}
    assert listed["tiny"].source == "Hugging Face: a/b@main" and listed["tiny"].integrity is Integrity.VERIFIED
    assert listed["demo copy"].source == "imported from base"


def test_a_changed_file_is_not_trained_on(workspace: Workspace, single: Path) -> None:
    flip(single)
    assert integrity(workspace, "tiny") is Integrity.UNREAD
    with pytest.raises(SafelightError, match=r"tiny\.safetensors has changed since it came \(Hugging Face: a/b@main"):
        find_model(workspace, "tiny")
    assert integrity(workspace, "tiny") is Integrity.CHANGED
    (fault,) = verify_model(workspace, "tiny")
    assert "Remove tiny and fetch it again" in fault
    single.write_bytes(single.read_bytes() + b"x")
    assert integrity(workspace, "tiny") is Integrity.CHANGED, "another size is seen without reading"


def test_a_path_into_the_library_is_no_way_around_it(workspace: Workspace, single: Path, folder: Path) -> None:
    flip(single)
    with pytest.raises(SafelightError, match="has changed"):
        find_model(workspace, str(single))
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(SafelightError, match="has changed"):
        find_model(workspace, str(folder))


def test_folders_are_compared_file_by_file(workspace: Workspace, folder: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    shutil.copyfile(folder / "vae" / "config.json", folder / "vae" / "added.json")
    (folder / "tokenizer" / "merges.txt").unlink()
    faults = verify_model(workspace, "demo copy")
    assert len(faults) == 3
    assert any("scheduler_config.json has changed" in fault for fault in faults)
    assert any("added.json was added" in fault for fault in faults)
    assert any("merges.txt of the model demo copy is gone" in fault for fault in faults)


def test_a_change_that_hides_its_time_is_found_all_the_same(workspace: Workspace, single: Path) -> None:
    before = single.stat()
    flip(single, keep_time=True)
    assert (single.stat().st_size, single.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    (fault,) = verify_model(workspace, "tiny")
    assert "tiny.safetensors" in fault
    with pytest.raises(SafelightError, match="tiny"):
        find_model(workspace, "tiny")


def test_an_unchanged_model_is_not_read_again(
    workspace: Workspace, single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    whole = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda one: read.append(one) or whole(one))
    assert verify_model(workspace, "tiny") == [] and read == []
    assert verify_model(workspace, "tiny", reread=True) == [] and read == [single]


def test_a_model_without_a_record_is_used_and_said_to_have_none(workspace: Workspace) -> None:
    (workspace.models_dir / "own.safetensors").write_bytes(sdxl_checkpoint())
    assert verify_model(workspace, "own") == []
    assert find_model(workspace, "own").family == "sdxl"
    (model,) = [model for model in list_models(workspace) if model.name == "own"]
    assert (model.source, model.integrity) == ("", Integrity.UNRECORDED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "files": {"a": {"size": "1", "sha256": "x"}}, "verdicts": {}}',
    ],
)
def test_a_damaged_record_is_a_fault_and_no_crash(workspace: Workspace, single: Path, text: str) -> None:
    (workspace.models_dir / f"tiny{PROVENANCE_SUFFIX}").write_text(text)
    assert len(verify_model(workspace, "tiny")) == 1
    with pytest.raises(SafelightError):
        find_model(workspace, "tiny")
    (model,) = [model for model in list_models(workspace) if model.name == "tiny"]
    assert model.problem or model.family == "sdxl"


def test_removing_takes_the_record_along(workspace: Workspace, single: Path, folder: Path) -> None:
    (workspace.models_dir / "tiny.config.json").write_text("{}")
    remove_model(workspace, "tiny")
    remove_model(workspace, "demo copy")
    assert list(workspace.models_dir.iterdir()) == []
    for name in ("tiny", DEMO_NAME, "../tiny", "", ".."):
        with pytest.raises(SafelightError, match="not a model of the library"):
            remove_model(workspace, name)
    assert BASE_DIR.is_dir()


def test_the_record_is_for_its_owner_only(workspace: Workspace, single: Path) -> None:
    assert (workspace.models_dir / f"tiny{PROVENANCE_SUFFIX}").stat().st_mode & 0o777 == 0o600
