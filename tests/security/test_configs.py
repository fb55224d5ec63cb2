"""Configuration texts: what is refused, and that hostile ones are refused quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from security.configs import read_json, read_toml
from security.errors import RefusedConfig

TOML_FAULTS = {
    "a = 1\na = 2": "not valid TOML",
    "a = nan": "number nan",
    "a = [1, -inf]": "number -inf",
    "a = [": "not valid TOML",
    "a = " + "[" * 40 + "]" * 40: "nested",
    "a = " + "[" * 5_000: "nested",
    "a" + ".a" * 100 + " = 1": "65|64 dots in line 1",
    "b = 1\n[" + '"x".' * 100 + "y]": "64 dots in line 2",
    "a = " + "1" * 5000: "not valid TOML",
    "a = '\0'": "NUL",
    "x" * 300_000: "larger than 262144 bytes",
}
JSON_FAULTS = {
    '{"a": 1, "a": 2}': "'a' twice",
    '{"b": {"a": 1, "a": 2}}': "'a' twice",
    '{"a": NaN}': "NaN",
    '{"a": -Infinity}': "-Infinity",
    '{"a": 1e999}': "inf",
    "[1]": "holds a list",
    "{": "not valid JSON",
    '{"a":' + "[" * 40 + "]" * 40 + "}": "nested",
    '{"a":' * 20_000: "nested",
    '{"a": ' + "1" * 5000 + "}": "not valid JSON",
    '{"a": "' + "x" * 300_000 + '"}': "larger than 262144 bytes",
}


@pytest.mark.parametrize("text", TOML_FAULTS, ids=range(len(TOML_FAULTS)))
def test_bad_toml_is_refused(text: str) -> None:
    with pytest.raises(RefusedConfig, match=TOML_FAULTS[text]):
        read_toml(text)


@pytest.mark.parametrize("text", JSON_FAULTS, ids=range(len(JSON_FAULTS)))
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(RefusedConfig, match=JSON_FAULTS[text]):
        read_json(text)


def test_good_texts_are_read_from_text_and_file(tmp_path: Path) -> None:
    assert read_toml('[lora]\nrank = 8\nnote = "v1.0."\n') == {"lora": {"rank": 8, "note": "v1.0."}}
    assert read_json('{"a": [1.5, {"b": null}]}') == {"a": [1.5, {"b": None}]}
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(tmp_path / "run.toml") == {"a": 1}


def test_dots_in_texts_and_comments_are_no_key_parts() -> None:
    dots = "." * 500
    text = f'a = "{dots}" # {dots}\nb = \'\'\'{dots}\n{dots}\'\'\'\nc = """{dots}\\"{dots}"""\nd = \'{dots}\'\n'
    assert read_toml(text)["c"] == f'{dots}"{dots}'


def test_files_are_named_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"a = \xff")
    with pytest.raises(RefusedConfig, match=r"run\.toml is not UTF-8 text \(byte 4\)"):
        read_toml(tmp_path / "run.toml")
    with pytest.raises(RefusedConfig, match=r"gone\.json cannot be read"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "big.json").write_bytes(b" " * 1001)
    with pytest.raises(RefusedConfig, match="larger than 1000 bytes"):
        read_json(tmp_path / "big.json", max_bytes=1000)


HOSTILE_TOML = [
    "a." * 100_000 + "a = 1",
    "[" * 200_000,
    '"""\\' * 60_000,
    ("a" + ".a" * 60 + " = {}\n") * 2000,
    "'''" * 80_000,
]


@pytest.mark.parametrize("text", HOSTILE_TOML, ids=range(len(HOSTILE_TOML)))
def test_hostile_toml_is_refused_in_time(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RefusedConfig):
        read_toml(text)
    assert time.perf_counter() - start < 2.0
