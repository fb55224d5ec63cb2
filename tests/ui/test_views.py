"""What the page says about a run, in words and numbers."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest

from tests.ui.runs_on_disk import run_folder
from trainer import events
from trainer.runs import LossPoint, Progress, RunState
from trainer.words import duration
from ui.services import Services
from ui.views import STATES, curve, headline, looks_told, run_detail, run_row, run_url, strip_values, title


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (40.4, "40 s"), (89, "89 s"), (90, "2 min"), (480, "8 min"), (3900, "1 h 05 min"), (-3, "0 s")],
)
def test_times_are_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("state", list(RunState))
def test_every_state_has_its_words(state: RunState) -> None:
    progress = Progress("r", "r", state, message="it broke", step=3, total_steps=10, can_resume=True)
    assert STATES[state].word
    assert headline(progress)
    for values in (run_row(progress), run_detail(progress), strip_values(progress, 1)):
        json.dumps(values, allow_nan=False)


def test_a_training_run_says_step_share_time_and_loss() -> None:
    progress = Progress("r", "mira", RunState.TRAINING, step=533, total_steps=1200, eta_seconds=480, loss=0.117)
    assert headline(progress) == "step 533 of 1200 · 44% · 8 min left · loss 0.1170"
    assert title(progress) == "44% r - Safelight"


def test_what_can_be_done_depends_on_the_state() -> None:
    def actions(state: RunState, **facts: object) -> list[str]:
        progress = Progress("r", "r", state, can_resume=not state.is_active and state is not RunState.FINISHED, **facts)  # type: ignore[arg-type]
        return [action for action, _ in run_detail(progress)["actions"]]

    assert actions(RunState.TRAINING) == ["pause", "stop", "save_now", "sample_now"]
    assert actions(RunState.WAITING) == ["cancel"]
    assert actions(RunState.STOPPING) == []
    assert actions(RunState.FINISHED) == ["again", "delete"]
    assert actions(RunState.FINISHED, checkpoint_step=3) == ["extend", "again", "delete"]
    assert actions(RunState.PAUSED, checkpoint_step=3) == ["resume", "extend", "again", "delete"]
    for state in (RunState.PAUSED, RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED):
        assert actions(state) == ["resume", "again", "delete"]


def test_the_first_button_is_what_leads_on() -> None:
    def primary(state: RunState, **facts: Any) -> str:
        return run_detail(Progress("r", "r", state, can_resume=True, **facts))["primary"]

    assert primary(RunState.PAUSED, checkpoint_step=3) == "resume"
    assert primary(RunState.FAILED, checkpoint_step=3) == "resume"
    assert primary(RunState.FAILED) == "again"
    astray = events.WentAstray(3, ["a.png"], "unet", "too high", "optimizer.learning_rate", 1e-4, None)
    assert primary(RunState.FAILED, astray=astray) == "retry"


def test_a_failed_run_tells_its_reason_once_and_the_end_says_what_is_done() -> None:
    failed = run_detail(Progress("r", "r", RunState.FAILED, message="it broke", step=3, total_steps=10))
    assert failed["headline"] == "at step 3" and failed["message"] == "it broke"
    last = Progress("r-2", "r", RunState.TRAINING, step=10, total_steps=10, eta_seconds=0.0)
    assert headline(last) == "all 10 steps are done: measuring, saving and drawing the last samples"
    assert strip_values(last, 0)["name"] == "r-2", "the run's own name, as in the list"


def test_an_old_run_is_shown_whole(services: Services) -> None:
    run_folder(services.workspace, "old")
    shown = run_detail(services.jobs.progress("old"))
    assert shown["word"] == "Finished"
    assert [sample["step"] for sample in shown["samples"]] == [0, 20]
    assert shown["files"][0]["name"] == "old.safetensors"
    assert shown["files"][0]["url"] == "safelight/runs/old/old.safetensors"
    assert shown["files"][0]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert "0.2000 at step 0, 0.1500 at step 20 (-25%)" in shown["loss_text"]


def test_an_interrupted_run_offers_to_go_on(services: Services) -> None:
    run_folder(services.workspace, "cut", steps=12, total=20)
    shown = run_detail(services.jobs.progress("cut"))
    assert shown["word"] == "Interrupted"
    assert ["resume", "Continue from step 12"] in shown["actions"]
    assert "step 12" in shown["message"]


@pytest.mark.parametrize(("sandbox", "shown"), [(None, None), (True, "on"), (False, "off")])
def test_a_run_shows_whether_it_is_in_the_sandbox(sandbox: bool | None, shown: str | None) -> None:
    event = None if sandbox is None else events.Sandboxed(sandbox, "On or off, in a sentence.")
    facts = dict(run_detail(Progress("r", "r", RunState.TRAINING, sandbox=event))["facts"])
    assert facts.get("Sandbox") == shown


def test_not_a_number_becomes_a_gap_in_the_curve() -> None:
    points = [LossPoint(1, math.nan, math.inf, 0.123456789)]
    drawn = curve(points, Progress("r", "r", RunState.FAILED, validations=(events.Validated(1, math.nan),)))
    assert drawn["points"] == [[1, None, None, 0.12346]]
    assert drawn["validations"] == [[1, None, 0.0, None, 0.0]]
    json.dumps(drawn, allow_nan=False)


def test_addresses_hold_no_path_of_the_machine_and_no_mark_of_their_own() -> None:
    assert run_url("a b?#/c", "samples/1.png") == "safelight/runs/a%20b%3F%23%2Fc/samples/1.png"


def test_the_file_of_a_trained_word_is_told_apart_from_the_lora(services: Services) -> None:
    folder = run_folder(services.workspace, "mira")
    everywhere = dict.fromkeys(("comfyui", "a1111", "forge", "diffusers"), "")
    folder.append(events.LoraSaved(20, "embeddings/mira.safetensors", "embedding", 9, "0" * 64, everywhere))
    word, lora = run_detail(services.jobs.progress("mira"))["files"]
    assert (word["name"], word["is_word"], lora["is_word"]) == ("mira.safetensors", True, False)
    assert word["fits"] == "ComfyUI, A1111, Forge and diffusers" and word["url"] == run_url(
        "mira", "embeddings/mira.safetensors"
    )


def test_looks_at_each_picture_of_a_short_and_of_a_long_run() -> None:
    told = [looks_told(seen, 30) for seen in (10, 30, 45, 800, 45000)]
    assert told == ["0.3", "1", "1.5", "27", "1500"] and looks_told(5, 0) == ""
