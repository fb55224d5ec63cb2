"""What the page tells of held-out pictures, the best step and the file that rebuilds a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from security.errors import SafelightError
from tests.trainer.test_splitting import blobs, dataset
from tests.ui.conftest import make_services
from tests.ui.runs_on_disk import run_folder
from trainer import events
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.dataset.manifest import run_manifest
from trainer.dataset.plan import plan_dataset
from trainer.demo import demo_config
from trainer.models.library import find_model
from trainer.rebuild import Recipe, portable_values, recipe_text
from trainer.runs import RunFolder
from trainer.versions import code_version, package_versions
from ui.downloads import routes
from ui.form import flat
from ui.recipes import DatasetSizes, plan_line
from ui.services import Access, Services
from ui.studio.sizes import SIZES_PANEL
from ui.tabs.train import TrainTab
from ui.views import curve, headline, loss_text, run_detail


def measured(step: int, loss: float, train_loss: float, *, best: bool = False, notice: str = "") -> events.Validated:
    return events.Validated(step, loss, 0.01, train_loss, 0.02, best, notice)


@pytest.fixture
def overfitted(services: Services) -> RunFolder:
    """A run whose best step was the tenth of twenty."""
    folder = run_folder(services.workspace, "mira", steps=19)
    for event in (
        measured(0, 0.3, 0.3),
        measured(10, 0.2, 0.2, best=True),
        measured(19, 0.25, 0.1, notice="By heart."),
    ):
        folder.append(event)
    folder.append(events.LoraSaved(10, "mira-best.safetensors", "kohya", 7))
    folder.append(events.StepDone(20, 0.1, 1e-3, 0.5, 80, 0.1))
    folder.append(events.LoraSaved(20, "mira.safetensors", "kohya", 7))
    folder.append(measured(20, 0.26, 0.09, notice="Since step 10 it learns by heart."))
    return folder


def test_the_curve_has_both_losses_with_their_spread_and_the_best_step(
    services: Services, overfitted: RunFolder
) -> None:
    progress = services.jobs.progress("mira")
    drawn = curve(services.jobs.loss_curve("mira"), progress)
    assert drawn["validations"][-1] == [20, 0.26, 0.01, 0.09, 0.02]
    assert [row[0] for row in drawn["validations"]] == [0, 10, 19, 20]
    assert drawn["best"] == 10
    text = loss_text(progress)
    assert "0.2600 at step 20" in text and "lowest at step 10: 0.2000" in text and "same way: 0.0900" in text


def test_pace_memory_and_what_limits_a_run_are_shown(services: Services) -> None:
    folder = run_folder(services.workspace, "brisk", steps=1)
    told = {"processor_share": 0.95, "memory_bytes": int(2e9), "memory_total": int(8e9)}
    for step in range(2, 6):
        folder.append(events.StepDone(step, 0.1, 1e-3, 0.5, 4 * step, 0.5, **told))
    facts = dict(run_detail(services.jobs.progress("brisk"))["facts"])
    assert facts["Pictures per second"] == "8"
    assert facts["Memory in use"] == "2.0 GB of 8.0 GB"
    assert facts["Limited by"] == "the processor's speed"


def test_the_best_file_is_recommended_and_overfitting_told(services: Services, overfitted: RunFolder) -> None:
    shown = run_detail(services.jobs.progress("mira"))
    assert shown["notice"] == "Since step 10 it learns by heart."
    assert shown["best"].startswith("Recommended: mira-best.safetensors") and "0.2000 at step 10" in shown["best"]
    assert {file["name"]: file["recommended"] for file in shown["files"]} == {
        "mira-best.safetensors": True,
        "mira.safetensors": False,
    }
    json.dumps(shown, allow_nan=False)


def test_a_run_without_held_out_pictures_recommends_nothing(services: Services) -> None:
    folder = RunFolder.create(services.workspace, parse_config({"name": "plain"}))
    folder.append(events.LoraSaved(3, "plain.safetensors", "kohya", 7))
    shown = run_detail(services.jobs.progress("plain"))
    assert shown["best"] == "" and shown["notice"] == "" and not shown["files"][0]["recommended"]


def test_what_was_measured_after_the_checkpoint_is_forgotten_on_resume(
    services: Services, overfitted: RunFolder
) -> None:
    overfitted.append(events.Resumed(5))
    progress = services.jobs.progress("mira")
    assert progress.best is None and progress.recommended == () and progress.notice == ""


def test_an_early_end_is_told_with_its_reason(services: Services) -> None:
    folder = run_folder(services.workspace, "early", steps=12, total=20)
    folder.append(events.Finished(12, stopped=True, reason="Ended early: nothing was gained."))
    progress = services.jobs.progress("early")
    assert headline(progress) == "Ended early: nothing was gained."
    assert any("Ended early" in line for _, line in services.jobs.lines("early"))


def test_the_rebuild_file_is_served_and_nothing_else_of_its_kind(services: Services, overfitted: RunFolder) -> None:
    overfitted.rebuild_path.write_text("{}", encoding="utf-8")
    overfitted.manifest_path.write_text("{}", encoding="utf-8")
    client = TestClient(Starlette(routes=routes(services)))
    answer = client.get("/" + run_detail(services.jobs.progress("mira"))["links"]["rebuild"])
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    assert client.get("/safelight/runs/mira/dataset.json").status_code == 404


# ---- before the start -----------------------------------------------------------------------------------------------


@pytest.fixture
def mine(services: Services) -> Path:
    folder = services.studio.create("mine").path
    dataset(folder, {f"{number}.png": blobs(number) for number in range(10)})
    return folder


def values_of(**changed: Any) -> dict[str, Any]:
    return flat(TrainConfig()) | {"dataset.folder": "mine", "model.base": "demo", "dataset.resolution": 64} | changed


def test_the_plan_line_counts_held_out_pictures(services: Services, mine: Path) -> None:
    sizes = DatasetSizes(services.workspace)
    values = values_of(**{"validation.split": 0.2})
    size = sizes.of(values)
    assert (size.pictures, size.samples, size.held_out) == (8, 8.0, 2)
    line = plan_line(parse_config({"training": {"max_train_steps": 80}}), size, None)
    assert line.startswith("8 pictures x 1 repeat (2 more held out to measure the loss), batch 1 = 8 steps per epoch")
    assert sizes.of(values_of(**{"validation.folder": "ink_heldout"})).held_out == 8
    assert sizes.of(values_of()).held_out == 0
    with pytest.raises(SafelightError, match="no dataset named"):
        sizes.of(values_of(**{"validation.folder": "nothing"}))


def test_the_sizes_panel_names_what_is_held_out(services: Services, mine: Path) -> None:
    sizes_plan = SIZES_PANEL.functions(services)[0]
    told = sizes_plan({"dataset": "mine", "training": values_of(**{"validation.split": 0.2})})["held_out"]
    assert told["pictures"] == len(told["names"]) == 2 and told["sure"] and not told["folder"]
    config = parse_config({"dataset": {"folder": "mine", "resolution": 64}, "validation": {"split": 0.2}})
    plan = plan_dataset(services.workspace, config)
    assert told["names"] == [one.picture.name for one in plan.held_out]
    unsure = plan_dataset(make_services(mine.parent).workspace, _elsewhere(config, mine), max_new_looks=3)
    assert not unsure.held_out_is_sure and len(unsure.held_out) == 2


def _elsewhere(config: TrainConfig, folder: Path) -> TrainConfig:
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"folder": str(folder)})})


# ---- the file that rebuilds a run -----------------------------------------------------------------------------------


def recipe_of(services: Services, config: TrainConfig) -> Recipe:
    """As a run of these settings writes it, without the training."""
    plan = plan_dataset(services.workspace, config)
    base = find_model(services.workspace, config.model.base)
    manifest = run_manifest([row.source for row in plan.sources], plan.placed, plan.held_out_source, plan.held_out)
    return Recipe(
        values=portable_values(config, base.name),
        manifest=json.loads(manifest),
        base={"name": base.name, "fingerprint": base.fingerprint},
        safelight=code_version(),
        packages=package_versions(),
        end={"step": config.training.max_train_steps, "reason": ""},
    )


def imported(tab: TrainTab, path: Path) -> tuple[TrainConfig, dict[str, Any]]:
    *shown, told = tab.import_file(str(path))
    return tab.form.read(dict(zip(tab.form.outputs, shown, strict=True))), told["imported"]


def test_an_imported_rebuild_file_fills_the_form_and_says_what_is_other(services: Services, tmp_path: Path) -> None:
    config = demo_config(20)
    path = tmp_path / "rebuild.json"
    path.write_text(recipe_text(recipe_of(services, config)), encoding="utf-8")
    with gr.Blocks():
        tab = TrainTab(services)
    read, told = imported(tab, path)
    assert read == config
    assert [text for tone, text in told["lines"] if tone == "bad"] == []
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base"]["fingerprint"] = "0" * 64
    values["dataset"]["datasets"][0]["pictures"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(values), encoding="utf-8")
    _, told = imported(tab, path)
    assert "another one" in told["intro"] and len([tone for tone, _ in told["lines"] if tone == "bad"]) == 2
    values["config"]["dataset"]["folder"] = "gone"
    path.write_text(json.dumps(values), encoding="utf-8")
    read, told = imported(tab, path)
    assert read.dataset.folder == "gone" and "something is missing" in told["intro"]


def test_a_page_for_others_looks_into_no_folder_that_the_file_names(tmp_path: Path) -> None:
    shared = make_services(tmp_path, Access(listen=True))
    recipe = recipe_of(shared, demo_config(20))
    values = json.loads(recipe_text(recipe))
    values["config"]["dataset"]["folder"] = str(tmp_path)
    path = tmp_path / "rebuild.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with gr.Blocks():
        tab = TrainTab(shared)
    with pytest.raises(gr.Error, match="While the page is open to others"):
        tab.import_file(str(path))
