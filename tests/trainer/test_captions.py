"""What a step makes of a caption: everything stays where it should, and what moves moves by chance alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import DatasetConfig
from trainer.dataset.captions import (
    changes_every_step,
    longest_caption,
    prepared_caption,
    read_caption,
    resting_caption,
    training_caption,
)
from trainer.dataset.scan import scan_folder


def settings(**values: object) -> DatasetConfig:
    return DatasetConfig.model_validate(values)


def seen(text: str, chosen: DatasetConfig, trigger: str = "", steps: int = 200) -> list[str]:
    """What many steps train on."""
    prepared = prepared_caption(text, chosen, trigger)
    return [training_caption(prepared, chosen, 1, step, "a", trigger) for step in range(steps)]


def test_the_same_step_gives_the_same_text_and_another_one_another() -> None:
    chosen = settings(shuffle_tags=True, tag_dropout_rate=0.3, wildcards=True, caption_suffix="{x|y}")
    assert seen("a, b, c, d, {e|f}", chosen) == seen("a, b, c, d, {e|f}", chosen)
    assert len(set(seen("a, b, c, d, {e|f}", chosen))) > 50


def test_without_settings_a_caption_is_as_its_file_says() -> None:
    assert set(seen("b,a ,  c||| {d|e}", settings())) == {"b,a ,  c||| {d|e}"}


# --- dropout of tags ---


def test_tags_are_dropped_at_their_rate_and_independently() -> None:
    texts = [set(text.split(", ")) for text in seen("a, b, c", settings(tag_dropout_rate=0.25), steps=2000)]
    for tag in "abc":
        assert sum(tag in text for text in texts) / 2000 == pytest.approx(0.75, abs=0.03)
    assert sum({"a", "b"} <= text for text in texts) / 2000 == pytest.approx(0.75**2, abs=0.035)


def test_dropping_alone_keeps_the_order() -> None:
    for text in seen("a, b, c, d, e", settings(tag_dropout_rate=0.4)):
        assert text.split(", ") == sorted(text.split(", "))


def test_what_stays_in_place_is_never_dropped() -> None:
    everything = settings(tag_dropout_rate=1.0, keep_tokens=2, caption_prefix="photo of", caption_suffix=", best")
    assert set(seen("mira, hat, rain", everything, "mira")) == {"photo of mira, hat, best"}
    assert set(seen("hat, rain", settings(tag_dropout_rate=1.0), "mira")) == {"mira"}
    assert set(seen("hat, rain", settings(tag_dropout_rate=1.0))) == {""}


# --- separators ---


@pytest.mark.parametrize("text", ["a, b ||| c, d, e ||| y, z", "a, b|||c, d, e|||y, z", "a,b, ||| ,c,d,e, |||, y,z"])
def test_a_separator_keeps_the_front_and_the_end_in_place(text: str) -> None:
    chosen = settings(keep_tokens_separator="|||", shuffle_tags=True)
    texts = seen(text, chosen)
    assert {tuple(one.split(", ")[:2]) for one in texts} == {("a", "b")}
    assert {tuple(one.split(", ")[-2:]) for one in texts} == {("y", "z")}
    assert {frozenset(one.split(", ")[2:-2]) for one in texts} == {frozenset("cde")}
    assert len(set(texts)) == 6


def test_one_separator_leaves_everything_behind_it_loose() -> None:
    texts = seen("a, b ||| c, d", settings(keep_tokens_separator="|||", shuffle_tags=True, keep_tokens=1))
    assert set(texts) == {"a, b, c, d", "a, b, d, c"}
    without = seen("a, b, c", settings(keep_tokens_separator="|||", shuffle_tags=True, keep_tokens=1))
    assert set(without) == {"a, b, c", "a, c, b"}  # a caption without one goes by the number


def test_separators_never_reach_the_model() -> None:
    for chosen in (settings(keep_tokens_separator="|||"), settings(keep_tokens_separator="|||", tag_dropout_rate=0.2)):
        assert not any("|||" in text for text in seen("a ||| b, c ||| d ||| e", chosen))
        assert resting_caption(prepared_caption("a ||| b, c ||| d", chosen, ""), chosen) == "a, b, c, d"


def test_the_trigger_word_comes_first_wherever_it_stood() -> None:
    chosen = settings(keep_tokens_separator="|||", shuffle_tags=True)
    for text in ("a ||| mira, c", "mira ||| a, c", "a ||| c, d ||| mira", "a ||| c"):
        texts = seen(text, chosen, "mira")
        assert all(one.split(", ")[0] == "mira" and one.count("mira") == 1 for one in texts), text
    within = seen("a ||| b, mira smiles, c", chosen, "mira")  # half a sentence: the part as a whole comes first
    assert set(within) == {"mira smiles, a, b, c", "mira smiles, a, c, b"}
    by_number = settings(shuffle_tags=True, keep_tokens=2)
    assert {tuple(one.split(", ")[:2]) for one in seen("a, mira, c, d", by_number, "mira")} == {("mira", "a")}
    assert {tuple(one.split(", ")[:2]) for one in seen("a, b, c, mira", by_number, "mira")} == {("mira", "a")}


# --- prefix and suffix ---


@pytest.mark.parametrize(
    ("values", "caption", "expected"),
    [
        ({"caption_prefix": "a photo of"}, "mira, hat", "a photo of mira, hat"),
        ({"caption_suffix": "in the rain"}, "mira", "mira in the rain"),
        ({"caption_suffix": ", best quality"}, "mira", "mira, best quality"),
        ({"caption_suffix": ", best quality"}, "", ", best quality"),
        ({"caption_prefix": "art,"}, "", "art,"),
        ({"caption_prefix": " art, ", "caption_suffix": " x "}, "mira", "art, mira x"),
    ],
)
def test_prefix_and_suffix_stand_around_the_caption(values: dict[str, str], caption: str, expected: str) -> None:
    chosen = settings(**values)
    assert set(seen(caption, chosen)) == {expected} == {resting_caption(caption, chosen)}


def test_prefix_comes_before_the_trigger_word_and_is_not_shuffled() -> None:
    chosen = settings(caption_prefix="one, two", caption_suffix=", end", shuffle_tags=True)
    texts = seen("a, b", chosen, "mira")
    assert set(texts) == {"one, two mira, a, b, end", "one, two mira, b, a, end"}


def test_a_dropped_caption_is_dropped_with_prefix_and_suffix() -> None:
    chosen = settings(caption_prefix="x", caption_suffix="y", caption_dropout_rate=1.0)
    assert set(seen("a", chosen)) == {""}


# --- wildcards ---


def test_every_choice_of_a_wildcard_comes_equally_often() -> None:
    texts = Counter(seen("{red|green|light blue} hat, {a|b}", settings(wildcards=True), steps=3000))
    assert len(texts) == 6
    assert all(count == pytest.approx(500, abs=90) for count in texts.values())
    assert all("{" not in text and "|" not in text for text in texts)


def test_choices_may_lie_in_each_other_hold_commas_and_be_empty() -> None:
    chosen = settings(wildcards=True)
    assert set(seen("{red {hat|cap}, boots|nothing}", chosen)) == {"red hat, boots", "red cap, boots", "nothing"}
    assert set(seen("{|very }big", chosen)) == {"big", "very big"}
    assert set(seen("a {b | c} d", chosen)) == {"a b d", "a c d"}
    assert set(seen("{plain} and }{ stay", chosen)) == {"{plain} and }{ stay"}
    shuffled = settings(wildcards=True, shuffle_tags=True)
    assert set(seen("{a, b|c}", shuffled)) == {"a, b", "b, a", "c"}


def test_lines_of_a_file_are_captions_to_choose_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first  line\r\n\n second\tline \n", encoding="utf-8")
    assert read_caption(tmp_path / "a.png", ".txt") == "first line second line"
    text = read_caption(tmp_path / "a.png", ".txt", keep_lines=True)
    assert text == "first line\nsecond line"
    chosen = settings(wildcards=True)
    assert set(seen(text, chosen, "mira")) == {"mira, first line", "mira, second line"}
    assert resting_caption(prepared_caption(text, chosen, "mira"), chosen) == "mira, first line"


def test_the_longest_caption_is_told_whatever_chance_may_bring() -> None:
    chosen = settings(wildcards=True, caption_suffix="{x|long end}")
    assert longest_caption("short {a|much longer}\nb", chosen) == "short much longer long end"
    assert resting_caption("short {a|much longer}\nb", chosen) == "short a x"
    assert longest_caption("a {b|c}", settings()) == "a {b|c}"


# --- in a dataset ---


def test_a_scan_has_what_rests_and_what_changes(tmp_path: Path) -> None:
    from tests.tiny import tiny_dataset

    folder = tiny_dataset(tmp_path / "set", 1)
    (folder / "000.txt").write_text("{red|green} hat\nrain", encoding="utf-8")
    (picture,) = scan_folder(folder, settings(wildcards=True, caption_prefix="photo of", trigger_word="mira")).pictures
    assert picture.caption == "photo of mira, red hat"
    assert picture.prepared == "mira, {red|green} hat\nmira, rain"
    (plain,) = scan_folder(folder, settings()).pictures
    assert plain.caption == plain.prepared == "{red|green} hat rain"


@pytest.mark.parametrize(
    ("values", "changing"),
    [
        ({}, False),
        ({"caption_prefix": "x", "keep_tokens_separator": "|||", "caption_dropout_rate": 0.5}, False),
        ({"shuffle_tags": True}, True),
        ({"tag_dropout_rate": 0.1}, True),
        ({"wildcards": True}, True),
    ],
)
def test_captions_of_chance_are_not_encoded_once_for_all(values: dict[str, object], changing: bool) -> None:
    chosen = settings(**values)
    assert changes_every_step(chosen) == changing
    texts = set(seen("a ||| b, {c|d}", chosen, steps=50)) - {""}
    assert (len(texts) > 1) == changing


def test_a_separator_that_means_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.keep_tokens_separator is \| and dataset\.wildcards"):
        parse_config({"dataset": {"keep_tokens_separator": "|", "wildcards": True}})
    with pytest.raises(ConfigError, match=r"keep_tokens_separator"):
        parse_config({"dataset": {"keep_tokens_separator": ","}})
    with pytest.raises(ConfigError, match=r"dataset\.trigger_word is 'a\|\|\|b'"):
        parse_config({"dataset": {"keep_tokens_separator": "|||", "trigger_word": "a|||b"}})
