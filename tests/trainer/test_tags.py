"""Editing captions by whole tags: what each operation does, and that it leaves everything else as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import SafelightError
from trainer.dataset.captions import split_tags
from trainer.dataset.tag_edits import plan_edit
from trainer.dataset.tag_operations import OPERATIONS, EditOptions
from trainer.dataset.tags import blacklist, count_tags, is_prose, tag_key, tags_of, with_escapes, without_escapes

PROSE = "A red car, parked in front of a house. It rains, and rains, and rains."


def edit(operation: str, caption: str, **options: object) -> str:
    return OPERATIONS[operation].build(EditOptions(**options))(caption)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operation", "options", "before", "after"),
    [
        ("add", {"tags": ("smile", "solo")}, "1girl, solo", "1girl, solo, smile"),
        ("add", {"tags": ("smile",)}, "", "smile"),
        ("add", {"tags": ("smile",)}, "1girl,", "1girl, smile"),
        ("add", {"tags": ("smile",)}, "1girl,solo", "1girl,solo,smile"),
        ("prepend", {"tags": ("smile", "hat")}, "1girl, hat", "smile, 1girl, hat"),
        ("prepend", {"tags": ("smile",), "trigger_word": "mira"}, "mira, 1girl", "mira, smile, 1girl"),
        ("prepend", {"tags": ("smile",), "trigger_word": "mira"}, "miracle, 1girl", "smile, miracle, 1girl"),
        ("remove", {"tags": ("hair",)}, "1girl, long hair, hair, hair ornament", "1girl, long hair, hair ornament"),
        ("remove", {"tags": ("1girl",)}, "1girl, smile", "smile"),
        ("remove", {"tags": ("smile",)}, "smile", ""),
        ("remove", {"tags": ("Smile",)}, "smile", "smile"),
        ("remove", {"tags": ("Smile",), "ignore_case": True}, "hat, SMILE, smile", "hat"),
        ("remove", {"tags": ("long  hair",)}, "hat, long hair", "hat"),
        ("remove", {"tags": ("caf\u00e9",)}, "hat, cafe\u0301", "hat"),
        ("rename", {"tags": ("smile",), "text": "grin"}, "1girl,  smile , hat", "1girl,  grin, hat"),
        ("rename", {"tags": ("smile",), "text": "grin"}, "grin, smile, hat", "grin, hat"),
        ("rename", {"tags": ("Smile",), "text": "smile", "ignore_case": True}, "a, SMILE, b, smile", "a, smile, b"),
        ("rename", {"tags": ("saber (fate)",), "text": "saber, fate"}, "1girl, saber (fate)", "1girl, saber, fate"),
        ("merge", {"tags": ("grin", "smirk"), "text": "smile"}, "a, smirk, b, grin", "a, smile, b"),
        ("front", {"tags": ("hat", "smile")}, "a, smile, b, hat", "hat, smile, a, b"),
        ("front", {"tags": ("hat",), "trigger_word": "mira"}, "mira, a, hat", "mira, hat, a"),
        ("front", {"tags": ("hat",)}, "hat, a", "hat, a"),
        ("front", {"tags": ("hat",)}, "a,b,hat", "hat,a,b"),
        ("sort", {}, "c, B, a", "a, B, c"),
        ("sort", {"trigger_word": "mira"}, "mira, c, a", "mira, a, c"),
        ("sort", {}, "b, a,", "a, b,"),
        ("sort_common", {"counts": {"b": 3, "a": 1, "c": 3}}, "a, c, b", "b, c, a"),
        ("deduplicate", {}, "a, b, a, , b", "a, b"),
        ("deduplicate", {}, "a, A", "a, A"),
        ("deduplicate", {"ignore_case": True}, "a, A", "a"),
        (
            "blacklist",
            {"tags": ("alternate *", "parody")},
            "a, Alternate_hair color, alternate, parody",
            "a, alternate",
        ),
        ("underscores", {}, "long_hair, ^_^, o_o, hatsune miku_x", "long hair, ^_^, o_o, hatsune miku_x"),
        ("escape", {}, r"saber (fate), b \(c\)", r"saber \(fate\), b \(c\)"),
        ("unescape", {}, r"saber \(fate\)", "saber (fate)"),
        ("replace", {"find": "hair", "text": "fur"}, "long hair, hairband", "long fur, furband"),
        ("replace", {"find": "hat", "text": ""}, "a, hat, b", "a, b"),
        ("replace", {"find": "HAT", "text": r"\1", "ignore_case": True}, "a, hat", r"a, \1"),
        ("replace", {"find": ".", "text": "!"}, "a. b", "a! b"),
        ("regex", {"find": r"(\w+)_eyes", "text": r"\1 eyes"}, "blue_eyes, smile", "blue eyes, smile"),
        ("regex", {"find": r"\bhat\b", "text": ""}, "hat, hats", "hats"),
        ("trigger", {"text": "mira"}, "1girl, mira, smile", "mira, 1girl, smile"),
        ("trigger", {"text": "mira"}, "", "mira"),
        ("trigger", {"text": "mira"}, "miracle", "mira, miracle"),
        ("trigger", {"text": "Mira"}, "Mira sits on a chair.", "Mira sits on a chair."),
        ("trigger", {"text": "mira"}, "mira, a, mira", "mira, a"),
        ("trigger", {"text": "mira", "tags": ("old",)}, "old, a", "mira, a"),
    ],
)
def test_operation(operation: str, options: dict[str, object], before: str, after: str) -> None:
    assert edit(operation, before, **options) == after


def test_every_operation_is_tested() -> None:
    marks = test_operation.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for row in marks[0].args[1]} == set(OPERATIONS)


@pytest.mark.parametrize("operation", ["sort", "sort_common", "deduplicate", "underscores", "escape"])
def test_sentences_stay_sentences(operation: str) -> None:
    assert is_prose(PROSE)
    assert edit(operation, PROSE, tags=("and rains",)) == PROSE
    mixed = f"b, a, b, {PROSE}"
    assert PROSE in edit(operation, mixed)


def test_the_blacklist_takes_tags_but_no_piece_of_a_sentence() -> None:
    kept = edit("blacklist", f"solo, {PROSE}", tags=("solo", "* house*"))
    assert kept == PROSE


@pytest.mark.parametrize(
    "caption",
    [
        "1girl, solo, long hair",
        "dr. stone, mr. fox, k-on!, love live! school idol project, re:zero, 1.5 m",
        "hatsune miku (project sekai), where's wally?",
        "inkstyle, rabbit face",
        "",
    ],
)
def test_tags_are_not_taken_for_prose(caption: str) -> None:
    assert not is_prose(caption)


@pytest.mark.parametrize("caption", ["She smiles.", "a photo of a cat on a red chair", "Is this a real cat?", PROSE])
def test_prose_is_seen(caption: str) -> None:
    assert is_prose(caption)


def test_tags_of_a_caption() -> None:
    assert tags_of("a, b  c, a, She smiles., , b c") == ["a", "b c"]
    assert count_tags(["a, b", "b, b", "c"]) == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("pattern", "tag", "listed"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*hair*", "long hair bow", True),
        ("a*b*c", "axcxb", False),
        ("long_hair", "Long Hair", True),
        ("saber (fate)", r"saber \(fate\)", True),
        ("[a-z]", "b", False),
        ("*", "anything", True),
    ],
)
def test_blacklist(pattern: str, tag: str, listed: bool) -> None:
    assert blacklist([pattern])(tag) is listed


# ---- what holds for every caption -----------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["a", "b", "A", "long hair", "hair", "mira", "^_^", "x_y", "(c)", r"\(d\)", "", " ", "caf\u00e9"]
)
CAPTIONS = st.lists(WORDS, max_size=8).flatmap(
    lambda words: st.sampled_from([",", ", ", " , "]).map(lambda separator: separator.join(words).strip())
) | st.text(max_size=40).map(lambda text: " ".join(text.split()))
TAGS = st.lists(st.sampled_from(["a", "b", "hair", "mira", "new", "(c)"]), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"replace", "regex"}))
@given(caption=CAPTIONS, tags=TAGS, ignore_case=st.booleans())
def test_an_operation_done_twice_is_done_once(
    operation: str, caption: str, tags: tuple[str, ...], ignore_case: bool
) -> None:
    change = OPERATIONS[operation].build(
        EditOptions(tags=tags, text="new", ignore_case=ignore_case, trigger_word="mira")
    )
    once = change(caption)
    assert change(once) == once


@pytest.mark.parametrize("operation", ["sort", "sort_common", "front"])
@given(caption=CAPTIONS, tags=TAGS)
def test_moving_tags_loses_none(operation: str, caption: str, tags: tuple[str, ...]) -> None:
    moved = edit(operation, caption, tags=tags, trigger_word="mira")
    assert sorted(split_tags(moved)) == sorted(split_tags(caption))


@given(caption=CAPTIONS, tags=TAGS)
def test_removing_takes_these_tags_and_no_others(caption: str, tags: tuple[str, ...]) -> None:
    left = split_tags(edit("remove", caption, tags=tags))
    assert [tag for tag in split_tags(caption) if tag_key(tag) not in tags] == left


@given(caption=CAPTIONS)
def test_the_trigger_word_is_there_once_and_first(caption: str) -> None:
    with_word = split_tags(edit("trigger", caption, text="mira"))
    assert with_word[0].startswith("mira")
    assert "mira" not in with_word[1:]
    assert [tag for tag in with_word if tag != "mira"] == [tag for tag in split_tags(caption) if tag != "mira"]


@given(tag=st.text(alphabet="a(b)_ ", max_size=12))
def test_escaped_brackets_come_back(tag: str) -> None:
    assert without_escapes(with_escapes(tag)) == tag


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_changes() -> None:
    plan = plan_edit({"1.png": "a, b", "2.png": "b", "3.png": "c"}, "remove", EditOptions(tags=("b",)))
    assert plan.sentence == "Changes 2 of 3 captions."
    assert plan.after == {"1.png": "a", "2.png": ""}
    assert plan.before == {"1.png": "a, b", "2.png": "b"}
    assert plan.label == "Remove b"
    other = plan_edit({"1.png": "a, b", "2.png": "b, x"}, "remove", EditOptions(tags=("b",)))
    assert plan.digest != other.digest
    assert plan_edit({"1.png": "a"}, "remove", EditOptions(tags=("b",))).sentence == "Changes none of 1 captions."


def test_a_plan_tells_what_it_spares() -> None:
    captions = {"1.png": "b, a", "2.png": PROSE, "3.png": "a"}
    for operation, changed in (("sort", 1), ("deduplicate", 0), ("sort_common", 1)):
        plan = plan_edit(captions, operation, EditOptions())
        assert (len(plan.after), plan.num_prose) == (changed, 1)
        assert plan.sentence.endswith("of 3 captions. 1 in sentences: left as they are.")
    assert plan_edit(captions, "remove", EditOptions(tags=("a",))).num_prose == 0


def test_a_plan_counts_what_it_sorts_by() -> None:
    plan = plan_edit({"1.png": "a, b", "2.png": "b", "3.png": "b, c"}, "sort_common", EditOptions())
    assert plan.after == {"1.png": "b, a"}


@pytest.mark.parametrize(
    ("operation", "options", "words"),
    [
        ("remov", {}, "Did you mean remove"),
        ("remove", {}, "names no tag"),
        ("rename", {"tags": ("a",)}, "no new text"),
        ("replace", {"text": "a"}, "nothing to find"),
        ("trigger", {"text": "a, b"}, "comma"),
        ("trigger", {"text": " "}, "no new text"),
        ("remove", {"tags": ("a",) * 2001}, "2001 tags"),
        ("remove", {"tags": ("a" * 501,)}, "501 characters"),
        ("replace", {"find": "a", "text": "b" * 4001}, "4001 characters"),
        ("replace", {"find": "a", "text": "b\nc"}, "line break"),
        ("replace", {"find": "a", "text": "b" * 4000}, "caption of 1.png would be over"),
        ("regex", {"find": "(a"}, "can't be read"),
    ],
)
def test_a_plan_that_cannot_be(operation: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(SafelightError, match=words):
        plan_edit({"1.png": "a" * 20}, operation, EditOptions(**options))  # type: ignore[arg-type]


def test_find_may_be_a_space() -> None:
    assert plan_edit({"1.png": "a b"}, "replace", EditOptions(find=" ", text="_")).after == {"1.png": "a_b"}
