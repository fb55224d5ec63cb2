"""Every check on the pictures it is for, and every fix as one step that can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter, ImageOps

from security.errors import Cancelled, SafelightError
from security.images import open_image
from tests.messy import Messy, build_messy, encoded, ink, photo
from tests.taggers import put_tagger, real_tagger
from trainer.config.schema import TrainConfig
from trainer.dataset import cache_database, checking, looks
from trainer.dataset.caption_faults import contradictions, cut_off, finished, repeated, writing
from trainer.dataset.checking import Checking
from trainer.dataset.encodings import decoded
from trainer.dataset.fixes import FIXES, apply_fix, find_fix
from trainer.dataset.quality import CHECKS, Finding, Severity, problems_by_picture
from trainer.dataset.settings import DatasetSettings, Mark
from trainer.dataset.similar import find_similar
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

CONFIG = TrainConfig.model_validate({"dataset": {"resolution": 64}})


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def dataset(studio: Studio) -> Dataset:
    return studio.create("mine")


def put(dataset: Dataset, name: str, image: Image.Image, caption: str | None = "", **options: Any) -> None:
    path = dataset.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, **options))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption or f"a sound caption of {path.stem}", encoding="utf-8")


def found(studio: Studio, dataset: Dataset, config: TrainConfig = CONFIG, **options: Any) -> dict[str, Finding]:
    return {finding.kind: finding for finding in Checking(studio, dataset, config, **options).report().findings}


def files(dataset: Dataset) -> dict[str, str]:
    """Hashes of everything but the history."""
    return {
        path.relative_to(dataset.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.path.rglob("*")
        if path.is_file() and "history" not in path.name and "blobs" not in path.parts
    }


def fix(studio: Studio, dataset: Dataset, kind: str, name: str = "", **options: Any) -> str:
    return apply_fix(Checking(studio, dataset, CONFIG), kind, name or CHECKS[kind].fixes[0], **options)


@pytest.fixture
def sound(dataset: Dataset) -> Dataset:
    """Three photos that nothing is wrong with."""
    for name in ("coffee.png", "chelsea.png", "flower.jpg"):
        put(dataset, f"{name.partition('.')[0]}.png", photo(name).resize((300, 200)))
    return dataset


def test_nothing_is_found_in_sound_pictures(studio: Studio, sound: Dataset) -> None:
    report = Checking(studio, sound, CONFIG).report()
    assert not report.findings and report.sentence == "Nothing found in 3 pictures."
    assert report.step == 16 and report.step_is_known
    (sound.path / "lost.txt").write_text("nobody")  # is not one of the pictures that are counted
    report = Checking(studio, sound, CONFIG).report()
    assert report.sentence == "1 hint." and report.findings[0].sentence.startswith(
        "Caption without a picture: 1 caption."
    )
    told = apply_fix(Checking(studio, sound, CONFIG), "orphan_caption", "remove_caption")
    assert told == "1 caption taken out. Undo takes it back."
    (sound.path / "lost.txt").write_text("nobody")
    (sound.path / "flower.png").write_bytes((sound.path / "flower.png").read_bytes()[:900])
    assert Checking(studio, sound, CONFIG).report().sentence == "1 problem, 1 hint in 1 of 3 pictures."
    assert Checking(studio, studio.create("empty"), CONFIG).report().sentence == "empty has no pictures."


def test_the_embedded_pictures_are_checked_but_not_changed(studio: Studio) -> None:
    ours = studio.open("ink")
    assert not [one for one in found(studio, ours).values() if one.severity is Severity.PROBLEM]
    with pytest.raises(SafelightError, match="Copy it first"):
        fix(studio, ours, "blurred")


def red(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (200, 10, 10))


def moving(dataset: Dataset) -> None:
    data = encoded(photo("moon.png").resize((90, 90)), save_all=True, append_images=[red((90, 90))])
    (dataset.path / "bad.png").write_bytes(data)
    (dataset.path / "bad.txt").write_text("moon")


def half_clear() -> Image.Image:
    image = photo("moon.png").resize((200, 200)).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 90, 200))
    return image


def two_names(dataset: Dataset) -> None:
    put(dataset, "bad.png", photo("moon.png").resize((200, 200)))
    put(dataset, "bad.jpg", photo("brick.png").resize((200, 200)), format="JPEG")


def broken(dataset: Dataset) -> None:
    put(dataset, "bad.jpg", photo("moon.png"), format="JPEG")
    (dataset.path / "bad.jpg").write_bytes((dataset.path / "bad.jpg").read_bytes()[:4000])


def foreign(dataset: Dataset) -> None:
    put(dataset, "bad.png", photo("moon.png").resize((200, 200)))
    (dataset.path / "bad.txt").write_bytes("crème brûlée".encode("cp1252"))


def captioned(text: str | None) -> Callable[[Dataset], None]:
    return lambda dataset: put(dataset, "bad.png", photo("moon.png").resize((200, 200)), text)


def picture(image: Callable[[], Image.Image], **options: Any) -> Callable[[Dataset], None]:
    return lambda dataset: put(dataset, "bad.png", image(), **options)


MOON = "moon, space, crater"
BAD: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "unreadable": (broken, "broken or cut off"),
    "tiny": (picture(lambda: photo("moon.png").resize((20, 90))), "20×90, under 32"),
    "small": (picture(lambda: photo("moon.png").resize((50, 50))), "50×50, enlarged 1.3× for 64×64"),
    "extreme_shape": (picture(lambda: photo("moon.png").resize((900, 90))), "900×90, 83% is cut off"),
    "blank": (picture(lambda: red((200, 200))), "one tone"),
    "blurred": (picture(lambda: photo("moon.png").filter(ImageFilter.GaussianBlur(25))), "of the sharpness"),
    "border": (picture(lambda: ImageOps.expand(photo("moon.png"), (0, 60), "white")), "60 px top, 60 px bottom"),
    "animated": (moving, "2 pictures in one file"),
    "transparent": (picture(half_clear), "transparent: 45%"),
    "unusual_colours": (
        lambda dataset: put(dataset, "bad.jpg", photo("moon.png").convert("CMYK"), format="JPEG"),
        "CMYK",
    ),
    "duplicate": (lambda dataset: put(dataset, "bad.png", photo("coffee.png")), "has 1 copy"),
    "similar": (picture(lambda: ImageOps.mirror(photo("coffee.png"))), "has 1 copy"),
    "shared_caption": (two_names, "its caption is also that of"),
    "lone_size": (picture(lambda: photo("moon.png").resize((200, 330))), "alone at 48×80"),
    "no_caption": (captioned(None), "no caption"),
    "empty_caption": (captioned(" \n"), "the caption is empty"),
    "unreadable_caption": (foreign, "not UTF-8"),
    "long_caption": (captioned(", ".join(f"crater number {index}" for index in range(60))), "training reads 75"),
    "cut_caption": (captioned("a photo of the moon with many craters and a"), "breaks off at “craters and a”"),
    "contradiction": (captioned("moon, day, night, indoors"), "day and night"),
    "repeated_tag": (captioned("moon, space, Moon"), "more than once: moon"),
    "writing": (captioned("moon, watermark"), "watermark"),
    "orphan_caption": (lambda dataset: (dataset.path / "lost.txt").write_text("x") and None, "without its picture"),
}
"""A dataset of three sound pictures gets one bad one; the words that it is told with."""
LONE_CHECKS = set(CHECKS) - {"leak", "alike"}


def test_every_check_has_its_example() -> None:
    assert set(BAD) == LONE_CHECKS
    assert {name for check in CHECKS.values() for name in check.fixes} == set(FIXES)


@pytest.mark.parametrize("kind", BAD)
def test_a_check_finds_its_fault_and_every_fix_mends_it_in_one_step(kind: str, studio: Studio, sound: Dataset) -> None:
    make, words = BAD[kind]
    make(sound)
    sound.set_settings("trigger", DatasetSettings(trigger_word="mine"))
    before = files(sound)
    finding = found(studio, sound)[kind]
    assert any(words in note for note in finding.notes.values()), finding.notes
    assert finding.severity in Severity and finding.sentence.startswith(CHECKS[kind].title)
    for name in finding.fixes:
        told = fix(studio, sound, kind, name)
        assert told.startswith(f"1 {CHECKS[kind].counted}") or kind == "shared_caption", told
        assert kind not in found(studio, sound), name
        assert sound.history.undo().label.startswith(CHECKS[kind].title)
        assert files(sound) == before, name


def test_the_best_of_a_group_stays_and_gets_the_caption(studio: Studio, dataset: Dataset) -> None:
    put(dataset, "small.png", photo("coffee.png").resize((120, 80)), "a cup, from the small one")
    put(dataset, "large.png", photo("coffee.png"), None)
    put(dataset, "other.jpg", photo("coffee.png").resize((240, 160)), "cup", format="JPEG")
    (group,) = found(studio, dataset)["duplicate"].groups
    assert group == ("large.png", "other.jpg", "small.png")
    assert fix(studio, dataset, "duplicate") == "2 pictures taken out. Undo takes it back."
    assert dataset.pictures() == ["large.png"] and dataset.captions() == {"large.png": "a cup, from the small one"}


def test_a_border_doesnt_make_a_copy_the_better_one(studio: Studio, dataset: Dataset) -> None:
    put(dataset, "framed.png", ImageOps.expand(photo("coffee.png").resize((300, 200)), 100, "black"))
    put(dataset, "plain.png", photo("coffee.png").resize((330, 220)))
    finding = found(studio, dataset).get("duplicate") or found(studio, dataset)["similar"]
    assert finding.groups == (("plain.png", "framed.png"),)


def test_only_pictures_that_are_meant_and_still_found_are_changed(studio: Studio, sound: Dataset) -> None:
    for name in ("one", "two", "three"):
        put(sound, f"{name}.png", photo("moon.png").filter(ImageFilter.GaussianBlur(25 + len(name))))
    put(sound, "one.png", photo("brick.png"))  # another file since the report
    meant = ["one.png", "two.png", "coffee.png", "no such.png"]
    assert fix(studio, sound, "blurred", pictures=meant).startswith("1 picture taken out.")
    assert sound.pictures() == ["chelsea.png", "coffee.png", "flower.png", "one.png", "three.png"]
    assert fix(studio, sound, "blank") == "Nothing of the kind is left, so nothing was changed."
    with pytest.raises(SafelightError, match=r"no fix for 'blank'\. There are: remove"):
        fix(studio, sound, "blank", "split")
    with pytest.raises(SafelightError, match="There is no check 'nothing'"):
        find_fix("nothing", "remove")


def test_a_caption_stays_while_another_picture_has_it(studio: Studio, sound: Dataset) -> None:
    put(sound, "coffee.jpg", red((90, 90)), "a cup", format="JPEG")
    assert fix(studio, sound, "blank").startswith("1 picture taken out")
    assert sound.captions()["coffee.png"] == "a cup"
    (sound.path / "coffee.png").write_bytes(encoded(red((90, 90))))
    fix(studio, sound, "blank")
    assert not (sound.path / "coffee.txt").exists()


def test_mask_and_chosen_crop_follow_a_cut(studio: Studio, dataset: Dataset) -> None:
    image = ImageOps.expand(photo("moon.png").resize((200, 200)), (0, 100), "white")
    put(dataset, "framed.jpg", image, "moon", format="JPEG", quality=95)
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 100, 100, 300))
    dataset.set_masks("mask", {"framed.jpg": encoded(mask)})
    dataset.set_marks("mark", {"framed.jpg": Mark((0.5, 0.25), 2.0)})
    before = files(dataset)
    assert fix(studio, dataset, "border") == "1 picture cut. Undo takes it back."
    assert dataset.pictures() == ["framed.png"] and dataset.captions() == {"framed.png": "moon"}
    assert open_image(dataset.path / "framed.png").size == (200, 200)
    left = open_image(dataset.path / ".safelight/masks/framed.png.png")
    assert left.getpixel((50, 100)) == 255 and left.getpixel((150, 100)) == 0 and left.size == (200, 200)
    assert dataset.marks == {"framed.png": Mark((0.5, 0.0), 2.0)}
    assert not (dataset.path / ".safelight/masks/framed.jpg.png").exists()
    dataset.history.undo()
    assert files(dataset) == before


def test_long_pictures_become_pieces_with_their_caption(studio: Studio, dataset: Dataset) -> None:
    put(dataset, "strip/tall.jpg", photo("china.jpg").resize((150, 1000)), "a temple", format="JPEG")
    put(dataset, "strip/tall-2.png", photo("coffee.png").resize((300, 200)))
    assert fix(studio, dataset, "extreme_shape").startswith("1 picture cut into pieces.")
    names = ["tall-1.png", "tall-2-2.png", "tall-2.png", "tall-3.png", "tall-4.png", "tall-5.png"]
    assert dataset.pictures() == [f"strip/{name}" for name in names]
    assert dataset.captions()["strip/tall-2-2.png"] == "a temple"
    assert {open_image(dataset.path / f"strip/tall-{number}.png").size for number in (1, 3, 4, 5)} == {(150, 200)}


def test_leaks_between_training_and_held_out_pictures_are_found(studio: Studio, sound: Dataset) -> None:
    other = studio.create("held out")
    put(other, "x.png", ImageOps.mirror(photo("coffee.png").crop((60, 40, 560, 370))))
    put(other, "y.png", photo("chelsea.png").resize((300, 200)))
    put(other, "z.png", ink(3))
    for place in (sound, other):  # blank pictures can only be told by their bytes
        put(place, "black.png", Image.new("RGB", (90, 60)))
    leak = found(studio, sound, held_out="held out")["leak"]
    assert (
        set(leak.notes) == {"black.png", "coffee.png", "chelsea.png"}
        and "x.png of held out" in leak.notes["coffee.png"]
    )
    assert "leak" not in found(studio, sound)
    checking = Checking(studio, sound, CONFIG, "held out")
    assert apply_fix(checking, "leak", "remove").startswith("3 pictures taken out")
    assert sound.pictures() == ["flower.png"] and len(other.pictures()) == 4
    with pytest.raises(SafelightError, match="is the dataset itself"):
        Checking(studio, sound, CONFIG, "mine").report()


def test_a_tagger_tells_other_cuts_of_the_same_scene(studio: Studio, sound: Dataset) -> None:
    """By a network that was trained on photos: three cuts of one cat, of which none is simply a part of another."""
    put_tagger(studio.workspace, "lite", real_tagger())
    put(sound, "left.png", photo("chelsea.png").crop((0, 0, 260, 300)))
    put(sound, "right.png", photo("chelsea.png").crop((60, 20, 330, 300)))
    put(sound, "moon.png", photo("moon.png").resize((300, 200)))
    checking = Checking(studio, sound, CONFIG, tagger="lite")
    (finding,) = [one for one in checking.report().findings if one.kind == "alike"]
    assert [set(group) for group in finding.groups] == [{"chelsea.png", "left.png", "right.png"}]
    assert "alike" not in found(studio, sound)
    assert apply_fix(checking, "alike", "keep_largest").startswith("2 pictures taken out")
    with pytest.raises(SafelightError, match="not in the workspace yet"):
        Checking(studio, sound, CONFIG, tagger="wd-vit-tagger-v3").report()


def test_sizes_follow_the_settings_of_the_run(studio: Studio, sound: Dataset) -> None:
    large = TrainConfig.model_validate({"dataset": {"resolution": 512}, "model": {"base": "not here"}})
    report = Checking(studio, sound, large).report()
    small = next(finding for finding in report.findings if finding.kind == "small")
    assert len(small.notes) == 3 and not report.step_is_known and report.step == 64
    square = TrainConfig.model_validate({"dataset": {"resolution": 64, "aspect_buckets": False}})
    assert "33% is cut off" in found(studio, sound, square)["extreme_shape"].notes["coffee.png"]
    sound.set_marks("chosen", {"coffee.png": Mark((0.2, 0.5), 1.0)})
    assert "coffee.png" not in found(studio, sound, square)["extreme_shape"].notes


def test_a_check_can_be_cancelled_and_reports_progress(studio: Studio, sound: Dataset) -> None:
    told = []

    class Told(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            told.append((done, total, text))
            if text == "comparing pictures":
                self.cancel()

    with pytest.raises(Cancelled):
        Checking(studio, sound, CONFIG).report(Told())
    assert [entry for entry in told if entry[2] == "looking at pictures"] == [
        (number, 3, "looking at pictures") for number in range(3)
    ]


def test_only_new_pictures_are_compared_again(studio: Studio, sound: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counted(*sides: Any, **options: Any) -> Any:
        compared.append([len(side) for side in sides])
        return find_similar(*sides, **options)

    monkeypatch.setattr(checking, "find_similar", counted)
    assert "similar" not in found(studio, sound) and compared == [[3]]
    put(sound, "mirrored.png", ImageOps.mirror(photo("coffee.png")))
    put(sound, "twice.png", photo("chelsea.png").resize((300, 200)))
    first = found(studio, sound)
    assert compared[1:] == [[1], [1, 3]]  # the copy has the content of one that was compared before
    assert first["similar"].groups == (("mirrored.png", "coffee.png"),)
    assert first["duplicate"].groups == (("twice.png", "chelsea.png"),)
    assert found(studio, sound) == first and compared[3:] == [[0]]
    sound.remove_pictures("remove", ["mirrored.png"])
    assert set(found(studio, sound)) == {"duplicate"} and compared[4:] == [[0]]


def test_pictures_are_decoded_once(studio: Studio, sound: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(studio, sound)
    measured = []
    monkeypatch.setattr(looks, "measure", lambda image: measured.append(image) or pytest.fail("decoded again"))
    assert found(studio, sound) == first and not measured
    monkeypatch.undo()
    (studio.workspace.cache_dir / looks.FILE_NAME).write_bytes(b"no database" * 1000)
    cache_database._databases.clear()
    assert found(studio, sound) == first


def test_captions_of_tags() -> None:
    assert contradictions("1girl, solo, 2girls, smile") == [("2girls", "solo"), ("1girl", "2girls")]
    assert contradictions("solo, Long_Hair, short hair") == [("Long_Hair", "short hair")]
    assert contradictions("solo, blue eyes, red eyes") and not contradictions(
        "solo, blue eyes, red eyes, heterochromia"
    )
    assert not contradictions("1girl, 1boy, long hair, short hair, blue eyes, red eyes")
    assert not contradictions("A photo of a man by day. It is night, indoors, outdoors.")
    assert contradictions("cat, greyscale", is_colourful=True) == [("greyscale",)]
    assert not contradictions("cat, greyscale")
    assert repeated("a, b, A, c, b") == ["a", "b"] and not repeated(
        "A cat, a cat that sits on the mat by the door. Yes, yes."
    )
    assert writing("cat, Artist_Name, text") == ["Artist_Name", "text"] and writing(
        "A photo of a cat with a Watermark on it."
    )
    assert not writing("A woman who reads the text of a book at her desk.")


@pytest.mark.parametrize(
    ("caption", "words", "mended"),
    [
        ("a man standing in front of the", "front of the", "a man standing in front"),
        ("A cat sits. It looks at a bird that", "a bird that", "A cat sits."),
        ("1girl, solo, a girl who holds a sword with", "a sword with", "1girl, solo, a girl who holds a sword"),
        ("1girl, shirt tucked in", "", "1girl, shirt tucked in"),
        ("a cat on a mat", "", "a cat on a mat"),
        ("the who", "", "the who"),
        ("", "", ""),
    ],
)
def test_sentences_that_break_off(caption: str, words: str, mended: str) -> None:
    assert (cut_off(caption), finished(caption)) == (words, mended)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16", "a café in Zürich"), ("cp1252", "crème brûlée, café"), ("cp1252", "Straße mit Bäumen, „groß“"),
        ("shift_jis", "桜, 女の子"), ("cp1251", "кот, чашка кофе"),
        ("gb18030", "一只猫坐在窗边, 女孩"), ("euc_kr", "고양이, 소녀"),
    ],
)  # fmt: skip
def test_captions_of_other_encodings_are_read(encoding: str, text: str) -> None:
    assert decoded(text.encode(encoding)) == text
    assert decoded(b"\0\1\2\xff\xfe") is None


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Studio, Dataset, Messy]:
    studio = Studio(Workspace.open(tmp_path_factory.mktemp("messy")))
    heap = build_messy(studio.workspace.datasets_dir / "heap")
    return studio, studio.open("heap"), heap


def test_the_messy_folder_is_seen_through(messy: tuple[Studio, Dataset, Messy]) -> None:
    """Of 300 pictures that were damaged in known ways, each is found for what was done to it, and hardly another."""
    studio, dataset, heap = messy
    kinds, findings = heap.kinds, found(studio, dataset)
    told = {kind: set(finding.notes) for kind, finding in findings.items()}
    assert told["unreadable"] == set(kinds["broken"])
    assert told["tiny"] == set(kinds["tiny"])
    assert told["blank"] == set(kinds["blank"])
    assert told["border"] == set(kinds["border"])
    assert told["animated"] == set(kinds["animated"])
    assert told["transparent"] == set(kinds["transparent"])
    assert told["unusual_colours"] == set(kinds["cmyk"]) | set(kinds["16_bit"])
    assert told["extreme_shape"] == set(kinds["extreme"])
    assert told["unreadable_caption"] == set(kinds["foreign_caption"])
    assert told["orphan_caption"] == set(kinds["orphan_caption"])
    copies = {kind: set(kinds[kind]) for kind in ("duplicate", "resaved", "mirrored", "turned", "cropped")}
    assert (
        copies["duplicate"] | copies["resaved"]
        <= told["duplicate"]
        <= copies["duplicate"] | copies["resaved"] | set(kinds["original"])
    )
    like = copies["mirrored"] | copies["turned"] | copies["cropped"]
    assert like <= told["similar"] and len(told["similar"] - like - set(kinds["original"])) <= 4
    assert set(kinds["blurred"]) <= told["blurred"] and len(told["blurred"]) <= len(kinds["blurred"]) + 4
    assert set(kinds["no_caption"]) <= told["no_caption"] and set(kinds["empty_caption"]) == told["empty_caption"]
    per_picture = problems_by_picture(list(findings.values()))
    assert len(per_picture[kinds["cmyk"][0]]) >= 1


def test_the_messy_folder_is_mended_and_comes_back(messy: tuple[Studio, Dataset, Messy]) -> None:
    studio, dataset, _ = messy
    before = files(dataset)
    kinds = [kind for kind in CHECKS if kind not in ("leak", "similar")]
    for kind in kinds:
        fix(studio, dataset, kind)
    report, _ = Checking(studio, dataset, CONFIG).look(kinds, TaskControl())
    assert {finding.kind for finding in report.findings} <= {"no_caption", "empty_caption", "long_caption"}
    while dataset.history.next_steps()[0] is not None:
        assert not dataset.history.undo().left
    assert files(dataset) == before
