"""The Import panel, called as its script does: what was sent, folders and archives of this machine, refusals in words."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.server import Hubs, json_reply
from tests.security.zip_files import Member, write_zip
from trainer.demo import INK_DIR
from trainer.models.downloads import Downloads
from trainer.tasks import TaskView
from ui.messages import answered
from ui.services import Services
from ui.studio.importing import IMPORT_PANEL, uploads_of
from ui.tabs.dataset import PANELS


def panel_of(services: Services) -> Any:
    """The functions as the page's scripts reach them: errors are answers."""
    assert IMPORT_PANEL in PANELS
    return SimpleNamespace(**{one.__name__: answered(one) for one in IMPORT_PANEL.functions(services)})


def picture_bytes(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def send(services: Services, upload_id: str, **files: bytes) -> None:
    """As the browser does, without a login."""

    async def body(data: bytes) -> AsyncIterator[bytes]:
        yield data

    for name, data in files.items():
        sent = name.replace("__", "/").replace("_dot_", ".")
        asyncio.run(uploads_of(services).get("", upload_id).take(sent, 0, len(data), body(data)))


def over(services: Services, answer: dict[str, Any]) -> TaskView:
    """The task that an answer names, once it has ended."""
    assert "error" not in answer, answer
    assert services.studio.tasks.wait(60)
    return services.studio.tasks.get(answer["task"])


@pytest.fixture(autouse=True)
def no_served_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever test came before: without a private folder of a served page uploads lie in the workspace."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)


def test_what_was_sent_is_imported_and_the_rest_is_told(services: Services) -> None:
    panel = panel_of(services)
    archive = write_zip(services.workspace.path / "x.zip", Member("z.png", picture_bytes("green"))).read_bytes()
    send(services, "u1", a_dot_png=picture_bytes(), a_dot_txt=b"a red <b>square</b>", b_dot_txt=b"alone")
    send(
        services,
        "u1",
        bad_dot_png=b"no picture",
        **{"5_hats__c_dot_png": picture_bytes("blue"), "set_dot_zip": archive},
    )
    view = over(services, panel.import_sent({"dataset": " mine ", "upload": "u1", "files": 6}))
    assert (view.state, view.dataset, view.kind) == ("done", "mine", "import")
    assert view.message == "3 pictures added to mine, 1 with a caption. 2 left out."
    assert {name for name, _ in view.skipped} == {"b.txt", "bad.png"}
    assert "bad.png is not a PNG" in dict(view.skipped)["bad.png"]
    dataset = services.studio.open("mine")
    assert set(dataset.pictures()) == {"a.png", "5_hats/c.png", "z.png"}
    assert dataset.captions() == {"a.png": "a red <b>square</b>"}
    assert not list((services.workspace.cache_dir / "studio").iterdir())
    assert "Send it again" in panel.import_sent({"dataset": "mine", "upload": "u1", "files": 6})["error"]
    send(services, "u1", late_dot_png=picture_bytes())  # after a restart, only the last files are here
    assert "Send it again" in panel.import_sent({"dataset": "mine", "upload": "u1", "files": 7})["error"]
    assert not list((services.workspace.cache_dir / "studio").iterdir())


def test_a_file_that_did_not_come_whole_is_told_and_costs_nothing_else(services: Services) -> None:
    panel = panel_of(services)

    async def half() -> AsyncIterator[bytes]:
        yield picture_bytes()[:40]

    send(services, "u1", a_dot_png=picture_bytes())
    asyncio.run(uploads_of(services).get("", "u1").take("half.png", 0, 4000, half()))
    view = over(services, panel.import_sent({"dataset": "mine", "upload": "u1", "files": 1}))
    assert view.state == "done" and dict(view.skipped) == {"half.png": "it did not come whole"}


def test_what_is_not_wanted_any_more_is_deleted(services: Services) -> None:
    panel = panel_of(services)
    send(services, "u1", a_dot_png=picture_bytes())
    assert len(list((services.workspace.cache_dir / "studio").iterdir())) == 1
    assert panel.drop_sent({"upload": "u1"}) == {}
    assert not list((services.workspace.cache_dir / "studio").iterdir())
    assert panel.drop_sent({"upload": "u1"}) == {}


def test_a_folder_and_an_archive_of_this_machine(services: Services, tmp_path: Path) -> None:
    panel = panel_of(services)
    assert panel.import_state(None)["where"].startswith("Its whole path")
    assert {".png", ".zip", ".txt", ".caption"} <= set(panel.import_state(None)["suffixes"])
    view = over(services, panel.import_path({"dataset": "copy", "path": str(INK_DIR)}))
    assert view.message == "30 pictures added to copy, 30 with a caption.", view
    archive = write_zip(tmp_path / "set.zip", Member("10_mira/a.png", picture_bytes()))
    assert over(services, panel.import_path({"dataset": "copy", "path": f' "{archive}" '})).state == "done"
    assert "10_mira/a.png" in services.studio.open("copy").pictures()


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ({"dataset": "ink", "path": str(INK_DIR)}, "embedded dataset"),
        ({"dataset": "../x", "path": str(INK_DIR)}, "cannot be used"),
        ({"dataset": "", "path": str(INK_DIR)}, "no dataset"),
        ({"dataset": "mine", "path": "/no/such/folder"}, "does not exist"),
        ({"dataset": "mine", "path": "relative"}, "not a whole path"),
        ({"dataset": "mine"}, "no path"),
        (None, "no dataset"),
    ],
)
def test_refusals_come_at_once_and_in_words(services: Services, argument: Any, reason: str) -> None:
    assert reason in panel_of(services).import_path(argument)["error"]
    assert services.studio.tasks.all() == []


