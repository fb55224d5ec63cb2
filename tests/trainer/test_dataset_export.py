"""Datasets taken out: layouts, manifest, metadata, masks, and what is left when it does not end well."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from security.errors import Cancelled, RefusedConfig, SafelightError
from trainer.dataset.export import Layout, export_to, new_place
from trainer.dataset.masks import mask_file
from trainer.dataset.settings import DatasetSettings, Mark
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import TaskControl
from trainer.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def hats(studio: Studio) -> Dataset:
    dataset = studio.create("hats")
    for folder in ("10_red", "10_blue/deep", "plain"):
        (dataset.path / folder).mkdir(parents=True)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "where I live")
    exif = Image.Exif()
    exif[0x010F] = "my camera"
    Image.new("RGB", (40, 30), "red").save(dataset.path / "10_red/a.png", pnginfo=texts)
    Image.effect_noise((50, 40), 90).convert("RGB").save(dataset.path / "10_blue/deep/a.jpg", exif=exif)
    Image.new("RGB", (60, 40), "green").save(dataset.path / "plain/c.bmp")
    Image.new("RGB", (33, 32), "white").save(dataset.path / "plain/c.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(dataset.path / "top.webp", lossless=True)
    dataset.set_captions("x", {"10_red/a.png": "red hat", "plain/c.bmp": "hat_v1, green", "top.webp": ""})
    dataset.set_settings("s", DatasetSettings("hat_v1", {"plain": 3}, made_from="caps"))
    dataset.set_marks("m", {"10_red/a.png": Mark((0.25, 0.5), 2)})
    mask = dataset.path / "mask.part"
    Image.new("L", (40, 30), 255).save(mask, "PNG", pnginfo=texts)
    dataset.set_masks("k", {"10_red/a.png": mask.read_bytes()})
    mask.unlink()
    return dataset


def read(place: Path) -> dict[str, bytes]:
    """The files of an export, folder or zip."""
    if place.is_file():
        with zipfile.ZipFile(place) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(files["manifest.json"])
    return values


def test_folders_as_they_are(hats: Dataset, tmp_path: Path) -> None:
    control = TaskControl()
    report = export_to(hats, tmp_path / "out", Layout.FOLDERS, control)
    files = read(tmp_path / "out")
    assert set(files) == {
        "10_red/a.png", "10_red/a.txt", "10_blue/deep/a.jpg", "plain/c.png", "plain/c-2.png", "plain/c.txt", "plain/c-2.txt",
        "top.png", "top.txt", "masks/10_red/a.png", "manifest.json",
    }  # fmt: skip
    assert files["10_red/a.txt"] == b"red hat" and files["top.txt"] == b""
    assert not any(word in data for data in files.values() for word in (b"where I live", b"my camera"))
    assert report.num_pictures == 5 and report.sentence.startswith("5 pictures exported")
    with (
        Image.open(tmp_path / "out" / "10_blue/deep/a.jpg") as out,
        Image.open(hats.path / "10_blue/deep/a.jpg") as old,
    ):
        assert out.tobytes() == old.tobytes() and not out.getexif()
    with Image.open(tmp_path / "out" / "top.png") as image:
        assert image.getpixel((0, 0)) == (1, 2, 3, 4)


def test_the_manifest_says_what_everything_is(hats: Dataset, tmp_path: Path) -> None:
    export_to(hats, tmp_path / "out.zip", Layout.FOLDERS, TaskControl())
    files = read(tmp_path / "out.zip")
    told = manifest(files)
    pictures = {row.pop("picture"): row for row in told.pop("pictures")}
    expected = {"version": 1, "dataset": "hats", "made_from": "caps", "trigger_word": "hat_v1", "layout": "folders"}
    assert told == expected
    for name, row in pictures.items():
        assert row["sha256"] == hashlib.sha256(files[name]).hexdigest() and row["num_bytes"] == len(files[name])
    assert {name: row["repeats"] for name, row in pictures.items()} == {
        "10_red/a.png": 10, "10_blue/deep/a.jpg": 1, "plain/c.png": 3, "plain/c-2.png": 3, "top.png": 1,
    }  # fmt: skip
    red = pictures["10_red/a.png"]
    assert (red["size"], red["caption"]) == ([40, 30], "red hat")
    assert red["crop"] == {"focus": [0.25, 0.5], "zoom": 2} and red["mask"] == "masks/10_red/a.png"
    assert pictures["top.png"]["crop"] is None and pictures["top.png"]["mask"] is None
    assert pictures["10_blue/deep/a.jpg"]["caption"] is None


def test_the_layout_of_kohya(hats: Dataset, tmp_path: Path) -> None:
    export_to(hats, tmp_path / "out", Layout.KOHYA, TaskControl())
    files = read(tmp_path / "out")
    assert set(files) == {
        "10_hat_v1 red/a.png", "10_hat_v1 red/a.txt", "1_hat_v1 deep/a.jpg", "3_hat_v1 plain/c.png", "3_hat_v1 plain/c.txt",
        "3_hat_v1 plain/c-2.png", "3_hat_v1 plain/c-2.txt", "1_hat_v1 hats/top.png", "1_hat_v1 hats/top.txt",
        "masks/10_hat_v1 red/a.png", "manifest.json",
    }  # fmt: skip
    assert files["10_hat_v1 red/a.txt"] == b"hat_v1, red hat"
    assert files["3_hat_v1 plain/c.txt"] == b"hat_v1, green"


def test_folders_that_become_one_lose_nothing(studio: Studio, tmp_path: Path) -> None:
    dataset = studio.create("set")
    for folder, name in (("a/10_x", "p.png"), ("b/10_x", "p.png"), ("c/10_x", "p.jpg"), ("B", "p.png")):
        (dataset.path / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(dataset.path / folder / name)
        (dataset.path / folder / "p.txt").write_text(folder)
    export_to(dataset, tmp_path / "out", Layout.KOHYA, TaskControl())
    files = read(tmp_path / "out")
    captions = {row["picture"]: row["caption"] for row in manifest(files)["pictures"]}
    assert captions == {
        "10_x/p.png": "a/10_x", "10_x/p-2.png": "b/10_x", "10_x/p-3.jpg": "c/10_x", "1_B/p.png": "B",
    }  # fmt: skip
    assert all(files[f"{name[:-4]}.txt"].decode() == caption for name, caption in captions.items())


def test_the_same_dataset_gives_the_same_file(hats: Dataset, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        export_to(hats, tmp_path / name, Layout.KOHYA, TaskControl())
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_only_the_named_pictures(hats: Dataset, tmp_path: Path) -> None:
    export_to(hats, tmp_path / "out", Layout.FOLDERS, TaskControl(), ["top.webp", "gone.png"])
    assert set(read(tmp_path / "out")) == {"top.png", "top.txt", "manifest.json"}
    with pytest.raises(SafelightError, match="nothing to export"):
        export_to(hats, tmp_path / "none", Layout.FOLDERS, TaskControl(), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "workspace"]


def test_what_cannot_be_read_is_told_and_skipped(hats: Dataset, tmp_path: Path) -> None:
    (hats.path / "broken.png").write_bytes((hats.path / "plain/c.png").read_bytes()[:60])
    (hats.path / "10_red/a.txt").write_bytes(b"\xff")
    control = TaskControl()
    report = export_to(hats, tmp_path / "out", Layout.FOLDERS, control)
    assert (report.num_pictures, report.num_skipped) == (4, 2) and "2 left out" in report.sentence
    skipped = dict(control._now()[4])
    assert "broken" in skipped["broken.png"] and "UTF-8" in skipped["10_red/a.png"]


def test_a_cancelled_export_leaves_nothing(hats: Dataset, tmp_path: Path) -> None:
    class Ends(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            super().progress(done, total, text)
            if done == 2:
                self.cancel()

    for name in ("out", "out.zip"):
        with pytest.raises(Cancelled):
            export_to(hats, tmp_path / name, Layout.FOLDERS, Ends())
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def test_a_token_in_a_caption_does_not_go_out(hats: Dataset, tmp_path: Path) -> None:
    hats.set_captions("x", {"top.webp": "hf_" + "Ab3" * 12})
    with pytest.raises(RefusedConfig, match="manifest"):
        export_to(hats, tmp_path / "out", Layout.FOLDERS, TaskControl())
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def test_nothing_is_overwritten(hats: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.zip").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "mine.zip", "link"):
        with pytest.raises(SafelightError, match="is there already"):
            export_to(hats, tmp_path / name, Layout.FOLDERS, TaskControl())
        with pytest.raises(SafelightError, match="is there already"):
            new_place(str(tmp_path / name), None)
    assert (tmp_path / "mine.zip").read_bytes() == b"mine" and not any((tmp_path / "mine").iterdir())
    assert new_place(f" {tmp_path}/new.zip ", None) == tmp_path.resolve() / "new.zip"
    for bad in ("", "relative", "/proc/x", str(tmp_path / "none" / "x"), str(tmp_path / ".hidden"), "/"):
        with pytest.raises(SafelightError):
            new_place(bad, None)
    with pytest.raises(SafelightError, match="not inside"):
        new_place(str(tmp_path / "new"), [tmp_path / "mine"])


def test_an_embedded_dataset_can_go_out(studio: Studio, tmp_path: Path) -> None:
    assert export_to(studio.open("ink"), tmp_path / "ink.zip", Layout.KOHYA, TaskControl()).num_pictures == 30


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_masks_take_no_name_of_a_picture_or_of_another_mask(studio: Studio, tmp_path: Path, ending: str) -> None:
    dataset = studio.create("hats")
    (dataset.path / "masks").mkdir()
    for name, colour in {"a.jpg": "red", "a.png": "blue", "masks/a.png": "green"}.items():
        Image.new("RGB", (32, 32), colour).save(dataset.path / name)
    grey = {name: mask_file(Image.new("L", (32, 32), tone)) for name, tone in (("a.jpg", 10), ("a.png", 200))}
    dataset.set_masks("m", grey)
    place = tmp_path / f"out{ending}"
    export_to(dataset, place, Layout.FOLDERS, TaskControl())
    files = read(place)
    rows = manifest(files)["pictures"]
    assert len({name for row in rows for name in (row["picture"], row["mask"]) if name}) == 5
    tones = [Image.open(io.BytesIO(files[row["mask"]])).getpixel((0, 0)) for row in rows if row["mask"]]
    assert tones == [10, 200]
    assert all(hashlib.sha256(files[row["picture"]]).hexdigest() == row["sha256"] for row in rows)
