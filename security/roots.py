"""Folders that paths cannot leave: `Root` for what the program keeps, and checks for paths that a user typed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from security.errors import RefusedName, RefusedPath, SafelightError
from security.names import safe_name
from security.policy import FREE_DISK_RESERVE_BYTES, MAX_PATH_CHARACTERS

PAGE_BYTES = 4096
"""What the system writes at once: the smallest page of the machines that this runs on."""
_REPOSITORY = Path(__file__).resolve().parents[1]
_SYSTEM_TREES = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/System", "/Library",
    "C:\\Windows", "C:\\Program Files", "C:\\Program Files (x86)", "C:\\ProgramData",
)  # fmt: skip
"""No workspace here, nor in any folder below."""
_SHARED_FOLDERS = (
    "/var", "/run", "/tmp", "/home", "/mnt", "/media", "/opt", "/srv", "/private", "/Users", "C:\\Users",  # noqa: S108
)  # fmt: skip
"""No workspace here, but a folder below may be one: these hold data disks and temporary folders."""
_NO_DATA_FOLDERS = ("/dev", "/proc", "/sys")
"""Files here are windows on the machine and on other processes, not data."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CODE_FOLDERS = (".git", ".github", ".venv", "benchmarks", "docs", "security", "tests", "trainer", "ui")


