"""`dataset` on the command line: lists, history, undo, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from security.errors import SafelightError
from trainer.dataset.studio import Dataset, Studio
from trainer.workspace import Workspace
from ui.cli import build_parser
from ui.cli_dataset import SUBCOMMANDS


@pytest.fixture
def hats(tmp_path: Path) -> Dataset:
    dataset = Studio(Workspace.open(tmp_path / "workspace")).create("hats")
    Image.new("RGB", (40, 30)).save(dataset.path / "a.png")
    for text in ("one", "two", "three"):
        dataset.set_captions(f"type {text}", {"a.png": text})
    return dataset


def run(hats: Dataset, *arguments: str) -> int:
    options = build_parser().parse_args(["dataset", *arguments, "--workspace", str(hats.path.parents[1])])
    return int(options.run(options))


def test_datasets_are_listed(hats: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hats, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["DATASET", "PICTURES", "CAPTIONS"] and lines[-1].split() == ["hats", "1", "1"]
    assert run(hats, "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["builtin"]) for row in told] == [("ink", True), ("ink_heldout", True), ("hats", False)]


def test_history_undo_and_redo(hats: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hats, "undo", "hats", "--steps", "2") == 0
    assert capsys.readouterr().out.splitlines() == ["Undone: type three (1 file)", "Undone: type two (1 file)"]
    assert hats.captions() == {"a.png": "one"}
    assert run(hats, "redo", "hats") == 0
    assert capsys.readouterr().out == "Done again: type two (1 file)\n" and hats.captions() == {"a.png": "two"}
    assert run(hats, "history", "hats") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["three", "two", "one"]
    assert ["undone" in line for line in lines[1:]] == [True, False, False]
    assert run(hats, "history", "hats", "--json", "--limit", "1") == 0
    assert json.loads(capsys.readouterr().out)[0]["files"] == ["a.txt"]


@pytest.mark.parametrize("command", ["undo", "redo"])
def test_no_steps_are_no_step(hats: Dataset, command: str) -> None:
    for steps in ("0", "-3"):
        with pytest.raises(SafelightError, match="1 or more"):
            run(hats, command, "hats", "--steps", steps)
    assert hats.captions() == {"a.png": "three"}


def test_a_history_is_forgotten_or_set_aside(hats: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hats, "history", "hats", "--forget") == 0
    assert "MB freed" in capsys.readouterr().out and hats.history.edits() == []
    (hats.path / ".safelight" / "history.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(SafelightError, match="damaged"):
        run(hats, "history", "hats")
    assert run(hats, "history", "hats", "--set-aside") == 0
    assert "damaged-1" in capsys.readouterr().out
    assert run(hats, "history", "hats") == 0 and hats.captions() == {"a.png": "three"}


def test_what_was_changed_outside_is_named(hats: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    (hats.path / "a.txt").write_text("by hand")
    assert run(hats, "undo", "hats") == 0
    assert "something else changed it since: a.txt" in capsys.readouterr().out
    assert hats.captions() == {"a.png": "by hand"}


def test_a_dataset_is_exported(hats: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hats, "export", "hats", "--out", str(tmp_path / "out"), "--layout", "kohya") == 0
    assert capsys.readouterr().out.startswith("1 picture exported")
    assert (tmp_path / "out" / "1_hats" / "a.txt").read_text() == "three"
    (hats.path / "b.png").write_bytes(b"broken")
    assert run(hats, "export", "hats", "--out", str(tmp_path / "out.zip"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "done" and told["skipped"][0][0] == "b.png"


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SUBCOMMANDS:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(["dataset", name, "--help"])
        assert ended.value.code == 0 and "--workspace" in capsys.readouterr().out


def test_a_misspelt_subcommand_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["dataset", "exprt"])
    assert ended.value.code == 2 and "Did you mean export?" in capsys.readouterr().err
