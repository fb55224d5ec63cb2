"""How many passwords can be tried: `python -m tests.security.guessing` asks a real page for a minute, then counts a day.

The minute runs on the real clock, against a page that is served for it, with 20 visitors who guess at once. The day runs
on a clock of its own, in which waiting takes no time; the waits are those of security.login.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedRequest
from security.login import Credentials
from security.policy import LOGIN_BASE_DELAY_SECONDS
from tests.security.real_page import PASSWORD, RealPage, real_page


@dataclass(frozen=True)
class Guesses:
    """Passwords that were compared (401), and attempts that were turned away unread (429)."""

    compared: int
    turned_away: int


def guesses_at_a_page(page: RealPage, seconds: float, visitors: int = 20) -> Guesses:
    """What visitors who guess as fast as they can get through the login form in some seconds."""
    statuses: list[int] = []
    end = time.monotonic() + seconds

    def guess(visitor: int) -> None:
        with page.client() as client:
            number = 0
            while time.monotonic() < end:
                number += 1
                answer = client.post("/login", data={"password": f"guess {visitor} {number}"}, timeout=200)
                if time.monotonic() < end:
                    statuses.append(answer.status_code)

    threads = [threading.Thread(target=guess, args=(visitor,), daemon=True) for visitor in range(visitors)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, end - time.monotonic()))
    return Guesses(statuses.count(401), statuses.count(429))


class _Days:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def guesses_in(seconds: float) -> Guesses:
    """What one visitor who never stops gets compared in so many seconds, on a clock of its own."""
    clock = _Days()
    credentials = Credentials(PASSWORD, clock=clock, sleep=clock.sleep)
    compared = turned_away = 0

    async def guess() -> None:
        nonlocal compared, turned_away
        while clock.now < seconds:
            try:
                assert not await credentials.check_password("a guess")
                compared += clock.now <= seconds
            except RefusedRequest:
                turned_away += 1
                clock.now += 1.0

    asyncio.run(guess())
    return Guesses(compared, turned_away)


def main() -> None:
    """Prints both."""
    delay = LOGIN_BASE_DELAY_SECONDS
    with tempfile.TemporaryDirectory() as folder, real_page(Path(folder), base_delay_seconds=delay) as page:
        minute = guesses_at_a_page(page, 60.0)
    print(
        f"first minute, 20 visitors, real page and clock: {minute.compared} compared, {minute.turned_away} turned away"
    )
    for name, seconds in (("minute", 60.0), ("hour", 3600.0), ("day", 86_400.0)):
        found = guesses_in(seconds)
        print(
            f"first {name}, simulated clock: {found.compared} compared ({60 * found.compared / seconds:.2f} a minute)"
        )


if __name__ == "__main__":
    main()