class Root:
    """A folder and everything below it. No method follows a link or reaches outside."""

    def __init__(self, path: Path) -> None:
        """`path` is an existing folder; it may itself be reached through a link. Raises RefusedPath if it is none."""
        if not path.is_dir():
            raise RefusedPath(f"{path} is not a folder.")
        self.path = path.resolve()
        self._given = path.absolute()

    def child(self, *parts: str) -> Path:
        """The path of something below this folder, existing or not. Each part is a name or a relative path with "/".

        Raises RefusedPath for "..", absolute paths, links on the way, and new names that are not safe everywhere.
        """
        names = [name for part in parts for name in part.split("/")]
        if not names:
            raise RefusedPath("A name is missing. Give one inside the folder.")
        path = self.path
        for name in names:
            path = path / _checked_name(path, name)
            if _is_link(path):
                raise RefusedPath(f"{path} is a link. Put the file or folder itself there.")
        return path

    def open_read(self, relative: str) -> BinaryIO:
        """Opens a regular file below this folder for reading, without following a link at any step.

        Raises RefusedPath if it is missing, a link, a folder or a device.
        """
        path = self.child(relative)
        try:
            descriptor = self._open_below(path)
        except FileNotFoundError:
            raise RefusedPath(f"{path} does not exist.") from None
        except OSError as error:
            raise RefusedPath(f"{path} cannot be opened: {error.strerror}.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedPath(f"{path} is not a regular file.")
        return os.fdopen(descriptor, "rb")

    def create_file(self, relative: str) -> BinaryIO:
        """A new file below this folder, open for writing (mode 0600). Missing folders are made, mode 0700.

        Raises RefusedPath if something of that name is there, and as `child`.
        """
        path = self.child(relative)
        try:
            with self._folder_of(path, make=True) as folder:
                return os.fdopen(_create(path, folder), "wb")
        except FileExistsError:
            raise RefusedPath(f"{path} is there already. Choose another name.") from None

    def write_bytes_atomic(self, path: Path, data: bytes) -> None:
        """Writes a file below this folder: readers see the old content or the new, also after a power cut.

        Missing folders are made. The file can be read by its owner only (mode 0600); a hard link to what was there
        before keeps the old content. Raises RefusedPath if the path is outside, a link, a folder or a device.
        """
        target = self._checked(path)
        if target.is_dir():
            raise RefusedPath(f"{target} is a folder, so no file can be written there.")
        if target.exists() and not target.is_file():
            raise RefusedPath(f"{target} is not a regular file, so it is not replaced.")
        with self._folder_of(target, make=True) as folder:
            _replace(target, folder, data)

    def write_text_atomic(self, path: Path, text: str) -> None:
        """As write_bytes_atomic, in UTF-8."""
        self.write_bytes_atomic(path, text.encode())

    def remove_tree(self, path: Path) -> None:
        """Deletes a file or folder below this folder, with all that is in it. Links inside are deleted, not followed.

        Raises RefusedPath for this folder itself, for anything outside, for what does not exist, and for a folder that
        another disk is mounted in.
        """
        target = self._checked(path)
        if not target.exists():
            raise RefusedPath(f"{target} does not exist.")
        with self._folder_of(target, make=False) as folder:
            if folder is None:
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            elif stat.S_ISDIR(os.stat(target.name, dir_fd=folder, follow_symlinks=False).st_mode):
                _refuse_other_disks(target, folder)
                shutil.rmtree(target.name, dir_fd=folder)
            else:
                os.unlink(target.name, dir_fd=folder)

    # ---- files that a journal of the caller's makes last: no wait for the disk, and names that stood here before ----

    def known_child(self, relative: str) -> Path:
        """As `child`, for a name that stands or stood here: it may be one that other systems do not allow.

        Raises RefusedPath for "..", absolute paths and links on the way.
        """
        if os.name == "nt":
            return self.child(relative)
        path = str(self.path)
        for name in relative.split("/"):
            if name in ("", ".", "..") or "\\" in name or "\0" in name:
                raise RefusedPath(f"{relative[:200]!r} leads out of its folder, so it is not used.")
            path = f"{path}/{name}"
            if os.path.islink(path):  # noqa: PTH114 - called for thousands of files in a row
                raise RefusedPath(f"{path} is a link. Put the file or folder itself there.")
        return Path(path)

    def write_known(self, relative: str, data: bytes, *, durable: bool) -> None:
        """As write_bytes_atomic for a `known_child`. Not `durable`: a power cut may lose it, for a journal to write again."""
        target = self.known_child(relative)
        with self._folder_of(target, make=True) as folder:
            _replace(target, folder, data, durable=durable)

    def overwrite_known(self, relative: str, data: bytes) -> bool:
        """Writes a small regular file below this folder in its place, which is many times faster than replacing it.

        For a journal that can write it again: at a crash it may have the new bytes followed by what is left of the old
        ones. Returns False, and does nothing, if it is not there, larger than a page, or has a second name.
        """
        if sys.platform == "win32" or len(data) > PAGE_BYTES:
            return False
        target = self.known_child(relative)
        try:
            with self._folder_of(target, make=False) as folder:
                descriptor = os.open(target.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return False
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > PAGE_BYTES:
                return False
            os.pwrite(descriptor, data, 0)  # within one page, so nothing can end it half way
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)
        return True

    def remove_file(self, relative: str) -> None:
        """Deletes a file below this folder, and the folders above it that are empty then."""
        target = self.known_child(relative)
        with self._folder_of(target, make=False) as folder:
            os.unlink(target if folder is None else target.name, dir_fd=folder)
        self._remove_empty(target.parent)

    def move_in(self, relative: str, source: Root, source_relative: str) -> None:
        """Moves a regular file of another folder to here, replacing what is there; copies it over if on another disk.

        Folders of `source` that are empty then are removed. Raises RefusedPath for links and what is not a file.
        """
        here, there = self.known_child(relative), source.known_child(source_relative)
        with self._folder_of(here, make=True) as target_folder, source._folder_of(there, make=False) as source_folder:
            begin, end = (there, here) if source_folder is None else (Path(there.name), Path(here.name))
            found = os.stat(begin, dir_fd=source_folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise RefusedPath(f"{there} is not a regular file.")
            try:
                os.replace(begin, end, src_dir_fd=source_folder, dst_dir_fd=target_folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy_over(source.open_read(source_relative), here, target_folder, found)
                os.unlink(begin, dir_fd=source_folder)
        source._remove_empty(there.parent)

    def remove_partials(self, relative: str) -> None:
        """Deletes what a killed program left of files that it was writing beside `relative`."""
        for path in self.known_child(relative).parent.glob(".partial-" + "[0-9a-f]" * 16):
            path.unlink(missing_ok=True)

    def _remove_empty(self, folder: Path) -> None:
        """Removes a folder below this one and those above it, as long as they are empty."""
        while folder != self.path:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _checked(self, path: Path) -> Path:
        """A path that is below this folder, as it was given or with links resolved, after the checks of `child`."""
        absolute = path.absolute()
        for root in (self.path, self._given):
            if absolute.is_relative_to(root):
                return self.child(*absolute.relative_to(root).parts)
        raise RefusedPath(f"{path} is not inside {self.path}.")

    def _open_below(self, path: Path) -> int:
        """A descriptor of `path`, for reading. Where it can, each folder is opened from the one above."""
        if sys.platform == "win32":
            return os.open(path, os.O_RDONLY | os.O_BINARY)
        with self._folder_of(path, make=False) as folder:
            # A FIFO would block without O_NONBLOCK; on regular files it changes nothing.
            return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)

    @contextmanager
    def _folder_of(self, path: Path, *, make: bool) -> Iterator[int | None]:
        """A descriptor of the folder that `path` lies in; None on Windows, which has none.

        Each folder is opened from the one above without following links, so what is checked is what is used, even when
        somebody swaps a folder for a link meanwhile (RefusedPath then). `make`: missing folders are made, mode 0700.
        """
        if sys.platform == "win32":
            if make:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield None
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        current = os.open(self.path, flags)
        try:
            for name in path.relative_to(self.path).parts[:-1]:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, mode=0o700, dir_fd=current)
                try:
                    below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=current)
                except OSError as error:
                    if error.errno in (errno.ENOTDIR, errno.ELOOP):
                        raise RefusedPath(f"{path} cannot be opened: {name} on the way is a file or link.") from None
                    raise
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)


