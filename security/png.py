"""Writes a PNG file anew with nothing in it but what its pixels are decoded from, bit for bit.

(Format: the W3C's PNG specification, third edition, sections 5 and 11.)
"""

from __future__ import annotations

import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG can say that it lies on its side: such a one has to be decoded and turned."""
_ANIMATES = b"acTL"


def only_pixels(data: bytes) -> bytes | None:
    """A PNG file with the same pixels and without texts, times, profiles and bytes after its end.

    None for one that is broken, animated or may lie on its side: it has to be decoded and written as another one.
    """
    if not data.startswith(_SIGNATURE) or any(mark in data for mark in _TURNS):
        return None
    kept, position = [_SIGNATURE], len(_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if (
            end > len(data)
            or zlib.crc32(kind + body) != int.from_bytes(data[end - 4 : end], "big")
            or kind == _ANIMATES
        ):
            return None
        if len(kept) == 1 and kind != b"IHDR":
            return None
        if kind in _KEPT:
            kept.append(data[position:end])
        elif not kind[0] & 0x20:  # a chunk that a decoder must know, and this one is none of PNG's
            return None
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    return None
