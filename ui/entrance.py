"""The ways into a page that asks for a password: its links, the password, and how long the share link lives."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from security.interfaces import network_addresses
from security.login import Credentials, Place, generate_password
from security.sharing import Sharing
from ui.qr import terminal_code

logger = logging.getLogger("safelight.entrance")


@dataclass(frozen=True)
class Way:
    """A way in: what to call it, and the address that logs in with one tap."""

    label: str
    link: str


@dataclass(frozen=True)
class Reach:
    """Where a page can be reached: its port, from other machines if it listens, and under further names."""

    port: int
    listens: bool = False
    host_names: tuple[str, ...] = ()


class Entrance:
    """Made once by the server. Its methods may be called from several threads."""

    def __init__(
        self,
        credentials: Credentials,
        reach: Reach,
        *,
        tell: Callable[[str], None],
        sharing: Sharing | None = None,
        password_is_chosen: bool = False,
    ) -> None:
        """`tell` writes to the terminal of the person who started the program, and nowhere else.

        A password that was chosen stays when the link is renewed: it stands in a file that is the user's.
        """
        self.credentials = credentials
        self.sharing = sharing
        self.password_is_chosen = password_is_chosen
        self._reach = reach
        self._tell = tell
        self._close_tunnel: Callable[[], None] | None = None

    def begin_sharing(self, url: str, close_tunnel: Callable[[], None]) -> None:
        """From now on the share link is open. `close_tunnel` ends it."""
        assert self.sharing is not None
        self._close_tunnel = close_tunnel
        self.sharing.begin(url)

    def ways_for_others(self) -> list[Way]:
        """The links for other machines and phones, the likeliest to work first."""
        found = []
        if self.sharing and self.sharing.url:
            found.append(("Share link", self.sharing.url))
        found += [("Name", f"https://{name}") for name in self._reach.host_names]
        if self._reach.listens:
            found += [("In your network", f"http://{address}:{self._reach.port}") for address in network_addresses()]
        return [Way(label, self.credentials.key_link(address)) for label, address in found]

    def announce(self, password: str) -> None:
        """Tells the ways in, and the password if one was made, on the terminal."""
        ways = self.ways_for_others()
        for way in ways:
            self._tell(f"{way.label}: {way.link}")
        if self.sharing and self.sharing.url:
            self._tell(f"The share link lives until {clock_time(self.sharing.seconds_left)}.")
        if ways and (code := terminal_code(ways[0].link, sys.stdout.encoding or "ascii")):
            self._tell(f"For a phone, {ways[0].label.lower()}:\n{code}")
        if password:
            self._tell(f"Password: {password}")

    def renew(self, keep: str) -> None:
        """Makes a new link and, unless the user chose it, a new password, and ends all logins but `keep`."""
        self._make_new_keys()
        self.credentials.end_others(keep)
        logger.info("the link was renewed; all other logins ended")

    def _make_new_keys(self) -> None:
        password = "" if self.password_is_chosen else generate_password()
        self.credentials.renew(password or None)
        here = self.credentials.key_link(f"http://127.0.0.1:{self._reach.port}")
        self._tell(f"The old link{'' if self.password_is_chosen else ' and password'} no longer work. New: {here}")
        self.announce(password)

    def stop_sharing(self) -> None:
        """Closes the share link for good. Its logins end, and what opened them opens nothing any more; others go on."""
        if self.sharing is None or self._close_tunnel is None:
            return
        close_tunnel, self._close_tunnel = self._close_tunnel, None
        self.sharing.end()
        close_tunnel()
        logger.info("the share link was closed")
        self._tell("The share link is closed. The page goes on without it.")
        self._make_new_keys()
        self.credentials.end_logins_of(Place.SHARE)

    def tick(self) -> None:
        """Closes the share link when its time is over; called again and again by the server."""
        if self.sharing is not None and self.sharing.is_over:
            self.stop_sharing()


def clock_time(seconds: float) -> str:
    """When it will be so many seconds from now, as people say it: "21:40", with the day if it is another one."""
    then, now = time.localtime(time.time() + seconds), time.localtime()
    return time.strftime("%H:%M" if then.tm_yday == now.tm_yday else "%a %H:%M", then)
