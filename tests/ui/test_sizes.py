"""The panel "Sizes and crops": the plan of the run as the Train form stands, and the repeats of folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from security.errors import SafelightError
from tests.tiny import tiny_dataset
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.dataset.batches import BatchPlan
from trainer.dataset.plan import plan_dataset
from trainer.dataset.settings import Mark
from trainer.dataset.studio import Dataset
from ui.form import flat, nested
from ui.recipes import DatasetSizes
from ui.services import Services
from ui.studio.sizes import SIZES_PANEL

Ask = Callable[..., dict[str, Any]]
FORM = {**flat(TrainConfig()), "dataset.resolution": 64, "training.batch_size": 2, "training.max_train_steps": 100}


@pytest.fixture
def dataset(services: Services) -> Dataset:
    made = services.studio.create("mine")
    tiny_dataset(made.path, 4, size=(90, 90))
    tiny_dataset(made.path / "5_wide", 1, size=(60, 32), seed=1)
    return made


@pytest.fixture
def ask(services: Services, dataset: Dataset) -> Ask:
    sizes_plan, folder_repeats = SIZES_PANEL.functions(services)
    functions = {function.__name__: function for function in (sizes_plan, folder_repeats)}

    def call(name: str, **argument: Any) -> dict[str, Any]:
        return functions[name]({"dataset": dataset.name, **argument})

    return call


def test_the_panel_tells_the_plan_of_the_form(ask: Ask, services: Services, dataset: Dataset) -> None:
    told = ask("sizes_plan", training=FORM)
    config = parse_config(
        {
            "dataset": {"folder": "mine", "resolution": 64},
            "training": {"batch_size": 2, "max_train_steps": 100},
        }
    )
    plan = plan_dataset(services.workspace, config)
    assert (told["steps_per_epoch"], told["epochs"]) == (plan.steps_per_epoch, plan.epochs) == (5, 20)
    assert [(tuple(row["size"]), row["pictures"], row["looks"]) for row in told["buckets"]] == [
        (row.size, row.num_pictures, row.looks) for row in plan.buckets
    ]
    assert told["buckets"][1]["names"] == ["5_wide/000.png"] and told["enlarged"] == {"5_wide/000.png": 1.5}
    assert [(row["folder"], row["repeats"], row["is_set"]) for row in told["folders"]] == [
        ("", 1, False),
        ("5_wide", 5, False),
    ]
    dataset.set_marks("crop", {"000.png": Mark((0.2, 0.2), 2.0)})
    assert ask("sizes_plan", training=FORM)["chosen"] == ["000.png"]
    (dataset.path / "broken.png").write_bytes(b"no picture")
    told = ask("sizes_plan", training=FORM)
    assert told["num_skipped"] == 1 and told["skipped"][0][0] == "broken.png"


def test_further_sizes_and_crops_are_told_as_the_run_makes_them(ask: Ask, services: Services, dataset: Dataset) -> None:
    values = {**FORM, "dataset.more_resolutions": ["80"], "dataset.random_crops": 2, "dataset.aspect_buckets": False}
    told = ask("sizes_plan", training={**values, "dataset.resolution": 100})
    config = parse_config(nested({**values, "dataset.resolution": 100, "dataset.folder": "mine"}))
    plan = plan_dataset(services.workspace, config)
    assert told["steps_per_epoch"] == plan.steps_per_epoch == BatchPlan(plan.placed, 2, 42).batches_per_epoch
    assert told["more_resolutions"] == [{"resolution": 80, "pictures": 4}]  # the wide one is too small for it
    assert [(row["pictures"], len(row["names"]), row["looks"]) for row in told["buckets"]] == [(5, 5, 9), (4, 4, 4)]
    assert told["random_crops"] == 2 and set(told["enlarged"]) == {f"00{number}.png" for number in range(4)} | {
        "5_wide/000.png"
    }
    size = DatasetSizes(services.workspace).of(flat(config))
    assert (size.pictures, size.samples) == (5, plan.looks_per_epoch)


def test_the_open_dataset_is_shown_where_it_is_part_of_the_run(ask: Ask, services: Services) -> None:
    told = ask("sizes_plan", training={**FORM, "dataset.folder": "ink", "dataset.more": ["0.5 mine"]})
    assert [(row["name"], row["weight"], row["open"]) for row in told["sources"]] == [
        ("ink", "1", False),
        ("mine", "0.5", True),
    ]
    assert told["sources"][1]["looks"] == 4.5 and [row["pictures"] for row in told["folders"]] == [4, 1]
    told = ask("sizes_plan", training={**FORM, "dataset.folder": "ink", "dataset.regularisation": ["ink_heldout"]})
    assert [(row["name"], row["open"]) for row in told["sources"]] == [("mine", True), ("ink_heldout", False)]
    assert told["sources"][0]["looks"] == told["sources"][1]["looks"] == 9


def test_repeats_are_one_step_to_undo(ask: Ask, dataset: Dataset) -> None:
    ask("folder_repeats", folder="5_wide", repeats=2)
    ask("folder_repeats", folder="", repeats=3)
    told = ask("sizes_plan", training=FORM)
    assert [(row["repeats"], row["unset"], row["is_set"]) for row in told["folders"]] == [(3, 1, True), (2, 5, True)]
    assert told["looks_per_epoch"] == 14
    dataset.history.undo()
    assert dataset.settings.repeats == {"5_wide": 2}
    ask("folder_repeats", folder="5_wide", repeats=None)
    assert dataset.settings.repeats == {}
    for folder, repeats in (("5_wide", 0), ("5_wide", 1001), ("5_wide", True), ("5_wide", "2"), ("nowhere", 2), (7, 2)):
        with pytest.raises(SafelightError):
            ask("folder_repeats", folder=folder, repeats=repeats)
    assert dataset.settings.repeats == {}


def test_a_form_that_is_wrong_or_names_no_model_is_told(ask: Ask) -> None:
    assert "dataset.resolution is 1" in ask("sizes_plan", training={**FORM, "dataset.resolution": 1})["fault"]
    told = ask("sizes_plan", training={**FORM, "model.base": "nothing"})
    assert "no model 'nothing'" in told["note"] and told["step"] == 64
    for nonsense in (None, [], "x", {"unknown": 1}):
        assert ask("sizes_plan", training=nonsense)["step"] == 16


def test_a_shared_page_plans_only_with_what_is_in_the_library(shared_services: Services, tmp_path) -> None:
    tiny_dataset(shared_services.studio.create("mine").path, 1)
    secret = tiny_dataset(tmp_path / "secret", 1)
    sizes_plan, _ = SIZES_PANEL.functions(shared_services)
    sizes_plan({"dataset": "mine", "training": FORM})
    for name, value in (
        ("model.base", str(secret)),
        ("dataset.more", [f"1 {secret}"]),
        ("dataset.regularisation", [str(secret)]),
    ):
        with pytest.raises(SafelightError, match="open to others"):
            sizes_plan({"dataset": "mine", "training": {**FORM, name: value}})
