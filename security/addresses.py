"""Which IP addresses the program connects to: public ones. The second fence, behind the list of hosts.

A name on the list can be made to answer with an address inside the user's network, or with that of the service that
hands out a cloud machine's credentials. So a name is looked up once, every answer is checked, and the connection goes
to a checked answer, never to the name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

from security.errors import Interrupted, RefusedUrl

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str], Sequence[str]]
"""Gives all addresses of a host name, as texts. Raises OSError if there are none."""

_DENIED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "100.64.0.0/10",  # shared by providers; 100.100.100.200 hands out credentials at one cloud
        "168.63.129.16/32",  # hands out credentials at another one, and counts as public
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 hands out credentials at a third, and counts as public
        "192.88.99.0/24",  # relays to 6to4
        "198.18.0.0/15",  # benchmarks
        "240.0.0.0/4",  # reserved, and broadcast
        "::ffff:0:0/96",  # IPv4 written as IPv6
        "::/96",  # the same, deprecated; :: and ::1 as well
        "64:ff9b::/96",  # IPv4 behind a translator
        "64:ff9b:1::/48",  # the same, local
        "100::/64",  # discarded
        "2001::/32",  # Teredo: an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # private
        "fe80::/10",  # this link
        "fec0::/10",  # private, deprecated
    )
)
"""Refused whatever the standard library thinks of them; its tables differ between versions of Python."""
_NEVER_A_MIRROR = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.0/24", "240.0.0.0/4"),
        *("::/128", "fe80::/10", "fd00:ec2::254/128"),
    )
)
"""Refused even for a mirror that the user named: this link, and where clouds hand out credentials."""


def system_resolve(host: str) -> list[str]:
    """Asks the system for all addresses of a name, each once, best first. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(text: str) -> bool:
    """True for an address that anybody on the internet reaches."""
    address = _parse(text)
    return address is not None and _is_public(address)


def resolve_public(host: str, resolve: Resolver) -> list[str]:
    """The addresses of `host`, looked up once. Raises RefusedUrl if any is not public, Interrupted if there are none."""
    return _resolve(host, resolve, _is_public, "is not an address on the internet")


def resolve_mirror(host: str, resolve: Resolver, *, loopback_only: bool) -> list[str]:
    """As resolve_public, for a mirror that the user named: private addresses pass, those of a cloud's services do not.

    `loopback_only`: for http, which is not encrypted.
    """
    if _parse(host) is not None:
        addresses = [host]
        return _checked(host, addresses, _is_loopback if loopback_only else _is_for_mirrors, "is not allowed")
    if loopback_only:
        return _resolve(host, resolve, _is_loopback, "is not this machine, and http is not encrypted")
    return _resolve(host, resolve, _is_for_mirrors, "is not an address that a mirror can have")


def _resolve(host: str, resolve: Resolver, allowed: Callable[[IPAddress], bool], fault: str) -> list[str]:
    try:
        addresses = list(resolve(host))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Interrupted(f"{host} was not found: {reason}. Is the network up?") from None
    if not addresses:
        raise Interrupted(f"{host} has no address. Is the network up?")
    return _checked(host, addresses, allowed, fault)


def _checked(host: str, addresses: list[str], allowed: Callable[[IPAddress], bool], fault: str) -> list[str]:
    """`addresses`, if all of them are allowed: one bad answer among good ones means that somebody meddles."""
    for text in addresses:
        address = _parse(text)
        if address is None or not allowed(address):
            raise RefusedUrl(
                f"{host} was looked up as {text}, which {fault}. Nothing was sent. "
                "A filter, a captive portal or a changed hosts file may be in the way."
            )
    return addresses


def _parse(text: str) -> IPAddress | None:
    """The address, or None. One with a zone (fe80::1%eth0) is bound to this link, so it counts as none."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_public(address: IPAddress) -> bool:
    return (
        address.is_global and not address.is_multicast and not _carries_ipv4(address) and not _within(address, _DENIED)
    )


def _is_for_mirrors(address: IPAddress) -> bool:
    return not address.is_multicast and not _carries_ipv4(address) and not _within(address, _NEVER_A_MIRROR)


def _is_loopback(address: IPAddress) -> bool:
    return address.is_loopback and not _carries_ipv4(address)


def _carries_ipv4(address: IPAddress) -> bool:
    """True for an IPv6 address that leads to an IPv4 one: mapped, 6to4 and Teredo. No hub has such an address."""
    return isinstance(address, ipaddress.IPv6Address) and bool(
        address.ipv4_mapped or address.sixtofour or address.teredo
    )


def _within(address: IPAddress, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)
