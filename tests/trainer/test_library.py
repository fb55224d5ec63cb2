"""The library lists, finds and imports models; a broken one is shown with its reason and hurts no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from security.errors import RefusedFile, RefusedName, SafelightError
from tests import tiny
from trainer.families import get_family
from trainer.models import library
from trainer.models.files import FINGERPRINTS_FILE, fingerprint
from trainer.models.library import DEMO_NAME, find_model, import_model, list_models
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SD 1.x model as a folder and as a single file, and an SDXL one as a folder."""
    folder = tmp_path_factory.mktemp("made")
    tiny.as_single_file(tiny.tiny_sd15(folder / "small", prediction_type="v_prediction"))
    tiny.tiny_sdxl(folder / "large")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def demo(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library, "BASE_DIR", made / "small")
    return made / "small"


def test_the_embedded_model_comes_first_then_the_library_by_name(workspace: Workspace, made: Path, demo: Path) -> None:
    shutil.copytree(made / "large", workspace.models_dir / "Zebra")
    shutil.copytree(made / "small-file", workspace.models_dir / "ant")
    (workspace.models_dir / "old.ckpt").write_bytes(b"PK\x03\x04" + bytes(64))
    (workspace.models_dir / "notes.txt").write_text("mine")
    (workspace.models_dir / ".import-x").mkdir()
    found = {model.name: model for model in list_models(workspace)}
    assert list(found) == [DEMO_NAME, "ant", "old", "Zebra"]
    assert (found["demo"].builtin, found["demo"].family, found["demo"].prediction_type) == (
        True,
        "sd15",
        "v_prediction",
    )
    assert (found["ant"].family, found["ant"].path) == ("sd15", workspace.models_dir / "ant" / "small.safetensors")
    assert (found["Zebra"].family_label, found["Zebra"].problem) == ("Stable Diffusion XL", "")
    assert found["Zebra"].num_bytes > 1_000_000
    assert "can run code" in found["old"].problem and found["old"].family == ""


def test_a_model_is_found_by_name_and_by_path(workspace: Workspace, made: Path, demo: Path) -> None:
    embedded = find_model(workspace, "demo")
    assert (embedded.path, embedded.kind, embedded.family) == (made / "small", "folder", "sd15")
    by_path = find_model(workspace, str(made / "small-file" / "small.safetensors"))
    assert (by_path.name, by_path.kind, by_path.prediction_type) == ("small", "single_file", "v_prediction")
    assert find_model(workspace, str(made / "small-file")).path == by_path.path
    assert find_model(workspace, str(made / "large")).family == "sdxl"
    loaded = get_family(by_path.family).load(by_path, "cpu", torch.float32)
    assert loaded.model_files is by_path


def test_an_unknown_name_is_an_error_with_near_names(workspace: Workspace, demo: Path) -> None:
    with pytest.raises(SafelightError, match=r"no model 'dmo'.*Did you mean demo\?.*It has: demo"):
        find_model(workspace, "dmo")
    with pytest.raises(SafelightError, match="does not exist"):
        find_model(workspace, "/nowhere/model.safetensors")


def test_a_broken_model_is_refused_with_its_reason(workspace: Workspace) -> None:
    (workspace.models_dir / "bad.safetensors").write_bytes(b"<html>please log in</html>")
    with pytest.raises(RefusedFile, match="a web page"):
        find_model(workspace, "bad")


def test_importing_copies_a_model_whole(workspace: Workspace, made: Path) -> None:
    (made / "large" / "picture.png").write_bytes(b"\x89PNG")
    folder = import_model(workspace, made / "large", "My SDXL")
    assert (folder.name, folder.family, folder.builtin) == ("My SDXL", "sdxl", False)
    assert not (folder.path / "picture.png").exists(), "only what a model consists of is copied"
    single = import_model(workspace, made / "small-file" / "small.safetensors", "tiny")
    assert single.path == workspace.models_dir / "tiny" / "tiny.safetensors"
    assert [model.name for model in list_models(workspace) if not model.builtin] == ["My SDXL", "tiny"]
    for name in ("My SDXL", "tiny"):
        files = find_model(workspace, name)
        get_family(files.family).load(files, "cpu", torch.float32)
    assert not [path for path in workspace.models_dir.iterdir() if path.name.startswith(".")]


