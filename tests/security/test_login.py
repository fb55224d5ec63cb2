"""Password, key, sessions and the brakes on guessing, without a server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from security.errors import RefusedConfig, RefusedRequest
from security.login import (
    Credentials,
    Place,
    check_password_strength,
    generate_password,
    login_page,
    read_password_file,
)
from security.policy import MAX_LOGIN_FAILURES, MAX_SESSIONS, MAX_WAITING_LOGINS, SESSION_IDLE_SECONDS, SESSION_SECONDS
from tests.security.guessing import guesses_in

PASSWORD = "correct horse battery"


class Clock:
    """A clock that tests move by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def credentials(clock: Clock) -> Credentials:
    return Credentials(PASSWORD, clock=clock, base_delay_seconds=0.0)


def test_passwords_are_long_random_and_pass_the_check() -> None:
    made = {generate_password() for _ in range(200)}
    assert len(made) == 200
    for password in made:
        check_password_strength(password)
        assert len(password.replace("-", "")) == 26  # of 32 signs: 130 bits
        assert not set(password) & set("lo01 ")


WEAK = [
    "", "short", "elevenchars", "aaaaaaaaaaaaaaaa", "abababababababab", "password1234", "Passwort123456!",
    "qwerty123456", "tab\tinside-it-is", "safelightadmin",
]  # fmt: skip


@pytest.mark.parametrize("password", WEAK)
def test_weak_passwords_are_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(RefusedConfig) as refusal:
        check_password_strength(password)
    assert not password or password not in str(refusal.value)


