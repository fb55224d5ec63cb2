"""Finds secrets in text: those that were registered, in every form that they turn up in, and what looks like a token.

`redact` masks them in what people and log files get to see; `refuse_secrets` stops a file that would keep one.
Standard library only: security/output.py puts it in front of everything that the program prints.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from security.errors import RefusedConfig

MASK = "***"
MIN_SECRET_LENGTH = 8
"""Shortest text that is masked wherever it appears, in characters; a shorter one is part of ordinary words."""
MIN_BEGINNING = 4
"""From this many characters on, the end of an unfinished line is taken for the possible beginning of a secret."""


@dataclass(frozen=True, slots=True)
class _Form:
    """One way in which a secret is written. `core` has it without its first and last character, if that is enough.

    Programs trim, quote and cut what they print, so the core is what is looked for.
    """

    text: str
    core: str
    name: str


_forms: tuple[_Form, ...] = ()
_guard = threading.Lock()


def register(secret: str, name: str) -> None:
    """Masks `secret` from now on, in all its forms. `name` says in refusals what it is, such as "Hugging Face token".

    Texts under MIN_SECRET_LENGTH characters are left alone: masking them would mask ordinary words.
    """
    global _forms
    if len(secret) < MIN_SECRET_LENGTH:
        return
    with _guard:
        known = {form.text for form in _forms}
        new = [_form(text, name) for text in _written_forms(secret) if text not in known]
        _forms = (*_forms, *new)


def _form(text: str, name: str) -> _Form:
    return _Form(text, text[1:-1] if len(text) >= MIN_SECRET_LENGTH + 2 else text, name)


def _written_forms(secret: str) -> set[str]:
    """The secret as it is, percent-encoded, JSON- and Python-escaped, in base64 at any offset, in hex, and as bytes."""
    raw = secret.encode("utf-8", "surrogatepass")
    forms = {
        secret,
        urllib.parse.quote(raw, safe=""),
        urllib.parse.quote(raw),
        urllib.parse.quote_plus(raw),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        raw.hex(),
        raw.hex().upper(),
    }
    for offset in range(3):  # "user:token" shifts the token by the length of what stands before it
        encoded = base64.b64encode(b"\0" * offset + raw).decode()
        # the first characters hold bits of what stands before the secret, the last ones of what comes after it
        first, last = (0, 2, 3)[offset], len(encoded) - (0, 4, 3)[(offset + len(raw)) % 3]
        forms |= {encoded[first:last], encoded[first:last].replace("+", "-").replace("/", "_")}
    # What passes by as bytes is looked at as Latin-1, in which every byte is one character.
    forms |= {form.encode("utf-8", "surrogatepass").decode("latin-1") for form in forms}
    return {form for form in forms if len(form) >= MIN_SECRET_LENGTH}


_VALUE = r"[^\s\"'`&<>,;(){}\[\]\\*]"
_WORD_BEGINS = (
    r"(?:(?<![A-Za-z0-9])|(?<=\\[abfnrtv0])|(?<=\\x[0-9a-fA-F]{2})|(?<=\\u[0-9a-fA-F]{4})|(?<=%[0-9a-fA-F]{2})"
    r"|(?<=[\[;0-9]m)|(?<=\x1b\(B))"
)
"""Where a token may begin: not within a word, but after an escaped sign ("\\n", "%20") and after a terminal's colour."""
_TOKEN_SHAPES = re.compile(
    _WORD_BEGINS + r"(?:"
    r"hf_[A-Za-z0-9]{20,}|hf_jwt_[\w.-]{20,}(?<![.-])|api_org_[A-Za-z0-9]{20,}"
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
)
"""Tokens that can be told by their shape: Hugging Face, GitHub, JSON web tokens."""
_USERINFO = re.compile(r"(?<=://)[^\s/@\"'<>:]*+:[^\s/@\"'<>]++(?=@)")
_BEARER = re.compile(
    r"\b(?i:Bearer|Basic)[ \t]+(?=[A-Za-z._~+/-]{0,4096}[A-Z0-9=]|[a-z._~+/-]{20})"  # an ordinary word is no token
    r"(?P<secret>[A-Za-z0-9._~+/=-]{8,4096})"
)
_HEADER = re.compile(
    r"(?i)\b(?:(?:proxy-)?authorization|(?:set-)?cookie|x-api-key)[\"']?[ \t]*[=:,][ \t]*b?[\"']?"
    r"(?:(?:Bearer|Basic|Token)[ \t]+)?+"
    rf"(?P<secret>{_VALUE}{{6,4096}}(?:;[ \t]*{_VALUE}+)*)"
)
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z])(?:[a-z]+[_-])?(?:token|api[_-]?key|passw(?:or)?d|secret)[\"']?[ \t]*(?:[=:]|%3D)[ \t]*b?[\"']?"
    rf"(?![A-Za-z_][\w.]*\()(?P<secret>{_VALUE}{{8,4096}})"  # a call in a line of source code is not the value
)
_SIGNED = re.compile(
    r"(?i)(?<=[?&;])(?:X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+|Signature|Policy|Key-Pair-Id|sig|token|key|api[_-]?key)"
    r"=(?P<secret>[^\s&\"'<>]{4,4096})"
)
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("hf_", "api_org_", "gh", "github_pat_", "eyj"), _TOKEN_SHAPES),
    (("://",), _USERINFO),
    (("bearer", "basic"), _BEARER),
    (("authorization", "cookie", "x-api-key"), _HEADER),
    (("token", "key", "passw", "secret"), _NAMED),
    (("?", "&", ";"), _SIGNED),
)
"""Each with words (in lower case) of which a text has at least one if the pattern fits: looking for these is fast."""
_SHAPE_BEGINS = re.compile(_WORD_BEGINS + r"(?:hf_|api_org_|gh[opsur]_|github_pat_|eyJ)[\w.-]*$")
_VALUE_BEGINS = re.compile(
    r"(?i)\b(?:Bearer|Basic)[ \t]+\S*$"
    r"|(?:authorization|cookie|token|api[_-]?key|passw(?:or)?d|secret)[\"']?[ \t]*(?:[=:]|%3D)[ \t]*b?[\"']?"
    rf"{_VALUE}+$"
)
"""Ends of an unfinished line that may turn out to be one of the patterns once more of it is there."""


