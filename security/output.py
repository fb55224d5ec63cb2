"""Puts the redactor in front of everything that this process prints or logs, and lets out what is meant to be seen.

Layers, each for itself: log records, sys.stdout and sys.stderr, the descriptors 1 and 2, and the hooks that report errors
which nobody caught.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from security.log_records import redacting_factory
from security.redaction import redact
from security.streams import Pump, RedactedText, lead_to_the_same

CLOSE_SECONDS = 3.0
"""Longest wait for the last output at the end of the program."""

_STREAMS = ("stdin", "stdout", "stderr")
_pumps: dict[int, Pump] = {}
"""By descriptor; one pump may serve both."""


def install() -> None:
    """Redacts all output of this process until it ends. Call it first; a second call changes nothing.

    Does nothing where sys.stdout was replaced: in a notebook's kernel or under a test runner the output is theirs.
    """
    if _pumps or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return
    _fill_closed_streams()
    for layer in LAYERS.values():
        layer()
    _no_core_dumps()


def is_installed() -> bool:
    """Whether what this process prints passes the redactor."""
    return bool(_pumps)


def drain() -> None:
    """Waits until all output is out. Call it before os._exit."""
    _flush_streams()
    for pump in set(_pumps.values()):
        pump.drain(CLOSE_SECONDS)


def lost_output() -> str:
    """Why something that was printed did not arrive, such as "No space left on device"; empty if all of it did."""
    drain()
    return next((pump.fault for pump in _pumps.values() if pump.fault), "")


def show_to_owner(text: str) -> None:
    """Prints a line that holds a secret on purpose (the key, the password) where standard output goes, and only there.

    It passes neither the redactor nor a log.
    """
    pump = _pumps.get(1)
    if pump is None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        return
    drain()
    pump.show((text + "\n").encode(sys.stdout.encoding or "utf-8", "replace"))


def terminal_columns() -> int:
    """Width of the terminal that standard output goes to, in characters; 80 if it can't be told."""
    pump = _pumps.get(1)
    if pump is None or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    try:
        return os.get_terminal_size(pump.real).columns or 80
    except OSError:
        return 80


def _fill_closed_streams() -> None:
    """Gives a program that was started without input or output (">&-") empty ones.

    Libraries take it for granted that there are some, and a file opened later would get their numbers: what a C library
    prints would be written into it.
    """
    missing = [number for number, name in enumerate(_STREAMS) if getattr(sys, name) is None]
    for descriptor in missing:
        if not _is_open(descriptor):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number, which is this one
    for descriptor in missing:
        stream = Path(os.devnull).open("w" if descriptor else "r", encoding="utf-8")  # noqa: SIM115 - until the end
        setattr(sys, _STREAMS[descriptor], stream)


def _redirect_descriptors() -> None:
    _flush_streams()
    streams = {1: sys.__stdout__, 2: sys.__stderr__}
    existing = [descriptor for descriptor, stream in streams.items() if stream is not None and _is_open(descriptor)]
    both = existing == [1, 2] and lead_to_the_same(1, 2)  # then one pipe, which keeps the order of what is written
    for group in [(1, 2)] if both else [(descriptor,) for descriptor in existing]:
        pump = Pump(group)
        _pumps.update(dict.fromkeys(group, pump))
    if 2 in _pumps:
        faulthandler.enable(_pumps[2].real)  # of a crash that ends all threads, the pump's as well
    atexit.register(_close)


def _wrap_streams() -> None:
    if sys.stdout is not None:
        sys.stdout = _redacted(sys.stdout, 1)
    if sys.stderr is not None:
        sys.stderr = _redacted(sys.stderr, 2)


def _redacted(stream: TextIO, descriptor: int) -> TextIO:
    is_terminal = os.isatty(_pumps[descriptor].real) if descriptor in _pumps else stream.isatty()
    redacted: TextIO = RedactedText(stream, is_terminal=is_terminal)  # type: ignore[assignment]
    return redacted


def _clean_records() -> None:
    logging.setLogRecordFactory(redacting_factory(logging.getLogRecordFactory()))


def _hook_errors() -> None:
    sys.excepthook = _report
    threading.excepthook = _report_of_thread
    sys.unraisablehook = _report_unraisable
    warnings.showwarning = _show_warning


def _close() -> None:
    _flush_streams()
    for pump in set(_pumps.values()):
        pump.close(CLOSE_SECONDS)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        # there is none, it is closed or its reader gone, or a signal came in the middle of a write
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _no_core_dumps() -> None:
    """A core dump is this process' memory in a file, with every token in it."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


LAYERS: dict[str, Callable[[], None]] = {
    "log records": _clean_records,
    "descriptors": _redirect_descriptors,
    "text streams": _wrap_streams,
    "hooks": _hook_errors,
}
"""What `install` puts in place, in this order. Each masks by itself what passes it, so one that fails is not missed."""


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _say("".join(traceback.format_exception(kind, error, trace)))


def _report_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit:
        return
    name = arguments.thread.name if arguments.thread else "unknown"
    lines = traceback.format_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    _say(f"Exception in thread {name}:\n{''.join(lines)}")


def _report_unraisable(arguments: sys.UnraisableHookArgs) -> None:
    lines = traceback.format_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    _say(f"{arguments.err_msg or 'Exception ignored in'}: {arguments.object!r}\n{''.join(lines)}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = redact(warnings.formatwarning(message, category, filename, lineno, line))
    target = sys.stderr if file is None else file
    with contextlib.suppress(OSError, AttributeError):
        target.write(text)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # as Python does when there is nobody to tell
        sys.stderr.write(redact(text))
        sys.stderr.flush()
