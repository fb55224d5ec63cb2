"""Commands below a command, from a table of what each takes and does.

And what argparse says of a mistyped word, in plain ones.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

COMMAND, SUBCOMMAND = "COMMAND", "SUB"
"""How help names the places of a command and of one below it."""
NUMBERS = {"int": "no whole number", "float": "no number"}
_CHOICE = re.compile(
    r"argument (?P<name>.+?): invalid choice: (?P<typed>.*) \(choose from (?P<choices>.*)\)$", re.DOTALL
)
_NUMBER = re.compile(r"argument (?P<name>.+?): invalid (?P<kind>int|float) value: (?P<typed>.*)$", re.DOTALL)

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
    commands: Any = parser.add_subparsers(
        title="subcommands", metavar=SUBCOMMAND, required=True, parser_class=type(parser)
    )
    for name, (add_arguments, run) in table.items():
        help_text = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.set_defaults(**{as_option: run})
        add_workspace(command)
        command.add_argument("--json", action="store_true", help="print JSON")
        add_arguments(command)


def mistake_in_words(message: str) -> str:
    """What argparse says of a mistake, with the nearest word that is known; other messages stay as they are."""
    if found := _NUMBER.match(message):
        typed = found["typed"].strip("'\"")
        return f"{found['name']} is {typed or 'empty'}, which is {NUMBERS[found['kind']]}."
    if not (found := _CHOICE.match(message)):
        return message
    typed = found["typed"].strip("'\"")
    choices = [one for part in found["choices"].split(", ") if (one := part.strip("'\""))]
    near = difflib.get_close_matches(typed, choices, n=1)
    if found["name"] in (COMMAND, SUBCOMMAND):
        return f"{typed} is not a command. " + (
            f"Did you mean {near[0]}?" if near else f"There are: {', '.join(choices)}"
        )
    return f"{found['name']} is {typed or 'empty'}, which is none of {', '.join(choices)}." + (
        f" Did you mean {near[0]}?" if near else ""
    )
