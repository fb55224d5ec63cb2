"""The rows under "What protects this installation": each follows what is really so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from security import sandbox
from security.environment import offline_environment
from security.net import Network
from security.policy import FLOORS, Service
from trainer.models.checks import AV_VARIABLE
from trainer.models.downloads import Downloads
from ui import protections as module
from ui.protections import Protection, protections
from ui.services import Access, Services


def row(services: Services, name: str) -> Protection:
    return next(one for one in protections(services) if one.name == name)


def test_every_row_has_a_state_and_a_sentence(services: Services) -> None:
    rows = protections(services)
    assert len({one.name for one in rows}) == len(rows) >= 11
    assert all(one.state in ("on", "partly", "off", "not set") and one.text.endswith(".") for one in rows)


def test_the_sandbox_rows_say_what_the_probe_says(services: Services) -> None:
    state = sandbox.probe()
    assert row(services, "Sandbox for training") == Protection(
        "Sandbox for training", "on" if state.active else "off", state.detail
    )
    assert ("in the sandbox" in row(services, "Conversion of pickle checkpoints").text) is state.active


def test_libraries_that_may_go_online_are_named(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in os.environ.items():
        monkeypatch.setenv(name, value)  # so that what the next call changes is put back
    offline_environment()
    assert row(services, "Model libraries offline").state == "on"
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "True")  # as Gradio writes it
    assert row(services, "Model libraries offline").state == "on"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    loose = row(services, "Model libraries offline")
    assert loose.state == "off"
    assert "HF_HUB_OFFLINE" in loose.text


def test_mirrors_and_refusals_of_downloads_are_named(services: Services) -> None:
    assert row(services, "Downloads").state == "on"
    network = Network(mirrors={Service.HUGGING_FACE: "http://127.0.0.1:9"}, send_tokens_to_mirrors=True)
    mirrored = row(replace(services, network=network), "Downloads")
    assert mirrored.state == "partly"
    assert "http://127.0.0.1:9" in mirrored.text
    assert "Your tokens go there too" in mirrored.text
    refused = Downloads(services.workspace, services.network, services.tokens, fault="A variable says so.")
    assert "A variable says so." in row(replace(services, downloads=refused), "Downloads").text


def test_a_scanner_is_on_when_one_is_named(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AV_VARIABLE, raising=False)
    assert row(services, "Virus scanner").state == "not set"
    monkeypatch.setenv(AV_VARIABLE, "clamscan")
    assert row(services, "Virus scanner").state == "on"


def test_uploads_need_a_folder_that_others_cannot_read(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert row(services, "Uploads").state == "on"
    folder.chmod(0o755)
    assert row(services, "Uploads").state == ("off" if os.name == "posix" else "on")
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    assert row(services, "Uploads").state == "off"


def test_old_packages_are_named(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    assert row(services, "Package versions").state == "on"
    monkeypatch.setitem(FLOORS, "gradio", "999.0")
    assert "gradio" in row(services, "Package versions").text


def test_packages_are_compared_only_where_the_installation_did_it(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / ".venv" / "safelight.json"
    marker.parent.mkdir()
    monkeypatch.setattr(module, "INSTALL_MARKER", marker)
    assert row(services, "Package contents").state == "off"
    monkeypatch.setattr(sys, "prefix", str(marker.parent))
    assert row(services, "Package contents").state == "off"
    for told, state in (("checked", "on"), ("unknown", "partly")):
        marker.write_text(json.dumps({"torch_hash": told}), encoding="utf-8")
        assert row(services, "Package contents").state == state


def test_the_page_row_counts_who_can_come_in(services: Services) -> None:
    assert "this machine only" in row(services, "The page").text
    assert row(replace(services, access=Access()), "The page").state == "on"


def test_output_counts_as_searched_only_where_it_passes_the_redactor(services: Services) -> None:
    assert row(services, "Tokens in output").state == "partly"  # pytest took the output
    code = "from security import output; output.install(); print(output.is_installed())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
