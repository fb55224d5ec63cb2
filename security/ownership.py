"""Which login of the page a Gradio session, an event or an uploaded file belongs to.

Gradio itself hands all of these to every visitor who knows their name. Here the login that uses a name first owns it, and
it is forgotten with that login.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import StrEnum

from security.errors import RefusedRequest
from security.policy import MAX_NAMES_PER_LOGIN


class Kind(StrEnum):
    """What can belong to a login."""

    SESSION = "page session"  # Gradio's session_hash: one per opened page, chosen by its script
    UPLOAD = "upload"  # chosen by the script too, to ask how far an upload is
    EVENT = "event"  # given out by Gradio's queue
    FILE = "file"  # the path that an upload was answered with


_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)


class Ownership:
    """Names and their logins, at most MAX_NAMES_PER_LOGIN of a kind and login; beyond, the one used longest ago goes.

    The login "" is the one person at a page without a password. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, Kind], OrderedDict[str, None]] = {}
        self._owners: dict[tuple[Kind, str], set[str]] = {}
        self._guard = threading.Lock()

    def claim(self, login: str, kind: Kind, name: object) -> None:
        """Lets `login` use a name that it owns, or that nobody owns yet and it then does.

        Raises RefusedRequest: 403 for the name of another login, 400 for what is no name.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RefusedRequest(f"This is not the name of a {kind}.", 400)
        with self._guard:
            owners = self._owners.get((kind, name), set())
            if owners and login not in owners:
                raise RefusedRequest(f"This {kind} belongs to another login.", 403)
            self._keep(login, kind, name)

    def add(self, login: str, kind: Kind, names: Iterable[str]) -> None:
        """Records names that Gradio made for `login`. The same file uploaded by two logins belongs to both."""
        with self._guard:
            for name in names:
                self._keep(login, kind, name)

    def require(self, login: str, kind: Kind, names: Iterable[object]) -> None:
        """Raises RefusedRequest (403) unless `login` owns all the names."""
        with self._guard:
            own = self._names.get((login, kind), OrderedDict())
            for name in names:
                if not isinstance(name, str) or name not in own:
                    raise RefusedRequest(f"This {kind} does not belong to your login.", 403)
                own.move_to_end(name)

    def forget(self, login: str) -> None:
        """Drops everything of a login that has ended."""
        with self._guard:
            for kind in Kind:
                for name in self._names.pop((login, kind), ()):
                    self._drop_owner(login, kind, name)

    def _keep(self, login: str, kind: Kind, name: str) -> None:
        own = self._names.setdefault((login, kind), OrderedDict())
        own[name] = None
        own.move_to_end(name)
        self._owners.setdefault((kind, name), set()).add(login)
        if len(own) > MAX_NAMES_PER_LOGIN:
            oldest, _ = own.popitem(last=False)
            self._drop_owner(login, kind, oldest)

    def _drop_owner(self, login: str, kind: Kind, name: str) -> None:
        owners = self._owners[kind, name]
        owners.discard(login)
        if not owners:
            del self._owners[kind, name]


def paths_in(data: object) -> Iterator[object]:
    """Every "path" of an object in the inputs of an event: what Gradio would take for a file."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
