"""The same seed gives the same LoRA, and one file rebuilds a run elsewhere or says exactly why it can't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from security.errors import RefusedConfig
from tests.tiny import tiny_sd15
from tests.trainer.test_splitting import blobs, dataset
from tests.trainer.test_training import make_config, only_run, trained
from trainer.config.files import ConfigError
from trainer.config.schema import TrainConfig
from trainer.dataset.settings import Mark, marks_bytes, mask_path
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.rebuild import (
    Checked,
    check_rebuild,
    compare_results,
    portable_values,
    read_recipe,
    rebuild_config,
    tensor_hashes,
)
from trainer.runs import RunFolder
from trainer.versions import code_version, commit_of, package_versions
from trainer.workspace import Workspace

TIMES = {"ss_training_started_at", "ss_training_finished_at", "modelspec.date"}
"""The only entries of a LoRA's metadata that differ between two runs of the same file."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a model, a dataset and a finished run that used every source of chance."""
    workspace = Workspace.open(tmp_path_factory.mktemp("first") / "space")
    fill(workspace)
    trained(config_of(), workspace)
    return workspace


def fill(workspace: Workspace) -> None:
    """The same model and pictures as in any other workspace."""
    tiny_sd15(workspace.models_dir / "base")
    dataset(workspace.datasets_dir / "set", {f"{number}.png": blobs(number) for number in range(8)})


def config_of(**sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "lora": {"dropout": 0.3},
        "dataset": {"flip_augmentation": True, "shuffle_tags": True, "caption_dropout_rate": 0.3},
        "training": {"max_train_steps": 3},
        "validation": {"split": 0.25, "every_n_steps": 1, "num_timesteps": 1},
        "save": {"key_format": "kohya"},
    }
    return make_config(Path("base"), Path("set"), **(values | sections))


@pytest.fixture
def second(tmp_path: Path) -> Workspace:
    """Another workspace with copies of the model and the pictures."""
    workspace = Workspace.open(tmp_path / "second")
    fill(workspace)
    return workspace


def recipe_path(workspace: Workspace) -> Path:
    return only_run(workspace).rebuild_path


def checked(workspace: Workspace, path: Path, *flags: str) -> Checked:
    recipe = read_recipe(path)
    return check_rebuild(workspace, recipe, rebuild_config(recipe, flags))


def decisive(found: Checked) -> list[str]:
    return [one.text for one in found.differences if one.decisive]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        entries: dict[str, str] = file.metadata()
        return entries


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}


def test_a_rebuild_in_another_workspace_gives_the_same_bytes(
    first: Workspace, second: Workspace, tmp_path: Path
) -> None:
    """Read from a copy of the file, on a copy of the data: only the times in the metadata differ."""
    copied = tmp_path / "from-a-friend.json"
    shutil.copyfile(recipe_path(first), copied)
    found = checked(second, copied)
    assert found.differences == () and found.possible and found.is_same
    assert found.config == config_of()
    trained(found.config, second)
    before, after = only_run(first).path, only_run(second).path
    names = sorted(path.name for path in before.glob("*.safetensors"))
    assert names == ["tiny-best.safetensors", "tiny.safetensors"]
    for name in names:
        assert tensor_bytes(before / name) == tensor_bytes(after / name)
        old, new = metadata(before / name), metadata(after / name)
        assert {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} <= TIMES
    assert compare_results(found.recipe, after, "tiny") == (names, [])
    written = [json.loads(recipe_path(one).read_text(encoding="utf-8")) for one in (first, second)]
    assert written[0] == written[1]


def test_another_seed_gives_other_tensors_and_the_comparison_says_so(first: Workspace, second: Workspace) -> None:
    config = config_of(training={"max_train_steps": 3, "seed": 7}, validation={}, name="other")
    trained(config, second)
    recipe = read_recipe(recipe_path(first))
    assert tensor_hashes(only_run(second).path).keys() == {"other.safetensors"}
    assert compare_results(recipe, only_run(second).path, "other") == ([], ["other.safetensors"])


