"""The addresses of this machine in its networks, for the links of a page that listens. Nothing is sent to find them."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_HOME_NETWORKS = tuple(map(ipaddress.IPv4Network, ("192.168.0.0/16", "10.0.0.0/8")))
"""Most homes and offices number their machines so; 172.16.0.0/12 is more often a network inside this machine."""


def network_addresses() -> list[str]:
    """IPv4 addresses under which other machines may reach this one, the likeliest first. Empty without a network."""
    state = psutil.net_if_stats()
    found = [
        (name, ipaddress.IPv4Address(entry.address))
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and name in state and state[name].isup
    ]
    return ranked(found, _usual_interface())


def ranked(found: list[tuple[str, ipaddress.IPv4Address]], usual: str) -> list[str]:
    """Those of the addresses that others can reach, without repetition: of the `usual` interface first, then of homes."""
    order = sorted(found, key=lambda one: (one[0] != usual, not any(one[1] in home for home in _HOME_NETWORKS)))
    return list(dict.fromkeys(str(address) for _, address in order if _is_reachable(address)))


def _is_reachable(address: ipaddress.IPv4Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)


def _usual_interface() -> str:
    """The interface that leads out of here, as Linux lists it; "" elsewhere, and without one."""
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return ""
    return next((line.split()[0] for line in lines if line.split()[1:2] == ["00000000"]), "")
