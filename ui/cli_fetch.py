"""Fetching a model from the command line: what it will bring, a progress line, Ctrl-C that loses nothing."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
from types import FrameType

from security.errors import SafelightError
from security.tokens import TokenStore
from trainer.logs import configure_logging
from trainer.models.downloads import Downloads
from trainer.models.jobfiles import Download, DownloadState
from trainer.models.plans import Plan
from trainer.models.text import gigabytes
from trainer.words import duration
from trainer.workspace import Workspace
from ui.endpoints import add_endpoint_options, endpoints_of
from ui.signals import ending_signals

PLAIN_LINE_SECONDS = 5.0
STOP_SECONDS = 10.0
INTERRUPTED_TWICE = 130


def fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `fetch`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="owner/name, a page's address, civitai:VERSION, or a name of `models --catalog`",
    )
    parser.add_argument("--name", default="", metavar="NAME", help="name in the library (default: the file's)")
    parser.add_argument("--file", default="", metavar="FILE", help="which file, where the source has several")
    parser.add_argument("--revision", default="", metavar="REV", help="branch, tag or commit on Hugging Face")
    parser.add_argument("--sha256", type=_sha256, metavar="HEX", help="refuse a file with another SHA-256")
    parser.add_argument("--yes", action="store_true", help="do not ask, and agree to what is not verified")
    parser.add_argument("--convert", action="store_true", help="take a .ckpt through the sandboxed converter")
    parser.add_argument("--json", action="store_true", help="print plan, progress and result as lines of JSON")
    add_endpoint_options(parser, is_command=True)


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a SHA-256: it has 64 hexadecimal digits")
    return text.lower()


def fetch(workspace: Workspace, options: argparse.Namespace) -> int:
    """Shows what the source brings, fetches it, and returns the exit code. Raises SafelightError before the first byte."""
    configure_logging(workspace)
    endpoints = endpoints_of(options)
    downloads = Downloads(workspace, endpoints.network(), TokenStore(), fault=endpoints.fault(os.environ))
    plan = downloads.plan(options.source, file=options.file, revision=options.revision)
    return fetch_planned(
        downloads, plan, options, name=options.name, convert=options.convert, sha256=options.sha256 or ""
    )


def fetch_planned(
    downloads: Downloads,
    plan: Plan,
    options: argparse.Namespace,
    *,
    name: str = "",
    convert: bool = False,
    sha256: str = "",
) -> int:
    """Shows a plan, asks, fetches and returns the exit code. Of `options`: `json` and `yes`. Raises SafelightError."""
    if options.json:
        _print_json({"event": "plan", **_plan_json(plan)})
    else:
        print("\n".join(plan_lines(plan)), flush=True)
    if not plan.files:
        raise SafelightError("Choose one of these with --file FILE.")
    confirmed = options.yes or _is_agreed(plan, options)
    job_id = downloads.start(plan, name=name, convert=convert, confirmed=confirmed, sha256=sha256)
    return _Follower(downloads, job_id, as_json=options.json).follow()


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people, one fact a line."""
    size = gigabytes(plan.num_bytes) if plan.num_bytes else "size unknown"
    lines = [f"{plan.title}: {size}" if plan.files else plan.title, f"  from {plan.page}, {plan.revision}"]
    lines += [f"  {fact}" for fact in plan.facts]
    if plan.licence:
        lines.append(f"  Licence: {plan.licence} ({plan.licence_link})")
    lines += [f"  note: {warning}" for warning in plan.warnings]
    lines += [f"  not verified: {point}" for point in plan.confirm]
    if plan.needs_convert:
        lines.append("  This format can run code when opened: only with --convert")
    return lines + [f"  --file {choice.file!r}  {choice.label}" for choice in plan.choices]


def _is_agreed(plan: Plan, options: argparse.Namespace) -> bool:
    """Asks on a terminal. Elsewhere nobody can answer: then only --yes agrees to what is not verified.

    Raises SafelightError for a no.
    """
    if options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    question = "Not everything could be verified. Fetch it all the same?" if plan.confirm else "Fetch it?"
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise SafelightError("Nothing was fetched.")
    return True


class _Follower:
    """Shows one download until it ends."""

    def __init__(self, downloads: Downloads, job_id: str, *, as_json: bool) -> None:
        self.downloads = downloads
        self.job_id = job_id
        self.as_json = as_json
        self.on_terminal = sys.stdout.isatty() and not as_json
        self.signalled = 0
        self.shown_at = 0.0
        self.shown = ""

    def follow(self) -> int:
        """Waits for the end. Returns the exit code."""
        before = {number: signal.signal(number, self._on_signal) for number in ending_signals()}
        try:
            while not self.downloads.wait(0.2):
                self._show(self.downloads.get(self.job_id))
                if self.signalled:
                    return self._stop()
            return self._result(self.downloads.get(self.job_id))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.signalled += 1
        if self.signalled > 1:
            os._exit(INTERRUPTED_TWICE)

    def _stop(self) -> int:
        in_time = self.downloads.shutdown(STOP_SECONDS)
        self._close_line()
        left = self.downloads.get(self.job_id)
        if self.as_json:
            _print_json({"event": "stopped", "done_bytes": left.done_bytes})
        sys.stderr.write(f"safelight: stopped at {left.percent}%. The same command goes on from there.\n")
        return 1 if in_time else 2

    def _show(self, download: Download) -> None:
        text = progress_line(download)
        now = time.monotonic()
        if self.on_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)
        elif now - self.shown_at > (1.0 if self.as_json else PLAIN_LINE_SECONDS) and text != self.shown:
            self.shown, self.shown_at = text, now
            if self.as_json:
                fields = ("state", "done_bytes", "total_bytes", "rate", "eta_seconds")
                _print_json({"event": "progress", **{field: getattr(download, field) for field in fields}})
            else:
                print(text, flush=True)

    def _close_line(self) -> None:
        if self.on_terminal:
            print("\r\x1b[K", end="", flush=True)

    def _result(self, download: Download) -> int:
        self._close_line()
        done = download.state is DownloadState.DONE
        if self.as_json:
            _print_json({"event": download.state.value, "name": download.name, "message": download.message})
        elif done:
            print(f"{download.name} is in the library: checked, and compared with what the hub announced.", flush=True)
        if not done:
            sys.stderr.write(f"safelight: {download.message or download.state.value}\n")
        return 0 if done else 1


def progress_line(download: Download) -> str:
    """A download in one short line."""
    if download.state is not DownloadState.DOWNLOADING:
        return f"{download.name}: {download.message or download.state.value}"
    done = gigabytes(download.done_bytes)
    whole = f"{done} of {gigabytes(download.total_bytes)} ({download.percent}%)" if download.total_bytes else done
    parts = [f"{download.name}: {whole}"]
    if download.rate is not None:
        parts.append(f"{gigabytes(download.rate)}/s")
    if download.eta_seconds is not None:
        parts.append(f"about {duration(download.eta_seconds)} left")
    return "  ".join(parts)


def _plan_json(plan: Plan) -> dict[str, object]:
    return {
        "title": plan.title,
        "source": plan.source,
        "revision": plan.revision,
        "num_bytes": plan.num_bytes,
        "licence": plan.licence,
        "files": [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "scan": file.scan} for file in plan.files
        ],
        "warnings": list(plan.warnings),
        "confirm": list(plan.confirm),
        "choices": [choice.file for choice in plan.choices],
        "needs_convert": plan.needs_convert,
    }


def _print_json(values: dict[str, object]) -> None:
    print(json.dumps(values), flush=True)
