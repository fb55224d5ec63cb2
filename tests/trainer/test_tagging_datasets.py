"""Tagging whole datasets: modes, undo, cancel, faults, the confined thread, and the proof of a tagger's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from security.errors import RefusedFile, SafelightError
from security.sandbox import probe
from tests.taggers import COLOUR_TAGS, colour_tagger, photo, plain, put_tagger, real_tagger, row_of, write_tags
from trainer.dataset.history import History
from trainer.dataset.studio import Dataset, Studio
from trainer.tagging.base import Description, TaggingOptions
from trainer.tagging.run import Crew, tag_dataset
from trainer.tagging.shelf import get_tagger, list_taggers, tagger_files
from trainer.tagging.taggers import OnnxTagger
from trainer.tasks import TaskControl
from trainer.workspace import TAGGERS, Workspace


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_tagger(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def workspace(tmp_path: Path, colours: Path) -> Workspace:
    made = Workspace.open(tmp_path / "workspace")
    put_tagger(made, "colours", colours)
    return made


@pytest.fixture
def dataset(workspace: Workspace) -> Dataset:
    """Five pictures: red without a caption, green and blue with one, one in a sub-folder, one that is broken."""
    made = Studio(workspace).create("set")
    (made.path / "sub").mkdir()
    plain("#ff0000").save(made.path / "red.png")
    plain("#00ff00").save(made.path / "green.png")
    plain("#0000ff", (40, 40)).save(made.path / "blue.jpg")
    plain("#ff0000").save(made.path / "sub" / "red.webp")
    (made.path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (made.path / "green.txt").write_bytes(b"my own words\n")
    (made.path / "blue.txt").write_bytes(b"blue thing, sky")
    return made


RED = "red thing, ^_^, rose (garden)"


def tag(workspace: Workspace, dataset: Dataset, control: TaskControl | None = None, **changes: object) -> str:
    options = TaggingOptions(**{"models": ("colours",), "batch_size": 2, **changes})
    return tag_dataset(workspace, dataset, dataset.pictures(), options, control or TaskControl())


def caption_files(dataset: Dataset) -> dict[str, bytes]:
    return {path.relative_to(dataset.path).as_posix(): path.read_bytes() for path in dataset.path.rglob("*.txt")}


def test_untagged_pictures_get_captions_and_the_rest_stays(workspace: Workspace, dataset: Dataset) -> None:
    before, control = caption_files(dataset), TaskControl()
    report = tag(workspace, dataset, control)
    assert dataset.captions() == {
        "red.png": RED, "sub/red.webp": RED, "green.png": "my own words", "blue.jpg": "blue thing, sky",
    }  # fmt: skip
    assert report == "2 captions written with colours on the CPU; 2 captions left as they were."
    ((name, reason),) = control._now()[4]
    assert name == "broken.png" and "broken or cut off" in reason
    assert {name: data for name, data in caption_files(dataset).items() if name in before} == before
    dataset.history.undo()
    assert caption_files(dataset) == before
    dataset.history.redo()
    assert dataset.captions()["red.png"] == RED


def test_append_and_replace(workspace: Workspace, dataset: Dataset) -> None:
    before = caption_files(dataset)
    report = tag(workspace, dataset, mode="append", character_threshold=0.95)
    assert dataset.captions()["green.png"] == "my own words, green thing"
    assert dataset.captions()["blue.jpg"] == "blue thing, sky, painter"
    assert report.startswith("4 captions written")
    tag(workspace, dataset, mode="replace", characters=False)
    assert dataset.captions()["green.png"] == "green thing"
    assert len(dataset.history.edits()) == 2
    dataset.history.undo()
    dataset.history.undo()
    assert caption_files(dataset) == before


def test_the_trigger_word_of_the_dataset_stands_first(workspace: Workspace, dataset: Dataset) -> None:
    dataset.set_settings("trigger", replace(dataset.settings, trigger_word="mira"))
    tag(workspace, dataset, mode="append", always_first=("photo",))
    assert dataset.captions()["red.png"] == f"mira, photo, {RED}"
    assert dataset.captions()["green.png"] == "mira, my own words, photo, green thing"
    again = dataset.captions()
    tag(workspace, dataset, mode="append", always_first=("photo",))
    assert dataset.captions() == again


def test_two_taggers_make_one_caption(workspace: Workspace, dataset: Dataset, tmp_path: Path) -> None:
    rows = [("green_thing" if name == "blue_thing" else f"{name}_too", category) for name, category in COLOUR_TAGS]
    put_tagger(workspace, "other", colour_tagger(tmp_path / "other", rows=rows))
    tag(workspace, dataset, models=("colours", "other"), mode="replace", characters=False)
    assert dataset.captions()["blue.jpg"] == "blue thing, green thing"
    assert dataset.captions()["red.png"] == "red thing, ^_^, red thing too, ^ ^ too"


def test_the_mean_counts_a_tagger_that_is_not_sure(workspace: Workspace, dataset: Dataset, tmp_path: Path) -> None:
    put_tagger(workspace, "doubtful", colour_tagger(tmp_path / "doubtful", gain=0.2))
    both = {"models": ("colours", "doubtful"), "mode": "replace", "characters": False}
    tag(workspace, dataset, **both, general_threshold=0.7)
    assert dataset.captions()["red.png"] == "red thing, ^_^"
    tag(workspace, dataset, **both, general_threshold=0.55, merge="mean", rating="last")
    assert dataset.captions()["red.png"] == "red thing, ^_^, general"
    tag(workspace, dataset, **both, general_threshold=0.7, merge="mean", rating="last")
    assert dataset.captions()["red.png"] == "general"


def test_cancelling_keeps_what_was_written(workspace: Workspace, dataset: Dataset) -> None:
    class Hasty(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            super().progress(done, total, text)
            if done:
                self.cancel()

    for number in range(40):
        plain("#ff0000", (20, 20)).save(dataset.path / f"{number:02}.png")
    report = tag(workspace, dataset, Hasty())
    written = [name for name, caption in dataset.captions().items() if caption == RED]
    assert len(written) == 2 and report.startswith("Cancelled after 2 of 43 pictures. 2 captions written")
    assert "What was written stays" in report
    dataset.history.undo()
    assert set(dataset.captions()) == {"green.png", "blue.jpg"}


class Moody(OnnxTagger):
    """Fails at its second batch."""

    batches = 0

    def describe(self, prepared: object) -> list[Description]:
        self.batches += 1
        if self.batches > 1:
            raise SafelightError("out of memory")
        return super().describe(prepared)  # type: ignore[arg-type]


class Nosy(OnnxTagger):
    """Reads a file that is none of its business while it looks at pictures."""

    def describe(self, prepared: object) -> list[Description]:
        return ["read " + (Path(__file__).parent / "conftest.py").read_text()[:3]]


def crew(workspace: Workspace, loader: str, batch_size: int = 2) -> Crew:
    files = tagger_files(workspace, get_tagger(workspace, "colours"))
    return Crew([(row_of(loader=f"{__name__}:{loader}"), files)], TaggingOptions(batch_size=batch_size))


def test_a_fault_in_the_middle_is_told_and_ends_the_threads(workspace: Workspace, dataset: Dataset) -> None:
    pictures = [(str(number), dataset.path / "red.png") for number in range(9)]
    found = []
    with pytest.raises(SafelightError, match="out of memory"), crew(workspace, "Moody") as looking:
        for batch in looking.looks(pictures, lambda: False):
            found += batch
    assert [look.name for look in found] == ["0", "1"]


@pytest.mark.skipif(not probe().active, reason=probe().detail)
def test_the_network_runs_on_a_thread_that_reaches_its_own_files_only(workspace: Workspace, dataset: Dataset) -> None:
    with pytest.raises(PermissionError), crew(workspace, "Nosy") as looking:
        list(looking.looks([("red", dataset.path / "red.png")], lambda: False))
    assert (Path(__file__).parent / "conftest.py").read_text()  # this thread is not bound


def test_a_caption_typed_meanwhile_is_not_lost(workspace: Workspace, dataset: Dataset) -> None:
    class Typing(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            if not done:  # before the first batch is written
                dataset.set_captions("typed", {"red.png": "typed meanwhile"})

    tag(workspace, dataset, Typing())
    assert dataset.captions()["red.png"] == "typed meanwhile" and dataset.captions()["sub/red.webp"] == RED


def test_names_of_other_places_are_left_out(workspace: Workspace, dataset: Dataset) -> None:
    (workspace.path / "datasets" / "x.png").write_bytes((dataset.path / "red.png").read_bytes())
    control = TaskControl()
    tag_dataset(workspace, dataset, ["../x.png", "gone.png"], TaggingOptions(models=("colours",)), control)
    assert [name for name, _ in control._now()[4]] == ["../x.png", "gone.png"]
    assert not (workspace.path / "datasets" / "x.txt").exists()


def test_the_embedded_dataset_is_not_written_to(workspace: Workspace) -> None:
    with pytest.raises(SafelightError, match="embedded"):
        tag(workspace, Studio(workspace).open("ink"))


def test_the_edit_has_a_name_and_is_one_step_for_any_number_of_batches(workspace: Workspace, dataset: Dataset) -> None:
    tag(workspace, dataset, batch_size=1, mode="replace")
    (edit,) = History(dataset.path, workspace.cache_dir).edits()
    assert edit.label == "Tag with colours" and len(edit.files) == 4


def test_the_real_network_tags_a_dataset_of_photos(workspace: Workspace, tmp_path: Path) -> None:
    put_tagger(workspace, "lite0", real_tagger())
    photos = Studio(workspace).create("photos")
    for name in ("chelsea.png", "coffee.png"):
        photo(name).save(photos.path / name)
    photo("daisy").save(photos.path / "daisy.jpg", quality=90)
    tag(workspace, photos, models=("lite0",), rating="first", general_threshold=0.2)
    assert photos.captions() == {
        "chelsea.png": "general, egyptian cat, some cat (animal)",
        "coffee.png": "general, espresso",
        "daisy.jpg": "general, daisy",
    }


# ---- files are proven before each use ----------------------------------------------------------------------------


def test_a_tagger_of_ones_own_is_recorded_and_then_held_to_it(workspace: Workspace, dataset: Dataset) -> None:
    shelf = workspace.on_shelf(TAGGERS).models_dir
    assert [one.row.name for one in list_taggers(workspace) if one.is_own] == ["colours"]
    tag(workspace, dataset)
    assert (shelf / "colours.provenance.json").is_file()
    write_tags(shelf / "colours" / "selected_tags.csv", [*COLOUR_TAGS[1:], COLOUR_TAGS[0]])
    with pytest.raises(SafelightError, match="has changed since it came"):
        tag(workspace, dataset, mode="replace")


def test_a_network_that_names_other_files_is_refused(workspace: Workspace, dataset: Dataset) -> None:
    import onnx

    path = workspace.on_shelf(TAGGERS).models_dir / "colours" / "model.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RefusedFile, match="external data"):
        tag(workspace, dataset)


def test_a_program_beside_the_network_is_refused(workspace: Workspace, dataset: Dataset) -> None:
    (workspace.on_shelf(TAGGERS).models_dir / "colours" / "extra.py").write_text("x")
    with pytest.raises(RefusedFile, match=r"extra\.py"):
        tag(workspace, dataset)


def test_what_has_the_name_of_a_known_tagger_must_be_it(workspace: Workspace, dataset: Dataset, colours: Path) -> None:
    put_tagger(workspace, "wd-vit-tagger-v3", colours)
    with pytest.raises(SafelightError, match=r"is not the file of WD ViT v3: its SHA-256 is .* not 35f23693620b668f"):
        tag(workspace, dataset, models=("wd-vit-tagger-v3",))


def test_a_tagger_that_is_not_here_is_offered_with_its_size(workspace: Workspace, dataset: Dataset) -> None:
    with pytest.raises(SafelightError, match=r"not in the workspace yet \(379 MB\)"):
        tag(workspace, dataset, models=("wd-vit-tagger-v3",))
