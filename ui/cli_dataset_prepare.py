"""`dataset prepare`: a new dataset out of another, on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from security.errors import SafelightError
from trainer.config.files import apply_flags, load_values, parse_config, parse_text
from trainer.dataset.plan import model_step
from trainer.dataset.prepare import OPTIONS, prepare_dataset, prepare_options
from ui.cli_dataset import follow, meant_pictures, open_studio, picture_arguments
from ui.settings_files import named_file


def prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `dataset prepare`."""
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it; it stays as it is")
    parser.add_argument("new", metavar="NEW", help="name of the new dataset")
    parser.add_argument("--config", type=Path, metavar="RUN.toml", help="crop as this run would (with --crop training)")
    parser.add_argument("--resolution", metavar="N", help="crop for this resolution in pixels (with --crop training)")
    parser.add_argument("--base", metavar="MODEL", help="crop for this base model (with --crop training)")
    picture_arguments(parser)
    for setting in OPTIONS.values():
        allowed = f" Allowed: {setting.range_text}." if setting.range_text else ""
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            dest=f"option_{setting.name}",
            metavar=setting.kind.value.upper(),
            help=f"{setting.help}{allowed} Default: {setting.default or 'nothing'}.".replace("%", "%%"),
        )


def prepare(options: argparse.Namespace) -> int:
    """Makes it and tells what was left out."""
    values = {}
    for name, setting in OPTIONS.items():
        text = getattr(options, f"option_{name}")
        if text is not None:
            try:
                values[name] = parse_text(setting, text)
            except ValueError:
                raise SafelightError(f"--{name.replace('_', '-')} is {text!r}, which is no whole number.") from None
    chosen = prepare_options(values)
    flags = []
    if options.resolution is not None:
        flags += ["--dataset.resolution", options.resolution]
    if options.base is not None:
        flags += ["--model.base", options.base]
    config = parse_config(
        apply_flags(load_values(named_file(options.config)) if options.config is not None else {}, flags)
    )
    studio = open_studio(options)
    dataset = studio.open(options.name)
    if options.base is not None:
        model_step(studio.workspace, config.model.base)  # a model that is named must be there
    names = meant_pictures(dataset, options.pictures) if options.pictures else None
    task = studio.tasks.start(
        "prepare",
        f"Preparing {options.new}",
        dataset.name,
        lambda control: prepare_dataset(studio, dataset, options.new, chosen, config, names=names, control=control),
    )
    return follow(studio, task, as_json=options.json)
