"""What the Dataset tab's scripts ask for, called as they call it; everything that comes from a browser may be anything."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.dataset.settings import Mark, load_marks
from trainer.dataset.studio import Dataset
from trainer.dataset.tokens import CLIP_DIR, DEMO_TOKENIZER_DIR, count_tokens
from trainer.tasks import TaskControl
from ui.messages import ShownError, answered
from ui.services import Services
from ui.studio.asked import caption_of, names_of
from ui.studio.grid import StudioDesk
from ui.studio.rows import mark_of, picture_facts, picture_url

TEXTS = (
    *(
        "",
        "a red cat",
        "1girl, long_hair (blue), looking at viewer",
        "it's DON'T we'll 12345",
        "ÀÉ ﬁ ½ x 漢字 ß İstanbul",
    ),
    *("((best:1.2)), [x]", "a\tb\nc  d", "<|endoftext|> a", "…—‘’ \u200bzero", "word " * 200),
)


@pytest.fixture
def desk(services: Services) -> StudioDesk:
    return StudioDesk(services)


@pytest.fixture
def pets(services: Services) -> Dataset:
    """Three pictures in two folders, one of them without a caption and one that is none."""
    dataset = services.studio.create("pets")
    for name, caption in (("cat.png", "a cat"), ("10_dogs/dog.png", "a dog"), ("fish.png", None)):
        path = dataset.path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 64), "red").save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption)
    (dataset.path / "broken.png").write_bytes(b"no picture")
    return dataset


def ask(function: Any, **argument: Any) -> dict[str, Any]:
    """As the page does: errors become {"error": text}."""
    return answered(function)({"dataset": "pets", **argument})


@pytest.mark.parametrize(("base", "folder"), [("", CLIP_DIR), ("demo", DEMO_TOKENIZER_DIR)])
def test_tokens_are_counted_as_the_text_encoders_count_them(base: str, folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    wanted = [len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in TEXTS]
    assert count_tokens(TEXTS, base) == wanted
    assert count_tokens(TEXTS, base) == wanted  # from memory


def test_rows_tell_everything_about_a_picture(desk: StudioDesk, pets: Dataset) -> None:
    pets.set_marks("crop", {"cat.png": Mark((0.25, 0.5), 2.0)})
    answer = ask(desk.studio_rows)
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows) == pets.pictures() and answer["revision"] == pets.revision
    cat, fish, broken = rows["cat.png"], rows["fish.png"], rows["broken.png"]
    assert (cat["caption"], cat["tokens"], cat["width"], cat["height"]) == ("a cat", 2, 96, 64)
    assert cat["mark"] == {"x": 0.25, "y": 0.5, "zoom": 2.0} and not cat["mask"] and not cat["pending"]
    assert (fish["caption"], fish["has"], fish["mark"]) == ("", False, None)
    assert "broken.png" in broken["fault"] and broken["width"] == 0
    crops = ask(desk.picture_crops, training={"model.base": "demo", "dataset.resolution": 64})["crops"]
    assert crops["cat.png"][0] * crops["cat.png"][1] <= 64 * 64 and crops["cat.png"][2] > 1.5
    assert "broken.png" not in crops
    half_typed = {"model.base": "demo", "dataset.resolution": "x", "dataset.max_aspect_ratio": None}
    assert ask(desk.picture_crops, training=half_typed)["crops"]["cat.png"][:2] != crops["cat.png"][:2]


def test_sizes_that_take_long_to_read_come_later(services: Services, pets: Dataset, monkeypatch: Any) -> None:
    monkeypatch.setattr("ui.studio.rows.FACTS_SECONDS", 0.0)
    found = picture_facts(services.workspace, pets.path, pets.pictures())
    assert len(found) == 1  # one at least, so that asking again comes to an end


def test_addresses_of_pictures_hold_any_name() -> None:
    assert picture_url("a b", "in/50% #1?.png", 255) == "safelight/datasets/a%20b/in/50%25%20%231%3F.png?v=ff"


def test_a_caption_is_saved_only_over_the_one_that_was_read(desk: StudioDesk, pets: Dataset) -> None:
    stale = {"picture": "cat.png", "text": "new", "before": "another"}
    assert ask(desk.save_caption, **stale) == {"conflict": "a cat"}
    assert ask(desk.save_caption, **stale | {"before": "a cat", "text": " a\n new  one "})["caption"] == "a new one"
    assert ask(desk.save_caption, **stale | {"text": "a new one"})["tokens"] == 3  # the same text is no conflict
    assert ask(desk.save_caption, **stale, force=True)["caption"] == "new"
    assert [edit.label for edit in pets.history.edits()] == ["Caption of cat.png"] * 2
    (pets.path.parent / "secret.txt").write_text("secret")
    (pets.path.parent / "secret.png").write_bytes((pets.path / "cat.png").read_bytes())
    for wrong in ("../secret.png", "/etc/passwd.png", "cat.txt", ".safelight/masks/x.png", "none.png", "", 5, None):
        told = ask(desk.save_caption, picture=wrong, text="x", before="y")
        assert list(told) == ["error"] and "secret" not in told["error"].replace("secret.png", ""), wrong
    with pytest.raises(ShownError, match="64,000 bytes"):
        caption_of({"text": "é" * 40_000})
    assert caption_of({"text": "a\0b"}) == "a b"


def test_marks_out_of_a_browser_are_numbers_in_their_range(desk: StudioDesk, pets: Dataset) -> None:
    assert mark_of({"x": 0.2, "y": 1, "zoom": 3}) == Mark((0.2, 1.0), 3.0)
    middle = {"x": 0.5, "y": 0.5, "zoom": 1}
    for wrong in (None, 5, [], {}, middle, middle | {"zoom": 0.9}, middle | {"x": -0.1}, middle | {"y": "0"}):
        assert mark_of(wrong) is None
    for wrong in ({"x": float("nan")}, {"zoom": float("inf")}, {"zoom": True}, {"y": 1.01}):
        assert mark_of(middle | wrong) is None
    assert ask(desk.set_mark, picture="fish.png", mark={"x": 0, "y": 1, "zoom": 2})["mark"]["zoom"] == 2
    assert load_marks(pets.path) == {"fish.png": Mark((0.0, 1.0), 2.0)}
    assert ask(desk.set_mark, picture="fish.png", mark=None)["mark"] is None
    assert load_marks(pets.path) == {}
    assert "error" in ask(desk.set_mark, picture="../x.png", mark=None)


def test_pictures_go_and_come_back(desk: StudioDesk, pets: Dataset) -> None:
    before = {path: path.read_bytes() for path in pets.path.rglob("*.[pt][nx][gt]")}
    told = ask(desk.remove_pictures, names=["fish.png", "cat.png", "gone.png"])
    assert told["text"] == "2 pictures removed. Undo brings them back."
    assert pets.pictures() == ["10_dogs/dog.png", "broken.png"] and not (pets.path / "cat.txt").exists()
    ask(desk.set_trigger, word="  my   pet ")
    look = ask(desk.studio_look)
    assert (look["undo"], look["redo"], look["trigger"]) == ("Trigger word: my pet", "", "my pet")
    assert ask(desk.undo_edits, steps=2)["text"] == "Undone: 2 changes."
    assert {path: path.read_bytes() for path in pets.path.rglob("*.[pt][nx][gt]")} == before
    assert ask(desk.studio_look)["redo"] == "Removed 2 pictures"
    ask(desk.redo_edit)
    (pets.path / "cat.txt").write_text("put there by hand")
    told = ask(desk.undo_edits)["text"]
    assert told.startswith("Undone: Removed 2 pictures. Left alone") and "cat.txt" in told
    for wrong in (None, [], ["gone.png"], "cat.png", [5]):
        assert "error" in ask(desk.remove_pictures, names=wrong)
    with pytest.raises(ShownError):
        names_of(None, pets)


def test_datasets_come_and_go_and_a_lost_one_gives_way(desk: StudioDesk, pets: Dataset) -> None:
    assert ask(desk.copy_dataset, name="pets-2")["select"] == "pets-2"
    assert ask(desk.rename_dataset, name="beasts")["select"] == "beasts"
    names = [one["name"] for one in ask(desk.studio_look, dataset="pets")["datasets"]]
    assert names[:2] == ["beasts", "pets-2"] and "ink" in names[2:]
    assert ask(desk.studio_look, dataset="pets")["name"] == "beasts"
    for name in ("../up", "beasts", "", "x" * 300, 7):
        assert "error" in ask(desk.create_dataset, name=name)
        assert "error" in ask(desk.copy_dataset, dataset="beasts", name=name)
    for function in (desk.rename_dataset, desk.delete_dataset):
        assert "embedded" in ask(function, dataset="ink", name="mine")["error"]
    assert ask(desk.delete_dataset, dataset="beasts")["select"] == "pets-2"
    assert not pets.path.with_name("beasts").exists()


def test_tasks_are_told_cancelled_and_their_reports_kept(desk: StudioDesk, pets: Dataset, services: Services) -> None:
    working = threading.Event()

    def work(control: TaskControl) -> str:
        control.progress(3, 10, "cat.png")
        control.skip("<b>.png", "no picture")
        working.set()
        while not control.cancelled():
            threading.Event().wait(0.01)
        return "Stopped."

    task = services.studio.tasks.start("import", "Importing", "pets", work)
    assert working.wait(10)
    row = ask(desk.studio_look)["tasks"][0]
    assert (row["done"], row["total"], row["text"], row["skipped"], row["active"]) == (3, 10, "cat.png", 1, True)
    assert (
        "Importing" in ask(desk.delete_dataset)["error"] and "Importing" in ask(desk.rename_dataset, name="n")["error"]
    )
    assert "error" in ask(desk.task_action, id=task, action="explode")
    assert "error" in ask(desk.task_action, id="unknown", action="cancel")
    assert ask(desk.task_action, id=task, action="cancel") == {}
    assert services.studio.tasks.wait(10)
    row = ask(desk.studio_look)["tasks"][0]
    assert (row["state"], row["message"], row["active"]) == ("cancelled", "Stopped.", False)
    assert ask(desk.task_report, id=task) == {"entries": [["<b>.png", "no picture"]]}
    ask(desk.task_action, id=task, action="dismiss")
    assert ask(desk.studio_look)["tasks"] == []