def test_the_file_names_no_path_of_the_machine(first: Workspace, tmp_path: Path) -> None:
    text = recipe_path(first).read_text(encoding="utf-8")
    assert str(first.path) not in text and str(Path.home()) not in text
    config = make_config(tmp_path / "models" / "x", tmp_path / "sets" / "y", dataset={"more": [f"0.5 {tmp_path}/z"]})
    values = portable_values(config, "x")
    assert str(tmp_path) not in json.dumps(values)
    assert values["dataset"]["folder"] == "y" and values["dataset"]["more"] == ["0.5 z"]


def test_it_says_what_the_run_stood_on(first: Workspace) -> None:
    recipe = read_recipe(recipe_path(first))
    assert recipe.packages == package_versions() and {"torch", "diffusers", "numpy"} <= recipe.packages.keys()
    assert recipe.safelight == code_version() and len(recipe.safelight["code_sha256"]) == 64
    assert (
        recipe.base["fingerprint"] == metadata(only_run(first).path / "tiny.safetensors")["safelight_base_fingerprint"]
    )
    assert recipe.end == {"step": 3, "reason": ""}
    assert recipe.results == tensor_hashes(only_run(first).path)


def recolour(workspace: Workspace) -> None:
    Image.new("RGB", (96, 96), "red").save(workspace.datasets_dir / "set" / "1.png")


def rewrite(workspace: Workspace) -> None:
    (workspace.datasets_dir / "set" / "2.txt").write_text("something else", encoding="utf-8")


def rename(workspace: Workspace) -> None:
    for ending in ("png", "txt"):
        path = workspace.datasets_dir / "set" / f"0.{ending}"
        path.rename(path.with_name(f"zero.{ending}"))


def remove(workspace: Workspace) -> None:
    (workspace.datasets_dir / "set" / "3.png").unlink()


def add(workspace: Workspace) -> None:
    blobs(50).save(workspace.datasets_dir / "set" / "new.png")


def mask(workspace: Workspace) -> None:
    path = mask_path(workspace.datasets_dir / "set", "4.png")
    path.parent.mkdir(parents=True)
    Image.new("L", (96, 96), 255).save(path)


def crop(workspace: Workspace) -> None:
    own = workspace.datasets_dir / "set" / ".safelight"
    own.mkdir()
    data = marks_bytes({"5.png": Mark((0.1, 0.2), 1.5)})
    assert data is not None
    (own / "marks.json").write_bytes(data)


def other_base(workspace: Workspace) -> None:
    shutil.rmtree(workspace.models_dir / "base")
    tiny_sd15(workspace.models_dir / "base", seed=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (recolour, ["1 picture has another content (1.png)"]),
        (rewrite, ["1 picture has another caption (2.png)"]),
        (rename, ["1 picture is renamed, which changes the order (0.png is zero.png)"]),
        (remove, ["1 picture is missing (3.png)"]),
        (add, ["1 picture is here that the run did not have (new.png)"]),
        (mask, ["1 picture has another mask (4.png)"]),
        (crop, ["1 picture has another crop (5.png)"]),
        (other_base, ["The base base has other weights"]),
    ],
)
def test_every_change_is_told_by_name(
    change: Callable[[Workspace], None], words: list[str], first: Workspace, second: Workspace
) -> None:
    change(second)
    found = checked(second, recipe_path(first))
    assert found.possible and not found.is_same
    for text in words:
        assert any(text in told for told in decisive(found)), decisive(found)
    others = [told for told in decisive(found) if not any(text in told for text in words)]
    assert all("changed sides" in told for told in others), (
        "a change of the pictures may move the split, and nothing else"
    )


