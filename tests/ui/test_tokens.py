"""The tokens part of the Settings tab and the `tokens` command: what they tell, and that no part of a token is in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from security.policy import Service
from security.tokens import TokenStore
from tests.hubs.server import Hubs, json_reply, loopback_hubs, only_with_token
from tests.ui.conftest import make_services
from ui import cli
from ui.cli_tokens import list_tokens
from ui.services import Access, Services
from ui.tabs.tokens import tokens_tab

TOKEN = "hf_" + "PageTokenOfATest" * 2
WRITE = "hf_" + "WriteTokenOfTest" * 2
HF = Service.HUGGING_FACE


def role(name: str) -> Any:
    return json_reply({"name": "someone", "auth": {"accessToken": {"role": name}}})


@pytest.fixture(scope="module")
def hubs() -> Iterator[Hubs]:
    with loopback_hubs() as running:
        otherwise = only_with_token(WRITE, role("write"), json_reply({}, 401))
        answer = lambda seen: role("read") if seen.token == f"Bearer {TOKEN}" else otherwise(seen)  # type: ignore[operator]  # noqa: E731
        running.on("huggingface.co", "/api/whoami-v2", answer)
        yield running


@pytest.fixture
def view(services: Services, hubs: Hubs) -> Any:
    with gr.Blocks():
        return tokens_tab(dataclasses.replace(services, network=hubs.network()))


def row(view: Any) -> dict[str, str]:
    state = view.tokens_state(None)
    assert TOKEN[3:] not in json.dumps(state)
    found: dict[str, str] = state["services"][0]
    return found


def test_a_token_is_saved_checked_and_forgotten(view: Any) -> None:
    assert row(view)["source"] == "" and "error" in view.check_token({"service": HF.value})
    saved = view.save_token({"service": HF.value, "token": TOKEN})
    assert saved == {"text": "The Hugging Face token is kept in memory until Safelight ends. It belongs to someone."}
    assert (row(view)["source"], row(view)["user"], row(view)["role"]) == ("typed on the page", "someone", "read")
    assert view.check_token({"service": HF.value}) == {"text": "Hugging Face knows this token: someone, read."}
    assert view.forget_token({"service": HF.value}) == {"text": "The Hugging Face token is forgotten."}
    assert row(view)["source"] == ""


def test_a_write_token_is_refused_with_a_way_out(view: Any) -> None:
    error = view.save_token({"service": HF.value, "token": WRITE})["error"]
    assert "not stored" in error and "type Read" in error and WRITE not in error
    assert row(view)["source"] == ""


def test_an_earlier_source_is_named(services: Services, hubs: Hubs) -> None:
    store = TokenStore(environment={"HF_TOKEN": TOKEN[:-1]}, find_keyring=lambda: None)
    with gr.Blocks():
        view: Any = tokens_tab(dataclasses.replace(services, tokens=store, network=hubs.network()))
    text = view.save_token({"service": HF.value, "token": TOKEN})["text"]
    assert "HF_TOKEN in the environment comes first" in text and "someone" not in text
    assert view.check_token({"service": HF.value})["error"].startswith("Hugging Face does not accept this token")


@pytest.mark.parametrize(
    "argument",
    [
        *(
            None,
            1,
            {},
            {"service": "Elsewhere", "token": TOKEN},
            {"service": HF.value},
            {"service": HF.value, "token": 5},
        ),
        *({"service": HF.value, "token": "x" * 5000}, {"service": [], "token": TOKEN}),
    ],
)
def test_whatever_a_browser_sends_is_answered_in_words(view: Any, argument: Any) -> None:
    answer = view.save_token(argument)
    assert set(answer) == {"error"} and TOKEN not in answer["error"]
    assert row(view)["source"] == ""


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (Access(), ""),
        (Access(listen=True), "no encryption of its own"),
        (Access(share=True), "the share server"),
        (Access(host_names=("lab.example",)), "the proxy"),
    ],
)
def test_what_others_can_do_is_said(tmp_path: Path, access: Access, words: str) -> None:
    with gr.Blocks():
        view: Any = tokens_tab(make_services(tmp_path, access))
    note = view.tokens_state(None)["note"]
    assert words in note and bool(note) == access.open_to_others


def test_the_script_sends_a_token_once_and_empties_its_field_first() -> None:
    source = (Path(cli.__file__).parent / "assets" / "tokens.js").read_text()
    assert source.index('field.value = "";') < source.index('then_look("save_token"')
    assert source.count("field.value") == 2 and 'type: "password"' in source
    assert not any(word in source for word in ("localStorage", "sessionStorage", "innerHTML", "console."))


def test_the_command_lists_every_place_and_no_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    assert cli.main(["tokens"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[-1] for line in text.splitlines() if "token file" in line] == ["used"]
    assert TOKEN[3:] not in text
    assert cli.main(["tokens", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [fact["service"] for fact in facts] == [service.value for service in Service]
    assert facts[0]["source"] == "token file of Hugging Face" and TOKEN[3:] not in json.dumps(facts)
    (tmp_path / "token").chmod(0o644)
    assert cli.main(["tokens"]) == 1
    assert "chmod 600" in capsys.readouterr().out


def test_the_command_asks_the_hubs(hubs: Hubs, capsys: pytest.CaptureFixture[str]) -> None:
    for token, code, words in ((TOKEN, 0, "someone, read"), (WRITE, 0, "can change"), (TOKEN[:-1], 1, "not accept")):
        store = TokenStore(environment={"HF_TOKEN": token}, find_keyring=lambda: None)
        assert list_tokens(store, hubs.network(), as_json=False) == code
        text = capsys.readouterr().out
        assert words in text and token not in text
