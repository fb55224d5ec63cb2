"""Tokens: every source in its order, files that others can read, what the hubs say, and what is not stored."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keyring.backends.fail
import keyring.backends.null
import pytest

from security import token_sources
from security.errors import RefusedConfig
from security.policy import Service
from security.token_sources import NAMES, UNREAD_NAMES, read_env_file, system_keyring, token_file
from security.tokens import KEYRING, TYPED, TokenStore
from tests.security.token_places import Places, token
from trainer.workspace import REPOSITORY_DIR

HF, CIVITAI = Service.HUGGING_FACE, Service.CIVITAI
on_posix = pytest.mark.skipif(os.name == "nt", reason="modes and owners as POSIX systems have them")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def put_named_file(places: Places, text: str) -> None:
    places.environment["HF_TOKEN_PATH"] = str(places.named_file)
    places.write(places.named_file, text + "\n")


HF_SOURCES: dict[str, Callable[[Places, str], object]] = {
    "HF_TOKEN in the environment": lambda places, text: places.environment.update(HF_TOKEN=text),
    "HUGGING_FACE_HUB_TOKEN in the environment": lambda places, text: places.environment.update(
        HUGGING_FACE_HUB_TOKEN=text
    ),
    "HF_TOKEN_PATH in the environment": put_named_file,
    KEYRING: lambda places, text: places.keyring.held.update({("safelight", HF.value): text}),
    "token file of Hugging Face": lambda places, text: places.write(Path(places.environment["HF_HOME"], "token"), text),
    ".env": lambda places, text: places.write(places.env_file, f"HF_TOKEN={text}\n"),
    TYPED: lambda places, text: places.typed.update({HF: text}),
}
CIVITAI_SOURCES: dict[str, Callable[[Places, str], object]] = {
    "CIVITAI_TOKEN in the environment": lambda places, text: places.environment.update(CIVITAI_TOKEN=text),
    KEYRING: lambda places, text: places.keyring.held.update({("safelight", CIVITAI.value): text}),
    ".env": lambda places, text: places.write(places.env_file, f"CIVITAI_TOKEN={text}\n"),
    TYPED: lambda places, text: places.typed.update({CIVITAI: text}),
}
PAIRS = [
    (service, first, second)
    for service, sources in ((HF, HF_SOURCES), (CIVITAI, CIVITAI_SOURCES))
    for first, second in itertools.combinations(sources, 2)
    if {first, second}
    != {"HF_TOKEN_PATH in the environment", "token file of Hugging Face"}  # the one replaces the other
]


@pytest.mark.parametrize(("service", "first", "second"), PAIRS)
def test_of_two_sources_the_earlier_one_counts(places: Places, service: Service, first: str, second: str) -> None:
    sources = HF_SOURCES if service is HF else CIVITAI_SOURCES
    sources[first](places, token(1))
    sources[second](places, token(2))
    store = places.store()
    secret = store.get(service)
    assert secret is not None and secret.reveal() == token(1)
    assert store.state(service).source == first
    found = [(place.source, place.used) for place in store.sources(service) if place.found]
    assert found == [(first, True), (second, False)]


@pytest.mark.parametrize("source", HF_SOURCES)
def test_each_source_alone_is_enough_and_gives_nothing_to_the_other_hub(places: Places, source: str) -> None:
    HF_SOURCES[source](places, token(1))
    store = places.store()
    secret = store.get(HF)
    assert secret is not None and secret.reveal() == token(1)
    assert store.get(CIVITAI) is None and store.state(CIVITAI).source == ""


def test_the_file_that_a_variable_names_replaces_the_usual_one(places: Places) -> None:
    HF_SOURCES["token file of Hugging Face"](places, token(1))
    places.environment["HF_TOKEN_PATH"] = str(places.named_file)
    assert places.store().get(HF) is None
    put_named_file(places, token(2))
    secret = places.store().get(HF)
    assert secret is not None and secret.reveal() == token(2)


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"HF_HOME": "/a"}, "/a/token"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/token"),
        ({"HF_HOME": "/a", "XDG_CACHE_HOME": "/c"}, "/a/token"),
        ({}, "~/.cache/huggingface/token"),
    ],
)
def test_the_token_file_is_where_hugging_face_has_it(environment: dict[str, str], path: str) -> None:
    assert token_file(environment) == Path(path).expanduser()


def test_no_source_no_token(places: Places) -> None:
    store = places.store()
    assert store.get(HF) is None
    assert store.state(HF).source == "" and store.state(HF).warning == ""
    assert not any(place.found for place in store.sources(HF))


@pytest.mark.parametrize("name", [*itertools.chain(*NAMES.values()), *UNREAD_NAMES])
def test_every_variable_with_a_token_leaves_the_environment(places: Places, name: str) -> None:
    places.environment[name] = token(3)
    store = places.store()
    assert name not in places.environment
    known = {name for names in NAMES.values() for name in names}
    assert (store.get(HF) or store.get(CIVITAI)) is None or name in known


@pytest.mark.parametrize(("name", "use"), UNREAD_NAMES.items())
def test_a_name_that_is_not_read_is_told(places: Places, name: str, use: str) -> None:
    places.environment[name] = token(3)
    service = HF if use == "HF_TOKEN" else CIVITAI
    store = places.store()
    assert store.get(service) is None
    assert f"{name} (use {use})" in store.state(service).warning


@on_posix
def test_the_own_environment_is_emptied_for_children_and_for_other_programs() -> None:
    code = (
        "import os, subprocess; from security.tokens import TokenStore; from security.policy import Service\n"
        "before = open('/proc/self/environ', 'rb').read(); store = TokenStore()\n"
        "after = open('/proc/self/environ', 'rb').read(); child = subprocess.run(['env'], capture_output=True).stdout\n"
        "second = TokenStore().get(Service.HUGGING_FACE)\n"
        f"t = {token(4)!r}.encode(); print(t in before, t in after, t in child, os.environ.get('HF_TOKEN'))\n"
        "print(b'HF_TOKEN=***' in after, second.reveal().encode() == t, store.get(Service.CIVITAI) is None)"
    )
    environment = {**os.environ, "HF_TOKEN": token(4), "HF_HUB_TOKEN": token(4)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY_DIR, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "None", "True", "True", "True"]


@pytest.mark.parametrize("source", ["HF_TOKEN in the environment", "HF_TOKEN_PATH in the environment", KEYRING, ".env"])
def test_a_token_that_is_none_is_told_with_its_place_and_stops_the_search(places: Places, source: str) -> None:
    HF_SOURCES[source](places, token(1)[:10] + " " + token(1)[10:])
    places.typed[HF] = token(2)
    store = places.store()
    with pytest.raises(RefusedConfig, match="It comes from") as error:
        store.get(HF)
    assert token(1)[10:] not in str(error.value)
    state = store.state(HF)
    assert state.source == source and "another sign that no token has" in state.warning
    assert [place.used for place in store.sources(HF) if place.found] == [True, False]


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_source_is_passed_over_and_white_space_around_a_token_is_cut(places: Places, text: str) -> None:
    for source in ("HF_TOKEN in the environment", KEYRING, "token file of Hugging Face", ".env"):
        HF_SOURCES[source](places, text)
    places.typed[HF] = f"  {token(2)}\n"
    secret = places.store().get(HF)
    assert secret is not None and secret.reveal() == token(2)


# Files


@on_posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o611])
@pytest.mark.parametrize("source", [".env", "token file of Hugging Face", "HF_TOKEN_PATH in the environment"])
def test_a_file_that_others_can_read_is_refused(places: Places, source: str, mode: int) -> None:
    HF_SOURCES[source](places, token(1))
    path = {
        ".env": places.env_file,
        "HF_TOKEN_PATH in the environment": places.named_file,
    }.get(source, Path(places.environment["HF_HOME"], "token"))
    path.chmod(mode)
    with pytest.raises(RefusedConfig, match="chmod 600"):
        places.store().get(HF)


@on_posix
def test_an_env_file_that_is_a_link_a_folder_or_a_pipe_is_refused(places: Places, tmp_path: Path) -> None:
    real = tmp_path / "real"
    places.write(real, f"HF_TOKEN={token(1)}")
    places.env_file.symlink_to(real)
    with pytest.raises(RefusedConfig, match="it is a link"):
        places.store().get(HF)
    places.env_file.unlink()
    places.env_file.mkdir()
    with pytest.raises(RefusedConfig, match="not a small text file"):
        places.store().get(HF)
    places.env_file.rmdir()
    os.mkfifo(places.env_file, 0o600)
    with pytest.raises(RefusedConfig, match="not a small text file"):
        places.store().get(HF)


@on_posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(places: Places) -> None:
    places.write(places.env_file, f"HF_TOKEN={token(1)}")
    os.chown(places.env_file, 12345, 12345)
    with pytest.raises(RefusedConfig, match="belongs to another user"):
        places.store().get(HF)


def test_a_large_file_is_refused(places: Places) -> None:
    places.write(places.env_file, "#" * 70_000)
    with pytest.raises(RefusedConfig, match="not a small text file"):
        places.store().get(HF)


def test_env_files_are_taken_literally(places: Places, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    places.write(
        places.env_file,
        f'# HF_TOKEN=commented-out\n\n  export HF_TOKEN = "$(touch {marker})`touch {marker}`${{HOME}}"  \n'
        "CIVITAI_TOKEN='single quoted # no comment'\nPATH=/evil\nHF_ENDPOINT=https://evil.example\nno equals sign\n"
        "HUGGING_FACE_HUB_TOKEN=a=b=c\n",
    )
    assert read_env_file(places.env_file) == {
        "HF_TOKEN": f"$(touch {marker})`touch {marker}`${{HOME}}",
        "CIVITAI_TOKEN": "single quoted # no comment",
        "HUGGING_FACE_HUB_TOKEN": "a=b=c",
    }
    assert not marker.exists()


def test_git_never_sees_the_env_file() -> None:
    command = ["git", "check-ignore", "-q", ".env"]
    assert subprocess.run(command, cwd=REPOSITORY_DIR, check=False).returncode == 0


# Keyring


@pytest.mark.parametrize("name", ["keyring.backends.null.Keyring", "keyring.backends.fail.Keyring", "evil.Backend"])
def test_no_backend_is_taken_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", name)
    monkeypatch.setattr(token_sources, "_KEYRING_BACKENDS", (("keyring.backends.macOS", "Keyring"),))
    assert system_keyring() is None


def test_only_backends_of_systems_are_on_the_list() -> None:
    listed = {module for module, _ in token_sources._KEYRING_BACKENDS}
    assert not {keyring.backends.fail.__name__, keyring.backends.null.__name__} & listed
    assert all(module.startswith("keyring.backends.") and "alt" not in module for module in listed)


def test_a_token_is_kept_in_the_keyring_only_on_request_and_forgotten_there(places: Places) -> None:
    store = places.store()
    store.set(HF, token(1))
    assert not places.keyring.held
    store.set(HF, token(2), keep=True)
    assert places.keyring.held == {("safelight", HF.value): token(2)}
    assert store.state(HF).source == KEYRING
    store.forget(HF)
    assert not places.keyring.held and store.get(HF) is None


def test_the_keyring_is_asked_once(places: Places) -> None:
    HF_SOURCES[KEYRING](places, token(1))
    store = places.store()
    for _ in range(3):
        store.get(HF)
        store.state(HF)
    assert places.keyring.reads == 1


def test_a_locked_keyring_has_no_token_and_takes_none(places: Places) -> None:
    places.keyring.locked = True
    places.typed[HF] = token(2)
    store = places.store()
    assert store.state(HF).source == TYPED
    with pytest.raises(RefusedConfig, match="did not take the token"):
        store.set(HF, token(1), keep=True)


def test_without_a_keyring_nothing_is_kept(places: Places) -> None:
    store = TokenStore(environment=places.environment, env_file=places.env_file, find_keyring=lambda: None)
    assert not store.has_keyring
    with pytest.raises(RefusedConfig, match="has no keyring"):
        store.set(HF, token(1), keep=True)
    assert store.get(HF) is None
    assert "there is none" in next(place.note for place in store.sources(HF) if place.source == KEYRING)


def test_forgetting_empties_memory_but_no_file(places: Places) -> None:
    for source in ("HF_TOKEN in the environment", "HUGGING_FACE_HUB_TOKEN in the environment", KEYRING, ".env", TYPED):
        HF_SOURCES[source](places, token(1))
    store = places.store()
    store.forget(HF)
    assert store.state(HF).source == ".env"
    assert places.env_file.exists()


@pytest.mark.parametrize("text", ["", "  ", "short", "two words and more"])
def test_what_is_typed_must_be_a_token(places: Places, text: str) -> None:
    with pytest.raises(RefusedConfig):
        places.store().set(HF, text)