def test_other_versions_are_told_and_decide_nothing(first: Workspace, second: Workspace, tmp_path: Path) -> None:
    values = json.loads(recipe_path(first).read_text(encoding="utf-8"))
    values["packages"] |= {"torch": "1.0", "gone-package": "2"}
    values["safelight"] = {"commit": "", "code_sha256": "0" * 64}
    values["machine"]["python"] = "2.7"
    del values["config"]["training"]["max_grad_norm"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    found = checked(second, path)
    told = " ".join(one.text for one in found.differences)
    assert found.is_same and len(found.differences) == 5
    for words in (
        "torch was 1.0",
        "gone-package was 2, and it is not installed here",
        "Safelight's own code",
        "Python was 2.7",
    ):
        assert words in told
    assert "training.max_grad_norm" in told


def test_what_is_missing_is_named_with_the_way_out(first: Workspace, tmp_path: Path) -> None:
    empty = Workspace.open(tmp_path / "empty")
    found = checked(empty, recipe_path(first))
    assert not found.possible and not found.is_same
    assert "There is no dataset named 'set'" in decisive(found)[0]
    pictures, base = first.datasets_dir / "set", first.models_dir / "base"
    flags = ("--dataset.folder", str(pictures), f"--model.base={base}", "--name", "again")
    found = checked(empty, recipe_path(first), *flags)
    assert found.possible and found.differences == () and found.config.name == "again"


def test_a_rebuild_takes_no_setting_that_makes_it_another_run(first: Workspace) -> None:
    recipe = read_recipe(recipe_path(first))
    with pytest.raises(RefusedConfig, match=r"--lora.rank would make it another run"):
        rebuild_config(recipe, ["--lora.rank", "8"])
    with pytest.raises(ConfigError):
        rebuild_config(recipe, ["--dataset.folder"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": "other"}, "no file that rebuilds"),
        ({"version": 2}, "newer Safelight"),
        ({"dataset": []}, "no usable part dataset"),
        ({"config": None, "base": 3}, "base, config"),
        ({"changes": ["x"]}, "can't be used"),
        ({"loras": [7]}, "can't be used"),
        ({"results": {"a.safetensors": 7}}, "can't be used"),
    ],
)
def test_a_file_that_is_none_is_refused(values: dict[str, Any], words: str, first: Workspace, tmp_path: Path) -> None:
    whole = json.loads(recipe_path(first).read_text(encoding="utf-8"))
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(whole | values), encoding="utf-8")
    with pytest.raises(RefusedConfig, match=words):
        read_recipe(path)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"datasets": 7},
        {"datasets": [{"pictures": [1]}]},
        {"datasets": [{"pictures": [{"picture": "a.png", "sha256": ["x"]}]}]},
    ],
)
def test_a_damaged_list_of_pictures_is_refused(
    manifest: Any, first: Workspace, second: Workspace, tmp_path: Path
) -> None:
    whole = json.loads(recipe_path(first).read_text(encoding="utf-8"))
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(whole | {"dataset": manifest}), encoding="utf-8")
    with pytest.raises(RefusedConfig, match="list of pictures"):
        checked(second, path)


def test_a_run_that_was_changed_or_stopped_on_its_way_says_so(second: Workspace) -> None:
    config = config_of(validation={})
    folder = RunFolder.create(second, config)
    control = Control()

    def emit(event: object) -> None:
        if type(event).__name__ == "StepDone":
            control.stop.set()

    train(config, find_inputs(config, second), folder, second, emit, control)
    found = checked(second, folder.rebuild_path)
    assert decisive(found) == ["The run was stopped at step 1 of 3; a rebuild trains all 3."]
    faster = config_of(validation={}, optimizer={"learning_rate": 2e-3})
    trained(faster, second, folder)
    told = decisive(checked(second, folder.rebuild_path))
    assert len(told) == 1 and "changed at step 1" in told[0] and "optimizer.learning_rate" in told[0]


def test_the_commit_is_read_from_the_repositorys_files(tmp_path: Path) -> None:
    git, commit = tmp_path / ".git", "a1" * 20
    assert commit_of(git) == ""
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{commit}\n")
    assert commit_of(git) == commit
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(git) == ""
    (git / "packed-refs").write_text(f"# pack-refs\n{commit} refs/heads/main\n")
    assert commit_of(git) == commit
    (git / "refs" / "heads" / "main").write_text("b2" * 20)
    assert commit_of(git) == "b2" * 20
    (git / "refs" / "heads" / "main").write_text("not a commit")
    assert commit_of(git) == ""


def test_a_foreign_broken_file_in_the_run_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no such file")
    assert tensor_hashes(tmp_path) == {}
