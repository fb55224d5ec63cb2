"""What the Models tab and the strip say of models and downloads, and what they do when a button is pressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from security.errors import SafelightError
from security.policy import Service
from security.tokens import TokenStore
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import sdxl_checkpoint
from tests.hubs.server import Hubs
from tests.ui.conftest import make_services
from tests.ui.runs_on_disk import run_folder
from trainer.models.downloads import Downloads
from trainer.models.jobfiles import Download, DownloadState
from trainer.models.library import import_model
from trainer.models.plans import Choice, Plan, PlannedFile
from ui.model_views import CANCEL, STATES, download_row, plan_view, with_download
from ui.services import Services
from ui.tabs.models import MAX_PLANS, FetchDesk
from ui.views import strip_values

REPO = "someone/tiny-xl"
RUNNING = Download(
    "a1", "tiny", "Tiny XL", "a/b", "page", DownloadState.DOWNLOADING, 3_000_000_000, 6_900_000_000, 12e6, 325.0
)


@pytest.fixture
def services(hubs: Hubs, tmp_path: Path) -> Iterator[Services]:
    made = make_services(tmp_path)
    network = hubs.network()
    tokens = TokenStore(environment={"HF_HOME": str(tmp_path)}, env_file=tmp_path / ".env", find_keyring=lambda: None)
    made = replace(made, network=network, downloads=Downloads(made.workspace, network, tokens))
    yield made
    assert made.downloads.shutdown(20)


@pytest.fixture
def desk(services: Services, hubs: Hubs) -> FetchDesk:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": sdxl_checkpoint()}).publish()
    return FetchDesk(services)


def test_a_checked_link_is_fetched_and_listed(desk: FetchDesk, services: Services) -> None:
    plan = desk.check_source({"text": REPO})
    assert plan["ready"] and plan["name"] == "tiny" and plan["source"] == REPO and plan["licence"] == "openrail++"
    assert ["Revision", COMMIT] in plan["facts"] and not plan["confirm"]
    answer = desk.download({"plan": plan["plan"], "name": "mine", "confirmed": False, "convert": False})
    assert "being fetched" in answer["text"]
    assert services.downloads.wait(20)
    state = desk.models_state()
    (download,) = state["downloads"]
    assert (download["word"], download["done"], download["percent"]) == ("Done", True, 100)
    mine = next(row for row in state["models"] if row["name"] == "mine")
    assert (
        mine["usable"]
        and mine["state"].startswith("verified")
        and mine["source"] == f"Hugging Face: {REPO}@{COMMIT[:12]}"
    )
    assert {row["name"] for row in state["catalog"]} >= {"sdxl-base-1.0"}
    assert desk.download_action({"id": download["id"], "action": "remove"})["text"] == "mine is off the list."
    assert desk.models_state()["downloads"] == []


def test_the_page_cannot_fetch_what_was_not_checked(desk: FetchDesk, services: Services) -> None:
    for plan in ("", "nonsense", None, 7, {"files": []}):
        with pytest.raises(SafelightError, match=r"checked too long ago|sent no plan"):
            desk.download({"plan": plan})
    first = desk.check_source({"text": REPO})["plan"]
    for _ in range(MAX_PLANS):
        last = desk.check_source({"text": REPO})["plan"]
    with pytest.raises(SafelightError, match="too long ago"):
        desk.download({"plan": first})
    assert desk.download({"plan": last, "name": 7, "confirmed": "yes", "convert": 1})["text"]
    assert services.downloads.wait(20)


def test_senseless_requests_are_refused_in_words(desk: FetchDesk) -> None:
    with pytest.raises(SafelightError, match="sent no text"):
        desk.check_source(None)
    for job_id, said in (("../../etc", "cannot be used"), ("0123456789ab", "no download")):
        with pytest.raises(SafelightError, match=said):
            desk.download_action({"id": job_id, "action": "remove"})
    with pytest.raises(SafelightError, match="not a model that can be removed"):
        desk.remove({"name": "demo"})
    desk.download({"plan": desk.check_source({"text": REPO})["plan"]})
    job_id = desk.models_state()["downloads"][0]["id"]
    with pytest.raises(SafelightError, match="no action"):
        desk.download_action({"id": job_id, "action": "erase"})


def test_a_fault_of_the_settings_is_told_and_nothing_is_asked(services: Services, hubs: Hubs) -> None:
    tokens = services.tokens
    closed = Downloads(services.workspace, services.network, tokens, fault="HF_ENDPOINT is set; use --hf-endpoint")
    desk = FetchDesk(replace(services, downloads=closed))
    assert "--hf-endpoint" in desk.models_state()["fault"]
    with pytest.raises(SafelightError, match="--hf-endpoint"):
        desk.check_source({"text": REPO})
    assert hubs.seen == []


def test_models_say_how_many_runs_used_them(services: Services, desk: FetchDesk, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(sdxl_checkpoint())
    import_model(services.workspace, tmp_path / "x.safetensors", "mine")
    run_folder(services.workspace, "one", model={"base": "mine"})
    run_folder(services.workspace, "two", model={"base": "mine"})
    rows = {row["name"]: row for row in desk.models_state()["models"]}
    assert rows["mine"]["used"] == "2 runs" and rows["demo"]["used"] == ""


def test_a_changed_model_offers_no_use(services: Services, desk: FetchDesk, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(sdxl_checkpoint())
    path = import_model(services.workspace, tmp_path / "x.safetensors", "mine").path
    path.write_bytes(sdxl_checkpoint(filler=64))
    row = next(row for row in desk.models_state()["models"] if row["name"] == "mine")
    assert not row["usable"] and row["tone"] == "bad" and "fetch it again" in row["state"]


# ---- words ----


def test_every_state_has_a_word_and_something_to_do() -> None:
    for state in DownloadState:
        row = download_row(replace(RUNNING, state=state, message="why"))
        assert row["word"] == STATES[state][0] and row["line"]
        actions = [action for action, _ in row["actions"]]
        assert ("resume" in actions) == replace(RUNNING, state=state).can_resume
        assert (row["message"] == "why") == (state is DownloadState.FAILED)


def test_a_running_download_is_told_in_numbers() -> None:
    assert download_row(RUNNING)["line"] == "43% · 3.0 GB of 6.9 GB · 12.0 MB/s · 5 min left"
    unknown = replace(RUNNING, total_bytes=None, rate=None, eta_seconds=None)
    assert download_row(unknown)["line"] == "3.0 GB"


def test_the_strip_shows_it_when_nothing_trains_and_beside_when_something_does() -> None:
    idle = strip_values(None, 0)
    assert with_download(idle, None)["beside"] == "" and with_download(idle, None)["word"] == "Idle"
    alone = with_download(idle, RUNNING)
    assert (alone["word"], alone["name"], alone["percent"], alone["active"]) == ("Downloading", "tiny", 43, True)
    assert alone["actions"] == [[CANCEL, "Cancel"]] and alone["title"] == "43% tiny - Safelight" and alone["run"] == ""
    training = {**idle, "word": "Training", "name": "mira", "active": True, "actions": [["stop", "Stop and save"]]}
    beside = with_download(training, RUNNING)
    assert (beside["word"], beside["name"], beside["actions"]) == ("Training", "mira", [["stop", "Stop and save"]])
    assert beside["beside"].startswith("Downloading tiny · 43%")


def test_a_plan_says_what_is_missing() -> None:
    file = PlannedFile("a.ckpt", "a.ckpt", 5_000_000_000, "", "", "not scanned yet")
    plan = Plan(
        Service.CIVITAI,
        "T",
        "a",
        "civitai:1",
        "p",
        "version 1",
        "file",
        (file,),
        confirm=("no hash",),
        needs_convert=True,
    )
    view = plan_view("id", plan, 4_000_000_000)
    assert ["Free on the disk after it", "not enough room"] in view["facts"]
    assert ["Hub's own scan", "not scanned yet"] in view["facts"] and view["licence"] == "not stated"
    assert view["confirm"] == ["no hash"] and view["convert"] and view["ready"]
    question = plan_view("id", replace(plan, files=(), choices=(Choice("a", "a (1 GB)", 1),)), 10)
    assert not question["ready"] and question["choices"] == [["a", "a (1 GB)"]]


@pytest.mark.parametrize("by_path", [False, True])
def test_a_model_stays_while_any_run_needs_it(services: Services, tmp_path: Path, by_path: bool) -> None:
    """Also a run of another program, and one that names the model by its path."""
    source = tmp_path / "xl.safetensors"
    source.write_bytes(sdxl_checkpoint())
    info = import_model(services.workspace, source)
    desk = FetchDesk(services)
    folder = run_folder(services.workspace, steps=3, model={"base": str(info.path) if by_path else "xl"})
    with folder.lock().acquire(timeout=0), pytest.raises(SafelightError, match="xl is in use by the run old"):
        desk.remove({"name": "xl"})
    assert desk.remove({"name": "xl"}) == {"text": "xl is removed."}


def test_one_damaged_run_does_not_hide_the_models(services: Services) -> None:
    folder = run_folder(services.workspace, model={"base": "demo"})
    (run_folder(services.workspace, "broken").path / "config.toml").write_text("model = [", encoding="utf-8")
    rows = {row["name"]: row for row in FetchDesk(services).models_state()["models"]}
    assert rows["demo"]["used"].startswith("1 run"), folder.run_id
