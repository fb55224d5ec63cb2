"""QR codes of the one-tap link, for phones: as text for the terminal, as a picture for the page."""

from __future__ import annotations

import io

import segno


def terminal_code(text: str, encoding: str) -> str:
    """The code in half blocks, light on dark as most terminals are; "" where `encoding` has no such signs."""
    drawn = io.StringIO()
    segno.make(text, micro=False).terminal(out=drawn, compact=True)
    try:
        drawn.getvalue().encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ""
    return drawn.getvalue()


def picture_code(text: str) -> str:
    """The code as the address of an SVG picture ("data:..."), dark on light in both themes, with its quiet zone."""
    code = segno.make(text, micro=False)
    address: str = code.svg_data_uri(scale=5, border=4, dark="#000", light="#fff")
    return address
