"""`dataset publish`: a dataset on Hugging Face, with a card. The token comes from its usual places or from stdin."""

from __future__ import annotations

import argparse
import getpass
import sys

from security.errors import SafelightError
from security.policy import Service
from security.secrets import Secret
from security.tokens import TokenStore
from security.upload import upload_endpoint
from trainer.dataset.publish import LICENCES, PublishOptions, publish_dataset
from trainer.logs import configure_logging
from ui.cli_dataset import follow, open_studio
from ui.endpoints import add_endpoint_options, endpoints_of

MAX_TOKEN_LINE = 8192


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset publish`."""
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument("repo", metavar="OWNER/REPO", help="where it goes on Hugging Face")
    parser.add_argument("--public", action="store_true", help="everybody may see it (default: only you)")
    parser.add_argument(
        "--replace", action="store_true", help="put a new version in the place of what is there already"
    )
    parser.add_argument("--licence", default="", choices=["", *LICENCES], metavar="NAME", help=", ".join(LICENCES))
    parser.add_argument("--description", default="", metavar="TEXT", help="Markdown for the dataset's page")
    parser.add_argument(
        "--ask-token",
        action="store_true",
        help="ask for a token that may write, or read it from stdin, and keep it nowhere; without this HF_TOKEN and the "
        "other places are looked at",
    )
    add_endpoint_options(parser, is_command=True)


def publish(options: argparse.Namespace) -> int:
    """Publishes a dataset on Hugging Face with a dataset card."""
    wanted = PublishOptions(
        options.repo,
        private=not options.public,
        replace=options.replace,
        licence=options.licence,
        description=options.description,
    )
    studio = open_studio(options)
    dataset = studio.open(options.name)
    configure_logging(studio.workspace)
    endpoint = upload_endpoint(endpoints_of(options).network())
    token = _asked_token() if options.ask_token else TokenStore().get(Service.HUGGING_FACE)
    if token is None:
        raise SafelightError("Publishing needs a token that may write: set HF_TOKEN, or use --ask-token.")
    task = studio.tasks.start(
        "publish",
        f"Publishing as {wanted.repo}",
        dataset.name,
        lambda control: publish_dataset(studio, dataset, wanted, token, endpoint, control),
    )
    return follow(studio, task, as_json=options.json)


def _asked_token() -> Secret:
    """From the terminal without showing it, or the first line of stdin. Never from the command line: others can see that."""
    is_typed = sys.stdin.isatty()
    text = getpass.getpass("Token for Hugging Face (not shown): ") if is_typed else sys.stdin.readline(MAX_TOKEN_LINE)
    return Secret(text.strip(), "token for publishing")
