"""Patterns that users type: they do their work, and none of them stops the program or fills its memory."""

from __future__ import annotations

import time

import pytest

from security.errors import RefusedConfig
from security.patterns import Pattern as LimitedPattern


def pattern_of(text: str, *, ignore_case: bool = False, seconds: float = 3.0) -> LimitedPattern:
    return LimitedPattern(text, ignore_case=ignore_case, seconds=seconds)


def test_replaces_with_groups_and_ignoring_case() -> None:
    assert pattern_of(r"(\w+) hair").replace("long hair, red hair", r"\1-haired") == "long-haired, red-haired"
    assert (
        pattern_of(r"(?P<colour>red|blue) eyes").replace("Blue eyes, red eyes", r"\g<colour> eye")
        == "Blue eyes, red eye"
    )
    assert pattern_of("SMILE", ignore_case=True).replace("Smile, smile", "grin") == "grin, grin"
    assert pattern_of("a{3}").replace("aaa aaaa", "b") == "b ba"


@pytest.mark.parametrize(
    "pattern", [r"(a|aa)+$", r"(?:(a)|(a)(a))*b$(?<!b)", r"(?:a?){5000}b$(?<!b)", r"(.*)*b$(?<!b)"]
)
def test_a_search_without_end_is_ended(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(RefusedConfig, match=r"took over 0\.2 seconds"):
        pattern_of(pattern, seconds=0.2).replace("a" * 20_000 + "b", "x")
    assert time.monotonic() - began < 5


def test_all_searches_share_one_allowance() -> None:
    """Many captions that each take a little can't take long together."""
    pattern = pattern_of(r"(a|aa)+$", seconds=0.2)
    with pytest.raises(RefusedConfig, match="was stopped"):
        for _ in range(10_000):
            pattern.replace("a" * 24 + "b", "x")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "empty"),
        ("a" * 501, "501 characters"),
        (r"(?:(?:a{1000}){1000}){1000}", "1,000,000,000"),
        (r"a{99}{1,102}", "10,098"),
        (r"x{99999999999999999999}", "multiply"),
        (r"(?R)?a", "calls itself"),
        (r"(a(?1)?b)", "calls itself"),
        (r"(?<n>a(?&n)?)", "calls itself"),
        (r"(?P<n>a)(?P>n)", "calls itself"),
        (r"(?:a)(?-1)", "calls itself"),
        ("(a", "can't be read"),
        ("[a-", "can't be read"),
    ],
)
def test_refused_before_it_is_compiled(pattern: str, words: str) -> None:
    with pytest.raises(RefusedConfig, match=words.replace("(", r"\(")):
        pattern_of(pattern)


def test_escaped_signs_are_no_calls_and_no_counts() -> None:
    assert pattern_of(r"\(\?R\)").replace("a (?R) b", "x") == "a x b"
    assert pattern_of(r"\{99999999\}").replace("{99999999}", "x") == "x"
    assert pattern_of(r"(?i:ABC)(?=d)(?!e)").replace("abcd", "x") == "xd"


@pytest.mark.parametrize("replacement", [r"\5", r"\g<x>", r"\q", "\\"])
def test_a_replacement_that_makes_no_sense(replacement: str) -> None:
    with pytest.raises(RefusedConfig, match="put in place"):
        pattern_of("a").replace("banana", replacement)
