"""The tokens for the hubs: where each comes from, in which order, and what its hub says about it.

Order: environment, keyring of the operating system, Hugging Face's token file, .env, typed on the page. The first source
that has a token counts. None is ever written to a file of ours; a typed one lives in memory until the program ends.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from security.errors import FailedDownload, NeedsLogin, RefusedConfig
from security.policy import Service
from security.secrets import Secret
from security.token_rights import Rights, rights_of
from security.token_sources import (
    ENV_FILE,
    KEYRING_SERVICE,
    NAMES,
    TOKEN_PATH_NAME,
    UNREAD_NAMES,
    Keyring,
    keyring_faults,
    make_secret,
    read_env_file,
    read_token_file,
    system_keyring,
    take_from_environment,
    token_file,
    token_name,
)


class Asks(Protocol):
    """What `TokenStore.check` needs of security.net.Network."""

    def url(self, service: Service, path: str) -> Any: ...

    def get_json(self, url: Any, *, token: Secret | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is known of a service's token, without any part of it. `source` is empty if there is none.

    `user` and `role` are what the hub said when it was asked last. `warning` says what is wrong and what to do.
    """

    source: str
    user: str = ""
    role: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class SourceState:
    """One place where a token may lie. `used`: the token that counts comes from here. `note` tells what is wrong."""

    source: str
    found: bool
    used: bool
    note: str = ""


TYPED = "typed on the page"
KEYRING = "keyring of this machine"
_CHECKS: dict[Service, str] = {Service.HUGGING_FACE: "/api/whoami-v2", Service.CIVITAI: "/api/v1/me"}
"""What a hub is asked about a token."""
_stash: dict[str, str] = {}
"""Tokens that were taken out of this process' environment, by the names of their variables."""


def take_tokens() -> None:
    """Takes the tokens out of this process' environment, for every TokenStore that is made later."""
    _stash.update(take_from_environment(os.environ))


def _typed_secret(service: Service, text: str) -> Secret:
    secret = make_secret(service, text)
    if secret is None:
        raise RefusedConfig(f"The {token_name(service)} is empty. Paste it, then press Save.")
    return secret


