"""Taggers: what the networks are given and what becomes of their answers, on tiny networks and on a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from security.errors import RefusedFile, SafelightError
from tests.taggers import (
    COLOUR_TAGS,
    ROOT,
    WD,
    colour_tagger,
    files_of,
    joy_tagger,
    photo,
    plain,
    real_tagger,
    row_of,
    write_tags,
)
from trainer.tagging.base import (
    Category,
    Description,
    Tag,
    TaggerRow,
    TaggingOptions,
    find_tagger,
    row_faults,
    taggers,
)
from trainer.tagging.compose import caption_of, combined, merged
from trainer.tagging.onnx_session import wanted_providers
from trainer.tagging.taggers import OnnxTagger, on_square, read_labels

ALL = TaggingOptions(general_threshold=0.0, character_threshold=0.0)


def loaded(folder: Path, settings: dict[str, object] | None = None, options: TaggingOptions = ALL) -> OnnxTagger:
    tagger = OnnxTagger(options, row_of(settings))
    assert tagger.load(files_of(folder), "cpu") == "CPU"
    return tagger


def said(tagger: OnnxTagger, *images: Image.Image) -> list[dict[str, float]]:
    answers = tagger.describe([tagger.prepare(image) for image in images])
    return [{tag.name: round(tag.score, 3) for tag in answer} for answer in answers]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_tagger(tmp_path_factory.mktemp("colours"))


# ---- the table ---------------------------------------------------------------------------------------------------


def test_every_row_of_the_catalog_is_sound_and_can_be_made() -> None:
    assert [fault for row in taggers().values() for fault in row_faults(row)] == []
    assert TaggingOptions().models[0] in taggers()
    for row in taggers().values():
        assert row.make(TaggingOptions()) is not None


def test_the_taggers_that_people_expect_are_there() -> None:
    third = {f"wd-{kind}-tagger-v3" for kind in ("eva02-large", "vit-large", "swinv2", "convnext", "vit")}
    older = {f"wd-v1-4-{kind}-tagger-v2" for kind in ("swinv2", "moat", "convnext", "convnextv2", "vit")}
    assert third | older | {"wd-v1-4-convnext-tagger", "wd-v1-4-vit-tagger", "joytag"} <= set(taggers())
    for name in third | {"joytag"}:
        row = taggers()[name]
        assert row.revision and row.num_bytes > 3e8 and all(row.known[file].sha256 for file in row.files), name


def test_a_near_name_is_offered() -> None:
    with pytest.raises(SafelightError, match="Did you mean wd-vit-tagger-v3"):
        find_tagger("wd-vit-tager-v3")
    assert find_tagger("JoyTag").name == "joytag"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"source": "no-owner"}, "owner/name"),
        ({"loader": "os:system"}, "class of this package"),
        ({"revision": "main"}, "whole commit"),
        ({"licence": "mit"}, "licence and its evidence"),
        ({"why": ""}, "reason is missing"),
    ],
)
def test_faulty_rows_are_found(change: dict[str, str], fault: str) -> None:
    values = {**row_of().__dict__, **change}
    assert any(fault in found for found in row_faults(TaggerRow(**values)))


# ---- what the network is given -----------------------------------------------------------------------------------


def test_wd_taggers_get_bgr_from_0_to_255_on_a_white_square(colours: Path) -> None:
    wide = said(loaded(colours), plain("#ff0000", (64, 32)))[0]  # half of the square is white
    assert wide["red_thing"] == 1.0
    assert wide["green_thing"] == wide["blue_thing"] == pytest.approx(0.5, abs=0.02)
    square, blue = said(loaded(colours), plain("#804020"), plain("#0000ff"))
    assert [square[f"{name}_thing"] for name in ("red", "green", "blue")] == [0.502, 0.251, 0.125]
    assert (blue["red_thing"], blue["blue_thing"]) == (0.0, 1.0)


def test_joytag_gets_rgb_normalised_as_clip_and_its_answers_are_logits(tmp_path: Path) -> None:
    settings = dict(taggers()["joytag"].settings)
    scores = said(loaded(joy_tagger(tmp_path), settings), plain("#804020"))[0]
    for value, name, mean, deviation in zip(
        (128, 64, 32),
        ("red_thing", "green_thing", "violet_thing"),
        settings["mean"],
        settings["deviation"],
        strict=True,
    ):
        assert scores[name] == pytest.approx(1 / (1 + np.exp(-(value / 255 - mean) / deviation)), abs=2e-3)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_any_number_of_pictures_goes_through_a_fixed_batch(batch: object, tmp_path: Path) -> None:
    tagger = loaded(colour_tagger(tmp_path, batch=batch))
    reds = [0, 51, 102, 153, 204]
    answers = said(tagger, *(plain(f"#{red:02x}0000") for red in reds))
    assert [answer["red_thing"] for answer in answers] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_size_and_layout_are_read_from_the_network(tmp_path: Path) -> None:
    small, free = colour_tagger(tmp_path / "a", side=17), colour_tagger(tmp_path / "b", side="side")  # type: ignore[arg-type]
    assert loaded(small).prepare(plain("red", (300, 200))).shape == (17, 17, 3)
    assert loaded(free).prepare(plain("red", (300, 200))).shape == (448, 448, 3)
    joy = loaded(joy_tagger(tmp_path / "c"), dict(taggers()["joytag"].settings))
    assert joy.prepare(plain("red")).shape == (3, 32, 32)


def test_tags_below_the_lowest_threshold_are_not_carried_along_but_ratings_are(colours: Path) -> None:
    tagger = loaded(colours, options=TaggingOptions(general_threshold=0.6, character_threshold=0.5))
    (answer,) = tagger.describe([tagger.prepare(plain("#8c0000"))])  # red 0.549
    assert {tag.name for tag in answer} == {"general", "explicit", "red_thing", "^_^", "rose_(garden)"}
    kinds = {tag.name: tag.category for tag in answer if isinstance(tag, Tag)}
    assert kinds["rose_(garden)"] is Category.CHARACTER and kinds["explicit"] is Category.RATING


def test_a_list_that_does_not_belong_to_the_network_is_refused(tmp_path: Path) -> None:
    tagger = loaded(colour_tagger(tmp_path, rows=COLOUR_TAGS[:-1]))
    with pytest.raises(RefusedFile, match=r"has 7 tags, its network gives \[1, 8\]"):
        tagger.describe([tagger.prepare(plain("red"))])


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    tagger = loaded(colour_tagger(tmp_path, gain=float("nan")))
    with pytest.raises(RefusedFile, match="NaN"):
        tagger.describe([tagger.prepare(plain("red"))])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "no list of tags"),
        (b"tag_id,title\n1,x\n", "needs the columns"),
        (b"name,category\nx,many\n", "needs the columns"),
        (b"\xff\xfe", "not UTF-8"),
        (b"name,category\n,0\n", "empty"),
    ],
)
def test_broken_lists_of_tags_are_refused(text: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "selected_tags.csv").write_bytes(text)
    with pytest.raises(RefusedFile, match=fault):
        read_labels(tmp_path / "selected_tags.csv")


def test_a_hostile_tag_stays_one_tag_on_one_line(tmp_path: Path) -> None:
    write_tags(tmp_path / "tags.csv", [('"a,\tb\x1b[31m"', 0)])
    assert read_labels(tmp_path / "tags.csv").names == ("a  b [31m",)


def test_a_network_that_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    words = helper.make_tensor_value_info("words", TensorProto.FLOAT, [1, 77])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 77])
    graph = helper.make_graph([helper.make_node("Relu", ["words"], ["out"])], "text", [words], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, tmp_path / "model.onnx")
    write_tags(tmp_path / "selected_tags.csv", [("x", 0)])
    with pytest.raises(RefusedFile, match="does not take pictures"):
        loaded(tmp_path)


def test_the_gpu_is_never_replaced_silently(colours: Path) -> None:
    assert wanted_providers("auto", ["CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert wanted_providers("auto", both) == wanted_providers("cuda", both) == both
    assert wanted_providers("cpu", both) == ["CPUExecutionProvider"]
    with pytest.raises(SafelightError, match="runs on the CPU only"):
        OnnxTagger(ALL, row_of()).load(files_of(colours), "cuda")


def test_onnxruntime_reports_nothing_and_leaves_no_id(colours: Path, tmp_path: Path) -> None:
    """By default it writes an id of the machine into the user's cache and starts a thread that sends events."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from security.onnx import read_onnx\n"
        "from trainer.tagging.onnx_session import OnnxNetwork\n"
        "import hashlib\n"
        "path = Path(sys.argv[1])\n"
        "OnnxNetwork.open(path, hashlib.sha256(read_onnx(path)).hexdigest(), 'cpu').close()\n"
        "time.sleep(0.5)\n"
    )
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "ORT_DISABLE_TELEMETRY": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | places
    done = subprocess.run(
        [sys.executable, "-c", code, str(colours / "model.onnx")],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_square_is_white_around_the_middle() -> None:
    square = on_square(plain("#000000", (10, 4)))
    assert square.size == (10, 10)
    assert [square.getpixel((5, y)) for y in (2, 3, 6, 7)] == [(255,) * 3, (0,) * 3, (0,) * 3, (255,) * 3]


# ---- the real network --------------------------------------------------------------------------------------------


def test_the_real_network_recognises_real_photos() -> None:
    tagger = loaded(real_tagger())
    expected = {
        "chelsea.png": "egyptian_cat",
        "coffee.png": "espresso",
        "motorcycle_left.png": "moped",
        "hubble_deep_field.jpg": "bubble",
        "china.jpg": "bell_cote",
        "daisy": "daisy",
    }
    answers = tagger.describe([tagger.prepare(photo(name)) for name in expected])
    best = {}
    for name, answer in zip(expected, answers, strict=True):
        general = [tag for tag in answer if isinstance(tag, Tag) and tag.category is Category.GENERAL]
        best[name] = max(general, key=lambda tag: tag.score).name
    assert best == expected
    cat = {tag.name: tag.score for tag in answers[0] if isinstance(tag, Tag)}["some_cat_(animal)"]
    assert cat > 0.85


def test_colours_in_the_wrong_order_would_be_noticed() -> None:
    swapped = loaded(real_tagger(), {**WD, "colours": "rgb"})
    right = loaded(real_tagger())
    picture = photo("daisy")
    assert said(right, picture)[0]["daisy"] > said(swapped, picture)[0]["daisy"] + 0.1


# ---- from answers to captions ------------------------------------------------------------------------------------

ANSWER = (
    Tag("general", 0.6, Category.RATING),
    Tag("explicit", 0.3, Category.RATING),
    Tag("long_hair", 0.9),
    Tag("^_^", 0.5),
    Tag("dress_(medium)", 0.4),
    Tag("smile", 0.2),
    Tag("miku_(vocaloid)", 0.9, Category.CHARACTER),
    Tag("someone", 0.5, Category.CHARACTER),
)


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "long hair, ^_^, dress (medium), miku (vocaloid)"),
        ({"general_threshold": 0.45}, "long hair, ^_^, miku (vocaloid)"),
        ({"character_threshold": 0.4}, "long hair, ^_^, dress (medium), miku (vocaloid), someone"),
        ({"characters": False}, "long hair, ^_^, dress (medium)"),
        ({"characters_first": True, "max_tags": 1}, "miku (vocaloid), long hair"),
        ({"blacklist": ("long hair",), "max_tags": 1}, "^_^, miku (vocaloid)"),
        ({"expand_characters": True}, "long hair, ^_^, dress (medium), miku, vocaloid"),
        ({"rating": "first"}, "general, long hair, ^_^, dress (medium), miku (vocaloid)"),
        ({"rating": "last"}, "long hair, ^_^, dress (medium), miku (vocaloid), general"),
        ({"blacklist": ("Long_Hair", r"miku \(vocaloid\)", "hair")}, "^_^, dress (medium)"),
        ({"always_first": ("photo", "long hair")}, "photo, long hair, ^_^, dress (medium), miku (vocaloid)"),
        ({"replace_underscores": False}, "long_hair, ^_^, dress_(medium), miku_(vocaloid)"),
        ({"escape_brackets": True}, r"long hair, ^_^, dress \(medium\), miku \(vocaloid\)"),
        ({"general_threshold": 1.0, "character_threshold": 1.0}, ""),
    ],
)
def test_every_option_changes_the_caption_as_it_says(changes: dict[str, object], caption: str) -> None:
    assert caption_of([ANSWER], TaggingOptions(**changes)) == caption


