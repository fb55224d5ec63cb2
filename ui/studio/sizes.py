"""The panel "Sizes and crops": at which sizes the open dataset would be trained, and how often each folder is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from security.errors import SafelightError
from trainer.config.files import ConfigError, iter_settings, parse_config
from trainer.config.schema import TrainConfig, weighted_dataset
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.buckets import Size
from trainer.dataset.plan import USUAL_STEP, DatasetPlan, model_step, plan_dataset
from trainer.dataset.repeats import folders_of, set_repeats
from trainer.dataset.scan import UNMARKED, repeats_of
from trainer.dataset.settings import DatasetSettings
from trainer.dataset.sources import Role
from trainer.dataset.studio import Dataset
from ui.form import nested
from ui.messages import ShownError
from ui.services import Services
from ui.studio.asked import dataset_of
from ui.studio.panels import Answer, Panel

MAX_SHOWN_SKIPPED = 50
MAX_NEW_LOOKS = 200
"""Pictures that are looked at to find out which are held out, at most: some seconds."""
JOINED_PICTURES = 2
"""dataset.min_bucket_pictures that leaves no picture alone in its size."""


def _functions(services: Services) -> Sequence[Answer]:
    def sizes_plan(argument: Any = None) -> dict[str, Any]:
        """The run as the Train form stands, if the open dataset is part of it; else the same with this dataset."""
        dataset = dataset_of(services, argument)
        try:
            config = run_with(dataset.name, argument.get("training"))
        except ConfigError as error:
            return {"fault": f"The Train form has a mistake: {error.faults[0].message}"}
        services.refuse_paths(config)
        note = ""
        try:
            step = model_step(services.workspace, config.model.base)
        except SafelightError as error:
            step, note = USUAL_STEP, f"{error} These are the sizes of a usual model."
        plan = plan_dataset(services.workspace, config, step, max_new_looks=MAX_NEW_LOOKS)
        return {"note": note, **_told(plan, config, dataset)}

    def folder_repeats(argument: Any = None) -> dict[str, Any]:
        """How often the pictures of one folder are seen; None leaves it to the folder's name or the Train form."""
        dataset = dataset_of(services, argument)
        folder, repeats = argument.get("folder"), argument.get("repeats")
        if not isinstance(folder, str) or not (repeats is None or type(repeats) is int):
            raise ShownError("The page sent no folder with a whole number. Reload the page.")
        set_repeats(dataset, folder, repeats)
        return {}

    return [sizes_plan, folder_repeats]


SIZES_PANEL = Panel("sizes", _functions, events=("join",))
"""`join`: the button that sets dataset.min_bucket_pictures on the Train tab."""


def run_with(name: str, training: Any) -> TrainConfig:
    """The settings of the Train form, with the dataset `name` in place of its own unless it is part of the run already.

    Raises ConfigError for a form that can't be run as it stands.
    """
    known = {setting.name for setting in iter_settings()}
    values = {key: value for key, value in training.items() if key in known} if isinstance(training, dict) else {}
    config = parse_config(nested(values))
    settings = config.dataset
    others = [weighted_dataset(line)[1] for line in settings.more]
    if name in (settings.folder, *others, *settings.regularisation):
        return config
    return config.model_copy(update={"dataset": settings.model_copy(update={"folder": name})})


def _told(plan: DatasetPlan, config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    # By folder, not by name: a typed path may lead to the dataset as well.
    number = next(number for number, row in enumerate(plan.sources) if row.source.folder == dataset.path)
    own = plan.of_source(number)
    return {
        "resolution": config.dataset.resolution,
        "more_resolutions": [
            {"resolution": resolution, "pictures": _pictures_at(plan, number, place)}
            for place, resolution in enumerate(config.dataset.more_resolutions, start=1)
        ],
        "random_crops": config.dataset.random_crops,
        "step": plan.step,
        "batch_size": plan.batch_size,
        "accumulation": config.training.gradient_accumulation_steps,
        "steps_per_epoch": round(plan.steps_per_epoch, 2),
        "looks_per_epoch": round(plan.looks_per_epoch, 2),
        "max_steps": config.training.max_train_steps,
        "epochs": round(plan.epochs, 2),
        "min_bucket_pictures": config.dataset.min_bucket_pictures,
        "buckets": [
            {
                "size": list(row.size),
                "pictures": row.num_pictures,
                "looks": round(row.looks, 2),
                "batches": round(row.batches, 2),
                "names": _names(plan, number, row.size),
            }
            for row in plan.buckets
        ],
        "sources": _source_rows(plan, number),
        "folders": _folder_rows(own, dataset.settings, config.dataset.repeats),
        "enlarged": {
            name: round(one.placement.enlargement, 2) for name, one in own.items() if one.placement.enlargement > 1.0
        },
        "chosen": [name for name, one in own.items() if one.picture.mark != UNMARKED],
        "masked": [name for name, one in own.items() if one.picture.mask is not None],
        "use_masks": config.loss.use_masks,
        "skipped": [list(entry) for entry in plan.sources[number].skipped[:MAX_SHOWN_SKIPPED]],
        "num_skipped": len(plan.sources[number].skipped),
        "held_out": {
            "pictures": len(plan.held_out),
            "folder": plan.held_out_source.name if plan.held_out_source else "",
            "names": [one.picture.name for one in plan.held_out if not plan.held_out_source and one.source == number],
            "sure": plan.held_out_is_sure,
        },
    }


def _names(plan: DatasetPlan, number: int, size: Size) -> list[str]:
    """The open dataset's pictures that are trained at this size, each once."""
    here = (one.picture.name for one in plan.placed if one.source == number and one.placement.bucket == size)
    return list(dict.fromkeys(here))


def _pictures_at(plan: DatasetPlan, number: int, size_number: int) -> int:
    """How many of its pictures are large enough for a further resolution."""
    return len({one.picture.name for one in plan.placed if one.source == number and one.size_number == size_number})


def _source_rows(plan: DatasetPlan, open_number: int) -> list[dict[str, Any]]:
    return [
        {
            "name": row.source.name,
            "role": row.source.role.value,
            "weight": "" if row.source.role is Role.REGULARISATION else f"{float(row.source.weight):g}",
            "trigger": row.source.trigger_word,
            "pictures": row.num_pictures,
            "looks": round(row.looks, 2),
            "open": number == open_number,
        }
        for number, row in enumerate(plan.sources)
    ]


def _folder_rows(own: dict[str, PlacedPicture], settings: DatasetSettings, otherwise: int) -> list[dict[str, Any]]:
    rows = []
    for folder in folders_of(list(own)):
        pictures = [name for name in own if name.rpartition("/")[0] == folder]
        unset = repeats_of(pictures[0], {}, otherwise)
        rows.append(
            {
                "folder": folder,
                "pictures": len(pictures),
                "repeats": repeats_of(pictures[0], settings.repeats, otherwise),
                "unset": unset,
                "is_set": folder in settings.repeats,
            }
        )
    return rows
