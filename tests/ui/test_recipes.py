"""Where the form starts, what counts as changed, and what a plan means."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.errors import SafelightError
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.demo import INK_DIR, demo_config
from ui.form import flat
from ui.recipes import DatasetSizes, Size, changes, follow, plan_line, recipe, steps_for
from ui.services import Services


def test_the_embedded_model_starts_with_the_demo_settings(services: Services) -> None:
    models = services.library.models()
    assert recipe(models, "demo") == flat(demo_config())
    assert recipe(models, "unknown") == flat(TrainConfig())


def test_settings_that_were_not_touched_follow_the_model() -> None:
    old, new = flat(demo_config()), flat(TrainConfig())
    typed = {**old, "name": "mine", "lora.rank": 99}
    moved = follow(typed, old, new)
    assert moved["dataset.resolution"] == new["dataset.resolution"]
    assert "lora.rank" not in moved
    assert "name" not in moved


def test_changes_name_both_values() -> None:
    start = flat(TrainConfig())
    changed = changes({**start, "name": "mine", "lora.rank": 32, "dataset.shuffle_tags": True}, start)
    assert [(entry["name"], entry["from"], entry["to"]) for entry in changed] == [
        ("dataset.shuffle_tags", "off", "on"),
        ("lora.rank", "16", "32"),
    ]


def test_the_plan_is_told_in_pictures_and_epochs() -> None:
    config = parse_config({"training": {"max_train_steps": 400, "batch_size": 4}})
    line = plan_line(config, Size(30, 30), None)
    assert line == "30 pictures x 1 repeat, batch 4 = 8 steps per epoch; 400 steps = 50 epochs"
    assert plan_line(config, Size(30, 47), None).startswith("30 pictures seen 47 times, batch 4"), (
        "folders with repeats"
    )
    assert plan_line(config, Size(30, 30), 0.3).endswith(", about 2 min at the speed of the last such run")


def test_a_length_is_the_number_of_looks_at_each_picture() -> None:
    values = {"training.batch_size": 4, "training.gradient_accumulation_steps": 1}
    assert steps_for(60, 30, values) == 450
    assert steps_for(1, 1, values) == 10
    assert steps_for(20, 30, {"training.batch_size": None, "training.gradient_accumulation_steps": None}) == 600


def test_pictures_are_counted_with_the_repeats_of_their_folder(services: Services, tmp_path: Path) -> None:
    source = sorted(INK_DIR.glob("*.png"))[0].read_bytes()
    for name in ("a.png", "10_b/b.png", "10_b/c.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    sizes = DatasetSizes(services.workspace)
    assert sizes.size(str(tmp_path / "set"), 2) == Size(3, 22)
    with pytest.raises(SafelightError):
        sizes.size("nowhere", 1)


def test_all_datasets_of_a_run_are_counted(services: Services) -> None:
    sizes = DatasetSizes(services.workspace)
    others = sizes.size("ink_heldout", 1).pictures
    values = {
        **flat(TrainConfig()),
        "dataset.folder": "ink",
        "dataset.repeats": 2,
        "dataset.more": ["0.5 ink_heldout", "half typed"],
    }
    assert sizes.of(values) == Size(30 + others, 60 + others)
    size = sizes.of({**values, "dataset.more": [], "dataset.regularisation": ["ink_heldout"]})
    assert size == Size(30, 60, 60)
    line = plan_line(parse_config({"training": {"max_train_steps": 60, "batch_size": 4}}), size, None)
    assert line == (
        "30 pictures x 2 repeats and 60 looks at regularisation pictures, batch 4 = 30 steps per epoch; "
        "60 steps = 2 epochs"
    )
    with pytest.raises(SafelightError):
        sizes.of({**values, "dataset.regularisation": ["nowhere"]})
