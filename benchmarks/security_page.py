"""Makes docs/security-tests.md of the raw results in benchmarks/results/security.json."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "security-tests.md"
_TITLES = {
    "checkpoints": "Checkpoints and weight files",
    "addresses": "Addresses",
    "archives": "Archives and pictures",
    "canaries": "Tokens in output",
    "routes": "Routes of the page",
    "passwords": "Guessing the password",
    "sandbox": "The sandbox of a run",
    "verification": "Checking a large model",
}
_TEXTS = {
    "checkpoints": (
        "Malicious checkpoints are built by `tests/security/bad_checkpoints.py`, and each would leave a mark if "
        "it ran. The corpus is the test data of [picklescan](https://github.com/mmaitre314/picklescan), which is "
        "not part of this repository: `--corpus DIR` names a folder with it. It holds some harmless files too; "
        "they are in old or odd forms, and are refused as well."
    ),
    "addresses": (
        'What a user may type, what a hub may redirect to, and what a name may resolve to. "Real" ones have to be '
        "accepted."
    ),
    "archives": (
        "Hostile archives climb out of their folder, lie about sizes, hold links or can be read in two ways. "
        "Wrong pictures are cut off, too large, animated, in other formats or not pictures at all."
    ),
    "canaries": (
        "Made-up tokens of six shapes are driven through ways of losing one: failed requests, exceptions, child "
        "processes, writes past Python, split writes. Then every byte of the output, logs and files is searched. "
        '"Bare" is the same without the protection, which shows that the search finds them.'
    ),
    "routes": ("A stranger is a visitor without a login, the owner one with it, on a page that others can reach."),
    "passwords": (
        "Twenty visitors guess as fast as they can at a real page; the form opens again after a while, so a day "
        "is counted too, on a simulated clock."
    ),
    "sandbox": (
        "What a run must not be able to do: read other files of the user, write elsewhere, start programs, reach "
        "the network or other programs. Each is tried without the sandbox first, where it works."
    ),
    "verification": (
        'Beside reading the same file and doing nothing with it. "First" is after dropping it from the cache of the '
        "system. The header is checked every time a file is opened, the hash before training if size or time "
        "changed, the numbers once."
    ),
}


def page_of(results: dict[str, Any]) -> str:
    """The whole page as Markdown. `results` is what the JSON file holds: figures and machine, by name."""
    parts = [
        "# Security tests in figures\n\n"
        "Made by `python benchmarks/security.py` from `benchmarks/results/security.json`: do not edit. The same things are\n"
        "tested with every change; here they are counted. What each protection is for: [SECURITY.md](../SECURITY.md).\n"
    ]
    parts += [_section(name, results[name]) for name in _TITLES if name in results]
    return "\n".join(parts)


def _section(name: str, result: dict[str, Any]) -> str:
    measured, figures = result["measured"], result["figures"]
    text = textwrap.fill(_TEXTS[name], 125, break_on_hyphens=False, break_long_words=False)
    lines = [f"## {_TITLES[name]}", "", text, "", "| what | figures |", "|---|---|"]
    lines += [f"| {title} | {_cell(values)} |" for title, values in figures.items() if "rows" not in values]
    lines += ["", f"`python benchmarks/security.py {name}`, {_machine(measured)}.", ""]
    for title, values in figures.items():
        if "rows" in values:
            lines += [
                f"### {title[0].upper()}{title[1:]}",
                "",
                "| route | stranger | owner | shut because |",
                "|---|---|---|---|",
            ]
            lines += ["| " + " | ".join(["`" + str(row[0]) + "`", *map(str, row[1:])]) + " |" for row in values["rows"]]
            lines.append("")
    return "\n".join(lines)


def _cell(values: dict[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if value != [] and not key.endswith("sha256")}
    return ", ".join(f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in shown.items())


def _machine(measured: dict[str, str]) -> str:
    return f"{measured['date']}, {measured['processor']}, {measured['system']}, Python {measured['python']}"
