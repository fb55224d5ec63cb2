"""The time of a share link, on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from security.errors import RefusedConfig
from security.policy import MAX_SHARE_HOURS, MIN_SHARE_HOURS, SHARE_HOURS
from security.sharing import Sharing, check_share_hours
from tests.security.test_login import Clock

URL = "https://Abcdef0123.gradio.live"


def test_a_link_is_open_from_when_it_is_known_until_its_hours_are_over() -> None:
    clock = Clock()
    sharing = Sharing(2, clock=clock)
    assert (sharing.url, sharing.host, sharing.seconds_left, sharing.is_over) == ("", "", 0.0, False)
    clock.now += 10 * 3600  # waiting for the link costs nothing of its time
    sharing.begin(URL)
    assert (sharing.url, sharing.host, sharing.seconds_left) == (URL, "abcdef0123.gradio.live", 7200.0)
    clock.now += 7199
    sharing.begin("https://other.gradio.live")
    assert (sharing.url, sharing.is_over) == (URL, False)
    clock.now += 1
    assert (sharing.url, sharing.host, sharing.seconds_left, sharing.is_over) == ("", "", 0.0, True)


def test_a_link_that_was_shut_stays_shut() -> None:
    clock = Clock()
    sharing = Sharing(2, clock=clock)
    sharing.begin(URL)
    sharing.end()
    assert (sharing.url, sharing.host, sharing.is_over) == ("", "", True)
    sharing.begin(URL)
    assert sharing.host == ""
    never = Sharing(2, clock=clock)
    never.end()
    never.begin(URL)
    assert never.host == ""


def test_hours_have_bounds() -> None:
    assert [check_share_hours(hours) for hours in (MIN_SHARE_HOURS, SHARE_HOURS, MAX_SHARE_HOURS)] == [1, 12, 72]
    for hours in (0, 0.5, 72.5, 168, -1, float("nan")):
        with pytest.raises(RefusedConfig, match="Choose 1 to 72"):
            check_share_hours(hours)
