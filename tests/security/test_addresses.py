"""IP addresses: the second fence. One look-up, every answer public, and the connection to a checked answer."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from security import connections
from security.addresses import is_public, resolve_mirror, resolve_public, system_resolve
from security.connections import system_dial
from security.errors import Interrupted, RefusedUrl
from tests.hubs.server import PUBLIC_ADDRESS, Hubs, json_reply

REFUSED_ADDRESSES: tuple[str, ...] = (
    # This machine and this network.
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1"),
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"),
    *(
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "feff::1",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1%eth0",
        "169.254.0.1",
        "100.64.0.1",
    ),
    *("100.127.255.255", "::ffff:10.0.0.1", "::ffff:192.168.1.1"),
    # Where clouds hand out the credentials of a machine.
    *("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1"),
    "2001:0:a9fe:a9fe::1",
    # Addresses that carry another one, public or not.
    *("::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    # Not for single machines, or for nobody.
    *("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1", "255.255.255.255", "240.0.0.1", "192.88.99.1"),
    *("192.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255"),
    *("100::1", "2001:db8::1", "3fff::1", "5f00::1"),
    # No addresses at all.
    *("", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "8.8.8.8 ", "8.8.8.8:443", "[::1]"),
    *("\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021"),
)
PUBLIC_ADDRESSES: tuple[str, ...] = (
    *("8.8.8.8", "1.1.1.1", PUBLIC_ADDRESS, "172.15.255.255", "172.32.0.1", "11.0.0.1", "100.63.255.255"),
    *("100.128.0.1", "168.63.129.17", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2600::1"),
)


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_address_is_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(RefusedUrl, match="Nothing was sent"):
        resolve_public("huggingface.co", lambda _: [address])


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_address_is_public(address: str) -> None:
    assert is_public(address)
    assert resolve_public("huggingface.co", lambda _: [address]) == [address]


@pytest.mark.parametrize(
    "answers", [["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "2606:4700::1", "::1"]]
)
def test_one_bad_answer_among_good_ones_is_enough(answers: Sequence[str]) -> None:
    with pytest.raises(RefusedUrl, match=r"127\.0\.0\.1|::1"):
        resolve_public("huggingface.co", lambda _: answers)


def test_names_without_an_address_are_a_broken_network() -> None:
    def nothing(_: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Interrupted, match=r"huggingface\.co was not found: Name or service not known"):
        resolve_public("huggingface.co", nothing)
    with pytest.raises(Interrupted, match="no address"):
        resolve_public("huggingface.co", lambda _: [])


def test_system_knows_this_machine() -> None:
    assert set(system_resolve("localhost")) <= {"127.0.0.1", "::1"}
    assert system_resolve("localhost")


def test_name_is_looked_up_once_for_a_connection(hubs: Hubs) -> None:
    """A name that turns to this machine at the second look-up gets no second look-up."""
    answers = [[PUBLIC_ADDRESS], ["127.0.0.1"]]
    hubs.on("huggingface.co", "/a", json_reply(1))
    network = hubs.network(resolve=lambda _: answers.pop(0))
    assert network.get_json(network.parse("https://huggingface.co/a")) == 1
    assert answers == [["127.0.0.1"]]
    assert hubs.dials == [(PUBLIC_ADDRESS, 443)]
    with pytest.raises(RefusedUrl, match=r"127\.0\.0\.1"):
        network.get_json(network.parse("https://huggingface.co/a"))


@pytest.mark.parametrize("answers", [["127.0.0.1"], [PUBLIC_ADDRESS, "127.0.0.1"], ["::1"], ["169.254.169.254"]])
def test_refused_answer_gets_not_one_byte(hubs: Hubs, answers: list[str]) -> None:
    hubs.on("huggingface.co", "/a", json_reply(1))
    network = hubs.network(resolve=lambda _: answers)
    with pytest.raises(RefusedUrl):
        network.get_json(network.parse("https://huggingface.co/a"))
    assert hubs.dials == []
    assert hubs.seen == []


def test_next_address_is_tried_when_one_does_not_answer(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.on("huggingface.co", "/a", json_reply(1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections
        dead = taken.getsockname()[1]

        def dial(address: str, port: int, seconds: float) -> socket.socket:
            if address == "8.8.8.8":
                return socket.create_connection(("127.0.0.1", dead), timeout=seconds)
            return hubs.dial(address, port, seconds)

        network = hubs.network(resolve=lambda _: ["8.8.8.8", PUBLIC_ADDRESS])
        monkeypatch.setattr(network, "_dial", dial)
        assert network.get_json(network.parse("https://huggingface.co/a")) == 1


def test_connection_must_end_at_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        system_dial("127.0.0.1", port, 1.0).close()
        real = socket.create_connection
        monkeypatch.setattr(
            connections.socket, "create_connection", lambda address, timeout: real(("127.0.0.1", port), timeout)
        )
        with pytest.raises(RefusedUrl, match=r"8\.8\.8\.8 ended at 127\.0\.0\.1"):
            system_dial("8.8.8.8", port, 1.0)


@pytest.mark.parametrize("address", ["10.0.0.5", "192.168.1.2", "127.0.0.1", "::1", "fd12::1", "8.8.8.8", "100.64.0.1"])
def test_mirror_with_https_may_be_in_the_own_network(address: str) -> None:
    assert resolve_mirror("mirror.example", lambda _: [address], loopback_only=False) == [address]
    assert resolve_mirror(address, lambda _: [], loopback_only=False) == [address]


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fe80::1", "0.0.0.0"),
        *("224.0.0.1", "ff02::1", "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "255.255.255.255", "::"),
    ],
)
def test_mirror_is_never_where_clouds_keep_credentials(address: str) -> None:
    with pytest.raises(RefusedUrl):
        resolve_mirror("mirror.example", lambda _: [address], loopback_only=False)
    with pytest.raises(RefusedUrl):
        resolve_mirror(address, lambda _: [], loopback_only=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "10.0.0.1", "::ffff:127.0.0.1"])
def test_mirror_with_http_is_on_this_machine(address: str) -> None:
    with pytest.raises(RefusedUrl):
        resolve_mirror("localhost", lambda _: ["127.0.0.1", address], loopback_only=True)
    assert resolve_mirror("localhost", lambda _: ["127.0.0.1", "::1"], loopback_only=True) == ["127.0.0.1", "::1"]
