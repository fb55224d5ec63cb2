"""Host names as they stand in the Host and Origin headers of a request, and as a user may allow them."""

from __future__ import annotations

import ipaddress
import re

from security.errors import RefusedConfig

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9.-]{0,252}))(?::\d{1,5})?")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def check_host_name(name: str) -> str:
    """A name under which the page may answer, in small letters. Raises RefusedConfig for anything but a bare host name."""
    lower = name.lower()
    if not _HOST_NAME.fullmatch(lower) or lower.rpartition(".")[2].isdigit() or lower == "localhost":
        raise RefusedConfig(
            f"{name!r} is not a host name. Give the name alone that stands in the address, such as lora.example.org: "
            "no https://, no port, no * and no number."
        )
    return lower


def host_name(host: str) -> str:
    """The name in a Host header in small letters, without the port; "" if it is no host."""
    match = _HOST.fullmatch(host)
    return match[1] if match else ""


def host_of_origin(origin: str) -> str:
    """The host name in an Origin header, "" if it is not that of a web page."""
    scheme, _, rest = origin.lower().partition("://")
    return host_name(rest) if scheme in ("http", "https") else ""


def is_ip_address(name: str) -> bool:
    """Whether the name of a Host header is an IP address."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
