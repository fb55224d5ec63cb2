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


MAX_REPLACED_CHARACTERS = 1_000_000
"""Far more than a caption may have."""
_TOO_LONG = "A text would become far too long by this, so nothing was changed. Put a shorter text in place."


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

        Raises RefusedConfig when a group is named that isn't there, when the allowance is used up, and for a result of
        over MAX_REPLACED_CHARACTERS: `(?=(.*))` has as many matches as the text has letters, each as long as the rest.
        """
        import regex

        began = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            done = self._replaced(text, replacement)
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

    def found_in(self, text: str) -> bool:
        """Whether the pattern occurs in `text`. Raises RefusedConfig when the allowance is used up."""
        began = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            found = self._compiled.search(text, timeout=self._left) is not None
        except TimeoutError:
            raise RefusedConfig(
                f"The pattern {self._text!r} took over {self._seconds:g} seconds, so it was stopped. Make it simpler: "
                "a * within another * is the usual reason."
            ) from None
        self._left -= time.monotonic() - began
        return found

    def _replaced(self, text: str, replacement: str) -> str:
        """As `sub` of the package does it, match by match, so that the result can't grow without bounds."""
        began, parts, length, end = time.monotonic(), [], len(text), 0
        for match in self._compiled.finditer(text, timeout=self._left):
            longest = max(len(group or "") for group in (match.group(), *match.groups()))
            if longest * replacement.count("\\") > MAX_REPLACED_CHARACTERS:
                raise RefusedConfig(_TOO_LONG)
            new = match.expand(replacement) if "\\" in replacement else replacement
            length += len(new)
            if length > MAX_REPLACED_CHARACTERS:
                raise RefusedConfig(_TOO_LONG)
            if time.monotonic() - began > self._left:
                raise TimeoutError
            parts += [text[end : match.start()], new]
            end = match.end()
        return "".join([*parts, text[end:]])


def replace_text(text: str, find: str, replacement: str, *, ignore_case: bool) -> str:
    """`text` with `find` replaced wherever it stands. Raises RefusedConfig for a result of over MAX_REPLACED_CHARACTERS."""
    pattern = re.compile(re.escape(find), re.IGNORECASE if ignore_case else 0)
    if len(text) + len(replacement) * len(pattern.findall(text)) > MAX_REPLACED_CHARACTERS:
        raise RefusedConfig(_TOO_LONG)
    return pattern.sub(lambda _match: replacement, text)
