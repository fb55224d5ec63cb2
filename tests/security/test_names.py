"""Names: what is refused, and what is made of the names of uploaded files."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest

from security.errors import RefusedName
from security.names import safe_name, same_name_key, sanitized_name

GOOD = [
    "ink",
    "My LoRA v1.2",
    "mira_v1.safetensors",
    "Zoë",
    "日本語",
    "a" * 150,
    "com10",
    "conx.txt",
    "a..b",
    "10_name",
]
BAD = {
    "": "empty",
    "   ": "empty",
    ".": "starts with",
    "..": "starts with",
    ".htaccess": "starts with",
    "-rf": "starts with",
    "~root": "starts with",
    " a": "starts with",
    "a.": "ends with",
    "a ": "ends with",
    "a/b": "character /",
    "a\\b": "character",
    "../a": "character /",
    "C:a": "character :",
    "a:stream": "character :",
    'a"b': "character",
    "a|b": "character",
    "a?b": "character",
    "a*b": "character",
    "a<b>": "character",
    "a\0b": r"U\+0000",
    "a\nb": r"U\+000A",
    "a\x1b[31m": r"U\+001B",
    "\u202egpj.exe": r"U\+202E",
    "a\u200bb": r"U\+200B",
    "\ufeffa": r"U\+FEFF",
    "a\ud800": r"U\+D800",
    "CON": "device",
    "nul.txt": "device",
    "nul .txt": "device",
    "Com1": "device",
    "lpt9.safetensors": "device",
    "COM\u00b9": "device",
    "\uff23\uff2f\uff2e.txt": "device",
    "\uff0e\uff0e\uff0fa": "character /",
    "a\uff3cb": "character",
    "\uff0ea": "starts with",
    "a" * 151: "151 bytes",
    "ü" * 76: "152 bytes",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass_unchanged(name: str) -> None:
    assert safe_name(name) == name
    assert safe_name(safe_name(name)) == name


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RefusedName, match=BAD[name]) as refusal:
        safe_name(name, "dataset name")
    message = str(refusal.value)
    assert "dataset name" in message
    assert message.isprintable()


def test_names_come_back_in_one_unicode_form() -> None:
    assert safe_name("Zoe\u0308") == "Zoë"


UPLOADED = {
    "../../etc/passwd.TXT": "passwd.txt",
    "..\\..\\w.txt": "w.txt",
    "C:\\Users\\x\\Bild.JPG": "Bild.jpg",
    "/absolute/a.png": "a.png",
    ".htaccess": "htaccess",
    "--flag=x.png": "flag=x.png",
    "a:stream.png": "a_stream.png",
    "CON.txt": "_CON.txt",
    "nul .txt": "_nul.txt",
    "\uff23\uff2f\uff2e.txt": "_\uff23\uff2f\uff2e.txt",
    "\uff0e\uff0e\uff0fx.png": "x.png",
    "gpj\u202e.png": "gpj.png",
    "a\0b.png": "ab.png",
    "what?.png": "what_.png",
    "Zoe\u0308.png": "Zoë.png",
    "a" * 400 + ".PNG": "a" * 145 + ".png",
    "...": "picture.png",
    "": "picture.png",
    "\u200b": "picture.png",
    "a.png.": "a.png",
    "no ending": "no ending",
}


@pytest.mark.parametrize("name", UPLOADED)
def test_uploaded_names_are_made_safe(name: str) -> None:
    assert sanitized_name(name, "picture.png") == UPLOADED[name]


@pytest.mark.parametrize("name", [*GOOD, *BAD, *UPLOADED, "x" * 149 + ".\u00e9" * 3, "ﷺ" * 60, "a" * 148 + "ü.png"])
def test_sanitized_names_are_safe_and_stay_as_they_are(name: str) -> None:
    made = sanitized_name(name, "picture")
    assert safe_name(made) == made
    assert sanitized_name(made, "picture") == made
    assert len(made.encode()) <= 150
    assert unicodedata.is_normalized("NFC", made)


TROUBLE = (
    '/\\.:*?"<>|~- \t\n\0\x1b\x7f\u202e\u2066\u200b\ufeff\u00a0\u2024\uff0e\uff0f\uff3c\u2215\u29f8\ufe68\u0130\u00df'
    "\ufb01\u1e9b\u0323\u0301\u0344\u212b\u2126\ufdfa\U0001f468\u200d\U0001f3fd\ud800\udfff\ue000\U000e0041\u115f"
    "\u3164\u2800\u0435\u0430conauxnul1\u00b9tx"
)


def test_names_of_random_trouble_stay_one_safe_name(tmp_path: Path) -> None:
    """Thousands of names of what file systems, terminals and Unicode stumble over."""
    chance = random.Random(14)
    for _ in range(3000):
        text = "".join(chance.choice(TROUBLE) for _ in range(chance.randrange(1, 40)))
        text = text * chance.choice((1, 1, 1, 12)) + chance.choice(
            ("", "", ".png", ".TXT", ".safetensors", ". ", "/..")
        )
        made = sanitized_name(text, "picture")
        assert safe_name(made) == made, ascii(text)
        assert sanitized_name(made, "picture") == made, ascii(text)
        assert (tmp_path / made).parent == tmp_path and (tmp_path / made).resolve().parent == tmp_path.resolve()
        assert len(made.encode()) <= 150 and made.strip() == made


def test_made_names_can_be_written_and_found_again(tmp_path: Path) -> None:
    chance = random.Random(14)
    for _ in range(200):
        made = sanitized_name("".join(chance.choice(TROUBLE) for _ in range(9)), "picture")
        (tmp_path / made).write_text("x")
        assert (tmp_path / made).read_text() == "x"
        assert unicodedata.normalize("NFC", made) in {
            unicodedata.normalize("NFC", one.name) for one in tmp_path.iterdir()
        }
        (tmp_path / made).unlink()


@pytest.mark.parametrize(
    ("one", "other"),
    [("Mira.png", "mira.PNG"), ("Zo\u00eb", "Zoe\u0308"), ("stra\u00dfe", "STRASSE"), ("\u212b", "\u00e5")],
)  # fmt: skip
def test_names_that_are_one_file_somewhere_have_one_key(one: str, other: str) -> None:
    assert same_name_key(one) == same_name_key(other)
    assert same_name_key(one) != same_name_key(one + "x")


@pytest.mark.parametrize("name", ["\u3164", "\u115f", "a\u2800", "\uffa0.png"])
def test_letters_that_show_nothing_are_refused_too(name: str) -> None:
    with pytest.raises(RefusedName, match="invisible"):
        safe_name(name)
