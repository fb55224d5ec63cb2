"""A share link in time: it opens when its address is known and shuts for good when its hours are over or it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from security.errors import RefusedConfig
from security.policy import MAX_SHARE_HOURS, MIN_SHARE_HOURS


def check_share_hours(hours: float) -> float:
    """The hours as they are. Raises RefusedConfig outside of MIN_SHARE_HOURS to MAX_SHARE_HOURS."""
    if not MIN_SHARE_HOURS <= hours <= MAX_SHARE_HOURS:
        raise RefusedConfig(
            f"A share link can't live for {hours:g} hours. Choose {MIN_SHARE_HOURS} to {MAX_SHARE_HOURS}."
        )
    return hours


class Sharing:
    """Whether the share link is open, and until when. Safe to use from several threads."""

    def __init__(self, hours: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`hours` were checked by check_share_hours. Tests pass their own clock, in seconds."""
        self._seconds = hours * 3600
        self._clock = clock
        self._guard = threading.Lock()
        self._url = ""
        self._ends = 0.0
        self._ended = False

    def begin(self, url: str) -> None:
        """From now on requests to the host of `url` are answered, until the hours are over. Only the first call counts."""
        with self._guard:
            if not self._url and not self._ended:
                self._url = url
                self._ends = self._clock() + self._seconds

    def end(self) -> None:
        """Shuts the link for good."""
        with self._guard:
            self._ended = True

    @property
    def seconds_left(self) -> float:
        """How long the link stays open, in seconds; 0 when it is shut or not open yet."""
        with self._guard:
            return 0.0 if self._ended or not self._url else max(0.0, self._ends - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether the link was open and its time has run out, or it was shut."""
        with self._guard:
            return self._ended or (self._url != "" and self._clock() >= self._ends)

    @property
    def url(self) -> str:
        """The address while the link is open, else ""."""
        return self._url if self.seconds_left > 0 else ""

    @property
    def host(self) -> str:
        """The host name, in small letters, while the link is open, else ""."""
        return (urlsplit(self.url).hostname or "") if self.url else ""
