"""`dataset import`: pictures from folders, archives and files of this machine, or from an address."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path

from security.errors import SafelightError
from security.policy import Service
from security.roots import resolve_user_path
from security.tokens import TokenStore
from trainer.dataset.addresses import plan_address
from trainer.dataset.fetched import DEFAULT_MOST, AddressOptions, import_address
from trainer.dataset.importing import check_name, import_paths
from trainer.dataset.studio import Studio
from trainer.logs import configure_logging
from trainer.tasks import Work
from ui.cli_dataset import follow, open_studio
from ui.endpoints import add_endpoint_options, endpoints_of


def import_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset import`."""
    parser.add_argument("name", metavar="NAME", help="the dataset; a new name makes a new one, a known one is added to")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders, .zip archives or pictures with their captions, or one address: hf:OWNER/NAME or a .zip of a hub",
    )
    parser.add_argument(
        "--most",
        type=int,
        default=DEFAULT_MOST,
        metavar="N",
        help=f"take at most N pictures from an address (default: {DEFAULT_MOST})",
    )
    parser.add_argument(
        "--column", default="", metavar="COLUMN", help="the column of captions in Parquet files (default: by its name)"
    )
    add_endpoint_options(parser, is_command=True)


def import_sources(options: argparse.Namespace) -> int:
    """Imports and returns the exit code. Ctrl+C ends it; what came in stays and can be undone."""
    check_name(options.name)
    studio = open_studio(options)
    configure_logging(studio.workspace)
    addresses = [source for source in options.sources if _is_address(source)]
    if addresses:
        if len(options.sources) > 1:
            raise SafelightError(f"{addresses[0]} is an address. Import it alone, and the rest in a second step.")
        work, lane = _fetching(studio, options, addresses[0]), "network"
    else:
        paths = [resolve_user_path(str(Path(source).expanduser().absolute()), None) for source in options.sources]
        work, lane = functools.partial(import_paths, studio, options.name, paths), "disk"
    task = studio.tasks.start("import", f"Import into {options.name}", options.name, work, lane)
    try:
        return follow(studio, task, as_json=options.json)
    finally:
        if options.name in {info.name for info in studio.datasets()}:
            studio.open(options.name).history.settle()


def _is_address(source: str) -> bool:
    """Whether a source is an address: a path that is there never is one."""
    if Path(source).expanduser().exists():
        return False
    return bool(re.match(r"(hf:|https?://|(www\.)?(huggingface\.co|hf\.co)/)", source, re.IGNORECASE))


def _fetching(studio: Studio, options: argparse.Namespace, address: str) -> Work:
    """Tells what is there, and returns the work that fetches exactly that."""
    endpoints = endpoints_of(options)
    if fault := endpoints.fault(os.environ):
        raise SafelightError(fault)
    network, token = endpoints.network(), TokenStore().get(Service.HUGGING_FACE)
    plan = plan_address(network, token, address)
    if not options.json:
        print(plan.title)
        for line in (*plan.facts, *plan.warnings):
            print(f"  {line}")
    chosen = AddressOptions(options.most, options.column)
    return functools.partial(import_address, studio, network, token, options.name, plan.source, chosen)
