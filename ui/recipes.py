"""Where the form starts for each model, what was changed since, and what a plan of steps means in pictures."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from security.errors import SafelightError
from trainer.config.files import parse_config
from trainer.config.presets import PERSONAL, Preset, Purpose, kind_of_base, shipped_preset
from trainer.config.schema import WEIGHTED_DATASET, TrainConfig, weighted_dataset
from trainer.dataset.plan import plan_dataset
from trainer.dataset.scan import find_dataset, picture_paths, repeats_of
from trainer.dataset.settings import load_settings
from trainer.demo import demo_config
from trainer.models.library import ModelInfo
from trainer.words import duration
from trainer.workspace import Workspace
from ui.form import SETTINGS, flat, label, nested

RESOLUTIONS = {"sdxl": 1024}
"""Side in pixels that a family was trained at, where it is not the schema's default."""
LOOKS = {"Quick look": 20, "Normal": 60, "Thorough": 150}
"""How often each picture is seen, by the words of "How long?"."""
OWN_LENGTH = "My own number"
COUNT_SECONDS = 5.0


@dataclass(frozen=True)
class Start:
    """What the form starts from besides the model: a purpose, the memory in GB (0: any), or a preset of one's own.

    `own` is its name, `values` its settings.
    """

    purpose: str = ""
    memory: int = 0
    own: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def recipe(models: Iterable[ModelInfo], base: str, start: Start | None = None) -> dict[str, Any]:
    """The settings that fit a model, as `section.field` -> value; the schema's defaults for one that is not known.

    A purpose lays its preset over them, a preset of one's own comes last. The embedded model needs no purpose.
    """
    start = start or Start()
    info = {info.name: info for info in models}.get(base)
    if info is not None and info.builtin:
        return {**flat(demo_config()), **start.values}
    values = flat(TrainConfig())
    side = RESOLUTIONS.get(info.family if info else "", values["dataset.resolution"])
    values |= {"dataset.resolution": side, "sample.width": side, "sample.height": side}
    preset = preset_for(info, start)
    return {**values, **(preset.values if preset else {}), **start.values}


def preset_for(info: ModelInfo | None, start: Start) -> Preset | None:
    """The preset that comes with the program for this model and purpose; None where there is none."""
    kind = kind_of_base(info.family, info.prediction_type) if info and not info.builtin else ""
    return shipped_preset(Purpose(start.purpose), kind, start.memory) if kind and start.purpose else None


