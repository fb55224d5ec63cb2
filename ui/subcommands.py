"""Commands below a command, from a table of what each takes and does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

AddArguments = Callable[[argparse.ArgumentParser], None]


def add_subcommands(
    parser: argparse.ArgumentParser,
    table: Mapping[str, tuple[AddArguments, Callable[..., int]]],
    add_workspace: AddArguments,
    *,
    as_option: str,
) -> None:
    """Adds every row: its arguments, --workspace and --json. What it does is kept under `as_option` of the options.

    The help is the first line of that function's docstring.
    """
    commands: Any = parser.add_subparsers(title="subcommands", metavar="SUB", required=True, parser_class=type(parser))
    for name, (add_arguments, run) in table.items():
        help_text = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.set_defaults(**{as_option: run})
        add_workspace(command)
        command.add_argument("--json", action="store_true", help="print JSON")
        add_arguments(command)
