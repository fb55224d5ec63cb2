"""Who can open the page: the list of logins and what its owner can do about it, and what the terminal is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from security.interfaces import network_addresses
from security.login import Credentials, Place
from security.privileges import root_warning
from security.sharing import Sharing
from tests.security.test_login import Clock
from tests.ui.test_tabs import drawn
from ui.entrance import Entrance, Reach, clock_time
from ui.qr import picture_code, terminal_code
from ui.services import Access, Services
from ui.tabs.access import access_tab

PASSWORD = "correct horse battery"
SHARED = "https://abcdef0123.gradio.live"


class Bench:
    """An entrance whose terminal and tunnel are looked at; its clocks are moved by hand."""

    def __init__(
        self, *, share: bool = False, listens: bool = False, names: tuple[str, ...] = (), chosen: bool = False
    ):
        self.told: list[str] = []
        self.clock = Clock()
        self.tunnels_closed = 0
        self.credentials = Credentials(PASSWORD, clock=self.clock, base_delay_seconds=0.0)
        sharing = Sharing(2, clock=self.clock) if share else None
        reach = Reach(7860, listens, names)
        self.entrance = Entrance(
            self.credentials, reach, tell=self.told.append, sharing=sharing, password_is_chosen=chosen
        )
        if share:
            self.entrance.begin_sharing(SHARED, self.close_tunnel)

    def close_tunnel(self) -> None:
        self.tunnels_closed += 1

    async def takes(self, password: str) -> bool:
        return await self.credentials.check_password(password)


def view(services: Services, entrance: Entrance | None, **reach: Any) -> Any:
    """The functions of the Settings tab's part, over a page with this entrance."""
    return drawn(access_tab, Services(**{**vars(services), "access": Access(entrance=entrance, **reach)}))


def test_a_page_without_a_password_says_so_and_lets_nobody_do_anything(services: Services) -> None:
    page = view(services, None)
    state = page.access_state(None)
    assert (state["guarded"], state["others"], state["shared"], state["logins"]) == (False, False, False, [])
    assert state["text"].startswith("Only this machine can open the page.")
    assert state["warning"] == root_warning()
    for act in (page.show_ways, page.end_login, page.renew, page.stop_sharing):
        assert "no password" in act({"login": "x"})["error"]


def test_the_list_tells_when_and_from_where_and_ends_logins(services: Services) -> None:
    bench = Bench(listens=True)
    page = view(services, bench.entrance, listen=True)
    here, there = bench.credentials.open_session(Place.HERE), bench.credentials.open_session(Place.NETWORK)
    bench.clock.now += 185
    assert bench.credentials.has_session(here)
    rows = page.access_state(None)["logins"]
    assert [(row["place"], row["began"], row["used"]) for row in rows] == [
        ("on this machine", "3 min ago", "just now"),
        ("in the network", "3 min ago", "3 min ago"),
    ]
    assert here not in str(rows) and there not in str(rows)
    assert page.end_login({"login": rows[1]["id"]}) == {"text": "That login has ended."}
    assert not bench.credentials.has_session(there)
    assert page.end_login({"login": rows[1]["id"]}) == {"text": "That login had ended already."}
    assert "error" in page.end_login({"login": ["x"]})
    assert "error" in page.end_login(None)
    assert bench.credentials.has_session(here)


def told_password(bench: Bench) -> str:
    return next(line for line in reversed(bench.told) if line.startswith("Password: ")).removeprefix("Password: ")


@pytest.mark.parametrize("chosen", [False, True])
def test_a_new_link_shuts_everybody_else_out(services: Services, chosen: bool) -> None:
    bench = Bench(listens=True, chosen=chosen)
    page = view(services, bench.entrance, listen=True)
    tokens = [bench.credentials.open_session() for _ in range(3)]
    old = bench.credentials.key
    answer = page.renew(None)
    assert not any(bench.credentials.has_session(token) for token in tokens)
    assert not bench.credentials.check_key(old)
    assert any(bench.credentials.key in line for line in bench.told)
    assert bench.credentials.key not in str(answer)
    assert asyncio.run(bench.takes(PASSWORD)) is chosen
    if chosen:
        assert not [line for line in bench.told if line.startswith("Password: ")]
    else:
        assert asyncio.run(bench.takes(told_password(bench)))
        assert "terminal" in answer["text"]


