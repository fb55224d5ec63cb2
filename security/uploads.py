"""Files that a browser sends in pieces: each checked before it is written, into a staging folder, for one login only.

Pieces, because a file of a gigabyte in one request is lost when the connection breaks, and some proxies refuse it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path, PurePosixPath

from security.errors import RefusedRequest
from security.names import sanitized_name
from security.parts import NO_FOLLOW
from security.policy import (
    FREE_DISK_RESERVE_BYTES,
    MAX_ARCHIVE_BYTES,
    MAX_ARCHIVE_ENTRIES,
    MAX_PATH_CHARACTERS,
    MAX_UPLOAD_BYTES,
    MAX_UPLOADS_PER_LOGIN,
    MIB,
)
from security.roots import Root

_WRITE_BYTES = 1 * MIB


class _File:
    """One file that is coming. `have` of `size` bytes lie at `path`."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.have = 0
        self.coming = asyncio.Lock()

    def append(self, data: bytes) -> None:
        """Writes the next bytes. Raises RefusedRequest when they are too many, or the disk is full."""
        if self.have + len(data) > self.size:
            raise RefusedRequest(f"{self.path.name} is longer than announced.", 413)
        try:
            if shutil.disk_usage(self.path.parent).free - len(data) < FREE_DISK_RESERVE_BYTES:
                raise RefusedRequest("The disk is nearly full, so nothing more is taken. Make room first.", 507)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | NO_FOLLOW)
        except FileNotFoundError:
            raise RefusedRequest("This upload was given up here. Start it again.", 410) from None
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)
        self.have += len(data)


class Upload:
    """What one browser sends at one time. Use it from the server's own thread; only writing happens on others."""

    def __init__(self, staging: AbstractContextManager[Path], suffixes: Sequence[str]) -> None:
        """`staging` gives an empty folder for this upload alone. `suffixes`: allowed endings, in lower case."""
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(staging)
        self._suffixes = tuple(suffixes)
        self._files: dict[str, _File] = {}

    async def take(self, name: str, at: int, size: int, chunks: AsyncIterator[bytes]) -> int:
        """Takes the bytes of file `name` (its path as the sender has it) from position `at` on. Returns how many are here.

        What came before a connection broke stays. `at` other than what is here changes nothing; the answer tells the
        sender where to go on. Raises RefusedRequest for names, kinds and sizes that are not allowed.
        """
        file = self._file(name, size)
        async with file.coming:
            if at != file.have:
                return file.have
            waiting = bytearray()
            try:
                async for chunk in chunks:
                    waiting += chunk
                    if len(waiting) >= _WRITE_BYTES:
                        data, waiting = bytes(waiting), bytearray()
                        await asyncio.to_thread(file.append, data)
            finally:
                if waiting:
                    await asyncio.to_thread(file.append, bytes(waiting))
            return file.have

    def files(self) -> list[tuple[str, Path]]:
        """(path as the sender has it, where it lies) of each file that is whole, in the order of their coming."""
        return [(name, file.path) for name, file in self._files.items() if file.have == file.size]

    def unfinished(self) -> list[str]:
        """Files of which a part is missing."""
        return [name for name, file in self._files.items() if file.have != file.size]

    def close(self) -> None:
        """Deletes what has come."""
        self._stack.close()

    def _file(self, name: str, size: int) -> _File:
        if name in self._files and self._files[name].size == size:
            return self._files[name]
        self._check(name, size)
        number = len(self._files)
        path = Root(self.folder).child(f"{number}", sanitized_name(PurePosixPath(name).name, "file"))
        path.parent.mkdir(mode=0o700)
        Root(self.folder).create_file(path.relative_to(Root(self.folder).path).as_posix()).close()
        self._files[name] = _File(path, size)
        return self._files[name]

    def _check(self, name: str, size: int) -> None:
        parts = name.split("/")
        if len(name) > MAX_PATH_CHARACTERS or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise RefusedRequest("This is not the name of a file below a folder.", 400)
        if any(ord(character) < 32 or ord(character) == 127 for character in name):
            raise RefusedRequest("The name has control characters.", 400)
        if not name.lower().endswith(self._suffixes):
            raise RefusedRequest(f"Only {', '.join(self._suffixes)} files are taken.", 415)
        if name in self._files:
            raise RefusedRequest("Two files of this name and of different sizes were sent.", 409)
        if not 0 <= size <= MAX_UPLOAD_BYTES:
            raise RefusedRequest(
                f"{size} bytes are too many for one file; {MAX_UPLOAD_BYTES // MIB} MiB are allowed. Put it into a folder "
                "of this machine and import that.",
                413,
            )
        if len(self._files) >= MAX_ARCHIVE_ENTRIES:
            raise RefusedRequest(f"More than {MAX_ARCHIVE_ENTRIES} files were sent at once. Send them in parts.", 413)
        if sum(file.size for file in self._files.values()) + size > MAX_ARCHIVE_BYTES:
            raise RefusedRequest(
                f"More than {MAX_ARCHIVE_BYTES // MIB} MiB were sent at once. Send them in parts.", 413
            )


class Uploads:
    """Uploads by login and the name that the browser gave them. A login sees its own only."""

    def __init__(self, suffixes: Sequence[str], staging: Callable[[], AbstractContextManager[Path]]) -> None:
        """`staging` makes a folder for an upload, gone when it is left."""
        self._suffixes = tuple(suffixes)
        self._staging = staging
        self._uploads: dict[tuple[str, str], Upload] = {}
        self._guard = threading.Lock()

    def get(self, login: str, name: str) -> Upload:
        """The upload of that name, a new one if there is none. Of too many, the one that began first goes."""
        with self._guard:
            if (login, name) not in self._uploads:
                own = [key for key in self._uploads if key[0] == login]
                for key in own[: max(0, len(own) + 1 - MAX_UPLOADS_PER_LOGIN)]:
                    self._uploads.pop(key).close()
                self._uploads[login, name] = Upload(self._staging(), self._suffixes)
            return self._uploads[login, name]

    def take_out(self, login: str, name: str) -> Upload | None:
        """The upload, which belongs to the caller from now on, or None if this login has none of that name."""
        with self._guard:
            return self._uploads.pop((login, name), None)
