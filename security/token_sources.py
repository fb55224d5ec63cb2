"""Where tokens lie: the environment, the keyring of the operating system, the token file of Hugging Face, and .env."""

from __future__ import annotations

import ctypes
import importlib
import os
import stat
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Protocol

from security.errors import RefusedConfig
from security.policy import Service
from security.redaction import register
from security.secrets import MAX_SECRET_LENGTH, Secret

NAMES: dict[Service, tuple[str, ...]] = {
    Service.HUGGING_FACE: ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    Service.CIVITAI: ("CIVITAI_TOKEN",),
}
"""Variables that are read, in the environment and in .env; the first one that is set counts."""
UNREAD_NAMES: dict[str, str] = {
    "HF_HUB_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_HUB_TOKEN": "HF_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN": "HF_TOKEN",
    "HF_API_TOKEN": "HF_TOKEN",
    "CIVITAI_API_KEY": "CIVITAI_TOKEN",
    "CIVITAI_API_TOKEN": "CIVITAI_TOKEN",
}
"""Variables that hold a token for other programs, and the name to use here. They are removed, but not used."""
TOKEN_PATH_NAME = "HF_TOKEN_PATH"  # noqa: S105 - the name of a variable
ENV_FILE = Path(__file__).resolve().parents[1] / ".env"
KEYRING_SERVICE = "safelight"
MAX_ENV_FILE_BYTES = 64 * 1024
_KEYRING_BACKENDS = (
    ("keyring.backends.macOS", "Keyring"),
    ("keyring.backends.Windows", "WinVaultKeyring"),
    ("keyring.backends.SecretService", "Keyring"),
    ("keyring.backends.libsecret", "Keyring"),
    ("keyring.backends.kwallet", "DBusKeyring"),
)
"""The keyrings of operating systems and desktops. Others keep tokens in a plain file or nowhere, or are named by an
environment variable or a settings file, which would run whatever code these name; so none is looked for."""


class Keyring(Protocol):
    """What is used of a backend of the `keyring` package."""

    @property
    def name(self) -> str:
        """Its module and class, for people."""

    def get_password(self, service: str, username: str) -> str | None: ...

    def set_password(self, service: str, username: str, password: str) -> None: ...

    def delete_password(self, service: str, username: str) -> None: ...


def token_name(service: Service) -> str:
    """What a token of this service is called in messages."""
    return f"{service.value} token"


def make_secret(service: Service, text: str, source: str = "") -> Secret | None:
    """The token out of what a source holds, None if that is empty. Raises RefusedConfig, which names the source."""
    stripped = text.strip()
    if not stripped:
        return None
    try:
        return Secret(stripped, token_name(service))
    except RefusedConfig as error:
        raise RefusedConfig(f"{error} It comes from {source}." if source else str(error)) from None


def take_from_environment(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Removes every variable that may hold a token, and returns name and value of those that were there.

    The values are masked from then on. In the process' own environment the bytes that the operating system shows to
    other programs of this user (/proc/PID/environ) are overwritten too: removing a variable leaves those.
    """
    taken = {}
    for name in [*(name for names in NAMES.values() for name in names), *UNREAD_NAMES]:
        if name not in environment:
            continue
        value = environment[name]
        if value.strip():
            register(value.strip(), "a token of the environment")
            taken[name] = value
        if environment is os.environ:
            _overwrite(name)
        del environment[name]
    return taken


def _overwrite(name: str) -> None:
    """Fills the value of a variable in this process' memory with asterisks, before it is removed."""
    if sys.platform == "win32":  # shows no environment of a running process in a file
        return
    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = getenv(os.fsencode(name))
    if address:
        ctypes.memset(address, ord("*"), len(ctypes.string_at(address)))


def token_file(environment: MutableMapping[str, str]) -> Path:
    """The file into which Hugging Face's own `hf auth login` writes: below $HF_HOME, else in the user's cache folder."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or str(Path(cache) / "huggingface")
    return Path(home).expanduser() / "token"


def read_token_file(path: Path) -> str | None:
    """The text of a token file, None if there is none. Raises RefusedConfig if it is no small file of this user."""
    return _read_private(path, MAX_SECRET_LENGTH, follow_link=True)  # home folders on clusters are full of links


def read_env_file(path: Path) -> dict[str, str]:
    """Variables of NAMES in a .env file, {} if there is none. Lines are NAME=VALUE, taken literally: nothing is
    expanded, nothing is run, other names are passed over.

    Raises RefusedConfig if the file is a link, or if anyone but its owner can read it.
    """
    return _parse_env(_read_private(path, MAX_ENV_FILE_BYTES, follow_link=False) or "")


def _read_private(path: Path, max_bytes: int, *, follow_link: bool) -> str | None:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its writer
    if not follow_link:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "it is a link; put the file itself there" if path.is_symlink() else error.strerror
        raise RefusedConfig(f"{path} cannot be read: {reason}.") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > max_bytes:
            raise RefusedConfig(f"{path} is not a small text file. Only tokens belong into it.")
        _refuse_others(path, facts)
        return os.read(descriptor, max_bytes).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def _refuse_others(path: Path, facts: os.stat_result) -> None:
    """Raises RefusedConfig if the file belongs to another user, or if others may read or change it."""
    if sys.platform == "win32":
        return
    if facts.st_uid != os.geteuid():
        raise RefusedConfig(f"{path} belongs to another user. Use a file of your own.")
    if facts.st_mode & 0o077:
        raise RefusedConfig(f"Other users can read {path}. Run: chmod 600 {path}")


def _parse_env(text: str) -> dict[str, str]:
    known = {name for names in NAMES.values() for name in names}
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if equals and name.strip() in known:
            values[name.strip()] = value
    return values


def keyring_faults() -> tuple[type[Exception], ...]:
    """What a keyring raises when it is locked, or when the person says no."""
    from keyring.errors import KeyringError

    faults: tuple[type[Exception], ...] = (KeyringError, OSError, RuntimeError)
    try:
        from secretstorage.exceptions import SecretStorageException
    except ImportError:  # another system than Linux
        return faults
    return (*faults, SecretStorageException)


def system_keyring() -> Keyring | None:
    """The keyring of this operating system or desktop, None where there is none, as on most servers."""
    for module_name, class_name in _KEYRING_BACKENDS:
        try:
            backend: Any = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError):
            continue  # of another system, or its library is not installed
        if backend.viable:
            found: Keyring = backend()
            return found
    return None