def test_a_shared_page_reaches_only_its_import_folder(shared_services: Services, tmp_path: Path) -> None:
    services = shared_services
    panel = panel_of(services)
    assert "inside the folder import" in panel.import_state(None)["where"]
    assert "error" in panel.import_path({"dataset": "stolen", "path": str(INK_DIR)})
    inside = services.workspace.path / "import" / "set"
    inside.mkdir()
    (inside / "a.png").write_bytes(picture_bytes())
    assert over(services, panel.import_path({"dataset": "fine", "path": str(inside)})).state == "done"
    outside = write_zip(tmp_path / "set.zip", Member("b.png", picture_bytes()))
    assert "error" in panel.import_path({"dataset": "stolen", "path": str(outside)})
    fine = write_zip(services.workspace.path / "import" / "set.zip", Member("b.png", picture_bytes("blue")))
    assert over(services, panel.import_path({"dataset": "fine", "path": str(fine)})).state == "done"
    assert {info.name for info in services.studio.datasets() if not info.builtin} == {"fine"}


def test_an_address_is_looked_at_and_then_fetched_as_it_was_shown(services: Services, hubs: Hubs) -> None:
    services = replace(services, network=hubs.network())
    panel = panel_of(services)
    player = HuggingFacePlayer(hubs, "someone/boxes", {"a.png": picture_bytes(), "a.txt": b"a box"}, kind="datasets")
    player.publish()
    shown = panel.look_at_address({"address": "hf:someone/boxes"})
    assert shown["facts"][0].startswith("1 picture, ") and shown["name"] == "boxes" and shown["warnings"] == []
    assert shown["source"] == f"hf:someone/boxes@{COMMIT}"
    hubs.on(
        "huggingface.co", "/api/datasets/someone/boxes/revision/main", json_reply({"sha": "f" * 40, "siblings": []})
    )
    view = over(services, panel.import_from({"dataset": "boxes", "address": shown["source"], "most": 10, "column": ""}))
    assert view.message == "1 picture added to boxes, 1 with a caption."
    assert panel.look_at_address({"address": "hf:someone/boxes"})["error"].startswith(
        "someone/boxes has no Parquet files"
    )
    for wrong in ("", "https://elsewhere.example/a.zip", "/etc/passwd"):
        assert "error" in panel.look_at_address({"address": wrong})
    failed = over(services, panel.import_from({"dataset": "other", "address": "hf:someone/gone", "most": 10}))
    assert failed.state == "failed" and "other" not in {info.name for info in services.studio.datasets()}


def test_nothing_is_fetched_where_a_variable_names_another_hub(services: Services) -> None:
    downloads = Downloads(services.workspace, services.network, services.tokens, fault="HF_ENDPOINT is set.")
    panel = panel_of(replace(services, downloads=downloads))
    assert panel.look_at_address({"address": "hf:a/b"}) == {"error": "HF_ENDPOINT is set."}
    assert panel.import_from({"dataset": "x", "address": "hf:a/b", "most": 5}) == {"error": "HF_ENDPOINT is set."}
