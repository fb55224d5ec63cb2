"""`dataset sizes`: the plan of a run in a terminal and as JSON, and repeats that undo takes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_dataset
from trainer.dataset.studio import Dataset, Studio
from trainer.workspace import Workspace
from ui import cli


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    made = Studio(Workspace.open()).create("mine")
    tiny_dataset(made.path, 4, size=(90, 90))
    tiny_dataset(made.path / "5_wide", 1, size=(60, 32), seed=1)
    return made


def run(*arguments: str) -> int:
    return cli.main(["dataset", "sizes", "mine", *arguments])


def test_the_plan_in_a_terminal(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset.path / "broken.png").write_bytes(b"no picture")
    settings = ("--set", "dataset.resolution=64", "--set", "training.batch_size=2", "--set", "model.base=demo")
    assert run(*settings) == 0
    told = capsys.readouterr().out
    assert "80x48" in told and "one picture, alone in its batches" in told
    assert "left out: mine/broken.png" in told and "1 picture is smaller" in told
    assert "9 looks in batches of 2 = 5 steps per epoch; 1000 steps = 200 epochs" in told


def test_the_plan_of_a_file_as_json_and_repeats_as_steps_to_undo(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[dataset]\nfolder = "ink"\nresolution = 64\nmore = ["0.5 ink"]\n', encoding="utf-8")
    assert run("--config", str(file), "--repeats", "5_wide=2", "--repeats", "=3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert dataset.settings.repeats == {"5_wide": 2, "": 3}
    assert [(one["name"], one["weight"], one["looks"]) for one in told["datasets"]] == [
        ("mine", 1.0, 14.0),
        ("ink", 0.5, 15.0),
    ]
    assert told["pictures"]["5_wide/000.png"]["size"] == [80, 48] and told["pictures"]["000.png"]["looks"] == 3
    assert told["steps_per_epoch"] == 29
    assert run("--repeats", "5_wide=") == 0 and dataset.settings.repeats == {"": 3}
    assert cli.main(["dataset", "undo", "mine"]) == 0 and dataset.settings.repeats == {"": 3, "5_wide": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repeats", "5_wide"), "is not FOLDER=N"),
        (("--repeats", "5_wide=many"), "is not FOLDER=N"),
        (("--repeats", "5_wide=0"), "allowed are 1 to 1000"),
        (("--repeats", "nowhere=2"), "no pictures in a folder 'nowhere'"),
        (("--set", "dataset.resolution"), "is not SETTING=VALUE"),
        (("--set", "dataset.side=3"), "is not a setting"),
        (("--config", "missing.toml"), "missing.toml"),
    ],
)
def test_mistakes(dataset: Dataset, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert dataset.settings.repeats == {}
