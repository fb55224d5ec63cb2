"""`dataset export`: a dataset as a folder or zip file, for other programs and other people."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.dataset.export import Layout, export_to, new_place
from trainer.tasks import TaskControl
from ui.cli_dataset import follow, open_studio


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="the new folder, or the new file if it ends with .zip"
    )
    parser.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=Layout.FOLDERS.value,
        help="folders: as they are (default); kohya: 10_trigger NAME, with the trigger word in every caption",
    )


def export(options: argparse.Namespace) -> int:
    """Exports and shows how far it is."""
    studio = open_studio(options)
    dataset = studio.open(options.name)
    place = new_place(str(Path(options.out).expanduser().absolute()), None)

    def work(control: TaskControl) -> str:
        return f"{export_to(dataset, place, Layout(options.layout), control).sentence} {place}"

    task = studio.tasks.start("export", f"Exporting {dataset.name}", dataset.name, work)
    return follow(studio, task, as_json=options.json)