def replace_file(target: Path, data: bytes) -> None:
    """Writes `target` as a whole, mode 0600: readers see the old content or the new, also after a power cut.

    Its folder must exist and be one that the program owns; paths that were not checked yet go through `Root`.
    """
    if sys.platform == "win32":
        _replace(target, None, data)
        return
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _replace(target, folder, data)
    finally:
        os.close(folder)


def _create(path: Path, folder: int | None) -> int:
    """A descriptor of a new file, mode 0600; nothing that is there is opened. `folder`: as `Root._folder_of` gives it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    if sys.platform == "win32" or folder is None:
        return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    return os.open(path.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)


def _copy_over(file: BinaryIO, target: Path, folder: int | None, found: os.stat_result) -> None:
    """Writes the content of an open file to `target` as a whole, with the time that it was changed."""
    temporary = target.with_name(f".partial-{secrets.token_hex(8)}")
    descriptor = _create(temporary, folder)
    source, destination = (temporary, target) if folder is None else (Path(temporary.name), Path(target.name))
    try:
        with file, os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(file, copy, 1024 * 1024)
            copy.flush()
            os.fsync(copy.fileno())  # the original goes next
        os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=folder)
        os.replace(source, destination, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(source, dir_fd=folder)
        raise


def _replace(target: Path, folder: int | None, data: bytes, *, durable: bool = True) -> None:
    """Writes a new file beside `target`, whose folder is open as `folder`, and puts it in its place."""
    temporary = target.with_name(f".partial-{secrets.token_hex(8)}")
    descriptor = _create(temporary, folder)
    source, destination = (temporary, target) if folder is None else (Path(temporary.name), Path(target.name))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(source, destination, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(source, dir_fd=folder)
        raise
    if durable and folder is not None:  # the rename lasts over a power cut; Windows has no such call and needs none
        os.fsync(folder)


def _refuse_other_disks(target: Path, folder: int) -> None:
    """Raises RefusedPath if something is mounted at `target` or below it: deleting would empty that disk."""
    device = os.fstat(folder).st_dev
    for below, _, _, descriptor in os.fwalk(target.name, dir_fd=folder, follow_symlinks=False):
        if os.fstat(descriptor).st_dev != device:
            place = target.parent / below
            raise RefusedPath(f"{place} is another disk, mounted there. Unmount it first: deleting would empty it.")


def disk_is_full(error: OSError) -> bool:
    """Whether an error of writing says that there is no room: no space, no quota, or too much for one file there."""
    return error.errno in _NO_ROOM


def refuse_full_disk(folder: Path, files: Iterable[Path]) -> None:
    """Raises SafelightError unless the disk of a folder has room for copies of these files and the reserve."""
    num_bytes = 0
    for path in files:
        with suppress(OSError):  # gone meanwhile
            num_bytes += path.lstat().st_size
    free = shutil.disk_usage(folder).free
    if free < num_bytes + FREE_DISK_RESERVE_BYTES:
        raise SafelightError(
            f"This needs {num_bytes / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left, of which "
            f"{FREE_DISK_RESERVE_BYTES / 1e9:.1f} GB stay free. Make room first."
        )


def refuse_unsafe_workspace(path: Path) -> None:
    """Raises RefusedPath if `path` must not become the workspace folder.

    Refused are the root of a drive, the home folder, system folders, this program's own folders, anything that holds
    one of these, and a file.
    """
    resolved = path.expanduser().resolve()
    advice = "Choose a folder of its own, such as ~/safelight."
    if resolved.exists() and not resolved.is_dir():
        raise RefusedPath(f"The workspace {resolved} is a file. {advice}")
    if resolved.parent == resolved:
        raise RefusedPath(f"The workspace {resolved} is the root of the drive. {advice}")
    for keep, meaning in ((Path.home().resolve(), "your home folder"), (_REPOSITORY, "the program itself")):
        if keep.is_relative_to(resolved):
            raise RefusedPath(f"The workspace {resolved} is or holds {meaning}. {advice}")
    for folder in [_REPOSITORY / name for name in _CODE_FOLDERS]:
        if resolved.is_relative_to(folder):
            raise RefusedPath(f"The workspace {resolved} is inside the program's folder {folder}. {advice}")
    if any(resolved.is_relative_to(tree) for tree in _SYSTEM_TREES) or str(resolved) in _SHARED_FOLDERS:
        raise RefusedPath(f"The workspace {resolved} is a folder of the system. {advice}")


def resolve_user_folder(text: str, allowed: Sequence[Path] | None) -> Path:
    """As resolve_user_path, and refuses what is not a folder."""
    path = resolve_user_path(text, allowed)
    if not path.is_dir():
        raise RefusedPath(f"{path if allowed is None else text} is a file. Give the folder that holds it.")
    return path


def resolve_user_file(text: str, allowed: Sequence[Path] | None) -> Path:
    """As resolve_user_path, and refuses what is not a regular file."""
    path = resolve_user_path(text, allowed)
    if not path.is_file():
        raise RefusedPath(f"{path if allowed is None else text} is not a file. Give the path of a file.")
    return path


def _leads_inside(path: Path, allowed: Sequence[Path]) -> bool:
    """Whether a path, with its links followed as far as it exists, lies in one of the folders."""
    try:
        resolved = path.resolve(strict=False)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, up to Python 3.12
        return False
    return any(resolved.is_relative_to(folder.resolve()) for folder in allowed)


def resolve_user_path(text: str, allowed: Sequence[Path] | None) -> Path:
    """The existing file or folder that a user typed: absolute, or from the home folder with ~. Links are resolved.

    `allowed` are the folders it must be in (None: anywhere but /dev, /proc and /sys). Raises RefusedPath.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]  # "Copy as path" on Windows puts quotes around it
    if not text:
        raise RefusedPath("The path is empty. Give the whole path, from / or ~ on.")
    if len(text) > MAX_PATH_CHARACTERS or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise RefusedPath(f"The path is over {MAX_PATH_CHARACTERS} characters or holds control characters. Check it.")
    # \\server\share and //server/share make Windows log in at that server with the user's password hash.
    if text.startswith(("\\\\", "//")) or "://" in text:
        raise RefusedPath(f"{text} names another machine. Give the path of a file or folder on this one.")
    if text.startswith("~") and text[1:2] not in ("", "/", os.sep):
        raise RefusedPath(f"{text} names another user's home folder. Write its whole path.")
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise RefusedPath(f"{text} is not a whole path. Start it with / or ~ (on Windows with a drive such as C:\\).")
    if os.name == "nt" and ":" in str(path)[2:]:
        raise RefusedPath(f"{text} has a second colon. Give the path of a plain file or folder.")
    if allowed is not None and not _leads_inside(path, allowed):
        # Before anything is looked for: whether a file exists elsewhere, and where home is, are not every visitor's business.
        places = ", ".join(folder.name for folder in allowed)
        raise RefusedPath(f"{text} is not inside the folder {places}. Copy it there.")
    shown = path if allowed is None else text
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        raise RefusedPath(f"{shown} does not exist. Check the spelling.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise RefusedPath(f"{shown} cannot be opened: {getattr(error, 'strerror', '') or 'a loop of links'}.") from None
    if any(resolved.is_relative_to(folder) for folder in _NO_DATA_FOLDERS):
        raise RefusedPath(f"{resolved} belongs to the system. Give a folder with your own files.")
    if allowed is not None and not _leads_inside(resolved, allowed):
        raise RefusedPath(f"{text} changed while it was looked at. Try again.")
    return resolved


def _checked_name(folder: Path, name: str) -> str:
    """`name` if it is one step down from `folder`. A new name must be safe everywhere; what is there is as it is."""
    try:
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0") or os.name == "nt":
            return safe_name(name)
        return name if os.path.lexists(folder / name) else safe_name(name)
    except RefusedName as error:
        raise RefusedPath(str(error)) from None


def _is_link(path: Path) -> bool:
    """True for a symbolic link and for a Windows junction, which is a folder whose real path is another."""
    return path.is_symlink() or (os.name == "nt" and path.exists() and path.resolve() != path.absolute())