def test_two_taggers_are_merged_by_the_highest_score_or_by_the_mean() -> None:
    one = (Tag("red_hat", 0.8), Tag("cat", 0.6))
    other = (Tag("red hat", 0.2), Tag("dog", 0.4))
    two: list[Description] = [one, other]
    assert caption_of(two, TaggingOptions(models=("a", "b"))) == "red hat, cat, dog"
    mean = TaggingOptions(models=("a", "b"), merge="mean")
    assert caption_of(two, mean) == "cat, red hat, dog"
    assert caption_of(two, mean.model_copy(update={"general_threshold": 0.55})) == "cat"
    assert [round(tag.score, 2) for tag in merged([one, other], mean.merge)] == [0.5, 0.6, 0.4]


def test_a_sentence_stands_before_the_tags() -> None:
    said_by_both: list[Description] = [ANSWER[2:4], "A woman\n smiles."]
    assert caption_of(said_by_both, TaggingOptions()) == "A woman smiles., long hair, ^_^"


@pytest.mark.parametrize(
    ("existing", "fresh", "mode", "trigger", "expected"),
    [
        (None, "a, b", "ignore", "", "a, b"),
        ("", "a, b", "ignore", "mira", "mira, a, b"),
        ("mine", "a, b", "ignore", "", None),
        ("mira", "a, b", "ignore", "mira", "mira, a, b"),
        ("mine, A", "a, b", "append", "", "mine, A, b"),
        ("mine, a, b", "b, a", "append", "", None),
        ("long_hair,", "long hair, x", "append", "", "long_hair, x"),
        ("A cat sleeps here.", "cat, bed", "append", "", "A cat sleeps here., cat, bed"),
        ("cat", "A cat sleeps on a red bed.", "append", "", "cat, A cat sleeps on a red bed."),
        ("mine", "a, b", "replace", "", "a, b"),
        ("mine", "b, mira, a", "replace", "mira", "mira, b, a"),
        ("mine", "", "replace", "", None),
        ("a, b", "a, b", "replace", "", None),
    ],
)
def test_captions_that_are_there(
    existing: str | None, fresh: str, mode: str, trigger: str, expected: str | None
) -> None:
    assert combined(existing, fresh, TaggingOptions(mode=mode).mode, trigger) == expected
