"""`dataset tag`: captions by taggers and captioners, and fetching these."""

from __future__ import annotations

import argparse
import json

from security.errors import SafelightError
from trainer.config.files import Setting, SettingKind, parse_text
from trainer.models.text import gigabytes
from trainer.tagging.base import TaggingOptions, find_tagger
from trainer.tagging.options import OPTIONS, tagging_options
from trainer.tagging.run import tag_dataset
from trainer.tagging.shelf import get_tagger, is_here, list_taggers
from trainer.workspace import Workspace
from ui.cli_dataset import follow, meant_pictures, open_studio, picture_arguments
from ui.cli_lists import print_table
from ui.cli_networks import fetch_network, network_arguments


def tag_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset tag`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the dataset, as `dataset list` calls it")
    network_arguments(parser, "tagger or captioner")
    picture_arguments(parser)
    for setting in OPTIONS.values():
        parser.add_argument(
            _flag(setting), dest=f"option_{setting.name}", metavar=_metavar(setting), help=_help(setting)
        )


def tag(options: argparse.Namespace) -> int:
    """Captions pictures by a tagger or captioner."""
    if options.list:
        return _list(options)
    if options.fetch:
        code = fetch_network(options, find_tagger(options.fetch))
        if code or not options.name:
            return code
    if not options.name:
        raise SafelightError("Name the dataset to tag: dataset tag NAME. `dataset tag --list` has the taggers.")
    chosen = _chosen_options(options)
    studio = open_studio(options)
    dataset = studio.open(options.name)
    names = meant_pictures(dataset, options.pictures)
    for name in chosen.models:
        row = get_tagger(studio.workspace, name)
        if not is_here(studio.workspace, row):
            raise SafelightError(f"{row.title} is not in the workspace yet. Add --fetch {row.name}.")
    task = studio.tasks.start(
        "tag",
        "Tagging",
        dataset.name,
        lambda control: tag_dataset(studio.workspace, dataset, names, chosen, control),
        lane="compute",
    )
    try:
        return follow(studio, task, as_json=options.json)
    finally:
        dataset.history.settle()


def _chosen_options(options: argparse.Namespace) -> TaggingOptions:
    values = {}
    for name, setting in OPTIONS.items():
        text = getattr(options, f"option_{name}")
        if text is None:
            continue
        try:
            values[name] = text if setting.kind is SettingKind.LINES else parse_text(setting, text)
        except ValueError:
            raise SafelightError(f"{_flag(setting)} is {text!r}, which is no {setting.kind.value}.") from None
    if options.fetch and "models" not in values:
        values["models"] = find_tagger(options.fetch).name
    return tagging_options(values)


def _list(options: argparse.Namespace) -> int:
    shelved = list_taggers(Workspace.open(options.workspace))
    if options.json:
        print(
            json.dumps(
                [
                    {
                        "name": one.row.name,
                        "title": one.row.title,
                        "kind": one.row.kind,
                        "here": one.is_here,
                        "own": one.is_own,
                        "num_bytes": one.row.num_bytes or None,
                        "source": one.row.source,
                        "revision": one.row.revision,
                        "licence": one.row.licence,
                    }
                    for one in shelved
                ]
            )
        )
        return 0
    rows = [("NAME", "WRITES", "SIZE", "HERE", "WHY")]
    rows += [
        (
            one.row.name,
            "sentences" if one.row.kind == "sentence" else "tags",
            gigabytes(one.row.num_bytes) if one.row.num_bytes else "",
            "yes" if one.is_here else "",
            one.row.why,
        )
        for one in shelved
    ]
    print_table(rows)
    return 0


def _flag(setting: Setting) -> str:
    name = "model" if setting.name == "models" else setting.name
    return "--" + name.replace("_", "-")


def _metavar(setting: Setting) -> str:
    if setting.kind is SettingKind.SWITCH:
        return "on|off"
    return "A,B" if setting.kind is SettingKind.LINES else setting.kind.value.upper()


def _help(setting: Setting) -> str:
    allowed = f" Allowed: {setting.range_text}." if setting.range_text else ""
    default = setting.default
    if setting.kind is SettingKind.SWITCH:
        default = "on" if default else "off"
    elif setting.kind is SettingKind.LINES:
        default = ", ".join(default)
    return f"{setting.help}{allowed} Default: {default if default != '' else 'nothing'}.".replace("%", "%%")
