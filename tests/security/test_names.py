"""Names: what is refused, and what is made of the names of uploaded files."""

from __future__ import annotations

import unicodedata

import pytest

from security.errors import RefusedName
from security.names import safe_name, sanitized_name

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
