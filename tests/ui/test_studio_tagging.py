"""The panel "Tag pictures" and `dataset tag`: what its script may ask, fetching, tagging as a task, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security.errors import SafelightError
from tests.hubs.huggingface import HuggingFacePlayer
from tests.hubs.server import Hubs
from tests.taggers import colour_tagger, plain, put_tagger
from trainer.models.downloads import Downloads
from trainer.models.jobfiles import DownloadState
from trainer.tagging import base
from trainer.tagging.base import TaggingOptions
from trainer.tagging.options import OPTIONS, tagging_options
from trainer.tasks import TaskState
from trainer.workspace import TAGGERS
from ui.cli import main
from ui.machine import Gpu, MachineFacts
from ui.services import Services
from ui.studio.tagging import TaggingDesk

RED = "red thing, ^_^, rose (garden)"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_tagger(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def desk(services: Services, colours: Path) -> Iterator[TaggingDesk]:
    """A tagger that is here, and a dataset with two red pictures, one of them with a caption."""
    put_tagger(services.workspace, "colours", colours)
    folder = services.studio.create("set").path
    plain("#ff0000").save(folder / "one.png")
    plain("#ff0000").save(folder / "two.png")
    (folder / "two.txt").write_text("mine")
    yield TaggingDesk(services)
    assert services.studio.tasks.shutdown(20)


def asked(**changes: Any) -> dict[str, Any]:
    options = {"models": ["colours"], "mode": "ignore", **changes.pop("options", {})}
    return {"dataset": "set", "names": ["one.png", "two.png"], "options": options, **changes}


# ---- options ------------------------------------------------------------------------------------------------------


def test_every_option_is_on_the_page_with_its_help(desk: TaggingDesk) -> None:
    shown = {option["name"]: option for option in desk.tagging_form()["options"]}
    assert set(shown) == set(TaggingOptions.model_fields) == set(OPTIONS)
    assert all(option["help"] and option["for"] in ("tags", "sentence", "both") for option in shown.values())
    assert "(ignore)" not in shown["mode"]["help"], "a word of the command line, not of the page"
    values = {name: option["default"] for name, option in shown.items()}
    assert tagging_options(values) == TaggingOptions()


def test_lists_may_come_as_text() -> None:
    options = tagging_options({"blacklist": "simple background, solo\n a b ,", "always_first": [" photo "]})
    assert options.blacklist == ("simple background", "solo", "a b")
    assert tagging_options({"models": "a, b"}).models == ("a", "b")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"general_threshold": 2}, "General threshold is '2', but .* Allowed: 0 to 1"),
        ({"general_threshold": "much"}, "General threshold is 'much'"),
        ({"mode": "overwrite"}, "Mode is 'overwrite', .* Allowed: ignore, append, replace"),
        ({"treshold": 1}, "'treshold' is no option"),
        ({"models": []}, "Models is"),
        ({"batch_size": 0, "max_tags": -1}, "Max tags.*Batch size|Batch size.*Max tags"),
    ],
)
def test_faulty_options_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SafelightError, match=words):
        tagging_options(values)


# ---- the desk -----------------------------------------------------------------------------------------------------


def test_taggers_are_shown_with_what_can_be_done(desk: TaggingDesk) -> None:
    shown = {one["name"]: one for one in desk.tagging_state()["taggers"]}
    assert (shown["colours"]["here"], shown["colours"]["own"]) == (True, True)
    first = shown["wd-vit-tagger-v3"]
    assert (first["here"], first["size"], first["kind"], first["licence"]) == (False, "379 MB", "tags", "apache-2.0")


def test_pictures_are_tagged_as_a_task(desk: TaggingDesk, services: Services) -> None:
    task = desk.tag_pictures(asked())["task"]
    assert services.studio.tasks.wait(30)
    view = services.studio.tasks.get(task)
    assert (view.state, view.kind, view.title) == (TaskState.DONE, "tag", "Tagging with colours")
    assert view.message == "1 caption written with colours on the CPU; 1 caption left as it was."
    assert (view.done, view.total) == (1, 1)
    assert services.studio.open("set").captions() == {"one.png": RED, "two.png": "mine"}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (asked(options={"models": ["wd-vit-tagger-v3"]}), "not on this machine yet"),
        (asked(options={"models": ["../x"]}), "no tagger"),
        (asked(options={"general_threshold": 9}), "General threshold"),
        (asked(options={"device": "cuda"}, names=[]), "no picture to work on"),
        (asked(dataset="ink"), "embedded"),
        (asked(dataset="../../etc"), "name"),
        ({"dataset": "set", "names": ["one.png"], "options": "all"}, "no options"),
        ({"dataset": "set", "options": {}}, "no pictures"),
        (None, "dataset"),
    ],
)
def test_anything_else_is_refused_in_words(argument: Any, words: str, desk: TaggingDesk, services: Services) -> None:
    with pytest.raises(SafelightError, match=words):
        desk.tag_pictures(argument)
    assert services.studio.tasks.all() == []


def test_the_gpu_is_not_shared_with_a_run(
    desk: TaggingDesk, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy:
        active_run_id = "mira"

    class Machine:
        def facts(self) -> MachineFacts:
            return MachineFacts((Gpu("RTX", 1, 2, 3),), "", 2, 0.0, 1, 2, 3)

    monkeypatch.setattr("trainer.tagging.onnx_session.gpu_is_usable", lambda: True)
    busy = TaggingDesk(replace(services, jobs=Busy(), machine=Machine()))  # type: ignore[arg-type]
    for device in ("auto", "cuda"):
        with pytest.raises(SafelightError, match="run mira trains on the GPU"):
            busy.tag_pictures(asked(options={"device": device}))
    assert busy.tag_pictures(asked(options={"device": "cpu"}))["task"]
    idle = TaggingDesk(replace(services, machine=Machine()))  # type: ignore[arg-type]
    assert idle.tag_pictures(asked())["task"]


def test_a_device_that_is_not_there_fails_the_task_in_words(desk: TaggingDesk, services: Services) -> None:
    task = desk.tag_pictures(asked(options={"device": "cuda"}))["task"]
    assert services.studio.tasks.wait(30)
    view = services.studio.tasks.get(task)
    assert view.state is TaskState.FAILED and "runs on the CPU only" in view.message


@pytest.fixture
def hub(
    hubs: Hubs, services: Services, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TaggingDesk, HuggingFacePlayer]]:
    """A hub with one tagger, which is the catalog."""
    player = HuggingFacePlayer(hubs, "someone/hues", {path.name: path.read_bytes() for path in colours.iterdir()})
    own = base.taggers()["wd-vit-tagger-v3"]
    row = replace(own, name="hues", title="Hues", source="someone/hues", revision="", known={})
    monkeypatch.setattr("trainer.tagging.base.taggers", lambda: {"hues": row})
    monkeypatch.setattr("trainer.tagging.shelf.taggers", lambda: {"hues": row})
    network = hubs.network()
    downloads = Downloads(services.workspace, network, services.tokens)
    yield TaggingDesk(replace(services, network=network, downloads=downloads)), player
    assert downloads.shutdown(20)


def test_a_tagger_is_fetched_and_removed_on_the_page(hub: tuple[TaggingDesk, HuggingFacePlayer]) -> None:
    desk, player = hub
    player.publish()
    assert "is being fetched" in desk.networks.fetch_network({"name": "hues"})["text"]
    assert desk.services.downloads.wait(30)
    (shown,) = desk.tagging_state()["taggers"]
    assert shown["here"] and shown["download"] is None
    assert "removed" in desk.networks.remove_network({"name": "hues"})["text"]
    (shown,) = desk.tagging_state()["taggers"]
    assert not shown["here"]


def test_what_is_not_verified_is_agreed_to_first(hub: tuple[TaggingDesk, HuggingFacePlayer]) -> None:
    desk, player = hub
    player.changes["selected_tags.csv"] = {"blobId": ""}
    player.publish()
    (point,) = desk.networks.fetch_network({"name": "hues"})["confirm"]
    assert "no checksum for selected_tags.csv" in point and desk.services.downloads.all() == []
    desk.networks.fetch_network({"name": "hues", "confirmed": True})
    assert desk.services.downloads.wait(30)
    assert desk.services.downloads.all()[0].state is DownloadState.DONE


def test_actions_reach_downloads_of_taggers_only(hub: tuple[TaggingDesk, HuggingFacePlayer]) -> None:
    desk, player = hub
    player.publish()
    desk.networks.fetch_network({"name": "hues"})
    assert desk.services.downloads.wait(30)
    (done,) = desk.services.downloads.all()
    with pytest.raises(SafelightError, match="not known"):
        desk.networks.network_action({"id": "../../x", "action": "remove"})
    assert "off the list" in desk.networks.network_action({"id": done.id, "action": "remove"})["text"]
    assert desk.services.downloads.on_shelf(TAGGERS) == set()


# ---- the command line ---------------------------------------------------------------------------------------------


def test_dataset_tag(desk: TaggingDesk, services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(services.workspace.path)]
    assert main(["dataset", "tag", "set", "--model", "colours", "--characters", "off", "--mode", "append", *where]) == 0
    assert capsys.readouterr().out == "2 captions written with colours on the CPU.\n"
    assert services.studio.open("set").captions() == {"one.png": "red thing, ^_^", "two.png": "mine, red thing, ^_^"}
    flags = ["--model", "colours", "--mode", "replace", "--pictures", "two*", "--json"]
    assert main(["dataset", "tag", "set", *flags, *where]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert services.studio.open("set").captions() == {"one.png": "red thing, ^_^", "two.png": RED}
    assert main(["dataset", "undo", "set", "--steps", "2", *where]) == 0
    assert services.studio.open("set").captions() == {"two.png": "mine"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["set"], "WD ViT v3 is not in the workspace yet. Add --fetch wd-vit-tagger-v3"),
        (["set", "--model", "coulours"], "Did you mean colours|There is no tagger"),
        (["set", "--model", "colours", "--general-threshold", "high"], "which is no number"),
        (["set", "--model", "colours", "--rating", "maybe"], "Rating is 'maybe'"),
        (["set", "--model", "colours", "--pictures", "three*"], "no picture that fits"),
        ([], "Name the dataset"),
        (["nowhere", "--model", "colours"], "no dataset named"),
    ],
)
def test_dataset_tag_says_what_is_wrong(
    flags: list[str], words: str, desk: TaggingDesk, services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "tag", *flags, "--workspace", str(services.workspace.path)]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in words.split("|")) and "Traceback" not in error


def test_the_list_names_what_is_here(desk: TaggingDesk, services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "tag", "--list", "--json", "--workspace", str(services.workspace.path)]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["colours"]["here"] and not listed["joytag"]["here"]
    assert listed["joytag"]["num_bytes"] == 366_192_906


def test_a_broken_picture_is_in_the_report(
    desk: TaggingDesk, services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = services.studio.open("set").path
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (8, 8), "#ff0000").save(folder / "good.png")
    assert main(["dataset", "tag", "set", "--model", "colours", "--workspace", str(services.workspace.path)]) == 0
    out = capsys.readouterr().out
    assert "2 captions written" in out and "left out: bad.png: bad.png is not a PNG" in out