def follow(values: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What to change when the model changes: settings that still have the old recipe's value get the new one's."""
    return {
        name: new[name]
        for name in SETTINGS
        if name not in PERSONAL and values[name] == old[name] and new[name] != old[name]
    }


def changes(values: Mapping[str, Any], start: Mapping[str, Any]) -> list[dict[str, str]]:
    """The settings that differ from where the form started, in words."""
    return [
        {"name": name, "label": label(setting), "from": _words(start[name]), "to": _words(values[name])}
        for name, setting in SETTINGS.items()
        if name not in PERSONAL and values[name] != start[name]
    ]


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} lines" if len(value) != 1 else "1 line"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text if text not in ("", "None") else "empty"
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class Size:
    """Pictures that a run learns from, and samples of an epoch: pictures times repeats and weights.

    `prior`: samples of regularisation pictures that come with them. `held_out`: pictures that only measure the loss.
    """

    pictures: int
    samples: float
    prior: float = 0.0
    held_out: int = 0


class DatasetSizes:
    """Counts the pictures of a dataset, and remembers the answer for a few seconds: the form asks at every key."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: tuple[tuple[Any, ...], float, Size] = ((), 0.0, Size(0, 0))

    def size(self, folder: str, repeats: int, more: Iterable[str] = (), regularisation: Iterable[str] = ()) -> Size:
        """Lines of `more` that are no weight and name are left out: the form tells them at their field.

        Raises SafelightError when there is no such dataset.
        """
        key = (folder, repeats, *more, None, *regularisation)
        if key == self._known[0] and time.monotonic() - self._known[1] < COUNT_SECONDS:
            return self._known[2]
        size = _count(find_dataset(self._workspace, folder), repeats)
        for weight, name in (weighted_dataset(line) for line in more if re.match(WEIGHTED_DATASET, line)):
            added = _count(find_dataset(self._workspace, name), repeats)
            size = Size(size.pictures + added.pictures, size.samples + float(weight) * added.samples)
        if any(_count(find_dataset(self._workspace, name), repeats).pictures for name in regularisation):
            size = replace(size, prior=size.samples)
        self._known = (key, time.monotonic(), size)
        return size

    def of(self, values: Mapping[str, Any]) -> Size:
        """As `size`, for settings as `section.field` -> plain value. Raises ConfigError for faulty ones that matter."""
        if values["dataset.more_resolutions"] or values["validation.split"]:
            return self._planned(values)  # which pictures are large enough or held out is more than counting
        size = self.size(
            values["dataset.folder"],
            values["dataset.repeats"] or 1,
            values["dataset.more"],
            values["dataset.regularisation"],
        )
        folder = values["validation.folder"]
        return replace(size, held_out=len(picture_paths(find_dataset(self._workspace, folder)))) if folder else size

    def _planned(self, values: Mapping[str, Any]) -> Size:
        """By the plan that the run itself makes."""
        key = tuple(str(values[name]) for name in _PLAN_SETTINGS)
        if key == self._known[0] and time.monotonic() - self._known[1] < COUNT_SECONDS:
            return self._known[2]
        config = parse_config(nested({name: values[name] for name in _PLAN_SETTINGS}))
        plan = plan_dataset(self._workspace, config, max_new_looks=0)
        learned = [one for one in plan.placed if not one.is_prior]
        prior = float(sum(one.looks for one in plan.placed if one.is_prior))
        pictures = sum(one.is_first for one in learned)
        size = Size(pictures, float(sum(one.looks for one in learned)), prior, held_out=len(plan.held_out))
        self._known = (key, time.monotonic(), size)
        return size


_PLAN_SETTINGS = tuple(
    name
    for name, one in SETTINGS.items()
    if one.section in ("dataset", "validation") or name in ("model.base", "training.seed")
)


def _count(folder: Path, repeats: int) -> Size:
    paths = picture_paths(folder)
    own = load_settings(folder).repeats
    return Size(len(paths), sum(repeats_of(path.relative_to(folder).as_posix(), own, repeats) for path in paths))


def steps_for(looks: int, samples: float, config_values: Mapping[str, Any]) -> int:
    """Optimizer steps in which every picture is seen `looks` times, rounded up to tens."""
    per_step = (config_values["training.batch_size"] or 1) * (
        config_values["training.gradient_accumulation_steps"] or 1
    )
    return max(10, int(-(-looks * samples // (per_step * 10))) * 10)


def plan_line(config: TrainConfig, size: Size, seconds_per_step: float | None) -> str:
    """What the chosen steps mean: "30 pictures x 1 repeat, batch 4 = 8 steps per epoch; 400 steps = 50 epochs".

    The last batch of an epoch has fewer pictures, as in the run. Pictures of several sizes make a few batches more.
    """
    training = config.training
    per_epoch = math.ceil((size.samples + size.prior) / training.batch_size) / training.gradient_accumulation_steps
    batch = f"batch {training.batch_size}"
    if training.gradient_accumulation_steps > 1:
        batch += f" x {training.gradient_accumulation_steps} accumulated"
    repeats = size.samples / size.pictures
    seen = f"x {repeats:g} repeat{'' if repeats == 1 else 's'}" if repeats % 1 == 0 else f"seen {size.samples:g} times"
    prior = f" and {size.prior:g} looks at regularisation pictures" if size.prior else ""
    epochs = training.max_train_steps / per_epoch
    if size.held_out:
        prior += f" ({size.held_out} more held out to measure the loss)"
    line = (
        f"{size.pictures} pictures {seen}{prior}, {batch} = {per_epoch:.3g} steps per epoch; "
        f"{training.max_train_steps} steps = {epochs:.3g} epochs"
    )
    if seconds_per_step:
        line += f", about {duration(seconds_per_step * training.max_train_steps)} at the speed of the last such run"
    return line


def no_pictures(folder: str) -> SafelightError:
    """The fault of a dataset without pictures."""
    return SafelightError(f"The dataset {folder} has no pictures yet. Add some on the Dataset tab.")