def test_a_password_file_must_be_private_short_and_strong(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    path.chmod(0o600)
    assert read_password_file(path) == PASSWORD
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(RefusedConfig, match="chmod 600"):
            read_password_file(path)
    path.chmod(0o600)
    for content, reason in (
        (b"short", "5 characters"),
        (b"", "0 characters"),
        (b"x" * 2000, "short text"),
        (b"\xff" * 20, "UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(RefusedConfig, match=reason):
            read_password_file(path)
    with pytest.raises(RefusedConfig, match="cannot be read"):
        read_password_file(tmp_path / "gone")


def test_only_the_password_and_the_key_are_right(credentials: Credentials) -> None:
    async def attempts() -> list[bool]:
        return [
            await credentials.check_password(text)
            for text in (PASSWORD, PASSWORD + " ", "", "x" * 4000, "\ud800", PASSWORD)
        ]

    assert asyncio.run(attempts()) == [True, False, False, False, False, True]
    assert credentials.check_key(credentials.key)
    assert not credentials.check_key("")
    assert not credentials.check_key(credentials.key[:-1])
    assert not credentials.check_key("\ud800ü")
    assert len(credentials.key) == 32
    assert credentials.key_link("https://x.gradio.live/") == f"https://x.gradio.live/?key={credentials.key}"


def test_a_password_typed_in_another_unicode_form_is_the_same() -> None:
    credentials = Credentials("Zoë läuft über Äcker", base_delay_seconds=0.0)
    assert asyncio.run(credentials.check_password("Zoe\u0308 la\u0308uft u\u0308ber A\u0308cker"))


def test_secrets_do_not_show_up_in_texts(credentials: Credentials) -> None:
    token = credentials.open_session()
    for text in (repr(credentials), str(credentials), str(vars(credentials)["_sessions"])):
        assert PASSWORD not in text
        assert token not in text
        assert credentials.key not in text


def test_sessions_end_by_age_idleness_and_logout(credentials: Credentials, clock: Clock) -> None:
    used, idle, closed = (credentials.open_session() for _ in range(3))
    assert all(credentials.has_session(token) for token in (used, idle, closed))
    credentials.close_session(closed)
    assert not credentials.has_session(closed)
    assert not credentials.has_session("")
    steps = int(SESSION_SECONDS // (SESSION_IDLE_SECONDS - 60))
    for _ in range(steps):
        clock.now += SESSION_IDLE_SECONDS - 60
        assert credentials.has_session(used)
    assert not credentials.has_session(idle)
    clock.now += SESSION_IDLE_SECONDS - 60
    assert not credentials.has_session(used)


def test_the_number_of_sessions_is_bounded(credentials: Credentials, clock: Clock) -> None:
    tokens = []
    for _ in range(MAX_SESSIONS + 1):
        clock.now += 1
        tokens.append(credentials.open_session())
        credentials.has_session(tokens[0])
    assert credentials.has_session(tokens[0])
    assert not credentials.has_session(tokens[1])
    assert credentials.has_session(tokens[-1])


def test_every_wrong_password_doubles_the_wait(clock: Clock) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    credentials = Credentials(PASSWORD, clock=clock, sleep=note)

    async def fail(times: int) -> None:
        for _ in range(times):
            await credentials.check_password("wrong")

    asyncio.run(fail(MAX_LOGIN_FAILURES))
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_after_many_failures_the_right_password_is_refused_for_a_while(credentials: Credentials, clock: Clock) -> None:
    async def story() -> None:
        for _ in range(MAX_LOGIN_FAILURES):
            assert not await credentials.check_password("wrong")
        with pytest.raises(RefusedRequest, match="Wait 15 min") as refusal:
            await credentials.check_password(PASSWORD)
        assert refusal.value.status == 429
        assert credentials.check_key(credentials.key)
        clock.now += 14 * 60 + 50
        with pytest.raises(RefusedRequest, match="Wait 1 min"):
            await credentials.check_password(PASSWORD)
        clock.now += 11
        assert await credentials.check_password(PASSWORD)

    asyncio.run(story())


def test_success_forgives(credentials: Credentials) -> None:
    async def story() -> None:
        for _ in range(2):
            for _ in range(MAX_LOGIN_FAILURES // 2):
                await credentials.check_password("wrong")
            assert await credentials.check_password(PASSWORD)

    asyncio.run(story())


def test_guessing_in_parallel_does_not_help(clock: Clock) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    credentials = Credentials(PASSWORD, clock=clock, sleep=note)

    async def story() -> list[object]:
        return await asyncio.gather(*(credentials.check_password("wrong") for _ in range(40)), return_exceptions=True)

    outcomes = asyncio.run(story())
    refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedRequest)]
    assert len(refused) == 40 - MAX_WAITING_LOGINS
    assert waits == [0.25 * 2**number for number in range(MAX_WAITING_LOGINS - 1)]


def test_waiting_and_hashing_do_not_stop_the_server(clock: Clock) -> None:
    credentials = Credentials(PASSWORD, clock=clock, base_delay_seconds=0.5)

    async def story() -> float:
        gaps = [0.0]

        async def heartbeat() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.01)
                gaps.append(time.perf_counter() - before)

        beat = asyncio.create_task(heartbeat())
        await asyncio.gather(*(credentials.check_password("wrong") for _ in range(3)))
        beat.cancel()
        return max(gaps)

    assert asyncio.run(story()) < 0.4


def test_the_login_page_escapes_and_loads_nothing() -> None:
    html = login_page("<script>alert(1)</script>", "nonce'\"<")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "http" not in html.replace("method", "")
    assert 'role="alert"' not in login_page("", "x")


def test_guesses_an_hour_are_few() -> None:
    """Ten over 92 seconds of waiting, then a quarter of an hour for nobody, again and again."""
    assert guesses_in(60.0).compared == 8
    assert guesses_in(3600.0).compared == 40


def test_a_list_of_logins_and_their_ends(credentials: Credentials, clock: Clock) -> None:
    ended: list[str] = []
    credentials.when_a_login_ends(ended.append)
    here, share, other = (credentials.open_session(place) for place in (Place.HERE, Place.SHARE, Place.NETWORK))
    ids = [credentials.login_of(token) for token in (here, share, other)]
    assert len(set(ids)) == 3
    assert not set(ids) & {here, share, other}
    clock.now += 100
    assert credentials.login_of(other) == ids[2]
    clock.now += 20
    assert credentials.is_logged_in(ids[0])  # asking for it does not count as using it
    told = [(login.id, login.place, login.began_seconds_ago, login.used_seconds_ago) for login in credentials.logins()]
    assert told[0] == (ids[2], Place.NETWORK, 120.0, 20.0)
    assert {row[0]: row[2:] for row in told[1:]} == {ids[0]: (120.0, 120.0), ids[1]: (120.0, 120.0)}
    assert credentials.end_logins_of(Place.SHARE) == 1
    assert (credentials.login_of(share), ended) == ("", [ids[1]])
    assert credentials.end_login(ids[2])
    assert not credentials.end_login(ids[2])
    assert not credentials.end_login("")
    clock.now += SESSION_IDLE_SECONDS
    assert not credentials.is_logged_in(ids[0])
    assert credentials.logins() == []
    assert ended == [ids[1], ids[2], ids[0]]


def test_a_new_key_and_password_replace_the_old_ones(credentials: Credentials) -> None:
    old = credentials.key
    own, other = credentials.open_session(), credentials.open_session()
    credentials.renew("another long password")
    assert credentials.key != old
    assert not credentials.check_key(old)
    assert not asyncio.run(credentials.check_password(PASSWORD))
    assert asyncio.run(credentials.check_password("another long password"))
    credentials.renew()
    assert asyncio.run(credentials.check_password("another long password"))
    assert credentials.has_session(other)
    assert credentials.end_others(credentials.login_of(own)) == 1
    assert (credentials.has_session(own), credentials.has_session(other)) == (True, False)
