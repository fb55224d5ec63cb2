"""`dataset tag`: captions by taggers and captioners, and fetching these."""

from __future__ import annotations

import argparse
import json
import os
from fnmatch import fnmatchcase

from security.errors import SafelightError
from security.policy import Service
from security.tokens import TokenStore
from trainer.config.files import Setting, SettingKind, parse_text
from trainer.logs import configure_logging
from trainer.models.downloads import Downloads
from trainer.models.text import gigabytes
from trainer.tagging.base import TaggingOptions, find_tagger
from trainer.tagging.options import OPTIONS, tagging_options
from trainer.tagging.run import tag_dataset
from trainer.tagging.shelf import get_tagger, is_here, list_taggers, plan_tagger
from trainer.workspace import Workspace
from ui.cli_dataset import follow, open_studio
from ui.cli_fetch import fetch_planned
from ui.cli_lists import print_table
from ui.endpoints import add_endpoint_options, endpoints_of


def tag_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset tag`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument("--list", action="store_true", help="list the taggers and captioners instead")
    parser.add_argument("--fetch", metavar="TAGGER", help="fetch a tagger or captioner; with NAME, then tag with it")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before fetching, and agree to what is not verified"
    )
    parser.add_argument(
        "--pictures",
        action="append",
        metavar="PATTERN",
        help="only these, such as '10_mira/*'. May be given repeatedly",
    )
    for setting in OPTIONS.values():
        parser.add_argument(
            _flag(setting), dest=f"option_{setting.name}", metavar=_metavar(setting), help=_help(setting)
        )
    add_endpoint_options(parser, is_command=True)


def tag(options: argparse.Namespace) -> int:
    """Captions pictures by a tagger or captioner."""
    if options.list:
        return _list(options)
    if options.fetch:
        code = _fetch(options)
        if code or not options.name:
            return code
    if not options.name:
        raise SafelightError("Name the dataset to tag: dataset tag NAME. `dataset tag --list` has the taggers.")
    chosen = _chosen_options(options)
    studio = open_studio(options)
    dataset = studio.open(options.name)
    names = dataset.pictures()
    if options.pictures:
        names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in options.pictures)]
        if not names:
            raise SafelightError(f"{options.name} has no picture that fits {' or '.join(options.pictures)}.")
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


def _fetch(options: argparse.Namespace) -> int:
    workspace = Workspace.open(options.workspace)
    row = find_tagger(options.fetch)
    if is_here(workspace, row):
        if not options.name:
            print(f"{row.title} is here already.")
        return 0
    configure_logging(workspace)
    endpoints, tokens = endpoints_of(options), TokenStore()
    downloads = Downloads(workspace, endpoints.network(), tokens, fault=endpoints.fault(os.environ))
    if downloads.fault:
        raise SafelightError(downloads.fault)
    plan = plan_tagger(downloads.network, tokens.get(Service.HUGGING_FACE), row)
    return fetch_planned(downloads, plan, options, name=row.name)


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
