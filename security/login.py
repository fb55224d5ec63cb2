"""Who may use a page that others can reach: one password, one key for a link, logins, and brakes on guessing.

There is one owner: everybody who is logged in sees and does everything, and may end the logins of others.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import os
import secrets
import stat
import threading
import time
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from pathlib import Path

from security.errors import RefusedConfig, RefusedRequest
from security.policy import (
    LOGIN_BASE_DELAY_SECONDS,
    LOGIN_LOCK_SECONDS,
    LOGIN_MAX_DELAY_SECONDS,
    MAX_LOGIN_FAILURES,
    MAX_SESSIONS,
    MAX_WAITING_LOGINS,
    MIN_PASSWORD_LENGTH,
    SESSION_IDLE_SECONDS,
    SESSION_SECONDS,
)
from security.redaction import register

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 signs without l, o, 0 and 1, which are easily mistaken: 5 bits each."""
_COMMON_PARTS = ("password", "passwort", "123456", "qwerty", "letmein", "admin", "welcome", "iloveyou", "safelight")


def generate_password() -> str:
    """A random password of 130 bits in groups that can be read aloud: "k7f3q-..."."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(26))
    return "-".join(letters[start : start + 5] for start in range(0, 26, 5))


def check_password_strength(password: str) -> None:
    """Raises RefusedConfig, which does not repeat the password, if it is short or easily guessed."""
    advice = "Use several random words, or leave it out and one is made for you."
    if len(password) < MIN_PASSWORD_LENGTH:
        raise RefusedConfig(
            f"The password has {len(password)} characters; {MIN_PASSWORD_LENGTH} are the least. {advice}"
        )
    if not password.isprintable():
        raise RefusedConfig(f"The password holds characters that cannot be typed. {advice}")
    if len(set(password)) < 5:
        raise RefusedConfig(f"The password has only {len(set(password))} different characters. {advice}")
    rest = password.lower()
    for part in _COMMON_PARTS:
        rest = rest.replace(part, "")
    if len(rest) < MIN_PASSWORD_LENGTH // 2:
        raise RefusedConfig(f"The password is made of words that are tried first. {advice}")


def read_password_file(path: Path) -> str:
    """The password in the first line of a file that only its owner can read. Raises RefusedConfig."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            text = file.read(1025)
    except OSError as error:
        raise RefusedConfig(f"The password file {path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(facts.st_mode) or len(text) > 1024:
        raise RefusedConfig(f"The password file {path} is not a short text file. Put the password alone in it.")
    if os.name != "nt" and facts.st_mode & 0o077:
        raise RefusedConfig(f"Other users can read the password file {path}. Run: chmod 600 {path}")
    try:
        password = text.decode().splitlines()[0] if text.strip() else ""
    except UnicodeDecodeError:
        raise RefusedConfig(f"The password file {path} is not UTF-8 text. Save it as UTF-8.") from None
    check_password_strength(password)
    return password


class Place(StrEnum):
    """Where a login was made, in words for its owner."""

    HERE = "on this machine"
    NETWORK = "in the network"
    SHARE = "through the share link"


@dataclass(frozen=True, slots=True)
class Login:
    """One login in the list that its owner sees. `id` tells logins apart and opens nothing."""

    id: str
    place: Place
    began_seconds_ago: float
    used_seconds_ago: float


@dataclass(slots=True)
class _Session:
    """A login, and when it began and was last used, on the clock of Credentials, in seconds."""

    id: str
    place: Place
    began: float
    used: float


class Credentials:
    """The owner's password and key, and the logins that were made with them. Lives as long as the program.

    `key` is for a link that logs in with one tap, `http://HOST/?key=KEY`: 192 random bits, so it needs no brake.
    Safe to use from several threads.
    """

    def __init__(
        self,
        password: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        base_delay_seconds: float = LOGIN_BASE_DELAY_SECONDS,
    ) -> None:
        """`password` was made by generate_password or passed check_password_strength. Tests pass their own clock and sleep."""
        self.key = _never_shown(secrets.token_urlsafe(24), "key of the page's link")
        self._salt = secrets.token_bytes(16)
        self._hash = self._scrypt(_never_shown(password, "password of the page"))
        self._clock = clock
        self._sleep = sleep
        self._base_delay_seconds = base_delay_seconds
        self._sessions: dict[bytes, _Session] = {}
        self._guard = threading.RLock()
        self._when_ended: list[Callable[[str], None]] = []
        self._failures = 0
        self._last_failure = 0.0
        self._turn = asyncio.Lock()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Credentials with {len(self._sessions)} sessions>"

    def key_link(self, address: str) -> str:
        """The one-tap link for a page at `address`, such as "https://example.gradio.live"."""
        return f"{address.rstrip('/')}/?key={self.key}"

    def renew(self, password: str | None = None) -> None:
        """Makes a new key, and takes a new password if one is given. What was opened with the old ones goes on."""
        with self._guard:
            self.key = _never_shown(secrets.token_urlsafe(24), "key of the page's link")
            if password is not None:
                self._hash = self._scrypt(_never_shown(password, "password of the page"))

    def check_key(self, key: str) -> bool:
        """True for the key, compared in constant time."""
        return hmac.compare_digest(key.encode("utf-8", "surrogatepass"), self.key.encode())

    async def check_password(self, password: str) -> bool:
        """True for the password. Checks run one after the other, each after a wait that doubles with every failure.

        Raises RefusedRequest (429) after MAX_LOGIN_FAILURES failures in a row, or if too many checks are waiting. The
        count is one for everybody: behind a tunnel all visitors come from one address. The key works all the while.
        """
        if self._waiting >= MAX_WAITING_LOGINS:
            raise RefusedRequest("Too many people are trying to log in. Wait a minute and try again.", 429)
        self._waiting += 1
        try:
            async with self._turn:
                self._forget_or_refuse()
                if self._failures:
                    delay = self._base_delay_seconds * 2 ** (self._failures - 1)
                    await self._sleep(min(delay, LOGIN_MAX_DELAY_SECONDS))
                # scrypt takes 50 ms and 16 MB on purpose; in a thread, so that the page of others goes on.
                found = await asyncio.to_thread(self._scrypt, password)
                matches = hmac.compare_digest(found, self._hash)
                self._failures = 0 if matches else self._failures + 1
                self._last_failure = self._clock()
                return matches
        finally:
            self._waiting -= 1

    def _forget_or_refuse(self) -> None:
        """Forgets failures that are LOGIN_LOCK_SECONDS old. Raises RefusedRequest while there are too many."""
        left = self._last_failure + LOGIN_LOCK_SECONDS - self._clock()
        if left <= 0:
            self._failures = 0
        elif self._failures >= MAX_LOGIN_FAILURES:
            minutes = math.ceil(left / 60)
            raise RefusedRequest(
                f"Too many wrong passwords. Wait {minutes} min, or use the link in the program's terminal.",
                429,
            )

    def when_a_login_ends(self, tell: Callable[[str], None]) -> None:
        """`tell` is called with the id of every login that ends, from whatever thread ends it."""
        self._when_ended.append(tell)

    def open_session(self, place: Place = Place.HERE) -> str:
        """Begins a login and returns its token, 256 random bits. Beyond MAX_SESSIONS the one idle longest ends."""
        token = secrets.token_urlsafe(32)
        now = self._clock()
        with self._guard:
            if len(self._sessions) >= MAX_SESSIONS:
                idle = min(self._sessions.values(), key=lambda session: session.used)
                self._end(lambda session: session is idle)
            self._sessions[_digest(token)] = _Session(secrets.token_hex(6), place, began=now, used=now)
        return token

    def login_of(self, token: str) -> str:
        """The id of the login that `token` belongs to, which then counts as used; "" if it has ended or never was."""
        with self._guard:
            self._end(self._is_over)
            session = self._sessions.get(_digest(token))
            if session is None:
                return ""
            session.used = self._clock()
            return session.id

    def has_session(self, token: str) -> bool:
        """True, and counted as used, if `token` belongs to a login that has not ended."""
        return self.login_of(token) != ""

    def is_logged_in(self, login: str) -> bool:
        """Whether the login with this id goes on. Does not count as using it."""
        with self._guard:
            return any(session.id == login and not self._is_over(session) for session in self._sessions.values())

    def logins(self) -> list[Login]:
        """All logins that go on, the one used last first."""
        now = self._clock()
        with self._guard:
            self._end(self._is_over)
            found = sorted(self._sessions.values(), key=lambda session: session.used, reverse=True)
            return [Login(session.id, session.place, now - session.began, now - session.used) for session in found]

    def close_session(self, token: str) -> None:
        """Ends the login of a token, if there is one."""
        name = _digest(token)
        with self._guard:
            closed = self._sessions.get(name)
            self._end(lambda session: session is closed)

    def end_login(self, login: str) -> bool:
        """Ends the login with this id. False if there is none."""
        return self._end(lambda session: session.id == login) > 0

    def end_others(self, keep: str) -> int:
        """Ends all logins but the one with the id `keep`. Returns how many."""
        return self._end(lambda session: session.id != keep)

    def end_logins_of(self, place: Place) -> int:
        """Ends all logins that were made at a place. Returns how many."""
        return self._end(lambda session: session.place is place)

    def _is_over(self, session: _Session) -> bool:
        now = self._clock()
        return now - session.began > SESSION_SECONDS or now - session.used > SESSION_IDLE_SECONDS

    def _end(self, chosen: Callable[[_Session], bool]) -> int:
        """Ends the chosen logins and tells so. Returns how many."""
        with self._guard:
            ended = {name: session.id for name, session in self._sessions.items() if chosen(session)}
            for name in ended:
                del self._sessions[name]
        for login in ended.values():
            for tell in self._when_ended:
                tell(login)
        return len(ended)

    def _scrypt(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
        return hashlib.scrypt(text, salt=self._salt, n=2**14, r=8, p=1)


def _never_shown(secret: str, name: str) -> str:
    """The secret, masked from now on in all that the program prints and logs."""
    register(secret, name)
    return secret


def _digest(token: str) -> bytes:
    """What is kept of a token: a look-up by it takes no time that tells about the token itself."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<link rel="icon" href="data:,">
<title>Log in - Safelight</title>
<style nonce="{nonce}">
:root {{ color-scheme: light dark; --ink: #18181b; --paper: #fff; --line: #71717a; --alarm: #b91c1c; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #f4f4f5; --paper: #18181b; --line: #a1a1aa; --alarm: #fca5a5; }} }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }}
main {{ width: min(22rem, 100vw - 2rem); }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font: inherit; }}
input, button {{ min-height: 2.75rem; padding: .5rem .75rem; margin-top: .5rem; border: 1px solid var(--line);
  border-radius: .375rem; background: var(--paper); color: var(--ink); }}
button {{ margin-top: 1rem; border: 0; background: #c2410c; color: #fff; font-weight: 600; cursor: pointer; }}
:focus-visible {{ outline: 3px solid #2563eb; outline-offset: 2px; }}
.alarm {{ color: var(--alarm); }}
</style>
</head>
<body>
<main>
<h1>Safelight</h1>
{message}
<form method="post" action="login">
<input name="username" value="owner" autocomplete="username" hidden>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Log in</button>
</form>
<p>The password, and a link that needs none, are in the terminal where the program was started.</p>
</main>
</body>
</html>
"""


def login_page(message: str, nonce: str) -> str:
    """The login form as HTML. `message` is shown above it if not empty; `nonce` is the one of the style in the CSP."""
    shown = f'<p class="alarm" role="alert">{escape(message)}</p>' if message else ""
    return _PAGE.format(message=shown, nonce=escape(nonce))
