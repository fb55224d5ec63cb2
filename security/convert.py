"""Turns a PyTorch checkpoint (.ckpt, .pt, .pth, .bin) into a safetensors file without trusting it.

Three fences: the bytes are checked instruction by instruction (pickles.py), loading takes tensors only
(`weights_only`), and it happens in a confined child that sees this one open file and an empty folder (sandbox.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from security.configs import parse_json
from security.confined import CONFINEMENT_FAILED
from security.errors import RefusedConfig, RefusedFile, SafelightError
from security.pickles import check_torch_file
from security.policy import MAX_CHECKPOINT_BYTES
from security.processes import ended_by
from security.sandbox import Limits, probe, run_confined
from security.weights import check_safetensors

logger = logging.getLogger("safelight.convert")

CONVERTIBLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_RESULT_NAME = "converted.safetensors"
_MEMORY_BYTES = 4 << 30
"""What Python and torch take by themselves, generously."""
_MEMORY_PER_BYTE = 3
"""The file's numbers, their copies, and room between."""
_EXTRA_FILE_BYTES = 64 << 20
_SECONDS, _BYTES_PER_SECOND = 180, 10_000_000
"""Time that importing torch takes on a slow machine, and the speed of a slow disk."""
_MAX_DROPPED, _MAX_DROPPED_CHARACTERS = 200, 80


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of it: tensors and bytes of the new file, and the names of what was no tensor and left out."""

    num_tensors: int
    dropped: tuple[str, ...]
    num_bytes: int


def convert_checkpoint(source: Path, target: Path) -> Conversion:
    """Writes the tensors of `source` to the new file `target` (mode 0600). `source` stays as it is.

    `target` appears whole or not at all, and never replaces anything. Raises RefusedFile for a file that is not taken,
    SafelightError where no sandbox can be had, the disk is too full or the converter fails.
    """
    state = probe()
    if not state.active:
        raise SafelightError(
            f"{source.name} can only be converted in a sandbox, and there is none here. {state.detail} "
            "Get the .safetensors version of the model, or convert the file on a machine with Linux."
        )
    if target.suffix != ".safetensors" or os.path.lexists(target):
        raise SafelightError(f"{target} exists already or does not end in .safetensors. Give another name.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SafelightError(f"The folder {target.parent} is not there or cannot be written. Choose another one.")
    with _opened(source) as descriptor:
        before = os.fstat(descriptor)
        _check_space(before.st_size, target.parent)
        check_torch_file(descriptor, source.name)
        folder = Path(tempfile.mkdtemp(prefix=".convert-", dir=target.parent))
        try:
            dropped = _run_child(descriptor, before.st_size, folder, source.name)
            after = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise RefusedFile(f"{source.name} changed while it was converted. Try again once it is complete.")
            return _put_in_place(folder / _RESULT_NAME, target, dropped, source.name)
        finally:
            shutil.rmtree(folder)


@contextmanager
def _opened(source: Path) -> Iterator[int]:
    """A descriptor of a regular file that is not a link: what is checked is what is loaded, whatever the path leads to."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedFile(f"{source.name} cannot be opened: {error.strerror}. It must be a file, not a link.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedFile(f"{source.name} is not a regular file.")
        if status.st_size > MAX_CHECKPOINT_BYTES:
            raise RefusedFile(f"{source.name} has {status.st_size} bytes; {MAX_CHECKPOINT_BYTES} are allowed.")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SafelightError(
            f"The converted file needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB left. Make room first."
        )


def _run_child(descriptor: int, size: int, folder: Path, name: str) -> tuple[str, ...]:
    """Has the child write the result into `folder`. Returns the names of what it left out."""
    seconds = _SECONDS + size // _BYTES_PER_SECOND
    limits = Limits(_MEMORY_BYTES + _MEMORY_PER_BYTE * size, seconds, 2 * size + _EXTRA_FILE_BYTES)
    done = run_confined(
        "security.convert_child",
        [str(descriptor), str(folder / _RESULT_NAME)],
        folder=folder,
        limits=limits,
        timeout_seconds=seconds,
        descriptors=[descriptor],
    )
    if done.returncode == CONFINEMENT_FAILED:
        raise SafelightError(f"{name} was not converted: the sandbox could not be set up. {_quoted(done.stderr)}")
    if done.returncode != 0:
        logger.warning("converting %s ended with %d: %s", ascii(name), done.returncode, _quoted(done.stderr, 4000))
        if done.returncode < 0:
            raise SafelightError(
                f"{name} is not converted: the converter {ended_by(done.returncode)}. Nothing was changed. Close other "
                "programs and try again, or get the .safetensors version of the model."
            )
        raise SafelightError(
            f"{name} could not be converted (exit code {done.returncode}). It is damaged, holds something unusual, or "
            "needs more memory than there is. Get the .safetensors version of the model."
        )
    return _report(done.stdout, name)


def _report(text: str, name: str) -> tuple[str, ...]:
    """What the child left out. The child has read an untrusted file, so its words are checked like one."""
    try:
        report = parse_json(text, "The converter's report")
    except RefusedConfig as error:
        raise SafelightError(f"{name} could not be converted. {error}") from None
    if fault := report.get("fault"):
        raise RefusedFile(f"{name} is not converted: {_quoted(str(fault))}")
    dropped = report.get("dropped")
    if not isinstance(dropped, list) or len(dropped) > _MAX_DROPPED:
        raise SafelightError(f"{name} could not be converted: the converter's report makes no sense.")
    return tuple(_quoted(str(one), _MAX_DROPPED_CHARACTERS) for one in dropped)


def _quoted(text: str, length: int = 300) -> str:
    """Text of the child without control characters, its end."""
    return "".join(sign if sign.isprintable() else " " for sign in text[-length:])


def _put_in_place(result: Path, target: Path, dropped: tuple[str, ...], name: str) -> Conversion:
    if result.is_symlink() or not result.is_file():
        raise SafelightError("The converter wrote no file. Get the .safetensors version of the model.")
    try:
        header = check_safetensors(result)
    except RefusedFile as error:  # which names a file that the person has never seen
        raise RefusedFile(f"{name} is not converted. {str(error).replace(_RESULT_NAME, 'What came of it')}") from None
    result.chmod(0o600)
    descriptor = os.open(result, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        num_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    try:
        os.link(result, target)  # unlike a rename it replaces nothing
    except FileExistsError:
        raise SafelightError(f"{target} exists by now. Give another name.") from None
    except OSError:  # file systems of USB sticks have no links
        if os.path.lexists(target):
            raise SafelightError(f"{target} exists by now. Give another name.") from None
        result.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Conversion(len(header.tensors), dropped, num_bytes)


def describe(conversion: Conversion) -> str:
    """The result in a sentence."""
    left = f" Left out, because they are no tensors: {', '.join(conversion.dropped)}." if conversion.dropped else ""
    return f"{conversion.num_tensors} tensors, {conversion.num_bytes / 1e9:.2f} GB.{left}"
