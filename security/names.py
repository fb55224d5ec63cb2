"""File and folder names that are safe on Linux, macOS and Windows: checking one, and making one of any text."""

from __future__ import annotations

import re
import unicodedata

from security.errors import RefusedName
from security.policy import MAX_NAME_BYTES

_RESERVED_CHARACTERS = frozenset('<>:"/\\|?*')
_RESERVED_NAMES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CLOCK$", "CONIN$", "CONOUT$"]
    + [f"{device}{digit}" for device in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
"""Names that open a device on Windows, whatever ending they have."""
_LEADING = ".-~ "
"""A leading dot hides a file, a dash reads as an option, a tilde as a home folder."""


_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Letters and signs that are drawn as nothing: fillers of Hangul, the empty Braille cell."""


def _is_invisible(character: str) -> bool:
    """True for control characters, direction marks, zero-width and blank ones, lone surrogates and private use."""
    return character in _BLANK_LETTERS or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _is_reserved(name: str) -> bool:
    """True if Windows would open a device. `nul .txt` is one too."""
    return name.split(".", 1)[0].rstrip(" ").upper() in _RESERVED_NAMES


def _fault(name: str) -> str:
    """What is wrong with a name in NFC, or "" if nothing is."""
    if not name.strip():
        return "it is empty"
    hidden = next((character for character in name if _is_invisible(character)), None)
    if hidden is not None:
        return f"it has the invisible character U+{ord(hidden):04X}"
    # Full-width forms turn into "/", "\" and ".." on file systems and servers that fold them.
    for form in (name, unicodedata.normalize("NFKC", name)):
        bad = next((character for character in form if character in _RESERVED_CHARACTERS), None)
        if bad is not None:
            return f"it has the character {bad}"
        if form[0] in _LEADING:
            return f"it starts with {form[0]!r}"
        if form[-1] in ". ":
            return f"it ends with {form[-1]!r}"
        if _is_reserved(form):
            return "Windows keeps this name for a device"
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"it has {size} bytes and {MAX_NAME_BYTES} are allowed"
    return ""


def safe_name(text: str, kind: str = "name") -> str:
    """`text` in Unicode form NFC, if it can be one file or folder name. Raises RefusedName, which calls it a `kind`."""
    name = unicodedata.normalize("NFC", text)
    fault = _fault(name)
    if fault:
        shown = name.encode("ascii", "backslashreplace").decode()[:80] if not name.isprintable() else name[:80]
        raise RefusedName(f"The {kind} {shown!r} cannot be used: {fault}. Choose a name of letters, digits, - and _.")
    return name


def sanitized_name(text: str, fallback: str) -> str:
    """Makes a safe file name of any text, such as the name of an uploaded file.

    Folders in front are dropped, characters that are not allowed become "_" or go, the ending is kept, in lower case,
    and what is too long is cut before the ending. `fallback` is a safe name, used if nothing is left.
    """
    name = _mended(_mended(text))  # twice: what was cut off may leave a new ending
    return name if not _fault(name) else safe_name(fallback)


def _mended(text: str) -> str:
    """A name without what can be repaired; it may still have a fault."""
    name = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode())
    if any(character in _RESERVED_CHARACTERS for character in unicodedata.normalize("NFKC", name)):
        name = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name))
    name = re.split(r"[/\\]", name)[-1]
    name = unicodedata.normalize("NFC", "".join(character for character in name if not _is_invisible(character)))
    name = "".join("_" if character in _RESERVED_CHARACTERS else character for character in name)
    name = name.lstrip(_LEADING).rstrip(". ")
    stem, dot, ending = name.rpartition(".")
    if dot and stem and re.fullmatch(r"[A-Za-z0-9]{1,16}", ending):
        name = _cut(stem, MAX_NAME_BYTES - len(ending) - 2) + "." + ending.lower()
    else:
        name = _cut(name, MAX_NAME_BYTES - 1)
    if _is_reserved(name) or _is_reserved(unicodedata.normalize("NFKC", name)):
        name = "_" + name
    return name


def same_name_key(name: str) -> str:
    """A text that is the same for two names that are one file on systems that ignore case and forms of characters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _cut(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` of at most `max_bytes` bytes in UTF-8 that does not end in a dot or space."""
    return text.encode()[:max_bytes].decode("utf-8", "ignore").rstrip(". ")
