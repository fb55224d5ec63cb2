"""Redacts what is written to a descriptor of this process, by whomever: Python, a C library, a child that inherited it.

The descriptor becomes the end of a pipe; a thread reads the other end and writes to where the descriptor led before.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
import time
from typing import Any

from security.redaction import MIN_SECRET_LENGTH, find_secrets, masked, redact, unfinished_secret

PAUSE_SECONDS = 0.03
"""An unfinished line (a prompt, a progress bar) is let out when nothing more came for this long."""
HOLD_SECONDS = 1.0
"""What may be the beginning of a secret is held back for this long; if no more comes, it is let out or masked."""
MAX_LINE = 64 * 1024
KEPT_LINE = 16 * 1024
"""Of a longer line without an end, in characters, this much is kept to recognise a secret that goes on in it."""
PIPE_BYTES = 1024 * 1024
"""Room for what is written while the thread can't run, because a library holds Python's lock."""


class LineFilter:
    """Masks secrets in bytes that come in pieces, however they are cut. Lines go out whole, and a started one in parts.

    Bytes are looked at as Latin-1, in which every byte is a character.
    """

    def __init__(self) -> None:
        self._line = ""
        """The unfinished line, also what of it is out already: a secret may have begun there."""
        self._shown = 0

    @property
    def is_waiting(self) -> bool:
        """Whether something was held back."""
        return self._shown < len(self._line)

    def feed(self, data: bytes) -> bytes:
        """Takes the next piece; returns what can go out: everything up to the last end of a line."""
        self._line += data.decode("latin-1")
        out = b""
        if end := max(self._line.rfind("\n"), self._line.rfind("\r")) + 1:
            out = self._let_out(end, self._spans())
            self._line, self._shown = self._line[end:], 0
        if len(self._line) > MAX_LINE:
            spans = self._spans()
            end = min((first for first, last in spans if last == len(self._line)), default=len(self._line) - KEPT_LINE)
            out += self._let_out(max(end, self._shown), spans)
            cut = min(self._shown, len(self._line) - KEPT_LINE)
            cut = min((first for first, last in spans if first < cut < last), default=cut)
            self._line, self._shown = self._line[cut:], self._shown - cut
        return out

    def pause(self) -> bytes:
        """What can go out of the unfinished line: all of it but what may be the beginning of a secret."""
        return self._let_out(max(self._shown, unfinished_secret(self._line)), self._spans())

    def end(self) -> bytes:
        """Everything that is left. The beginning of a secret is masked if it is long enough to be worth something."""
        spans = self._spans()
        start = unfinished_secret(self._line, by_name=False)
        if len(self._line) - start >= MIN_SECRET_LENGTH:
            spans = [(first, last) for first, last in spans if first < start] + [(start, len(self._line))]
        return self._let_out(len(self._line), spans)

    def _spans(self) -> list[tuple[int, int]]:
        return find_secrets(self._line)

    def _let_out(self, end: int, spans: list[tuple[int, int]]) -> bytes:
        start, self._shown = self._shown, end
        return masked(self._line, spans, start, end).encode("latin-1")


class Pump:
    """Stands between descriptors of this process (1, 2, or both where they lead to the same place) and where they led."""

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self.real = os.dup(descriptors[0])
        """A descriptor of where the output goes; no child inherits it."""
        self.is_broken = False
        """Whether nobody reads the output any more."""
        self.fault = ""
        """Why output was lost, such as a full disk; empty while none was."""
        self._descriptors = descriptors
        self._read_end, self._write_end = os.pipe()
        _enlarge(self._write_end)
        self._process_id = os.getpid()
        # Sent through the pipe, so that it arrives after all that was written before. Nobody else can know it.
        self._marker = b"\0" + os.urandom(16).hex().encode() + b"\0"
        self._waiting: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for descriptor in descriptors:
            os.dup2(self._write_end, descriptor)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        for work in (self._read, self._work):
            threading.Thread(target=work, name="safelight-output", daemon=True).start()

    def drain(self, timeout_seconds: float) -> None:
        """Waits until everything that was written up to now is out, also what was held back."""
        if os.getpid() != self._process_id or self.is_broken:
            return
        arrived = threading.Event()
        self._waiting.put(arrived)
        with contextlib.suppress(OSError):
            os.write(self._write_end, self._marker)
            arrived.wait(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Lets the descriptors lead where they led before, and waits until everything is out."""
        if os.getpid() != self._process_id:
            return
        self.drain(timeout_seconds)
        target = os.open(os.devnull, os.O_WRONLY) if self.is_broken else self.real
        for descriptor in self._descriptors:
            os.dup2(target, descriptor)
        self.drain(timeout_seconds)

    def show(self, data: bytes) -> None:
        """Writes to where the output goes, as it is."""
        while data and not self.is_broken:
            try:
                data = data[os.write(self.real, data) :]
            except BlockingIOError:  # another program made the terminal non-blocking
                select.select([], [self.real], [], 1.0)
            except BrokenPipeError:
                self.is_broken = True
            except OSError as error:  # a full disk, a terminal that is gone: no reason to end a training run
                self.fault = error.strerror or "unknown error"
                return

    def _read(self) -> None:
        while not self.is_broken:
            try:
                piece = os.read(self._read_end, 64 * 1024)
            except OSError:
                break
            self._pieces.put(piece)
            if not piece:
                return
        self._pieces.put(b"")
        # From now on writers get "broken pipe", as they would without us.
        os.close(self._read_end)

    def _work(self) -> None:
        lines = LineFilter()
        pending = b""
        held_since: float | None = None
        while True:
            try:
                piece = self._pieces.get(timeout=PAUSE_SECONDS if lines.is_waiting or pending else None)
            except queue.Empty:
                held_since = held_since or time.monotonic()
                late = time.monotonic() - held_since > HOLD_SECONDS
                before, pending = pending, b""
                self.show(lines.feed(before) + (lines.end() if late else lines.pause()))
                continue
            held_since = None
            if not piece:
                break
            pending += piece
            while self._marker in pending:
                before, _, pending = pending.partition(self._marker)
                self.show(lines.feed(before) + lines.end())
                self._waiting.get().set()
            keep = _beginning_at_end(pending, self._marker)
            self.show(lines.feed(pending[: len(pending) - keep]))
            pending = pending[len(pending) - keep :]
        self.show(lines.feed(pending) + lines.end())
        while not self._waiting.empty():
            self._waiting.get().set()

    def _after_fork(self) -> None:
        """In a forked child there is no thread; without the read end, its writes fail when the parent is gone."""
        with contextlib.suppress(OSError):
            os.close(self._read_end)


class RedactedText:
    """sys.stdout or sys.stderr with secrets masked in every text that is written; a terminal says that it is one."""

    def __init__(self, stream: Any, *, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal

    def write(self, text: str) -> int:
        """Writes the redacted text; returns the length of the given one, as the caller expects."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Whether the output really goes to a terminal: the pipe in between is none."""
        return self._is_terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lead_to_the_same(first: int, second: int) -> bool:
    """Whether two descriptors lead to one terminal, pipe or file."""
    here, there = os.fstat(first), os.fstat(second)
    return here.st_ino != 0 and os.path.samestat(here, there)


def _enlarge(descriptor: int) -> None:
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # the system allows less
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _beginning_at_end(data: bytes, marker: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `marker`."""
    return next(
        (length for length in range(min(len(data), len(marker) - 1), 0, -1) if data.endswith(marker[:length])), 0
    )
