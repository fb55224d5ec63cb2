"""YAML that others wrote: plain data comes through, and nothing in it can name code, explode or hide."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from security.configs import read_text, read_yaml
from security.errors import RefusedConfig


def test_plain_data_comes_through_as_people_mean_it(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "lr: 1e-4\nsteps: 2000 # a comment\nratio: .5\non: yes\noff: false\nnothing: ~\nname: 'yes'\nport: 1:30\n"
        "lines: [a, 'b', 3]\nblock: |\n  10\nunder:\n  key: -7\n"
    )
    assert read_yaml(path) == {
        "lr": 1e-4,
        "steps": 2000,
        "ratio": 0.5,
        "on": True,
        "off": False,
        "nothing": None,
        "name": "yes",
        "port": "1:30",
        "lines": ["a", "b", 3],
        "block": "10\n",
        "under": {"key": -7},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", r"alias \(\*x\) in line 2"),
        ("a: !!python/object/apply:os.system ['true']\n", "tag"),
        ("a: !code 1\n", "tag"),
        ("a: 1\na: 2\n", "key 'a' twice, again in line 2"),
        ("a: 1\n---\nb: 2\n", "several documents"),
        ("[1, 2]\n", "no mapping"),
        ("", "no mapping"),
        ("a: [1\n", "not valid YAML in line"),
        ("? [1, 2]\n: 3\n", "not a word"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
        ("a: " + "9" * 100 + "e1000\n", "finite"),
        ("a: \0\n", "NUL"),
        ("a: '" + "x" * 300_000 + "'\n", "larger than"),
    ],
)
def test_what_is_not_plain_data_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(RefusedConfig, match=said):
        read_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 200_000,
        "a: " + "{a: " * 50_000,
        "- " * 100_000,
        "a: " + ":".join(["59"] * 80_000),
        "a: " + "9" * 250_000,
        "\n".join(f"x{number}: &y{number} {number}" for number in range(8_000)),
    ],
    ids=["lists", "mappings", "dashes", "sexagesimal", "digits", "anchors"],
)
def test_hostile_yaml_costs_no_time(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(RefusedConfig):
        read_yaml(text)
    assert time.process_time() - started < 8


def test_a_text_is_bounded_like_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat")
    assert read_text(path) == "a cat"
    with pytest.raises(RefusedConfig, match="larger than"):
        read_text(path, max_bytes=3)
