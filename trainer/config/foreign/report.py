"""What became of every setting of a file that another program wrote: taken, changed, without effect, or not taken."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from security.redaction import redact
from trainer.config.schema import TrainConfig

MAX_SHOWN = 80
"""Longest value in a report, in characters."""
_SECRET_KEY = re.compile(r"(api_?key|_token|password|secrets?)$", re.IGNORECASE)
HIDDEN = "(hidden)"


class Outcome(StrEnum):
    """What became of a setting."""

    TAKEN = "taken"
    CHANGED = "changed"
    NO_EFFECT = "without effect"
    NOT_TAKEN = "not taken"


@dataclass(frozen=True)
class Entry:
    """One setting of theirs. `ours` is empty if none of ours was set; `reason` says why it is not simply taken."""

    outcome: Outcome
    theirs: str
    value: str
    ours: str = ""
    our_value: str = ""
    reason: str = ""

    def line(self) -> str:
        """The entry in one line."""
        if not self.ours:
            return f"{self.theirs} = {self.value}: {self.reason}"
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.ours} = {self.our_value} <- {self.theirs} = {self.value}{reason}"


@dataclass(frozen=True)
class Report:
    """All entries of an import. `program` is who wrote the file; `notes` are about the whole of it."""

    program: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def of(self, outcome: Outcome) -> list[Entry]:
        """The entries with that outcome, in the order of the file."""
        return [entry for entry in self.entries if entry.outcome is outcome]

    def summary(self) -> str:
        """The counts in one sentence."""
        counts = ", ".join(f"{len(self.of(outcome))} {outcome.value}" for outcome in Outcome)
        return f"Settings of {self.program}: {counts}."

    def lines(self) -> list[str]:
        """The whole report as text."""
        lines = [self.summary(), *self.notes]
        for outcome in Outcome:
            if entries := self.of(outcome):
                lines += ["", f"{outcome.value.capitalize()} ({len(entries)}):"]
                lines += [f"  {entry.line()}" for entry in entries]
        return lines


@dataclass(frozen=True)
class Imported:
    """Settings that were read from another program's file.

    `values` holds just those that the file decides, as `section.field` -> plain value; `config` has them over the defaults.
    `is_partial`: the file is a preset, which leaves everything that it doesn't name as it is.
    """

    config: TrainConfig
    values: dict[str, Any]
    report: Report
    is_partial: bool = False


def shown(key: str, value: Any) -> str:
    """A value as a report shows it: short, and never a secret."""
    if _SECRET_KEY.search(key) and value:
        return HIDDEN
    text = redact(json.dumps(value, ensure_ascii=False, default=str)).replace("\\\\", "\\")  # a path as it was typed
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def joined(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
