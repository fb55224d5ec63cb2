"""Bringing pictures in: every one decoded, captions beside them, nothing overwritten, each reason told, one step to undo."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from security.errors import Cancelled, RefusedFile, SafelightError
from tests.security.zip_files import HOSTILE, Member, write_zip, zip_bytes
from trainer.config.schema import DatasetConfig
from trainer.dataset import facts as facts_module
from trainer.dataset.export import Layout, export_to
from trainer.dataset.facts import facts_of
from trainer.dataset.importing import import_bundles, import_files, import_paths
from trainer.dataset.incoming import Bundle, Incoming, folder_bundle, sorted_out
from trainer.dataset.masks import mask_file
from trainer.dataset.scan import scan_folder
from trainer.dataset.settings import DatasetSettings, Mark, mask_path
from trainer.dataset.studio import Studio
from trainer.dataset.thumbnails import thumbnail_of
from trainer.tasks import TaskControl
from trainer.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "space"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def picture(color: str = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def put(folder: Path, **files: bytes | str) -> Path:
    """Writes files whose names have "__" for "/" and "_dot_" for the dot of the ending."""
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def brought(studio: Studio, name: str, *paths: Path) -> tuple[str, dict[str, str]]:
    """The report of an import: its sentence, and the reasons by name."""
    control = TaskControl()
    text = import_paths(studio, name, paths, control)
    return text, dict(control._now()[4])


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of a dataset, without those of our own."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".safelight" not in path.parts
    }


def test_a_folder_comes_in_with_captions_folders_and_reasons(studio: Studio, source: Path) -> None:
    put(
        source,
        a_dot_png=picture(),
        a_dot_txt=" a red\n square ",
        b_dot_jpg=picture("blue", kind="JPEG"),
        bad_dot_png=b"<html>",
    )
    put(source, **{"5_hats__c_dot_webp": picture(kind="WEBP"), "5_hats__c_dot_caption": "a hat", "notes_dot_md": b"x"})
    put(source, **{"alone_dot_txt": "no picture", ".hidden__d_dot_png": picture(), "d_dot_bmp": picture(kind="BMP")})
    text, reasons = brought(studio, "mira", source)
    assert text == "4 pictures added to mira, 2 with a caption. 3 left out."
    assert set(reasons) == {"bad.png", "alone.txt", "notes.md"}
    assert "It is a web page" in reasons["bad.png"] and reasons["notes.md"] == "a .md file"
    dataset = studio.open("mira")
    assert dataset.captions() == {"a.png": "a red square", "5_hats/c.png": "a hat"}
    assert set(contents(dataset.path)) == {"a.png", "a.txt", "b.jpg", "d.png", "5_hats/c.png", "5_hats/c.txt"}
    scan = scan_folder(dataset.path, DatasetConfig())
    assert {found.path.name: found.repeats for found in scan.pictures}["c.png"] == 5
    assert [path.name for path in (studio.workspace.cache_dir / "studio").iterdir()] == []


def test_one_undo_takes_all_of_it_back_and_redo_brings_it_again(studio: Studio, source: Path) -> None:
    for number in range(150):  # more than one batch
        put(
            source,
            **{f"p{number:03}_dot_png": picture("red", (16 + number, 8)), f"p{number:03}_dot_txt": f"text {number}"},
        )
    brought(studio, "mira", put(source.parent / "first", a_dot_png=picture("green")))
    dataset = studio.open("mira")
    before = contents(dataset.path)
    brought(studio, "mira", source)
    after = contents(dataset.path)
    assert len(after) == 301
    assert [edit.label for edit in dataset.history.edits()] == ["Import in", "Import first"]
    dataset.history.undo()
    assert contents(dataset.path) == before
    dataset.history.redo()
    assert contents(dataset.path) == after


def test_nothing_is_overwritten_and_what_is_there_comes_no_second_time(studio: Studio, source: Path) -> None:
    put(source, a_dot_png=picture(), a_dot_txt="red")
    brought(studio, "hats", source)
    text, _ = brought(studio, "hats", source)
    assert text == "0 pictures added to hats, 0 with a caption. 1 was there already."
    put(source, a_dot_txt="another text")
    assert brought(studio, "hats", source)[0].startswith("1 picture added")
    put(source, a_dot_png=picture("blue"), a_dot_jpg=picture("blue", kind="JPEG"))
    brought(studio, "hats", source)
    dataset = studio.open("hats")
    assert dataset.captions() == {
        "a.png": "red", "a-2.png": "another text", "a-3.jpg": "another text", "a-4.png": "another text"
    }  # fmt: skip
    assert Image.open(dataset.path / "a.png").getpixel((0, 0)) == (255, 0, 0)


def test_names_that_differ_by_case_or_are_impossible_get_another(studio: Studio, source: Path) -> None:
    put(source, sub__A_dot_png=picture("red"), sub__b_dot_png=picture("blue"))
    brought(studio, "hats", source)
    files = [("Sub/a.png", source / "sub" / "b.png"), ("con.png", source / "sub" / "b.png")]
    import_files(studio, "hats", files, TaskControl())
    assert set(studio.open("hats").pictures()) == {"sub/A.png", "sub/b.png", "Sub/a-2.png", "_con.png"}


def test_of_folders_without_end_the_nearest_stay(studio: Studio, source: Path) -> None:
    path = put(source, a_dot_png=picture()) / "a.png"
    deep = "/".join("d" * 150 for _ in range(40))
    import_files(studio, "hats", [(f"{deep}/x/10_mira/a.png", path), ("b.png", path)], TaskControl())
    (name,) = [name for name in studio.open("hats").pictures() if name.endswith("10_mira/a.png")]
    assert name.count("/") == 4


def test_a_picture_whose_caption_is_refused_is_left_out_whole(studio: Studio, source: Path) -> None:
    put(source, a_dot_png=picture(), a_dot_txt=b"\0\1\2\xff")
    control = TaskControl()
    with pytest.raises(SafelightError, match=r"No picture could be taken; nothing was changed\. 1 left out"):
        import_paths(studio, "hats", [source], control)
    assert "not UTF-8" in dict(control._now()[4])["a.png"]
    with pytest.raises(SafelightError, match="There are no pictures in it"):
        brought(studio, "hats", put(source.parent / "empty", **{".keep": b""}))
    assert "hats" not in {info.name for info in studio.datasets()}
    put(source, b_dot_png=picture(), a_dot_txt="Käse")
    text, reasons = brought(studio, "hats", source)
    assert text.startswith("2 pictures") and reasons == {}


def test_captions_in_other_encodings_come_along_and_are_named(studio: Studio, source: Path) -> None:
    put(source, a_dot_png=picture(), a_dot_txt="Käse,\nBrot".encode("cp1252"))
    put(source, b_dot_png=picture("blue"), b_dot_txt="桜, 女の子".encode("shift_jis"))
    put(source, c_dot_png=picture("green"), c_dot_txt="été")
    text, reasons = brought(studio, "mira", source)
    assert studio.open("mira").captions() == {"a.png": "Käse, Brot", "b.png": "桜, 女の子", "c.png": "été"}
    assert text == (
        "3 pictures added to mira, 3 with a caption. 2 captions not UTF-8: the signs are a guess, look at them (a.png, b.png)."
    )
    assert reasons == {}


def exported(studio: Studio, place: Path, layout: Layout) -> dict[str, str]:
    """Exports a dataset with everything that can be said of pictures; its files, as `contents` has them."""
    heap = put(place.parent / "heap", a_dot_png=picture(size=(90, 60)), a_dot_txt="mira, a hat")
    put(heap, c_dot_png=picture("blue"), **{"5_hats__b_dot_jpg": picture(kind="JPEG"), "5_hats__e_dot_png": picture()})
    brought(studio, "mira", put(heap, far__away__d_dot_png=picture("white")))
    dataset = studio.open("mira")
    dataset.set_settings("s", DatasetSettings("mira", {"": 4, "far/away": 2}))
    dataset.set_marks("m", {"a.png": Mark((0.25, 0.75), 2.0), "5_hats/b.jpg": Mark((0.5, 0.5), 3.0)})
    dataset.set_masks("m", {"a.png": mask_file(Image.linear_gradient("L").resize((90, 60)))})
    export_to(dataset, place, layout, TaskControl())
    return contents(dataset.path)


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_an_export_comes_back_as_it_was(studio: Studio, tmp_path: Path, ending: str) -> None:
    before = exported(studio, tmp_path / f"out{ending}", Layout.FOLDERS)
    text, reasons = brought(studio, "again", tmp_path / f"out{ending}")
    old, new = studio.open("mira"), studio.open("again")
    assert contents(new.path) == before and reasons == {} and text.startswith("5 pictures added")
    assert (new.settings, new.marks) == (old.settings, old.marks)
    assert mask_path(new.path, "a.png").read_bytes() == mask_path(old.path, "a.png").read_bytes()
    assert new.history.undo().num_files and new.pictures() == [] and new.marks == {} and new.settings.repeats == {}


def test_an_export_in_kohyas_layout_keeps_what_belongs_to_pictures(studio: Studio, tmp_path: Path) -> None:
    exported(studio, tmp_path / "out", Layout.KOHYA)
    brought(studio, "again", tmp_path / "out")
    again = studio.open("again")
    scanned = {one.name: one for one in scan_folder(again.path, DatasetConfig(), use_masks=True).pictures}
    assert {name: one.repeats for name, one in scanned.items()} == {
        "4_mira/a.png": 4, "4_mira/c.png": 4, "5_mira hats/b.jpg": 5, "5_mira hats/e.png": 5, "2_mira away/d.png": 2
    }  # fmt: skip
    assert scanned["4_mira/a.png"].mark == Mark((0.25, 0.75), 2.0) and scanned["4_mira/a.png"].mask is not None
    assert again.settings.trigger_word == "mira"


def test_an_export_changes_no_settings_of_a_dataset_that_is_there(studio: Studio, source: Path, tmp_path: Path) -> None:
    exported(studio, tmp_path / "out", Layout.FOLDERS)
    brought(studio, "hats", put(source, z_dot_png=picture("yellow")))
    brought(studio, "hats", tmp_path / "out")
    assert studio.open("hats").settings == DatasetSettings() and "a.png" in studio.open("hats").marks


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"version": 2}, "has version 2"),
        ({"trigger_word": "x" * 300}, "trigger_word is"),
        ({"pictures": [{"picture": "a.png", "repeats": 0}]}, "not 1 to 1000"),
        ({"pictures": [{"picture": "a.png", "crop": {"focus": [2, 0]}}]}, "two numbers from 0 to 1"),
        ({"pictures": [{"picture": "a.png", "mask": 5}]}, "no file name"),
        ({"pictures": ["a.png"]}, "no picture"),
        ({"pictures": {}}, "a .json file"),
    ],
)
def test_a_manifest_that_is_no_good_costs_no_picture(source: Path, manifest: dict[str, object], reason: str) -> None:
    values = {"version": 1, "dataset": "mira", "layout": "folders", "pictures": [], **manifest}
    put(source, a_dot_png=picture(), manifest_dot_json=json.dumps(values), other_dot_json="{}")
    bundle = folder_bundle(source)
    assert [(one.name, one.told) for one in bundle.pictures] == [("a.png", None)] and bundle.trigger_word == ""
    assert reason in dict(bundle.skipped)["manifest.json"] and dict(bundle.skipped)["other.json"] == "a .json file"


def test_a_mask_that_does_not_fit_is_left_out_and_told(studio: Studio, source: Path) -> None:
    rows = [
        {"picture": f"{name}.png", "mask": mask} for name, mask in (("a", "m.png"), ("b", "a.png"), ("gone", "c.png"))
    ]
    put(source, manifest_dot_json=json.dumps({"version": 1, "dataset": "x", "layout": "folders", "pictures": rows}))
    put(
        source,
        a_dot_png=picture(),
        b_dot_png=picture("blue"),
        c_dot_png=picture("green"),
        m_dot_png=picture(size=(9, 9)),
    )
    _, reasons = brought(studio, "mira", source)
    assert reasons == {"m.png": "it is a mask of another size than its picture"}
    assert studio.open("mira").pictures() == ["a.png", "b.png", "c.png"]


def test_captions_are_found_under_every_usual_name(source: Path) -> None:
    put(source, a_dot_png=b"1", a_dot_TXT="capitals", b_dot_jpg=b"1", b_dot_jpg_dot_txt="behind the ending")
    put(source, c_dot_png=b"1", c_dot_txt="first", c_dot_caption="second", d_dot_png=b"1", d_dot_caption="")
    bundle = folder_bundle(source)
    assert {one.name: one.caption for one in bundle.pictures} == {
        "a.png": "capitals", "b.jpg": "behind the ending", "c.png": "first", "d.png": ""
    }  # fmt: skip
    assert bundle.skipped == (("c.caption", "c.txt is the caption of the same picture"),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one\\u2028line"}\n\n{"file_name": "sub/b.png", "text": "two"}\n',
        ),
        ("metadata.csv", 'file_name,text\na.png,"one\nline"\nsub/b.png,two\n'),
        (
            "metadata.jsonl",
            '{"file_name": "./a.png", "Tags": ["one line"]}\n{"file_name": "sub\\\\b.png", "Tags": ["two"]}',
        ),
        ("METADATA.CSV", "image,caption\na.png,one line\nsub/b.png,two\nc.png,gone\n"),
    ],
)
def test_captions_of_a_metadata_file(source: Path, name: str, text: str) -> None:
    put(source, a_dot_png=b"1", sub__b_dot_png=b"1", zz_dot_png=b"1")
    (source / name).write_text(text, encoding="utf-8")
    bundle = folder_bundle(source)
    assert {one.name: one.caption for one in bundle.pictures} == {
        "a.png": "one line",
        "sub/b.png": "two",
        "zz.png": None,
    }
    gone = [("c.png", "has a caption in the metadata, but did not come along")] if "gone" in text else []
    assert list(bundle.skipped) == gone


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("metadata.jsonl", b"{\n", "Line 1 of metadata.jsonl is not JSON"),
        ("metadata.jsonl", b"[" * 100_000, "is not JSON"),
        ("metadata.jsonl", b"[1]", "no JSON object"),
        ("metadata.jsonl", b'{"path": "a.png", "text": "x"}', "no column file_name. Its columns are path, text"),
        ("metadata.csv", b"file_name,width\na.png,5\n", "no column of captions"),
        ("metadata.csv", b"file_name,text\na.png,\xff\n", "not UTF-8"),
        ("metadata.csv", b"file_name,text\na.png," + b"x" * 200_000, "not a CSV table"),
        ("other.csv", b"file_name,text\na.png,x\n", "only metadata.jsonl and metadata.csv"),
    ],
)
def test_a_metadata_file_that_is_no_good_costs_no_picture(source: Path, name: str, data: bytes, reason: str) -> None:
    put(source, a_dot_png=picture())
    (source / name).write_bytes(data)
    bundle = folder_bundle(source)
    assert [(one.name, one.caption) for one in bundle.pictures] == [("a.png", None)]
    assert reason in dict(bundle.skipped)[name]


def test_the_folder_around_everything_goes_but_not_one_that_says_repeats(source: Path) -> None:
    files = {"my set/img/a.png": source, "my set/img/b.png": source}
    assert [one.name for one in sorted_out(files).pictures] == ["a.png", "b.png"]
    files = {"my set/10_mira/a.png": source, "my set/b.png": source}
    assert [one.name for one in sorted_out(files).pictures] == ["10_mira/a.png", "b.png"]
    files = {"my set/10_mira/a.png": source}
    assert [one.name for one in sorted_out(files).pictures] == ["10_mira/a.png"]
    put(source, **{"10_mira__a_dot_png": b"1"})
    assert [one.name for one in folder_bundle(source / "10_mira").pictures] == ["10_mira/a.png"]


def test_an_archive_comes_in_with_its_folders_and_the_rest_is_told(studio: Studio, tmp_path: Path) -> None:
    members = {
        "10_mira/a.png": picture(), "10_mira/a.txt": b"a red square", "b.png": picture("blue"), "alone.txt": b"no picture",
        "bad.png": b"<html>", "run.exe": b"MZ", "__MACOSX/._b.png": b"x",
    }  # fmt: skip
    archive = write_zip(tmp_path / "set.ZIP", *[Member(name, data) for name, data in members.items()])
    text, reasons = brought(studio, "mine", archive, put(tmp_path / "more", c_dot_png=picture("green")) / "c.png")
    assert text == "3 pictures added to mine, 1 with a caption. 4 left out."
    assert reasons["run.exe"] == "a .exe file" and reasons["alone.txt"] == "a caption without its picture"
    assert reasons["1 hidden file"] == "names with a dot in front, or of macOS"
    assert set(studio.open("mine").pictures()) == {"10_mira/a.png", "b.png", "c.png"}


@pytest.mark.parametrize("case", ["climbs out", "link", "bomb", "encrypted", "files share bytes", "tar", "late damage"])
def test_a_hostile_archive_adds_nothing_and_leaves_nothing(studio: Studio, tmp_path: Path, case: str) -> None:
    """Also not the sound files that were chosen together with it."""
    bad = Member("z.png", b"x", local={"checksum": 1}, central={"checksum": 1})
    data = HOSTILE[case][0]() if case in HOSTILE else zip_bytes([Member("a.png", picture()), bad])
    folder = put(tmp_path / "up", set_dot_zip=data, ok_dot_png=picture())
    with pytest.raises(RefusedFile, match=r"set\.zip"):
        brought(studio, "mine", folder / "ok.png", folder / "set.zip")
    assert not list(studio.workspace.datasets_dir.iterdir())
    assert not list((studio.workspace.cache_dir / "studio").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"space", "up"}, "nothing came out beside it"


def test_of_animations_the_first_frame_comes_and_that_is_told(studio: Studio, source: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(source / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    text, _ = brought(studio, "mira", source)
    assert "Of 1 animation the first frame came in (moving.png)." in text
    assert Image.open(studio.open("mira").path / "moving.png").getpixel((5, 5)) == (255, 0, 0)


def test_facts_and_thumbnails_are_there_before_anybody_asks(
    studio: Studio, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(source, a_dot_jpg=picture("red", (700, 500), "JPEG"), b_dot_webp=picture("blue", (300, 400), "WEBP"))
    brought(studio, "mira", source)

    def read_again(path: Path) -> bytes:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(facts_module, "read_picture", read_again)
    monkeypatch.setattr("trainer.dataset.thumbnails.thumbnail_file", lambda path, _side: read_again(path))
    dataset = studio.open("mira")
    for name, size in (("a.jpg", (256, 183)), ("b.png", (192, 256))):
        path = dataset.path / name
        facts = facts_of(studio.workspace, path)
        assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (facts.width, facts.height) == Image.open(path).size
        assert facts.format == Image.open(path).format
        small = thumbnail_of(studio.workspace, path)
        assert Image.open(small).size == size


def test_a_cancelled_import_keeps_what_came_and_can_be_finished(studio: Studio, source: Path) -> None:
    for number in range(40):
        put(source, **{f"p{number:02}_dot_png": picture("red", (16 + number, 8))})
    control = TaskControl()
    bundle = folder_bundle(source)

    def bundles() -> object:
        yield Bundle(bundle.pictures[:10])
        control.cancel()
        yield Bundle(bundle.pictures[10:])

    text = import_bundles(studio, "mira", "Import", bundles(), control, total=40)
    assert text.startswith("Cancelled after 10 of 40 pictures; what came in stays. 10 pictures added")
    dataset = studio.open("mira")
    assert len(dataset.pictures()) == 10
    assert brought(studio, "mira", source)[0] == ("30 pictures added to mira, 0 with a caption. 10 were there already.")
    assert len(dataset.pictures()) == 40
    dataset.history.undo()
    dataset.history.undo()
    assert dataset.pictures() == []


def test_an_import_can_be_cancelled_while_an_archive_is_unpacked(studio: Studio, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "set.zip", Member("a.png", picture()))
    control = TaskControl()
    control.cancel()
    with pytest.raises(Cancelled):
        import_paths(studio, "mine", [archive], control)
    assert not list(studio.workspace.datasets_dir.iterdir())


def test_work_is_done_on_two_threads_and_in_order(
    studio: Studio, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.dataset import importing

    meet = threading.Barrier(2, timeout=20)
    clean_copy = importing.clean_copy

    def together(path: Path, side: int) -> object:
        meet.wait()  # passes only if two are at it at the same time
        return clean_copy(path, side)

    monkeypatch.setattr(importing, "clean_copy", together)
    for number in range(8):
        put(source, **{f"p{number}_dot_png": picture("red", (16 + number, 8))})
    brought(studio, "mira", source)
    seen = [Image.open(studio.open("mira").path / f"p{number}.png").width for number in range(8)]
    assert seen == list(range(16, 24))


def test_batches_may_be_as_small_as_one_picture(studio: Studio, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.dataset.importing.BATCH_FILES", 1)
    monkeypatch.setattr("trainer.dataset.importing.MAX_AHEAD", 1)  # so that the staging folder is empty in between
    for number in range(30):
        put(source, **{f"p{number:02}_dot_png": picture("red", (16 + number, 8))})
    assert brought(studio, "mira", source)[0].startswith("30 pictures")
    assert len(studio.open("mira").history.edits()) == 1


def test_names_of_datasets_are_checked_first(studio: Studio, source: Path) -> None:
    put(source, a_dot_png=picture())
    with pytest.raises(SafelightError, match="embedded dataset"):
        brought(studio, "ink", source)
    for name in ("../out", "", "a/b", "con"):
        with pytest.raises(SafelightError):
            brought(studio, name, source)
    assert not list(studio.workspace.datasets_dir.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_not_followed(studio: Studio, source: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", secret_dot_png=picture())
    put(source, a_dot_png=picture())
    (source / "linked.png").symlink_to(outside / "secret.png")
    (source / "linked").symlink_to(outside)
    skipped: list[tuple[str, str]] = []

    class Told(TaskControl):
        def skip(self, name: str, reason: str) -> None:
            skipped.append((name, reason))

    import_paths(studio, "mira", [source], Told())
    assert studio.open("mira").pictures() == ["a.png"]
    assert dict(skipped) == dict.fromkeys(("linked", "linked.png"), "a link, and links are not followed")


def test_hidden_files_and_foreign_names_of_a_bundle_stay_below_the_dataset(studio: Studio, source: Path) -> None:
    path = put(source, a_dot_png=picture()) / "a.png"
    bundle = Bundle(
        (Incoming("../../x.png", path, "up"), Incoming("/etc/y.png", path, None), Incoming("C:\\z.png", path, None))
    )
    import_bundles(studio, "mira", "Import", [bundle], TaskControl())
    dataset = studio.open("mira")
    assert len(dataset.pictures()) == 3
    assert [path.name for path in studio.workspace.datasets_dir.iterdir()] == ["mira"]
    assert all(".." not in name for name in dataset.pictures())
