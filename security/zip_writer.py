"""Writes zip archives, for exports. The one place that may use `zipfile`, and it only writes: foreign archives are read by
`security.archives`, which believes no entry and unpacks nothing by itself.
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of all files in an archive, the first that zip knows: the same files give the same archive."""
_PACKED = (".txt", ".json")
"""Endings of what is worth packing; pictures are packed already, so they are only stored."""


class ZipWriter:
    """A new zip archive in an open file. Entries are private files (0600) without the time and the name of a machine."""

    def __init__(self, file: BinaryIO) -> None:
        self._archive = zipfile.ZipFile(file, "w")

    def add(self, path: str, data: bytes) -> None:
        """Writes a file into the archive, `path` with "/"."""
        entry = zipfile.ZipInfo(path, _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED if path.endswith(_PACKED) else zipfile.ZIP_STORED
        entry.external_attr = 0o600 << 16
        self._archive.writestr(entry, data)

    def close(self) -> None:
        """Writes the directory of the archive."""
        self._archive.close()
