"""`dataset caption`: tags are listed, operations do what they say they did, and undo takes them back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainer.dataset.studio import Studio
from trainer.demo import DATASETS
from trainer.workspace import Workspace
from ui import cli


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    made = Workspace.open()
    shutil.copytree(DATASETS["ink"], made.datasets_dir / "mira")
    return made


def captions(workspace: Workspace) -> dict[str, str]:
    return Studio(workspace).open("mira").captions()


def run(*arguments: str) -> int:
    return cli.main(["dataset", "caption", *arguments])


def test_the_tags_of_a_dataset(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mira", "--limit", "2") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].split() == ["inkstyle", "30"]
    assert "more (--limit" in told[-1]
    assert run("mira", "--json", "--pictures", "01-*") == 0
    assert json.loads(capsys.readouterr().out) == {"trigger_word": "", "tags": {"inkstyle": 1, "rabbit face": 1}}


def test_an_operation_is_told_done_and_taken_back(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = captions(workspace)
    assert run("mira", "rename", "inkstyle", "ink style", "--dry-run") == 0
    assert captions(workspace) == before
    assert "Nothing was changed" in capsys.readouterr().out
    assert run("mira", "rename", "inkstyle", "ink style", "--pictures", "0*", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["done"] is True
    assert told["changes"]["01-rabbit-face.png"] == {
        "before": "inkstyle, rabbit face",
        "after": "ink style, rabbit face",
    }
    after = captions(workspace)
    assert {name for name in after if after[name] != before[name]} == set(told["changes"])
    assert all(name.startswith("0") and after[name] == change["after"] for name, change in told["changes"].items())
    assert cli.main(["dataset", "undo", "mira"]) == 0
    assert captions(workspace) == before


def test_optional_values_and_cases(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mira", "replace", " FACE", "--ignore-case") == 0
    assert captions(workspace)["01-rabbit-face.png"] == "inkstyle, rabbit"
    assert run("mira", "regex", r"(\w+)style", r"\1 look") == 0
    assert captions(workspace)["01-rabbit-face.png"] == "ink look, rabbit"
    assert run("mira", "set", "01-rabbit-face.png", "a rabbit") == 0
    assert captions(workspace)["01-rabbit-face.png"] == "a rabbit"
    assert "dataset undo mira" in capsys.readouterr().out


def test_the_trigger_word_is_kept_in_the_dataset(workspace: Workspace) -> None:
    assert run("mira", "trigger", "inkstyle") == 0
    assert Studio(workspace).open("mira").settings.trigger_word == "inkstyle"
    assert run("mira", "sort") == 0
    assert all(text.startswith("inkstyle") for text in captions(workspace).values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mira", "remov", "x"), "Did you mean remove"),
        (("mira", "remove"), "takes TAGS"),
        (("mira", "sort", "x"), "takes no values"),
        (("mira", "rename", "a"), "takes TAGS TEXT"),
        (("mira", "sort", "--ignore-case"), "no --ignore-case"),
        (("mira", "add", "x", "--pictures", "nothing*"), "fits nothing"),
        (("mira", "set", "01-rabbit-face.png"), "takes PICTURE TEXT"),
        (("mira", "set", "../x.png", "text"), "x.png"),
        (("mira", "set", "gone.png", "text", "--dry-run"), "no picture 'gone.png'"),
        (("ink", "set", "01-rabbit-face.png", "text", "--dry-run"), "can't be changed"),
        (("ink", "add", "x"), "can't be changed"),
        (("nobody",), "no dataset named"),
    ],
)
def test_mistakes(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    before = captions(workspace)
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert captions(workspace) == before


def test_the_help_names_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("--help")
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "regex FIND [TEXT]" in told
    assert "takes back" in told
