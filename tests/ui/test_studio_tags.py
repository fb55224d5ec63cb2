"""The Tags panel's functions: what the script asks and gets, and that only what was looked at is done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from security.errors import SafelightError
from trainer.dataset import tag_operations
from trainer.dataset.tag_operations import OPERATIONS
from trainer.demo import DATASETS
from ui.services import Services
from ui.studio.tags import TAGS_PANEL

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(services: Services) -> Ask:
    """Calls a function of the panel as its script does, for a copy of the embedded dataset."""
    shutil.copytree(DATASETS["ink"], services.workspace.datasets_dir / "mira")
    functions = {function.__name__: function for function in TAGS_PANEL.functions(services)}

    def call(name: str, **argument: Any) -> dict[str, Any]:
        return functions[name]({"dataset": "mira", **argument})

    return call


def test_every_operation_is_offered_with_what_it_needs(ask: Ask) -> None:
    rows = ask("tag_operations")["operations"]
    assert [row["name"] for row in rows] == list(OPERATIONS)
    assert {need for row in rows for need in row["needs"]} == {"tags", "text", "find"}
    assert "watermark" in next(row["example"] for row in rows if row["name"] == "blacklist")


def test_the_table_counts_pictures(ask: Ask) -> None:
    table = ask("tag_table")
    assert table["tags"][0] == ["inkstyle", 30]
    assert table["num_tags"] == len(table["tags"]) > 30
    assert ask("tag_table", names=["01-rabbit-face.png"])["tags"] == [["inkstyle", 1], ["rabbit face", 1]]


def test_a_preview_changes_nothing_and_apply_does_it(ask: Ask, services: Services) -> None:
    edit = {"operation": "rename", "tags": "inkstyle", "text": "ink style"}
    plan = ask("preview_edit", **edit)
    assert plan["sentence"] == "Changes 30 of 30 captions."
    assert plan["examples"][0] == ["01-rabbit-face.png", "inkstyle, rabbit face", "ink style, rabbit face"]
    assert len(plan["examples"]) == 20
    dataset = services.studio.open("mira")
    assert dataset.revision == 0
    assert "30 captions changed" in ask("apply_edit", **edit, digest=plan["digest"])["text"]
    assert dataset.captions()["01-rabbit-face.png"] == "ink style, rabbit face"
    assert dataset.history.edits()[0].label == "Rename inkstyle to ink style"


def test_what_changed_meanwhile_is_looked_at_again(ask: Ask, services: Services) -> None:
    edit = {"operation": "remove", "tags": "inkstyle"}
    plan = ask("preview_edit", **edit)
    dataset = services.studio.open("mira")
    dataset.set_captions("by hand", {"01-rabbit-face.png": "rabbit"})
    answer = ask("apply_edit", **edit, digest=plan["digest"])
    assert answer["stale"] is True
    assert answer["changed"] == 29
    assert dataset.captions()["02-monkey-face.png"].startswith("inkstyle")
    assert "29 captions changed" in ask("apply_edit", **edit, digest=answer["digest"])["text"]


def test_only_the_chosen_pictures(ask: Ask, services: Services) -> None:
    edit = {"operation": "add", "tags": "new", "names": ["03-tiger-face.png", "gone.png"]}
    plan = ask("preview_edit", **edit)
    assert plan["sentence"] == "Changes 1 of 1 captions."
    ask("apply_edit", **edit, digest=plan["digest"])
    changed = [name for name, text in services.studio.open("mira").captions().items() if text.endswith(", new")]
    assert changed == ["03-tiger-face.png"]


def test_captions_that_cannot_be_read_are_named_and_kept(ask: Ask, services: Services) -> None:
    path = services.workspace.datasets_dir / "mira" / "01-rabbit-face.txt"
    path.write_bytes(b"\xff\xfe")
    plan = ask("preview_edit", operation="add", tags="new")
    assert plan["sentence"] == "Changes 29 of 29 captions. 1 caption can't be read and stays as it is."
    ask("apply_edit", operation="add", tags="new", digest=plan["digest"])
    assert path.read_bytes() == b"\xff\xfe"


def test_a_pattern_without_end_does_not_hang_the_page(
    ask: Ask, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_operations, "MAX_PATTERN_SECONDS", 0.3)
    services.studio.open("mira").set_captions("long", {"01-rabbit-face.png": "a" * 5000 + "b"})
    began = time.monotonic()
    with pytest.raises(SafelightError, match="took over 0"):
        ask("preview_edit", operation="regex", find="(a|aa)+$", text="x")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "argument",
    [
        {"operation": "add", "tags": 5},
        {"operation": "add", "tags": "x" * 100_001},
        {"operation": ["add"], "tags": "x"},
        {"operation": "add", "tags": "x", "names": "01-rabbit-face.png"},
        {"operation": "add", "tags": "x", "names": [5]},
        {"operation": "add", "tags": "x", "dataset": "../mira"},
        {"operation": "", "tags": "x"},
    ],
)
def test_anything_may_come_from_a_browser(ask: Ask, argument: dict[str, Any]) -> None:
    for name in ("preview_edit", "apply_edit"):
        with pytest.raises(SafelightError):
            ask(name, **argument, digest="x")


def test_an_embedded_dataset_can_be_looked_at(ask: Ask) -> None:
    assert ask("tag_table", dataset="ink")["num_tags"] > 30
    plan = ask("preview_edit", dataset="ink", operation="add", tags="new")
    with pytest.raises(SafelightError, match="can't be changed"):
        ask("apply_edit", dataset="ink", operation="add", tags="new", digest=plan["digest"])
