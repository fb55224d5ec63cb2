"""Configuration texts: what is refused, and that hostile ones are refused quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from security.configs import read_json, read_toml
from security.errors import RefusedConfig
from tests.test_architecture import PRODUCT, imports

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
    "a = 0x" + "f" * 200_000: "over 100 digits",
    "a = [1, {b = 0o" + "7" * 200 + "}]": "over 100 digits",
    "a = 1e" + "9" * 100_000: "number inf",
    "a = '\0'": "NUL",
    "x" * 300_000: "larger than 262144 bytes",
}
JSON_FAULTS = {
    '{"a": 1, "a": 2}': "'a' twice",
    '{"b": {"a": 1, "a": 2}}': "'a' twice",
    '{"a": NaN}': "NaN",
    '{"a": -Infinity}': "-Infinity",
    '{"a": 1e999}': "inf",
    '{"a": "\\ud800"}': "half of a character",
    '{"\\udc00x": 1}': "half of a character",
    '{"a": ' + "9" * 101 + "}": "over 100 digits",
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
    ("[[" + ".".join("a" * 60) + "]]\n") * 1900,
    "x = " + "{a=" * 40_000,
    '"' + "\\" * 250_000,
    "a = [" + "1_" * 120_000 + "1]",
    'a = """' + '""x' * 80_000,
    '"' + '\\"' * 130_000,
    'a = "' + '\\"' * 100_000 + "\\",
    'a = {x = """a"""", b' + ".b" * 100_000 + ' = 1, c = "x"}',
    "a = {x = '''a''''', b" + ".b" * 100_000 + " = 1, c = 'x'}",
]
HOSTILE_JSON = [
    "[" * 250_000,
    '{"a":' * 40_000,
    "{" + '"a":1,' * 40_000 + '"a":1}',
    '{"a":[' + "1e999," * 40_000 + "1]}",
    '{"a":"' + "\\" * 200_001 + '"}',
    '{"a":' + " " * 250_000,
]


@pytest.mark.parametrize("text", HOSTILE_TOML, ids=range(len(HOSTILE_TOML)))
def test_hostile_toml_is_refused_in_time(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RefusedConfig):
        read_toml(text)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_json_is_refused_in_time(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RefusedConfig):
        read_json(text)
    assert time.perf_counter() - start < 1.0


def test_the_largest_texts_that_are_allowed_take_no_time() -> None:
    for text in ("[[a]]\n" * 43_000, "x = [" + "{}," * 80_000 + "]", "".join(f"[a{n}]\n" for n in range(25_000))):
        start = time.perf_counter()
        read_toml(text)
        assert time.perf_counter() - start < 2.0
    assert read_json('{"model_max_length": 1000000000000000019884624838656, "\\ud83d\\ude00": 1}')


def test_yaml_is_read_in_one_place() -> None:
    """Its tags make objects, its aliases a bomb: only the reader that refuses both imports a YAML library."""
    libraries = {"yaml", "ruamel", "oyaml", "strictyaml"}
    readers = {source.name for source in PRODUCT for _, name in imports(source.tree) if name.split(".")[0] in libraries}
    assert readers == {"security/configs.py"}
    with pytest.raises(RefusedConfig):
        read_toml("a: &a [1]\nb: [*a, *a]")
