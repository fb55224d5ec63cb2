"""Publishing from the page and from the command line, to a real hub server on loopback."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from security.errors import RefusedConfig, RefusedName, SafelightError
from security.net import Network
from security.policy import Service
from tests.hubs.upload_hub import TOKEN, UploadHub, upload_hub
from tests.tiny import tiny_dataset
from trainer.dataset.publish import LICENCES
from trainer.tasks import TaskState
from trainer.workspace import Workspace
from ui.cli import main
from ui.services import Services
from ui.studio.publishing import PUBLISH_PANEL

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with upload_hub() as running:
        yield running


@pytest.fixture
def connected(services: Services, hub: UploadHub) -> Services:
    tiny_dataset(services.workspace.datasets_dir / "cats", 2, size=(32, 32))
    mirrors = {Service.HUGGING_FACE: hub.endpoint}
    return replace(services, network=Network(mirrors=mirrors, send_tokens_to_mirrors=True))


def asked(services: Services) -> Ask:
    functions = {function.__name__: function for function in PUBLISH_PANEL.functions(services)}
    return lambda name, **argument: functions[name]({"dataset": "cats", **argument})


def test_a_typed_token_publishes_privately_and_is_kept_nowhere(connected: Services, hub: UploadHub) -> None:
    ask = asked(connected)
    assert [row[0] for row in ask("publish_form")["licences"]] == list(LICENCES)
    answer = ask("publish", repo=" me/cats ", licence="mit", token=f" {TOKEN}\n")
    assert connected.studio.tasks.wait(60)
    view = connected.studio.tasks.get(answer["task"])
    assert (view.state, view.kind) == (TaskState.DONE, "publish"), view.message
    assert "2 pictures are on" in view.message and TOKEN not in repr(view)
    assert hub.repos["me/cats"].private and "000.png" in hub.repos["me/cats"].files
    assert connected.tokens.get(Service.HUGGING_FACE) is None


def test_only_a_plain_yes_makes_it_public(connected: Services, hub: UploadHub) -> None:
    ask = asked(connected)
    for number, value in enumerate((None, "no", 0, True)):
        ask("publish", repo=f"me/cats{number}", private=value, token=TOKEN)
    ask("publish", repo="me/open", private=False, token=TOKEN)
    assert connected.studio.tasks.wait(60)
    assert {name: repo.private for name, repo in hub.repos.items()} == {
        **{f"me/cats{number}": True for number in range(4)},
        "me/open": False,
    }


def test_what_cannot_be_is_said_before_anything_is_sent(
    connected: Services, services: Services, hub: UploadHub
) -> None:
    ask = asked(connected)
    with pytest.raises(SafelightError, match="needs a token that may write"):
        ask("publish", repo="me/cats")
    with pytest.raises(RefusedName, match="OWNER/NAME"):
        ask("publish", repo="cats", token=TOKEN)
    with pytest.raises(RefusedConfig, match="no token has"):
        ask("publish", repo="me/cats", token="two words here")
    with pytest.raises(SafelightError, match="There is no dataset"):
        ask("publish", dataset="dogs", repo="me/cats", token=TOKEN)
    without = replace(services, network=Network(mirrors={Service.HUGGING_FACE: hub.endpoint}))
    with pytest.raises(RefusedConfig, match="gets no tokens"):
        asked(without)("publish", repo="me/cats", token=TOKEN)
    assert not hub.seen and not connected.studio.tasks.all()


def test_the_command_publishes_with_a_token_from_stdin(
    tmp_path: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(tmp_path / "w")
    tiny_dataset(workspace.datasets_dir / "cats", 2, size=(32, 32))
    command = ["dataset", "publish", "cats", "me/cats", "--workspace", str(workspace.path), "--ask-token", "--json"]
    endpoint = ["--hf-endpoint", hub.endpoint, "--send-tokens-to-mirror"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\nmore"))
    assert main([*command, *endpoint, "--licence", "cc0-1.0", "--public"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "done" and "(public, commit" in told["message"]
    assert not hub.repos["me/cats"].private
    assert b"license: cc0-1.0" in hub.repos["me/cats"].files["README.md"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    assert main([*command, *endpoint, "--public"]) == 1
    assert "There is a dataset me/cats already" in capsys.readouterr().out
