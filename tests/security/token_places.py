"""Everywhere a token may lie, for the tests of tokens."""

from __future__ import annotations

from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from security.policy import Service
from security.tokens import TokenStore


def token(number: int) -> str:
    return f"hf_{number:04d}QwErTyUiOpAsDfGhJkLzXcVbNm"


class MemoryKeyring(KeyringBackend):
    """A keyring as an operating system has one, for the length of a test."""

    priority = 5  # type: ignore[assignment]

    def __init__(self, **held: str) -> None:
        super().__init__()
        self.held = {("safelight", name): text for name, text in held.items()}
        self.locked = False
        self.reads = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.reads += 1
        if self.locked:
            raise KeyringLocked("locked")
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked("locked")
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


class Places:
    """Everywhere a token may lie, for one test. `fill` puts one there."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"HF_HOME": str(folder / "hf")}
        self.env_file = folder / ".env"
        self.keyring = MemoryKeyring()
        (folder / "hf").mkdir()
        self.named_file = folder / "named-token"
        self.typed: dict[Service, str] = {}

    def store(self) -> TokenStore:
        made = TokenStore(environment=self.environment, env_file=self.env_file, find_keyring=lambda: self.keyring)
        for service, text in self.typed.items():
            made.set(service, text)
        return made

    def write(self, path: Path, text: str, mode: int = 0o600) -> None:
        path.write_text(text)
        path.chmod(mode)
