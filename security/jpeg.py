"""Writes a JPEG file anew with nothing in it but what its pixels are decoded from, bit for bit.

(Format: ITU-T T.81, annex B. Which colours the numbers stand for: JFIF 1.02 and Adobe's technical note 5116.)
"""

from __future__ import annotations

import re

from security.errors import RefusedFile
from security.policy import MAX_JPEG_SCANS

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _JFIF, _ADOBE = 0xDA, 0xE0, 0xEE
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""Huffman and arithmetic tables, quantisation, restart interval."""
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Baseline, extended and progressive frames. The others (lossless, hierarchical) are not decoded anyway."""
_DROPPED = frozenset({*range(0xE0, 0xF0), 0xFE})
"""APP0 to APP15 (JFIF and its thumbnail, EXIF, XMP, profiles, press data, further pictures) and comments."""
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
"""The next marker that is no part of a scan: a stuffed zero and restart markers belong to it."""
_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_PLAIN_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def only_pixels(data: bytes, name: str) -> bytes | None:
    """A JPEG file with the same pixels and without metadata, comments, thumbnails and bytes after its end.

    None for a file that is put together in another way than cameras and programs do: it has to be decoded and written as
    another one. Raises RefusedFile, which calls it `name`, for a picture in more scans than any program writes: each
    costs a decoder as much time as the whole picture. What is given back may still be broken.
    """
    if not data.startswith(_START):
        return None
    kept: list[bytes] = []
    jfif, transform = False, None
    num_frames = num_scans = 0
    position = len(_START)
    while (found := _marker(data, position)) is not None:
        marker, position = found
        if marker == _END[1]:
            if num_frames != 1 or not num_scans:
                return None
            colours = (_PLAIN_JFIF if jfif else b"") + (b"" if transform is None else _PLAIN_ADOBE + transform)
            return b"".join([_START, colours, *kept, _END])
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end < position + 2 or end > len(data):
            return None
        body = data[position + 2 : end]
        if marker == _JFIF and body.startswith(b"JFIF\0") and len(body) >= 14 and not num_scans:
            jfif = True  # the decoder takes the numbers for YCbCr then
        elif marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12 and not num_scans:
            transform = body[11:12]
        elif marker == _SCAN:
            num_scans += 1
            if num_scans > MAX_JPEG_SCANS:
                raise RefusedFile(f"{name} is a JPEG of over {MAX_JPEG_SCANS} scans. Save it anew.")
            after = _AFTER_SCAN.search(data, end)
            if after is None:
                return None
            end = after.start()
        num_frames += marker in _FRAMES
        if marker == _SCAN or marker in _TABLES or marker in _FRAMES:
            kept.append(bytes((0xFF, marker)) + data[position:end])
        elif marker not in _DROPPED:
            return None
        position = end
    return None


def _marker(data: bytes, position: int) -> tuple[int, int] | None:
    """The marker at `position` and where what follows it begins; None if there is none."""
    start = position
    while position < len(data) and data[position] == 0xFF:
        position += 1
    if position == start or position == len(data) or data[position] == 0:
        return None
    return data[position], position + 1
