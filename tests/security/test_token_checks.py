"""What the hubs say of a token: which are stored, which only warned about, and that any answer is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from security.errors import FailedDownload, RefusedConfig
from security.policy import Service
from security.token_rights import rights_of
from security.tokens import KEYRING, TYPED
from tests.hubs.server import Hubs, json_reply, loopback_hubs, only_with_token
from tests.security.token_places import Places, token

HF, CIVITAI = Service.HUGGING_FACE, Service.CIVITAI


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture(scope="module")
def hubs() -> Iterator[Hubs]:
    with loopback_hubs() as running:
        yield running


def whoami(role: str, **more: Any) -> dict[str, Any]:
    access = {"displayName": "x", "role": role, **more}
    return {"type": "user", "name": "someone", "auth": {"type": "access_token", "accessToken": access}}


def fine_grained(scoped: list[str], everywhere: list[str] | None = None) -> dict[str, Any]:
    scope = {"entity": {"_id": "1", "type": "user", "name": "someone"}, "permissions": scoped}
    return whoami("fineGrained", fineGrained={"global": everywhere or [], "scoped": [scope]})


READ_ONLY = fine_grained(["repo.content.read", "repo.access.read"])
TOO_MUCH = [
    (whoami("write"), "write", "can change and delete"),
    (fine_grained(["repo.content.read", "repo.write"]), "fineGrained", "repo.write"),
    (fine_grained(["org.write"]), "fineGrained", "org.write"),
]
WARNED = [
    (fine_grained(["repo.content.read"], ["discussion.write"]), "fineGrained", "discussion.write"),
    (fine_grained(["pages.spread"]), "fineGrained", "pages.spread"),
    (fine_grained(["inference.serverless.write"]), "fineGrained", "inference.serverless.write"),
    (whoami("god"), "god", "not known"),
    ({"name": "someone", "auth": {"type": "oauth"}}, "oauth", "not known"),
    (whoami("read", expiresAt=(datetime.now(UTC) + timedelta(days=2)).isoformat()), "read", "It expires on"),
]


def answer(hubs: Hubs, value: Any) -> None:
    hubs.clear()
    refused = json_reply({"error": "Invalid user token."}, 401)
    hubs.on("huggingface.co", "/api/whoami-v2", only_with_token(token(1), json_reply(value), refused))
    hubs.on("civitai.com", "/api/v1/me", only_with_token(token(1), json_reply(value), refused))


@pytest.mark.parametrize("value", [whoami("read"), READ_ONLY], ids=["read", "fine-grained read"])
def test_a_token_that_only_reads_is_stored_without_a_word(hubs: Hubs, places: Places, value: Any) -> None:
    answer(hubs, value)
    store = places.store()
    state = store.save(HF, token(1), hubs.network())
    assert (state.source, state.user, state.warning) == (TYPED, "someone", "")
    assert state.role == value["auth"]["accessToken"]["role"]
    assert hubs.seen[-1].path == "/api/whoami-v2" and hubs.seen[-1].token == f"Bearer {token(1)}"


@pytest.mark.parametrize(("value", "role", "words"), TOO_MUCH)
@pytest.mark.parametrize("keep", [False, True])
def test_a_token_that_may_change_the_account_is_not_stored(
    hubs: Hubs, places: Places, value: Any, role: str, words: str, keep: bool
) -> None:
    answer(hubs, value)
    store = places.store()
    with pytest.raises(RefusedConfig, match="not stored") as error:
        store.save(HF, token(1), hubs.network(), keep=keep)
    assert words in str(error.value) and "huggingface.co/settings/tokens" in str(error.value)
    assert store.get(HF) is None and not places.keyring.held


@pytest.mark.parametrize(("value", "role", "words"), [*TOO_MUCH, *WARNED])
def test_a_token_of_the_environment_that_can_do_much_is_warned_about(
    hubs: Hubs, places: Places, value: Any, role: str, words: str
) -> None:
    answer(hubs, value)
    places.environment["HF_TOKEN"] = token(1)
    store = places.store()
    assert store.state(HF).user == ""
    state = store.check(HF, hubs.network())
    assert (state.user, state.role) == ("someone", role) and words in state.warning
    assert store.state(HF) == state
    assert store.get(HF) is not None


def test_a_token_that_the_hub_does_not_know_is_told_and_not_stored(hubs: Hubs, places: Places) -> None:
    answer(hubs, whoami("read"))
    places.environment["HF_TOKEN"] = token(9)
    store = places.store()
    state = store.check(HF, hubs.network())
    assert state.user == "" and "does not accept this token" in state.warning
    store.forget(HF)
    with pytest.raises(RefusedConfig, match="not stored"):
        store.save(HF, token(9), hubs.network())
    assert store.get(HF) is None


def test_what_was_learned_belongs_to_the_token_and_not_to_the_place(hubs: Hubs, places: Places) -> None:
    answer(hubs, whoami("read"))
    store = places.store()
    store.save(HF, token(1), hubs.network())
    store.set(HF, token(2))
    assert store.state(HF).user == ""


def test_civitai_says_whose_key_it_is(hubs: Hubs, places: Places) -> None:
    answer(hubs, {"id": 1, "username": "painter", "tier": "free"})
    state = places.store().save(CIVITAI, token(1), hubs.network(), keep=True)
    assert (state.source, state.user, state.role) == (KEYRING, "painter", "API key")
    assert hubs.requests_to("civitai.com")[-1].token == f"Bearer {token(1)}"


def test_nobody_is_asked_about_a_token_that_is_not_there(hubs: Hubs, places: Places) -> None:
    hubs.clear()
    assert places.store().check(HF, hubs.network()).source == ""
    assert not hubs.seen


def test_while_the_hub_is_away_a_token_stays_in_memory_unchecked_and_is_not_kept(places: Places, hubs: Hubs) -> None:
    hubs.clear()
    hubs.on("huggingface.co", "/api/whoami-v2", json_reply({}, 503))
    store = places.store()
    state = store.save(HF, token(1), hubs.network())
    assert state.source == TYPED and "could not be checked yet" in state.warning
    with pytest.raises(RefusedConfig, match="not kept"):
        store.save(HF, token(2), hubs.network(), keep=True)
    assert not places.keyring.held
    with pytest.raises(FailedDownload):
        store.check(HF, hubs.network())


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], "x", 7, {}, {"auth": []}, {"auth": {"accessToken": "x"}}, whoami("fineGrained", fineGrained=[])),
        *(fine_grained([]), whoami("fineGrained", fineGrained={"global": 5, "scoped": [1, {"permissions": {"a": 1}}]})),
        *({"name": {"a": 1}}, {"name": "x" * 10_000}, {"name": "a\n\x1b[2Jb\u202e"}, whoami("read", expiresAt="soon")),
    ],
)
def test_whatever_a_hub_answers_is_looked_at(value: Any) -> None:
    for service in Service:
        rights = rights_of(service, value)
        assert len(rights.user) <= 100
        assert not any(sign in rights.user + rights.role + rights.warning for sign in "\n\x1b\u202e")