def redact(text: str) -> str:
    """`text` with a mask in place of every secret in it."""
    spans = find_secrets(text)
    return masked(text, spans) if spans else text


def masked(text: str, spans: list[tuple[int, int]], start: int = 0, end: int | None = None) -> str:
    """`text[start:end]` with a mask for every part of a span that lies in it."""
    stop = len(text) if end is None else end
    parts, position = [], start
    for first, last in spans:
        if last <= start or first >= stop:
            continue
        parts += [text[position : max(first, position)], MASK]
        position = min(last, stop)
    return "".join((*parts, text[position:stop]))


def find_secrets(text: str) -> list[tuple[int, int]]:
    """Where secrets stand in `text`: (first, one after last), in order, not overlapping."""
    lowered = text.lower()
    spans = [(first, last) for first, last, _ in _registered_in(text)]
    for words, pattern in _PATTERNS:
        if any(word in lowered for word in words):
            group = "secret" if "secret" in pattern.groupindex else 0
            spans += [match.span(group) for match in pattern.finditer(text)]
    return _merged(spans)


def _registered_in(text: str) -> Iterator[tuple[int, int, str]]:
    for form in _forms:
        first = text.find(form.core)
        while first >= 0:
            last = first + len(form.core)
            if form.core != form.text:
                first -= text[first - 1 : first] == form.text[0]
                last += text[last : last + 1] == form.text[-1]
            yield first, last, form.name
            first = text.find(form.core, last)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def unfinished_secret(text: str, *, by_name: bool = True) -> int:
    """Where the end of `text` may be the beginning of a secret whose rest has not come yet; its length if nowhere.

    `by_name`: also what follows a word such as "token=".
    """
    matches = [_SHAPE_BEGINS.search(text), _VALUE_BEGINS.search(text) if by_name else None]
    start = min((match.start() for match in matches if match), default=len(text))
    for form in _forms:
        for whole in (form.text, form.core):
            at = text.rfind(whole[:MIN_BEGINNING], max(0, len(text) - len(whole)))
            while at >= 0:
                if whole.startswith(text[at:]):
                    start = min(start, at)
                at = text.rfind(whole[:MIN_BEGINNING], max(0, len(text) - len(whole)), at + MIN_BEGINNING - 1)
    return start


def refuse_secrets(text: str, where: str) -> None:
    """Raises RefusedConfig if `text`, which is about to be kept in `where`, holds a secret or what looks like a token.

    `where` begins the sentence, such as "The metadata of cat.safetensors". The error never repeats the secret.
    """
    name = next((name for _, _, name in _registered_in(text)), "")
    if not name and (_TOKEN_SHAPES.search(text) or _USERINFO.search(text)):
        name = "something that looks like a token or password"
    if name:
        raise RefusedConfig(
            f"{where} would hold {name}, and this file is meant to be passed on. Take it out; tokens belong into the "
            "environment, the keyring or the Tokens card of the Settings tab."
        )


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_CONTROLS |= {
    code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)
}  # halves of a sign: no file and no page takes them


def visible(text: str) -> str:
    """`text` with control characters written out, also those that end lines or turn the direction of writing.

    For what comes from outside and goes into a log: it can neither move the cursor nor forge a line.
    """
    return visible_lines(text).replace("\n", "\\n")


def visible_lines(text: str) -> str:
    """As `visible`, but line feeds stay."""
    return text.translate(_CONTROLS)
