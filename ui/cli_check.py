"""`check RUN.toml`: everything that can be found out about a run before it starts, and what it will need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer.config.files import apply_flags, load_values, parse_config
from trainer.jobs import Jobs
from trainer.logs import configure_logging
from trainer.models.text import gigabytes
from trainer.preflight.check_run import Preflight, preflight, report_values
from trainer.preflight.checks import Level
from trainer.preflight.estimates import Estimate
from trainer.words import duration
from trainer.workspace import Workspace
from ui.settings_files import named_file

WORDS = {Level.FAULT: "FAULT", Level.WARNING: "WARNING", Level.NOTE: "note", Level.GOOD: "ok"}
FAILED = 1


def check(workspace: Workspace, path: Path, flags: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    """Checks a run and prints what was found; 1 when it can't succeed. Raises SafelightError for unusable settings."""
    config = parse_config(apply_flags(load_values(named_file(path)), flags))
    configure_logging(workspace)
    past = Jobs(workspace).runs()
    teller = _Teller(shown=sys.stderr.isatty() and not as_json)
    result = preflight(workspace, config, past=past, tell=teller.tell, dry_run=dry_run)
    teller.end()
    if as_json:
        print(json.dumps(report_values(result)))
    else:
        _print(result)
    return FAILED if result.faults else 0


class _Teller:
    """One line of progress that is written over, on a terminal."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown

    def tell(self, done: int, total: int, text: str) -> None:
        """Shows what is done now."""
        if self.shown:
            counted = f" {done} of {total}" if total else ""
            sys.stderr.write(f"\r\x1b[K{text}{counted}")
            sys.stderr.flush()

    def end(self) -> None:
        """Takes the line away."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")


def _print(result: Preflight) -> None:
    width = max(len(word) for word in WORDS.values())
    for finding in result.findings:
        print(f"{WORDS[finding.level]:{width}}  {finding.check}: {finding.text}")
    if result.estimate is not None:
        _print_estimate(result.estimate)
    print(result.sentence)


def _print_estimate(estimate: Estimate) -> None:
    low, high = estimate.seconds_range
    print(f"\n{estimate.steps} steps on {estimate.images} pictures, {estimate.epochs:.3g} epochs")
    about = f"about {duration(estimate.seconds)} ({duration(low)} to {duration(high)})"
    print(f"time    {about}  {_parts(estimate.time_parts, duration)}")
    total = f" of {gigabytes(estimate.memory_total)}" if estimate.memory_total else ""
    if estimate.memory_bytes:
        print(f"memory  {gigabytes(estimate.memory_bytes)}{total}  {_parts(estimate.memory_parts, gigabytes)}")
    room = f"{gigabytes(estimate.disk_bytes)} of {gigabytes(estimate.disk_free)} free"
    print(f"disk    {room}  {_parts(estimate.disk_parts, gigabytes)}\n")


def _parts(parts: Mapping[str, float], words: Callable[[float], str]) -> str:
    told = [f"{name} {words(value)}" for name, value in parts.items() if value > 0]
    return f"({', '.join(told)})" if told else ""