class TokenStore:
    """The tokens of this process. One is made at start and handed to whoever downloads."""

    def __init__(
        self,
        *,
        environment: MutableMapping[str, str] | None = None,
        env_file: Path = ENV_FILE,
        find_keyring: Callable[[], Keyring | None] = system_keyring,
    ) -> None:
        """`environment` None: the process' own. Tokens leave it at once."""
        if environment is None:
            take_tokens()
        self._environment = os.environ if environment is None else environment
        self._variables = dict(_stash) if environment is None else take_from_environment(environment)
        self._env_file = env_file
        self._find_keyring = find_keyring
        self._keyring: Keyring | None = None
        self._looked_for_keyring = False
        self._kept: dict[Service, Secret | None] = {}
        self._typed: dict[Service, Secret] = {}
        self._rights: dict[Secret, Rights] = {}
        self._guard = threading.RLock()

    def get(self, service: Service) -> Secret | None:
        """The token that counts, None if no source has one. Raises RefusedConfig if the first that is there is no good."""
        for _, look in self._sources(service):
            if secret := look():
                return secret
        return None

    def state(self, service: Service) -> TokenState:
        """Where the token that counts comes from, and what its hub said of it. Asks nobody."""
        for source, look in self._sources(service):
            try:
                secret = look()
            except RefusedConfig as error:
                return TokenState(source, warning=str(error))
            if secret is not None:
                rights = self._rights.get(secret, Rights())
                return TokenState(source, rights.user, rights.role, rights.warning)
        unread = [f"{name} (use {use})" for name, use in UNREAD_NAMES.items() if self._belongs(name, use, service)]
        warning = f"Not read here: {', '.join(unread)}." if unread else ""
        return TokenState("", warning=warning)

    def sources(self, service: Service) -> list[SourceState]:
        """Every place that is looked at, in order."""
        states: list[SourceState] = []
        used = False
        for source, look in self._sources(service):
            note = ""
            try:
                found = look() is not None
            except RefusedConfig as error:
                found, note = True, str(error)
            if source == KEYRING and not found:
                note = "" if self.has_keyring else "there is none that Safelight uses"
            states.append(SourceState(source, found, found and not used, note))
            used = used or found
        return states

    @property
    def has_keyring(self) -> bool:
        """Whether a typed token can be kept in a keyring of the operating system or desktop."""
        return self._found_keyring() is not None

    def set(self, service: Service, text: str, *, keep: bool = False) -> Secret:
        """Takes a typed token into memory, or with `keep` into this machine's keyring.

        Raises RefusedConfig for a text that is no token, and where there is no keyring.
        """
        secret = _typed_secret(service, text)
        self._store(service, secret, keep)
        return secret

    def _store(self, service: Service, secret: Secret, keep: bool) -> None:
        with self._guard:
            if keep:
                self._keep(service, secret)
            else:
                self._typed[service] = secret

    def forget(self, service: Service) -> None:
        """Drops the token from memory (a typed one and one of the environment) and from the keyring. Files stay."""
        with self._guard:
            self._typed.pop(service, None)
            for name in NAMES[service]:
                self._variables.pop(name, None)
            keyring = self._found_keyring()
            if keyring is not None and self._from_keyring(service) is not None:
                try:
                    keyring.delete_password(KEYRING_SERVICE, service.value)
                except keyring_faults() as error:
                    raise RefusedConfig(f"The keyring did not give up the {token_name(service)}: {error}") from None
            self._kept.pop(service, None)

    def check(self, service: Service, network: Asks) -> TokenState:
        """Asks the hub whose token it is and what it may do.

        Raises RefusedConfig as `get` does, and what `network` raises when the hub can't be reached. A token that the
        hub does not accept is told in the state.
        """
        secret = self.get(service)
        if secret is None:
            return self.state(service)
        self.examine(service, secret, network)
        return self.state(service)

    def examine(self, service: Service, secret: Secret, network: Asks) -> Rights:
        """Asks the hub about a token, stored or not, and remembers the answer."""
        try:
            answer = network.get_json(network.url(service, _CHECKS[service]), token=secret)
        except NeedsLogin:
            rights = Rights(
                refused=True,
                warning=f"{service.value} does not accept this token: it has expired, was deleted, or was not copied as a "
                "whole. Make a new one.",
            )
        else:
            rights = rights_of(service, answer)
        with self._guard:
            self._rights[secret] = rights
        return rights

    def save(self, service: Service, text: str, network: Asks, *, keep: bool = False) -> TokenState:
        """What the page's Save does: asks the hub about the token, and stores it unless it may change the account.

        While the hub can't be reached, a token is taken into memory unchecked, but not into the keyring. Raises
        RefusedConfig for a token that is no good or may do too much.
        """
        secret = _typed_secret(service, text)
        try:
            rights = self.examine(service, secret, network)
        except FailedDownload as error:
            if keep:
                raise RefusedConfig(f"The token is not kept, because it could not be checked. {error}") from None
            self._rights[secret] = Rights(warning=f"It could not be checked yet. {error}")
        else:
            if rights.refused:
                raise RefusedConfig(f"The token is not stored. {rights.warning}")
        self._store(service, secret, keep)
        return self.state(service)

    def _sources(self, service: Service) -> Iterator[tuple[str, Callable[[], Secret | None]]]:
        """Where to look, in order: what to call the place, and a function that looks there."""
        for name in NAMES[service]:
            yield f"{name} in the environment", functools.partial(self._from_variable, service, name)
        named = self._environment.get(TOKEN_PATH_NAME) if service is Service.HUGGING_FACE else None
        if named:
            path = Path(named).expanduser()
            yield f"{TOKEN_PATH_NAME} in the environment", functools.partial(self._from_file, service, path)
        yield KEYRING, functools.partial(self._from_keyring, service)
        if service is Service.HUGGING_FACE and not named:
            path = token_file(self._environment)
            yield "token file of Hugging Face", functools.partial(self._from_file, service, path)
        yield ".env", functools.partial(self._from_env_file, service)
        yield TYPED, functools.partial(self._typed.get, service)

    def _from_variable(self, service: Service, name: str) -> Secret | None:
        return make_secret(service, self._variables.get(name, ""), f"{name} in the environment")

    def _from_file(self, service: Service, path: Path) -> Secret | None:
        return make_secret(service, read_token_file(path) or "", str(path))

    def _from_env_file(self, service: Service) -> Secret | None:
        values = read_env_file(self._env_file)
        texts = [(name, values[name]) for name in NAMES[service] if values.get(name, "").strip()]
        return make_secret(service, texts[0][1], f"{texts[0][0]} in {self._env_file}") if texts else None

    def _from_keyring(self, service: Service) -> Secret | None:
        """Read once: a keyring may ask the person at the machine each time. One that can't be read has no token."""
        keyring = self._found_keyring()
        with self._guard:
            if keyring is not None and service not in self._kept:
                try:
                    text = keyring.get_password(KEYRING_SERVICE, service.value)
                except keyring_faults():
                    text = None
                self._kept[service] = make_secret(service, text or "", KEYRING)
            return self._kept.get(service)

    def _keep(self, service: Service, secret: Secret) -> None:
        keyring = self._found_keyring()
        if keyring is None:
            raise RefusedConfig("This machine has no keyring that Safelight uses. Save the token without keeping it.")
        try:
            keyring.set_password(KEYRING_SERVICE, service.value, secret.reveal())
        except keyring_faults() as error:
            raise RefusedConfig(f"The keyring did not take the token: {error}") from None
        self._kept[service] = secret

    def _found_keyring(self) -> Keyring | None:
        with self._guard:
            if not self._looked_for_keyring:
                self._keyring, self._looked_for_keyring = self._find_keyring(), True
            return self._keyring

    def _belongs(self, name: str, use: str, service: Service) -> bool:
        return use in NAMES[service] and bool(self._variables.get(name, "").strip())
