"""`dataset sizes`: the sizes, batches and steps that training would make of a dataset, and how often folders are seen."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from security.errors import SafelightError
from trainer.config.files import apply_flags, config_values, load_values, parse_config
from trainer.config.schema import TrainConfig
from trainer.dataset.plan import DatasetPlan, plan_dataset
from trainer.dataset.repeats import set_repeats
from trainer.workspace import Workspace
from ui.cli_dataset import open_studio
from ui.cli_lists import print_table
from ui.settings_files import named_file


def sizes_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset sizes`."""
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument("--config", type=Path, metavar="RUN.toml", help="settings of the run (default: as they come)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="a setting of the run, such as dataset.resolution=1024. May be given repeatedly",
    )
    parser.add_argument(
        "--repeats",
        action="append",
        default=[],
        metavar="FOLDER=N",
        help="first set how often a folder's pictures are seen; FOLDER= leaves it to its name, =N means the top folder",
    )


def show_sizes(options: argparse.Namespace) -> int:
    """Shows the sizes that training would use, with pictures, batches and steps per epoch."""
    studio = open_studio(options)
    dataset = studio.open(options.name)
    for asked in options.repeats:
        folder, equals, number = asked.rpartition("=")
        if not equals or not (number == "" or number.isdecimal()):
            raise SafelightError(f"--repeats {asked} is not FOLDER=N. Write for example --repeats 'hats=3'.")
        set_repeats(dataset, folder, int(number) if number else None)
    config = _config(options, dataset.name)
    plan = plan_dataset(Workspace.open(options.workspace), config)
    if options.json:
        print(json.dumps(_values(plan)))
    else:
        _tell(plan, config)
    return 0


def _config(options: argparse.Namespace, name: str) -> TrainConfig:
    values = load_values(named_file(options.config)) if options.config else config_values(TrainConfig())
    for asked in options.set:
        if "=" not in asked:
            raise SafelightError(
                f"--set {asked} is not SETTING=VALUE. Write for example --set dataset.resolution=1024."
            )
    flags = [f"--{asked}" for asked in [*options.set, f"dataset.folder={name}"]]
    return parse_config(apply_flags(values, flags))


def _values(plan: DatasetPlan) -> dict[str, object]:
    looks: dict[str, float] = {}
    for one in plan.placed:
        if one.source == 0:
            looks[one.picture.name] = looks.get(one.picture.name, 0.0) + float(one.looks)
    return {
        "step": plan.step,
        "steps_per_epoch": plan.steps_per_epoch,
        "batches_per_epoch": plan.batches_per_epoch,
        "epochs": plan.epochs,
        "sizes": [
            {"size": list(row.size), "pictures": row.num_pictures, "looks": row.looks, "batches": row.batches}
            for row in plan.buckets
        ],
        "datasets": [
            {
                "name": row.source.name,
                "role": row.source.role.value,
                "weight": float(row.source.weight),
                "pictures": row.num_pictures,
                "looks": row.looks,
                "skipped": [list(entry) for entry in row.skipped],
            }
            for row in plan.sources
        ],
        "held_out": [one.picture.name for one in plan.held_out],
        "pictures": {
            one.picture.name: {
                "size": list(one.placement.bucket),
                "crop": [round(share, 6) for share in one.placement.frame],
                "enlargement": round(one.placement.enlargement, 4),
                "looks": looks[one.picture.name],
                "mask": one.picture.mask is not None,
            }
            for one in plan.of_source().values()
        },
    }


def _tell(plan: DatasetPlan, config: TrainConfig) -> None:
    rows = [("SIZE", "PICTURES", "LOOKS", "BATCHES", "")]
    for row in plan.buckets:
        note = "one picture, alone in its batches" if row.num_pictures == 1 < plan.batch_size else ""
        rows.append(("x".join(map(str, row.size)), str(row.num_pictures), f"{row.looks:g}", f"{row.batches:g}", note))
    print_table(rows)
    for source in plan.sources:
        for name, reason in source.skipped:
            print(f"left out: {source.source.name}/{name}: {reason}")
    if plan.held_out:
        print(f"held out, only measured: {', '.join(one.picture.name for one in plan.held_out)}")
    small = [one.placement.enlargement for one in plan.resting if one.placement.enlargement > 1]
    if small:
        which = "1 picture is" if len(small) == 1 else f"{len(small)} pictures are"
        print(f"{which} smaller than the size trained at, enlarged up to {max(small):.2f} times")
    print(
        f"{plan.looks_per_epoch:g} looks in batches of {plan.batch_size} = {plan.steps_per_epoch:g} steps per epoch; "
        f"{config.training.max_train_steps} steps = {plan.epochs:.3g} epochs"
    )
