"""`dataset mask`: masks from transparency or by a network that finds the subject, inverted, removed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from security.errors import SafelightError
from trainer.dataset.masks import MaskMode, invert_masks, masks_by_network, masks_from_alpha
from trainer.dataset.studio import Dataset
from trainer.models.text import gigabytes
from trainer.tagging.cutouts import cutouts, find_cutout
from trainer.tagging.shelf import is_here
from trainer.tasks import TaskControl
from trainer.workspace import Workspace
from ui.cli_dataset import follow, meant_pictures, open_studio, picture_arguments
from ui.cli_lists import print_table
from ui.cli_networks import fetch_network, network_arguments

ALPHA = "alpha"


def mask_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset mask`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the dataset, as `dataset list` calls it")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--from", dest="source", metavar=f"{ALPHA}|NETWORK", help="make masks of what is transparent, or by a network"
    )
    what.add_argument("--invert", action="store_true", help="learn what was left out, and the other way round")
    what.add_argument("--remove", action="store_true", help="remove the masks")
    parser.add_argument("--replace", action="store_true", help="make masks anew for pictures that have one")
    picture_arguments(parser)
    network_arguments(parser, "network")


def mask(options: argparse.Namespace) -> int:
    """Makes, inverts or removes masks; without a flag it counts them."""
    if options.list:
        return _list(options)
    if options.fetch:
        code = fetch_network(options, find_cutout(options.fetch))
        if code or not options.name:
            return code
        options.source = options.source or options.fetch
    if not options.name:
        raise SafelightError("Name the dataset: dataset mask NAME. `dataset mask --list` has the networks.")
    studio = open_studio(options)
    dataset = studio.open(options.name)
    names = meant_pictures(dataset, options.pictures)
    if options.source:
        return _make(options, dataset, names)
    masked = [name for name in names if name in dataset.masks()]
    if options.invert:
        return _run(options, dataset, "Inverting masks", lambda control: invert_masks(dataset, masked, control))
    if options.remove:
        dataset.set_masks("Remove masks", dict.fromkeys(masked))
        dataset.history.settle()
    told = f"{len(masked)} of {len(names)} pictures {'had' if options.remove else 'have'} a mask."
    print(json.dumps({"pictures": names, "masked": masked, "removed": options.remove}) if options.json else told)
    return 0


def _make(options: argparse.Namespace, dataset: Dataset, names: list[str]) -> int:
    mode = MaskMode.REPLACE if options.replace else MaskMode.KEEP
    if options.source == ALPHA:
        return _run(
            options, dataset, "Masks from transparency", lambda control: masks_from_alpha(dataset, names, mode, control)
        )
    workspace, row = Workspace.open(options.workspace), find_cutout(options.source)
    if not is_here(workspace, row):
        raise SafelightError(f"{row.title} is not in the workspace yet. Add --fetch {row.name}.")
    return _run(
        options,
        dataset,
        f"Masks by {row.title}",
        lambda control: masks_by_network(workspace, dataset, names, row, mode, control),
    )


def _run(options: argparse.Namespace, dataset: Dataset, title: str, work: Callable[[TaskControl], str]) -> int:
    studio = open_studio(options)
    task = studio.tasks.start("mask", title, dataset.name, work, lane="compute")
    try:
        return follow(studio, task, as_json=options.json)
    finally:
        dataset.history.settle()


def _list(options: argparse.Namespace) -> int:
    workspace = Workspace.open(options.workspace)
    if options.json:
        rows = [
            {"name": row.name, "title": row.title, "here": is_here(workspace, row), "num_bytes": row.num_bytes}
            | {"source": row.source, "revision": row.revision, "licence": row.licence}
            for row in cutouts().values()
        ]
        print(json.dumps(rows))
        return 0
    table = [("NAME", "SIZE", "HERE", "WHY")]
    table += [
        (row.name, gigabytes(row.num_bytes), "yes" if is_here(workspace, row) else "", row.why)
        for row in cutouts().values()
    ]
    print_table(table)
    return 0
