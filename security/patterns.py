"""Search patterns that a user typed: limits in time and size, so that none of them can stop the page or fill the memory.

A regular expression can be a program: `(a|aa)+$` takes longer than the universe is old, `(?:(?:a{1000}){1000}){1000}`
takes all memory before it has looked at anything, a pattern that calls itself does so while it looks. The package
`regex` ends a search after a set time; the other two are refused by how the pattern is written.
"""

from __future__ import annotations

import math
import re
import time

from security.errors import RefusedConfig
from security.policy import MAX_PATTERN_CHARACTERS, MAX_PATTERN_REPEATS

_CALLS = re.compile(r"\(\?(?:R|&|P>|P&|[+-]?\d)")
"""Groups that run a part of the pattern once more: `(?R)`, `(?1)`, `(?&name)`, `(?P>name)`."""
_COUNTS = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


class Pattern:
    """A compiled pattern with an allowance of seconds that all its searches share."""

    def __init__(self, text: str, *, ignore_case: bool = False, seconds: float) -> None:
        """Raises RefusedConfig for a pattern that is no good, too long, or that could grow without bounds."""
        import regex

        if not text:
            raise RefusedConfig("The pattern is empty. Type what is to be found.")
        if len(text) > MAX_PATTERN_CHARACTERS:
            raise RefusedConfig(f"The pattern has {len(text)} characters; {MAX_PATTERN_CHARACTERS} are allowed.")
        bare = re.sub(r"\\.", "", text, flags=re.DOTALL)
        if _CALLS.search(bare):
            raise RefusedConfig(
                "The pattern calls itself or one of its groups, which can take all memory. Write it out."
            )
        repeats = math.prod(max(1, *(int(number[:9] or 1) for number in found)) for found in _COUNTS.findall(bare))
        if repeats > MAX_PATTERN_REPEATS:
            raise RefusedConfig(
                f"The counts in the pattern multiply to {repeats:,}; {MAX_PATTERN_REPEATS:,} are allowed. "
                "Use smaller numbers, * or +."
            )
        try:
            self._compiled = regex.compile(text, regex.IGNORECASE if ignore_case else 0)
        except (regex.error, OverflowError, RecursionError) as error:
            raise RefusedConfig(
                f"The pattern {text!r} can't be read: {error}. Put a \\ before signs such as ( and [."
            ) from None
        self._text = text
        self._seconds = seconds
        self._left = seconds

    def replace(self, text: str, replacement: str) -> str:
        """`text` with every match replaced; `replacement` may name groups as \\1 or \\g<name>.

        Raises RefusedConfig when a group is named that isn't there, and when the allowance is used up.
        """
        import regex

        began = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            done: str = self._compiled.sub(replacement, text, timeout=self._left)
        except TimeoutError:
            raise RefusedConfig(
                f"The pattern {self._text!r} took over {self._seconds:g} seconds, so it was stopped and nothing was "
                "changed. Make it simpler: a * within another * is the usual reason."
            ) from None
        except (regex.error, IndexError, MemoryError) as error:
            raise RefusedConfig(
                f"{replacement!r} can't be put in place: {error}. Write \\\\ for a backslash."
            ) from None
        self._left -= time.monotonic() - began
        return done
