"""The panel "Export" and the route that its files are downloaded by."""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from security.errors import SafelightError
from tests.ui.conftest import make_services
from ui.services import Access, Services
from ui.studio.exporting import EXPORT_PANEL, export_routes


class Bench:
    """The panel's functions by name."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.form, self.start, self.remove = EXPORT_PANEL.functions(services)
        self.client = TestClient(Starlette(routes=export_routes(services)))

    def export(self, **argument: Any) -> str:
        """Exports and returns the report."""
        task = self.start({"dataset": "ink", "layout": "kohya", **argument})["task"]
        assert self.services.studio.tasks.wait(30)
        return self.services.studio.tasks.get(task).message

    def files(self) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = self.form({"dataset": "ink"})["files"]
        return files


@pytest.fixture
def bench(services: Services) -> Bench:
    return Bench(services)


def test_a_zip_is_made_downloaded_and_deleted(bench: Bench) -> None:
    assert bench.files() == []
    assert bench.export().startswith("30 pictures exported")
    (file,) = bench.files()
    assert file["name"] == "ink.zip" and str(bench.services.workspace.path) not in str(file)
    answer = bench.client.get(f"/{file['url']}")
    assert answer.status_code == 200 and "ink.zip" in answer.headers["content-disposition"]
    assert answer.headers["cache-control"] == "private, no-store"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert len(archive.namelist()) == 61 and "1_ink/01-rabbit-face.png" in archive.namelist()
    assert bench.form({"dataset": "ink_heldout"})["files"] == []
    assert "deleted" in bench.remove({"key": file["key"]})["text"]
    assert bench.files() == [] and bench.client.get(f"/{file['url']}").status_code == 404


def test_only_the_chosen_pictures_go_out(bench: Bench) -> None:
    assert bench.export(names=["01-rabbit-face.png", "30-robot.png"]).startswith("2 pictures")


def test_old_files_make_room(bench: Bench) -> None:
    bench.export()
    old = bench.services.workspace.cache_dir / "exports" / bench.files()[0]["key"]
    os.utime(old, (time.time() - 90_000,) * 2)
    bench.export()
    assert not old.exists() and len(bench.files()) == 1


@pytest.mark.parametrize(
    "path", ["x/ink.zip", "..%2F..%2Fx/ink.zip", f"{'0' * 32}/ink.zip", f"{'0' * 32}/..%2Fx.zip", "%00/x.zip"]
)
def test_other_addresses_lead_nowhere(bench: Bench, path: str) -> None:
    assert bench.client.get(f"/safelight/exports/{path}").status_code == 404


def test_only_finished_zip_files_are_served(bench: Bench) -> None:
    bench.export()
    folder = bench.services.workspace.cache_dir / "exports" / bench.files()[0]["key"]
    (folder / "ink.zip-1.part").write_bytes(b"unfinished")
    (folder / "other.txt").write_bytes(b"x")
    (folder / "link.zip").symlink_to(folder / "other.txt")
    for name in ("ink.zip-1.part", "other.txt", "link.zip"):
        assert bench.client.get(f"/safelight/exports/{folder.name}/{name}").status_code == 404


@pytest.mark.parametrize(
    "argument", [None, {}, {"dataset": "ink"}, {"dataset": "ink", "layout": "x"}, {"dataset": "none", "layout": "kohya"},
                 {"dataset": "ink", "layout": "kohya", "names": ["none"]}, {"dataset": "ink", "layout": "kohya", "names": 5}],
)  # fmt: skip
def test_senseless_requests_are_refused(bench: Bench, argument: Any) -> None:
    with pytest.raises(SafelightError):
        bench.start(argument)
    with pytest.raises(SafelightError):
        bench.remove({"key": "../../models"})


def test_a_folder_of_this_machine_only_for_who_sits_at_it(bench: Bench, tmp_path: Path) -> None:
    assert bench.form({"dataset": "ink"})["local"] is True
    assert str(tmp_path / "out") not in bench.export(
        place=str(tmp_path / "out")
    )  # a report is seen by all who can log in
    assert len(list((tmp_path / "out" / "1_ink").iterdir())) == 60 and bench.files() == []
    shared = Bench(make_services(tmp_path / "shared", Access(listen=True)))
    assert shared.form({"dataset": "ink"})["local"] is False
    with pytest.raises(SafelightError, match="open to others"):
        shared.start({"dataset": "ink", "layout": "kohya", "place": str(tmp_path / "more")})
