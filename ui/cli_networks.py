"""What the commands that use networks on pictures share: listing and fetching one."""

from __future__ import annotations

import argparse
import os

from security.errors import SafelightError
from security.policy import Service
from security.tokens import TokenStore
from trainer.logs import configure_logging
from trainer.models.downloads import Downloads
from trainer.tagging.base import TaggerRow
from trainer.tagging.shelf import is_here, plan_tagger
from trainer.workspace import Workspace
from ui.cli_fetch import fetch_planned
from ui.endpoints import add_endpoint_options, endpoints_of


def network_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags for fetching; `what` is the word for such a network."""
    parser.add_argument("--list", action="store_true", help=f"list the {what}s instead")
    parser.add_argument("--fetch", metavar="NETWORK", help=f"fetch a {what}; with NAME, then use it")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before fetching, and agree to what is not verified"
    )
    add_endpoint_options(parser, is_command=True)


def fetch_network(options: argparse.Namespace, row: TaggerRow) -> int:
    """Fetches a network after a question, unless it is here. Returns the exit code."""
    workspace = Workspace.open(options.workspace)
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
