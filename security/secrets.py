"""A token in memory: it shows itself to nobody by accident. Whoever needs it says `reveal()`."""

from __future__ import annotations

import hmac
import re
from typing import NoReturn

from security.errors import RefusedConfig
from security.redaction import MASK, MIN_SECRET_LENGTH, register

MAX_SECRET_LENGTH = 4096
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")


class Secret:
    """A token. `name` says what it is, such as "Hugging Face token"; it stands in messages, the token never does.

    repr, str and format give a mask; pickling, copying and JSON raise TypeError. Making one registers it with the
    redactor, so that it is masked in all that the program prints and logs from then on.
    """

    __slots__ = ("_text", "name")

    def __init__(self, text: str, name: str) -> None:
        """Raises RefusedConfig, which does not repeat the text, if it can't be a token: HTTP libraries put a header with
        a line break or a foreign letter into their error messages as a whole."""
        self.name = name
        if not MIN_SECRET_LENGTH <= len(text) <= MAX_SECRET_LENGTH:
            raise RefusedConfig(
                f"The {name} has {len(text)} characters, which no token has. Copy the whole token, and nothing else."
            )
        register(text, name)
        if not _VISIBLE_ASCII.fullmatch(text):
            raise RefusedConfig(
                f"The {name} holds a space, a line break or another sign that no token has. "
                "Copy it again, without anything around it."
            )
        self._text = text

    def reveal(self) -> str:
        """The token itself, for the header of one request."""
        return self._text

    def __repr__(self) -> str:
        return f"<Secret {self.name}: {MASK}>"

    def __str__(self) -> str:
        return MASK

    def __format__(self, _format: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text, other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"The {self.name} is not copied, pickled or written anywhere. Pass the Secret itself on.")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, _memo: object) -> NoReturn:
        self.__reduce_ex__(2)
