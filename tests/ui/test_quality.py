"""Quality and prepare as the command line and the page's functions do them: exit codes, JSON, reports, bad questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security.errors import SafelightError
from tests.messy import encoded, photo
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import TaskState
from ui.cli import build_parser
from ui.services import Services
from ui.studio.prepare import PREPARE_PANEL
from ui.studio.quality import QUALITY_PANEL

Answers = dict[str, Any]


def fill(studio: Studio, name: str = "cats") -> Dataset:
    """A sound photo, the same one smaller, and a file that is no picture."""
    dataset = studio.create(name)
    (dataset.path / "cat.png").write_bytes(encoded(photo("chelsea.png")))
    (dataset.path / "small.png").write_bytes(encoded(photo("chelsea.png").resize((226, 150))))
    (dataset.path / "bad.png").write_bytes(b"nothing")
    for picture in ("cat", "small", "bad"):
        (dataset.path / f"{picture}.txt").write_text("cat, whiskers")
    return dataset


@pytest.fixture
def cats(services: Services) -> Dataset:
    return fill(services.studio)


def run(cats: Dataset, *arguments: str) -> int:
    options = build_parser().parse_args(["dataset", *arguments, "--workspace", str(cats.path.parents[1])])
    return int(options.run(options))


def test_check_says_what_is_wrong_by_words_and_exit_code(cats: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cats, "check", "cats", "--resolution", "64") == 1
    text = capsys.readouterr().out
    assert text.startswith("cats at 64×64 pixels, sides in steps of 16: 2 problems in 3 of 3 pictures.")
    assert "small.png: the same as cat.png" in text and "--fix unreadable=remove" in text
    assert (
        run(
            cats,
            "check",
            "cats",
            "--json",
            "--resolution",
            "64",
            "--fix",
            "unreadable",
            "--fix",
            "duplicate=keep_largest",
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert [one["done"].split(".")[0] for one in told["fixes"]] == ["1 picture taken out", "1 picture taken out"]
    assert told["findings"] == [] and cats.pictures() == ["cat.png"]
    assert run(cats, "check", "cats", "--resolution", "1024") == 0
    assert "WARNING" in capsys.readouterr().out
    assert run(cats, "check", "cats", "--resolution", "1024", "--strict") == 1
    with pytest.raises(SafelightError, match="There is no check 'blurr'"):
        run(cats, "check", "cats", "--fix", "blurr")
    with pytest.raises(SafelightError, match=r"dataset\.resolution is 5"):
        run(cats, "check", "cats", "--resolution", "5")
    with pytest.raises(SafelightError, match="no model 'nobody'"):
        run(cats, "check", "cats", "--base", "nobody")


def test_prepare_on_the_command_line(cats: Dataset, services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(cats, "prepare", "cats", "squares", "--crop", "square", "--longest-side", "100", "--pictures", "[cb]*") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "squares is made: 1 picture from cats. 1 left out." and lines[1].startswith(
        "  left out: bad.png"
    )
    with Image.open(services.studio.open("squares").path / "cat.png") as image:
        assert image.size == (100, 100)
    assert run(cats, "prepare", "cats", "squares", "--crop", "square") == 1
    assert "already" in capsys.readouterr().out
    with pytest.raises(SafelightError, match="crop is 'round'"):
        run(cats, "prepare", "cats", "new", "--crop", "round")
    with pytest.raises(SafelightError, match="--longest-side is 'x', which is no whole number"):
        run(cats, "prepare", "cats", "new", "--longest-side", "x")
    with pytest.raises(SafelightError, match="no model 'nobody'"):
        run(cats, "prepare", "cats", "new", "--crop", "training", "--base", "nobody")


def functions(panel: Any, services: Services) -> Answers:
    return {function.__name__: function for function in panel.functions(services)}


def ended(services: Services, answer: Answers) -> str:
    assert services.studio.tasks.wait(60)
    view = services.studio.tasks.get(answer["task"])
    assert view.state is TaskState.DONE, view.message
    return view.message


def test_the_page_checks_fixes_and_keeps_the_report(services: Services, cats: Dataset) -> None:
    desk = functions(QUALITY_PANEL, services)
    asked = {"dataset": "cats", "training": {"dataset.resolution": 64}, "held_out": "", "tagger": ""}
    assert desk["quality_state"](asked)["report"] is None
    assert ended(services, desk["check_quality"](asked)) == "2 problems in 3 of 3 pictures."
    state = desk["quality_state"](asked)
    assert [one["kind"] for one in state["report"]["findings"]] == ["unreadable", "duplicate"]
    assert state["problems"]["small.png"] == ["the same as cat.png"] and not state["report"]["stale"]
    assert state["report"]["findings"][1]["fixes"] == [
        {"name": "keep_largest", "button": "Keep the largest of each group"}
    ]
    wish = asked | {"kind": "duplicate", "fix": "keep_largest", "names": ["small.png", "cat.png"]}
    assert ended(services, desk["fix_finding"](wish)).startswith("1 picture taken out")
    assert [one["kind"] for one in desk["quality_state"](asked)["report"]["findings"]] == ["unreadable"]
    cats.history.undo()
    assert desk["quality_state"](asked)["report"]["stale"]
    assert set(cats.pictures()) == {"bad.png", "cat.png", "small.png"}


@pytest.mark.parametrize(
    "wish",
    [
        {"kind": "duplicate", "fix": "remove", "names": ["cat.png"]},
        {"kind": "nothing", "fix": "remove", "names": ["cat.png"]},
        {"kind": "duplicate", "fix": "keep_largest", "names": []},
        {"kind": "duplicate", "fix": "keep_largest", "names": [7]},
        {"kind": "duplicate", "fix": "keep_largest", "names": ["cat.png"], "held_out": "../.."},
        {"kind": "duplicate", "fix": "keep_largest", "names": ["cat.png"], "training": {"dataset.resolution": "x"}},
        {"kind": "duplicate", "fix": "keep_largest", "names": ["cat.png"], "tagger": 3},
        {"kind": "duplicate", "fix": "keep_largest", "names": ["cat.png"], "dataset": "ink"},
        {"kind": "duplicate", "fix": "keep_largest", "names": ["cat.png"], "dataset": "../cats"},
    ],
)
def test_bad_questions_of_a_page_change_nothing(services: Services, cats: Dataset, wish: Answers) -> None:
    desk = functions(QUALITY_PANEL, services)
    with pytest.raises(SafelightError):
        desk["fix_finding"]({"dataset": "cats", "training": {}, "held_out": "", "tagger": "", **wish})
    assert not services.studio.tasks.all() and len(cats.pictures()) == 3


def test_the_page_prepares_a_version(services: Services, cats: Dataset) -> None:
    desk = functions(PREPARE_PANEL, services)
    state = desk["prepare_state"]({"dataset": "cats"})
    assert state["name"] == "cats-2" and [one["name"] for one in state["options"]][:2] == ["crop", "longest_side"]
    assert all(one["help"] and one["title"] for one in state["options"])
    told = {one["name"]: one["help"] for one in state["options"]}
    assert told["mirror"] == "Leave as they are, add a mirrored copy of each, or mirror all of them."
    options = {one["name"]: one["default"] for one in state["options"]} | {"crop": "square"}
    asked = {
        "dataset": "cats",
        "training": {},
        "names": ["cat.png", "small.png"],
        "name": " cats-2 ",
        "options": options,
    }
    answer = desk["prepare_version"](asked)
    assert answer["name"] == "cats-2"
    assert ended(services, answer) == "cats-2 is made: 2 pictures from cats."
    assert services.studio.open("cats-2").settings.made_from == "cats"
    for wrong in ({"names": []}, {"options": None}, {"options": {"crop": "round"}}, {"name": 4}):
        with pytest.raises(SafelightError):
            desk["prepare_version"](asked | wrong)


def test_folders_of_a_page_that_is_open_to_others_stay_closed(shared_services: Services) -> None:
    dataset = fill(shared_services.studio)
    desk = functions(QUALITY_PANEL, shared_services)
    training = {"model.base": str(Path(dataset.path)), "dataset.folder": "cats"}
    with pytest.raises(SafelightError, match="only what the library has"):
        desk["check_quality"]({"dataset": "cats", "training": training, "held_out": "", "tagger": ""})
