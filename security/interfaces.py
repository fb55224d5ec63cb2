"""The addresses of this machine in its networks, for the links of a page that listens. Nothing is sent to find them."""

from __future__ import annotations

import ipaddress
import socket

import psutil  # type: ignore[import-untyped]

_ELSEWHERE = "192.0.2.1"
"""An address that exists nowhere (RFC 5737). Connecting a UDP socket to it only looks up the way there."""


def network_addresses() -> list[str]:
    """IPv4 addresses under which other machines may reach this one, the likeliest first. Empty without a network."""
    state = psutil.net_if_stats()
    found = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and name in state and state[name].isup and _is_reachable(entry.address)
    ]
    usual = _usual_address()
    return sorted(dict.fromkeys(found), key=lambda address: address != usual)


def _is_reachable(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast)


def _usual_address() -> str:
    """The own address of the way out of here, as the system's table of routes says; "" if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE, 9))
        except OSError:
            return ""
        address: str = probe.getsockname()[0]
        return address