def test_the_login_that_asks_is_kept() -> None:
    bench = Bench(listens=True)
    own, other = bench.credentials.open_session(), bench.credentials.open_session()
    bench.entrance.renew(keep=bench.credentials.login_of(own))
    assert bench.credentials.has_session(own)
    assert not bench.credentials.has_session(other)


def test_ways_in_are_links_with_codes_for_whom_the_page_is_open(services: Services) -> None:
    bench = Bench(share=True, listens=True, names=("lora.example",))
    page = view(services, bench.entrance, share=True, listen=True, host_names=("lora.example",))
    ways = page.show_ways(None)["ways"]
    key = bench.credentials.key
    assert [way["link"] for way in ways] == [
        f"{SHARED}/?key={key}",
        f"https://lora.example/?key={key}",
        *(f"http://{address}:7860/?key={key}" for address in network_addresses()),
    ]
    for way in ways:
        kind, _, drawing = way["code"].partition(",")
        assert kind == "data:image/svg+xml;charset=utf-8"
        assert ElementTree.fromstring(unquote(drawing)).tag.endswith("svg")
    assert key not in str(page.access_state(None))
    alone = view(services, Bench().entrance)
    assert "No other machine" in alone.show_ways(None)["error"]


def test_stopping_the_share_ends_its_logins_link_and_password_and_nothing_else(services: Services) -> None:
    bench = Bench(share=True)
    page = view(services, bench.entrance, share=True)
    here, guest = bench.credentials.open_session(Place.HERE), bench.credentials.open_session(Place.SHARE)
    state = page.access_state(None)
    assert state["shared"]
    assert state["text"].startswith(f"Shared until {clock_time(7200)}:")
    old = bench.credentials.key
    assert page.stop_sharing(None) == {"text": "The share link is closed. This page goes on without it."}
    assert bench.tunnels_closed == 1
    assert (bench.credentials.has_session(here), bench.credentials.has_session(guest)) == (True, False)
    assert not bench.credentials.check_key(old)
    assert not asyncio.run(bench.takes(PASSWORD))
    assert asyncio.run(bench.takes(told_password(bench)))
    state = page.access_state(None)
    assert not state["shared"]
    assert state["text"].startswith("The share link is closed")
    assert not bench.entrance.ways_for_others()
    page.stop_sharing(None)
    assert bench.tunnels_closed == 1


def test_the_share_link_ends_by_itself() -> None:
    bench = Bench(share=True)
    guest = bench.credentials.open_session(Place.SHARE)
    bench.clock.now += 7199
    bench.entrance.tick()
    assert bench.tunnels_closed == 0
    assert bench.entrance.sharing is not None
    assert bench.entrance.sharing.host == "abcdef0123.gradio.live"
    bench.clock.now += 1
    assert bench.entrance.sharing.host == ""  # shut on time, even before the server looks
    bench.entrance.tick()
    bench.entrance.tick()
    assert bench.tunnels_closed == 1
    assert not bench.credentials.has_session(guest)
    assert "The share link is closed. The page goes on without it." in bench.told


def test_the_terminal_shows_links_until_when_code_and_password() -> None:
    bench = Bench(share=True)
    bench.entrance.announce("the-password")
    text = "\n".join(bench.told)
    assert f"Share link: {SHARED}/?key={bench.credentials.key}" in text
    assert f"lives until {clock_time(7200)}" in text
    assert terminal_code(f"{SHARED}/?key={bench.credentials.key}", "utf-8").strip() in text
    assert text.endswith("Password: the-password")
    alone = Bench()
    alone.entrance.announce("")
    assert alone.told == []


def test_a_code_is_drawn_only_where_it_can_be_shown() -> None:
    drawn_code = terminal_code("http://192.168.1.5:7860/?key=x", "utf-8")
    widths = {len(line) for line in drawn_code.splitlines()}
    assert len(widths) == 1
    assert widths.pop() >= 33
    assert terminal_code("x", "ascii") == terminal_code("x", "no-such-encoding") == ""
    assert picture_code("x") != picture_code("y")


def test_an_hour_of_another_day_is_told_with_its_day() -> None:
    assert clock_time(0) == time.strftime("%H:%M")
    assert clock_time(48 * 3600).split()[0] == time.strftime("%a", time.localtime(time.time() + 48 * 3600))