def test_a_file_that_needs_nothing_beside_it_stays_one_file(workspace: Workspace, tmp_path: Path) -> None:
    path = tiny.as_single_file(tiny.tiny_sd15(tmp_path / "whole", full_vocabulary=True))
    imported = import_model(workspace, path)
    assert imported.path == workspace.models_dir / "whole.safetensors"
    path.with_name("whole.config.json").write_text(json.dumps({"unet": {"attention_head_dim": 4}}))
    with_settings = import_model(workspace, path, "other")
    assert with_settings.path == workspace.models_dir / "other" / "other.safetensors"
    files = find_model(workspace, "other")
    assert get_family("sd15").load(files, "cpu", torch.float32).denoiser.config.attention_head_dim == 4


@pytest.mark.parametrize("name", ["demo", "taken", "../escape", "con", ""])
def test_names_that_are_taken_or_impossible_are_refused(workspace: Workspace, made: Path, name: str) -> None:
    import_model(workspace, made / "small", "taken")
    if not name:
        assert import_model(workspace, made / "small", name).name == "small"
        return
    with pytest.raises(RefusedName):
        import_model(workspace, made / "small", name)
    assert not (workspace.path / "escape").exists() and not (workspace.path.parent / "escape").exists()


def test_what_cannot_be_trained_is_not_imported(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(RefusedFile, match="GGUF"):
        import_model(workspace, tmp_path / "bad.safetensors")
    assert list(workspace.models_dir.iterdir()) == []


def test_a_failed_copy_leaves_nothing(workspace: Workspace, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        import_model(workspace, made / "small")
    assert list(workspace.models_dir.iterdir()) == []


def test_a_full_disk_is_told_before_copying(workspace: Workspace, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(workspace.models_dir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SafelightError, match=r"small needs 0\.0 GB and .* has 0\.0 GB left"):
        import_model(workspace, made / "small")


# ---- the identity that caches are keyed by ----


def test_the_fingerprint_is_the_contents_not_the_names(made: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    original = made / "small-file" / "small.safetensors"
    renamed = shutil.copyfile(original, tmp_path / "renamed.safetensors")
    assert fingerprint(original, cache) == fingerprint(Path(renamed), cache)
    assert fingerprint(original, cache) != fingerprint(made / "small", cache)
    data = bytearray(original.read_bytes())
    data[-1] ^= 1
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(data)
    assert fingerprint(changed, cache) != fingerprint(original, cache)


def test_the_fingerprint_sees_settings_and_every_file_of_a_folder(made: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = Path(shutil.copytree(made / "small", tmp_path / "copy"))
    before = fingerprint(folder, cache)
    assert before == fingerprint(made / "small", cache)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert fingerprint(folder, cache) != before
    single = Path(shutil.copyfile(made / "small-file" / "small.safetensors", tmp_path / "one.safetensors"))
    alone = fingerprint(single, cache)
    single.with_name("one.config.json").write_text("{}")
    assert fingerprint(single, cache) != alone


def test_an_unchanged_file_is_read_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.models import files

    cache, path = tmp_path / "cache", tmp_path / "model.safetensors"
    shutil.copyfile(made / "small-file" / "small.safetensors", path)
    expected = fingerprint(path, cache)
    read: list[Path] = []
    sha256 = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda one: read.append(one) or sha256(one))
    assert fingerprint(path, cache) == expected and read == []
    (cache / FINGERPRINTS_FILE).write_text("not JSON")
    assert fingerprint(path, cache) == expected and read == [path]
    path.write_bytes(path.read_bytes()[:-1] + b"\x3c")
    assert fingerprint(path, cache) != expected and read == [path, path]
