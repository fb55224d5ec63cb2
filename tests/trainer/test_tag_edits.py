"""Edits of a dataset's captions: what is written, and that undo gives back every byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from security.errors import SafelightError
from trainer.dataset.settings import DatasetSettings, load_settings
from trainer.dataset.studio import Dataset, Studio
from trainer.dataset.tag_edits import apply_plan, editable_captions, plan_dataset_edit
from trainer.dataset.tag_operations import EditOptions
from trainer.workspace import Workspace

CAPTIONS = {"1.png": b"b, mira,  a\n", "10_sub/2.jpg": b"\xef\xbb\xbfb", "3.png": None, "4.png": b"\xff\xfe broken"}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = Studio(Workspace.open(tmp_path / "workspace")).create("mira")
    for name, caption in CAPTIONS.items():
        path = made.path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)
    return made


def captions_on_disk(dataset: Dataset) -> dict[str, bytes]:
    return {path.relative_to(dataset.path).as_posix(): path.read_bytes() for path in dataset.path.rglob("*.txt")}


def test_an_edit_is_one_step_and_undo_gives_back_every_byte(dataset: Dataset) -> None:
    before = captions_on_disk(dataset)
    captions, faults = editable_captions(dataset)
    assert captions == {"1.png": "b, mira, a", "10_sub/2.jpg": "b", "3.png": ""}
    assert faults == 1
    edit = apply_plan(dataset, plan_dataset_edit(dataset, captions, "add", EditOptions(tags=("new",))))
    assert edit.label == "Add new"
    after = {**before, "1.txt": b"b, mira, a, new", "10_sub/2.txt": b"b, new", "3.txt": b"new"}
    assert captions_on_disk(dataset) == after
    dataset.history.undo()
    assert captions_on_disk(dataset) == before
    dataset.history.redo()
    assert captions_on_disk(dataset) == after


def test_only_the_named_pictures(dataset: Dataset) -> None:
    captions, faults = editable_captions(dataset, {"3.png", "nobody.png"})
    assert (captions, faults) == ({"3.png": ""}, 0)


def test_a_new_trigger_word_replaces_the_former_one_in_one_step(dataset: Dataset) -> None:
    dataset.set_settings("Trigger word", DatasetSettings(trigger_word="mira"))
    assert load_settings(dataset.path).trigger_word == "mira"
    captions, _ = editable_captions(dataset)
    sorted_plan = plan_dataset_edit(dataset, {"x": "mira, c, a"}, "sort", EditOptions())
    assert sorted_plan.after == {"x": "mira, a, c"}, "the trigger word stays first"
    before = captions_on_disk(dataset)
    plan = plan_dataset_edit(dataset, captions, "trigger", EditOptions(text=" mira2 "))
    apply_plan(dataset, plan)
    assert load_settings(dataset.path).trigger_word == "mira2"
    assert dataset.captions() == {"1.png": "mira2, b, a", "10_sub/2.jpg": "mira2, b", "3.png": "mira2"}
    dataset.history.undo()
    assert load_settings(dataset.path).trigger_word == "mira"
    assert captions_on_disk(dataset) == before


def test_the_trigger_word_alone_is_something_to_do(dataset: Dataset) -> None:
    plan = plan_dataset_edit(dataset, {"1.png": "mira, a"}, "trigger", EditOptions(text="mira"))
    assert not plan.after
    assert plan.applies
    apply_plan(dataset, plan)
    again = plan_dataset_edit(dataset, {"1.png": "mira, a"}, "trigger", EditOptions(text="mira"))
    assert not again.applies
    assert plan.digest != again.digest


def test_tags_are_counted_over_the_whole_dataset(dataset: Dataset) -> None:
    plan = plan_dataset_edit(dataset, {"1.png": "a, b"}, "sort_common", EditOptions())
    assert plan.after == {"1.png": "b, a"}


def test_an_embedded_dataset_is_not_changed(tmp_path: Path) -> None:
    ink = Studio(Workspace.open(tmp_path / "workspace")).open("ink")
    captions, _ = editable_captions(ink)
    plan = plan_dataset_edit(ink, captions, "add", EditOptions(tags=("new",)))
    assert len(plan.after) == len(captions) > 0
    with pytest.raises(SafelightError, match="can't be changed"):
        apply_plan(ink, plan)
