"""The lines of settings that choose layers by a regular expression on their names. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from security.errors import RefusedConfig, SafelightError
from security.patterns import Pattern
from security.policy import MAX_LAYER_PATTERN_SECONDS
from trainer.config.sections import LoraConfig

PATTERN_SETTINGS = ("target_patterns", "exclude_patterns", "block_ranks", "block_learning_rates")
_SHOWN_NAMES = 6


class PatternLines:
    """The lines of one setting, each with a pattern that counts where it occurs in a layer's name."""

    def __init__(self, settings: LoraConfig, field: str) -> None:
        self.setting = f"lora.{field}"
        self._patterns = [(line, _compiled(field, line)) for line in getattr(settings, field)]

    def first(self, name: str) -> str | None:
        """The first line whose pattern occurs in a name."""
        return next((line for line, pattern in self._patterns if pattern.found_in(name)), None)

    def refuse_idle(self, names: Sequence[str]) -> None:
        """Raises SafelightError if a line matches none of the names, with the names that there are."""
        idle = [line for line, pattern in self._patterns if not any(pattern.found_in(name) for name in names)]
        if idle:
            more = f" ({len(idle) - 1} more lines match nothing either)" if len(idle) > 1 else ""
            raise SafelightError(
                f"{self.setting} has the line {idle[0]!r}, but no layer of this model has such a name{more}. "
                f"Names are such as {', '.join(_examples(idle[0], names))}."
            )


def pattern_faults(settings: LoraConfig) -> list[str]:
    """What is wrong with the patterns themselves, in sentences; whether they match is seen when the model is there."""
    faults = []
    for field in PATTERN_SETTINGS:
        for line in getattr(settings, field):
            try:
                _compiled(field, line)
            except RefusedConfig as error:
                faults.append(f"lora.{field} has the line {line!r}. {error}")
    return faults


def _compiled(field: str, line: str) -> Pattern:
    return Pattern(line.split(" ")[0] if field.startswith("block_") else line, seconds=MAX_LAYER_PATTERN_SECONDS)


def _examples(line: str, names: Sequence[str]) -> list[str]:
    """A few names: some with the words that are nearest to the pattern's, then one of each of some blocks."""
    words = {word for name in names for word in name.split(".")}
    asked = [word for word in re.split(r"\W+", line.split(" ")[0]) if len(word) > 1]
    close = {found for word in asked for found in difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6)}
    alike = sorted(names, key=lambda name: len(close & set(name.split("."))), reverse=True)
    near = [name for name in alike if close & set(name.split("."))][: _SHOWN_NAMES // 2]
    blocks = {".".join(name.split(".")[:2]): name for name in reversed(names) if name not in near}
    return [*near, *reversed(blocks.values())][:_SHOWN_NAMES]
