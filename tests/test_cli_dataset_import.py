"""`dataset import`: folders, archives and files, an address through a mirror, faults as sentences, undo."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.hubs.huggingface import HuggingFacePlayer
from tests.hubs.server import Hubs, loopback_hubs
from tests.security.zip_files import Member, write_zip
from trainer.dataset.studio import Studio
from trainer.workspace import Workspace
from ui import cli


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return Studio(Workspace.open())


@pytest.fixture
def mirror() -> Iterator[Hubs]:
    with loopback_hubs(tls=False) as running:
        yield running


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(buffer, "PNG")
    return buffer.getvalue()


def run(*arguments: str) -> int:
    return cli.main(["dataset", "import", *arguments])


def test_folders_archives_and_files_come_in_at_once(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("red"))
    (folder / "a.txt").write_text("a red box", encoding="utf-8")
    (folder / "bad.png").write_bytes(b"<html>")
    (tmp_path / "b.png").write_bytes(png("blue"))
    write_zip(tmp_path / "set.zip", Member("10_mira/c.png", png("lime")))
    monkeypatch.chdir(tmp_path)
    assert run("mira", "in", "set.zip", "./b.png") == 0
    told = capsys.readouterr().out
    assert "3 pictures added to mira, 1 with a caption. 1 left out." in told
    assert "left out: bad.png: bad.png is not a PNG" in told
    dataset = studio.open("mira")
    assert dataset.pictures() == ["10_mira/c.png", "a.png", "b.png"]
    assert dataset.captions() == {"a.png": "a red box"}
    assert run("mira", "in", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["state"], again["message"]) == (
        "done", "0 pictures added to mira, 0 with a caption. 1 was there already. 1 left out."
    )  # fmt: skip
    assert cli.main(["dataset", "undo", "mira"]) == 0
    assert dataset.pictures() == []


def test_a_dataset_of_a_hub_comes_in(studio: Studio, mirror: Hubs, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"p{number}.png": png(color) for number, color in enumerate(("red", "blue", "lime"))}
    files["metadata.csv"] = b"file_name,text\np0.png,a red box\n"
    HuggingFacePlayer(mirror, "someone/boxes", files, host="*", storage=None, kind="datasets").publish()
    assert run("boxes", "hf:someone/boxes", "--most", "2", "--hf-endpoint", mirror.origin) == 0
    told = capsys.readouterr().out
    assert "3 pictures, " in told and "Licence: openrail++" in told
    assert "2 pictures added to boxes, 1 with a caption." in told
    assert studio.open("boxes").captions() == {"p0.png": "a red box"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ink", "."), "embedded dataset"),
        (("../x", "."), "cannot be used"),
        (("mira", "no-such-folder"), "does not exist"),
        (("mira", "hf:a/b", "."), "Import it alone"),
        (("mira", "https://elsewhere.example/a.zip"), "not a host"),
        (("mira", "hf:someone"), "not the id of a repository"),
    ],
)
def test_faults_are_sentences_and_make_no_dataset(
    studio: Studio, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert run(*arguments) != 0
    told = capsys.readouterr()
    assert words in told.out + told.err
    assert not list(studio.workspace.datasets_dir.iterdir())


def test_a_folder_without_pictures_is_a_failure(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run("mira", str(tmp_path / "empty")) == 1
    assert "There are no pictures in it" in capsys.readouterr().out


def test_a_variable_does_not_choose_where_from(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert run("mira", "hf:a/b") != 0
    assert "HF_ENDPOINT is set" in capsys.readouterr().err
