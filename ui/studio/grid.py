"""Answers the scripts of the Dataset tab: which datasets there are, the rows of the open one, and every change of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from security.errors import SafelightError
from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import TrainConfig, ValidationConfig
from trainer.dataset.history import Edit
from trainer.dataset.plan import USUAL_STEP, plan_dataset
from trainer.dataset.scan import dataset_names
from trainer.dataset.studio import Dataset
from trainer.dataset.tokens import count_tokens
from trainer.demo import DATASETS as DEMO_DATASETS
from ui.messages import ShownError, number_of, text_of
from ui.services import REMEMBER_SECONDS, Services
from ui.studio.asked import caption_of, dataset_of, names_of
from ui.studio.panels import Answer
from ui.studio.rows import mark_of, mark_row, picture_facts, picture_rows, task_row
from ui.studio.sizes import run_with
from ui.task_views import LORA_KIND

MAX_STEPS_BACK = 100_000
SHOWN_EDITS = 300
MAX_REPORT = 20_000
SIZE_SETTINGS = (
    *("model.base", "dataset.resolution", "dataset.aspect_buckets", "dataset.max_aspect_ratio"),
    *("dataset.min_bucket_pictures", "dataset.max_token_length"),
)
"""Settings of the Train form that decide at which size and crop a picture is trained, and how much of its caption."""


class StudioDesk:
    """What the head of the tab and its grid ask."""

    def __init__(self, services: Services) -> None:
        self.services = services

        self._counted: tuple[tuple[Any, ...], float, list[dict[str, Any]]] = ((), 0.0, [])

    def functions(self) -> list[Answer]:
        """Everything that the scripts of the tab's head, grid and viewer call."""
        return [
            *(self.studio_look, self.studio_rows, self.picture_facts, self.picture_crops, self.dataset_edits),
            *(self.save_caption, self.set_mark, self.set_trigger, self.remove_pictures),
            *(self.undo_edits, self.redo_edit, self.task_action, self.task_report),
            *(self.create_dataset, self.copy_dataset, self.rename_dataset, self.delete_dataset),
        ]

    # -- looking --

    def studio_look(self, argument: Any = None) -> dict[str, Any]:
        """What changes without this page: asked every second, so it reads no pictures."""
        dataset = self._chosen(argument)
        revision = dataset.revision
        undo, redo = dataset.history.next_steps() if not dataset.builtin else (None, None)
        return {
            "name": dataset.name,
            "revision": revision,
            "undo": undo.label if undo else "",
            "redo": redo.label if redo else "",
            "trigger": dataset.settings.trigger_word,
            "made_from": dataset.settings.made_from,
            "datasets": self._shelf(dataset.name, revision),
            "tasks": [task_row(task) for task in self.services.studio.tasks.all() if task.kind != LORA_KIND],
        }

    def studio_rows(self, argument: Any = None) -> dict[str, Any]:
        """The pictures of the chosen dataset, or of the first one that is somebody's own."""
        dataset = self._chosen(argument)
        revision = dataset.revision  # before the rows: what changes meanwhile is asked for again
        base = _training(argument).get("model.base", "")
        rows = picture_rows(self.services.workspace, dataset, str(base))
        return {"name": dataset.name, "builtin": dataset.builtin, "revision": revision, "rows": rows}

    def picture_facts(self, argument: Any = None) -> dict[str, Any]:
        """Sizes and faults of pictures that were not looked at before, as many as can be read in a moment."""
        dataset = dataset_of(self.services, argument)
        return {"facts": picture_facts(self.services.workspace, dataset.path, names_of(argument, dataset))}

    def picture_crops(self, argument: Any = None) -> dict[str, Any]:
        """For every picture the size that training uses and how much it is enlarged, with the settings of the Train form."""
        dataset = dataset_of(self.services, argument)
        try:
            config = run_with(dataset.name, _training(argument))
        except ConfigError:  # half-typed: the frames stay as near as can be
            config = _size_config(dataset, _training(argument))
        config = config.model_copy(update={"validation": ValidationConfig()})  # held-out pictures are cropped, too
        self.services.refuse_paths(config)
        try:
            self.services.refuse_paths(config)  # else any visitor could have folders of this machine read as a model
            plan = plan_dataset(self.services.workspace, config)
        except SafelightError:  # the model is not here: the usual one's sizes are nearer than none
            plan = plan_dataset(self.services.workspace, config, USUAL_STEP)
        placements = {name: placed.placement for name, placed in plan.of_source().items()}
        return {
            "crops": {
                name: [*placement.bucket, round(placement.enlargement, 3)] for name, placement in placements.items()
            }
        }

    def dataset_edits(self, argument: Any = None) -> dict[str, Any]:
        """What was changed, the newest first."""
        edits = dataset_of(self.services, argument).history.edits(SHOWN_EDITS)
        return {
            "edits": [
                {
                    "label": edit.label,
                    "time": edit.time,
                    "files": len(edit.files),
                    "undone": edit.undone,
                    "left": len(edit.left),
                }
                for edit in edits
            ]
        }

    # -- changing --

    def save_caption(self, argument: Any = None) -> dict[str, Any]:
        """Writes one caption, unless it was changed since the page read it: then that one is told."""
        dataset = dataset_of(self.services, argument)
        picture, text = text_of(argument, "picture"), caption_of(argument)
        dataset.path_of(picture)  # before anything is read: a name may lead elsewhere
        current = dataset.read_captions([picture])[0].get(picture, "")
        if argument.get("force") is not True and argument.get("before") != current != text:
            return {"conflict": current}
        before = dataset.revision
        dataset.set_captions(f"Caption of {picture}", {picture: text})
        base = argument.get("base")
        tokens = count_tokens([text], base if isinstance(base, str) else "")[0]
        return {"caption": text, "tokens": tokens, "before_revision": before, "revision": dataset.revision}

    def set_mark(self, argument: Any = None) -> dict[str, Any]:
        """Chooses the crop of one picture; without a mark the middle is taken again."""
        dataset = dataset_of(self.services, argument)
        picture, mark = text_of(argument, "picture"), mark_of(argument.get("mark"))
        dataset.path_of(picture)
        before = dataset.revision
        dataset.set_marks(f"Crop of {picture}", {picture: mark})
        return {"mark": mark_row(mark), "before_revision": before, "revision": dataset.revision}

    def set_trigger(self, argument: Any = None) -> dict[str, Any]:
        """The word that calls up the LoRA, kept with the dataset."""
        dataset = dataset_of(self.services, argument)
        word = argument.get("word")
        if not isinstance(word, str):
            raise ShownError("The page sent no trigger word. Reload the page.")
        settings = replace(dataset.settings, trigger_word=" ".join(word.split()))
        label = f"Trigger word: {settings.trigger_word}" if settings.trigger_word else "No trigger word"
        dataset.set_settings(label, settings)
        return {"text": f"{label}."}

    def remove_pictures(self, argument: Any = None) -> dict[str, Any]:
        """Takes pictures out, with all that belongs to them. Undo brings them back."""
        dataset = dataset_of(self.services, argument)
        names = names_of(argument, dataset)
        what = names[0] if len(names) == 1 else f"{len(names)} pictures"
        dataset.remove_pictures(f"Removed {what}", names)
        return {"text": f"{what} removed. Undo brings {'it' if len(names) == 1 else 'them'} back."}

    def undo_edits(self, argument: Any = None) -> dict[str, Any]:
        """Takes back the last change, or `steps` of them."""
        history = dataset_of(self.services, argument).history
        steps = min(number_of(argument, "steps") or 1, MAX_STEPS_BACK)
        done = [history.undo() for _ in range(steps)]
        return {"text": _told("Undone", done)}

    def redo_edit(self, argument: Any = None) -> dict[str, Any]:
        """Does again what was undone last."""
        return {"text": _told("Done again", [dataset_of(self.services, argument).history.redo()])}

    # -- datasets --

    def create_dataset(self, argument: Any = None) -> dict[str, Any]:
        """An empty dataset."""
        name = text_of(argument, "name")
        self.services.studio.create(name)
        return {"select": name, "text": f"{name} is made. Add pictures to it."}

    def copy_dataset(self, argument: Any = None) -> dict[str, Any]:
        """A second one with the same pictures, captions, crops and masks."""
        name, new = text_of(argument, "dataset"), text_of(argument, "name")
        self.services.studio.copy(name, new)
        return {"select": new, "text": f"{new} is a copy of {name}."}

    def rename_dataset(self, argument: Any = None) -> dict[str, Any]:
        """The same under another name."""
        name, new = text_of(argument, "dataset"), text_of(argument, "name")
        self.services.studio.rename(name, new)
        return {"select": new, "text": f"{name} is now {new}."}

    def delete_dataset(self, argument: Any = None) -> dict[str, Any]:
        """Takes a dataset away for good."""
        name = text_of(argument, "dataset")
        self.services.studio.delete(name)
        return {"select": self._first(), "text": f"{name} is deleted."}

    # -- tasks --

    def task_action(self, argument: Any = None) -> dict[str, Any]:
        """Cancels a task, or takes the report of an ended one off the page."""
        tasks, task_id = self.services.studio.tasks, text_of(argument, "id")
        actions: dict[str, Callable[[str], None]] = {"cancel": tasks.cancel, "dismiss": tasks.dismiss}
        action = text_of(argument, "action")
        if action not in actions:
            raise ShownError(f"The page asked for {action!r}, which is no action. Reload the page.")
        actions[action](task_id)
        return {}

    def task_report(self, argument: Any = None) -> dict[str, Any]:
        """What a task left out, and why."""
        skipped = self.services.studio.tasks.get(text_of(argument, "id")).skipped
        return {"entries": [list(entry) for entry in skipped[:MAX_REPORT]]}

    # -- parts --

    def _chosen(self, argument: Any) -> Dataset:
        """The dataset that the page has open; one that is gone meanwhile gives way to the first."""
        asked = argument.get("dataset") if isinstance(argument, dict) else None
        known = self._names()
        return self.services.studio.open(asked if isinstance(asked, str) and asked in known else self._first())

    def _names(self) -> list[str]:
        """All datasets, somebody's own before the embedded ones."""
        return sorted(dataset_names(self.services.workspace), key=lambda name: (name in DEMO_DATASETS, name))

    def _first(self) -> str:
        return self._names()[0]

    def _shelf(self, name: str, revision: int) -> list[dict[str, Any]]:
        """All datasets with how many pictures they have: counted again when something changed, and now and then."""
        key = (tuple(self._names()), name, revision)
        counted, at, rows = self._counted
        if counted != key or time.monotonic() - at > REMEMBER_SECONDS:
            infos = sorted(self.services.studio.datasets(), key=lambda info: info.builtin)
            rows = [{"name": one.name, "pictures": one.num_pictures, "builtin": one.builtin} for one in infos]
            self._counted = (key, time.monotonic(), rows)
        return rows


def _told(done: str, edits: list[Edit]) -> str:
    """What was undone or done again, and what was left alone because something else had changed it."""
    what = edits[0].label if len(edits) == 1 else f"{len(edits)} changes"
    left = sorted({name for edit in edits for name in edit.left})
    if not left:
        return f"{done}: {what}."
    return f"{done}: {what}. Left alone, because changed outside of Safelight since: {', '.join(left[:5])}" + (
        f" and {len(left) - 5} more." if len(left) > 5 else "."
    )


def _training(argument: Any) -> dict[str, Any]:
    training = argument.get("training") if isinstance(argument, dict) else None
    return training if isinstance(training, dict) else {}


def _size_config(dataset: Dataset, training: dict[str, Any]) -> TrainConfig:
    """A run on this dataset alone with the form's settings as far as they hold; half-typed ones leave the defaults."""
    values: dict[str, dict[str, Any]] = {"dataset": {"folder": dataset.name}, "model": {"base": "demo"}}
    for name in SIZE_SETTINGS:
        if name not in training:
            continue
        section, field = name.split(".")
        tried = {key: dict(part) for key, part in values.items()}
        tried[section][field] = training[name]
        try:
            parse_config(tried)
        except SafelightError:
            continue
        values = tried
    return parse_config(values)
