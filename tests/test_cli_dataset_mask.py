"""`dataset mask`: masks are counted, made, inverted and removed, and undo takes it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from trainer.dataset.masks import read_mask
from trainer.dataset.studio import Dataset, Studio
from trainer.tagging.cutouts import cutouts
from trainer.workspace import Workspace
from ui import cli


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    made = Studio(Workspace.open()).create("mira")
    Image.new("RGBA", (60, 40), (200, 0, 0, 0)).save(made.path / "cut.png")
    Image.new("RGB", (60, 40)).save(made.path / "plain.png")
    return made


def run(*arguments: str) -> int:
    return cli.main(["dataset", "mask", *arguments])


def test_masks_on_the_command_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mira") == 0
    assert "0 of 2 pictures have a mask." in capsys.readouterr().out
    assert run("mira", "--from", "alpha", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["message"]) == ("done", "1 mask written.")
    assert told["skipped"] == [["plain.png", "nothing in it is transparent"]]
    mask = read_mask(dataset, "cut.png")
    assert mask is not None
    assert mask.getextrema() == (0, 0)
    assert run("mira", "--invert", "--pictures", "cut*") == 0
    inverted = read_mask(dataset, "cut.png")
    assert inverted is not None
    assert inverted.getextrema() == (255, 255)
    assert run("mira", "--remove") == 0
    assert "1 of 2 pictures had a mask." in capsys.readouterr().out
    assert dataset.masks() == set()
    assert cli.main(["dataset", "undo", "mira", "--steps", "2"]) == 0
    assert dataset.masks() == {"cut.png"}


def test_the_networks_are_listed(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(cutouts())
    assert not any(row["here"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name the dataset"),
        (("mira", "--from", "u2netp"), "--fetch u2netp"),
        (("mira", "--from", "u2net"), "Did you mean u2netp"),
        (("mira", "--from", "alpha", "--pictures", "x*"), "no picture that fits x*"),
        (("ink", "--from", "alpha"), "can't be changed"),
    ],
)
def test_mistakes(dataset: Dataset, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert run(*arguments) in (1, 2)
    told = capsys.readouterr()
    assert words in told.err + told.out
    assert dataset.masks() == set()
