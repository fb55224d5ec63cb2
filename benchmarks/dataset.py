"""Figures about the dataset studio, one command for each: `python benchmarks/dataset.py import`.

Without a name all of them are measured, one after the other, each by a script of its own. The raw results go to
benchmarks/results/dataset.json, next to what was measured when and on which machine; docs/benchmarks.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "dataset.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SCRIPTS = {
    "import": "importing",
    "page": "dataset_page",
    "tagging": "tagging --network lite0",
    "undo": "undo",
}
"""What can be measured, and by which module of this folder. Each prints JSON, perhaps after a line or two."""
TITLES = {
    "import": "Importing pictures",
    "page": "The Dataset tab with many pictures",
    "tagging": "Tagging on the CPU",
    "undo": "Undo",
}
TEXTS = {
    "import": (
        "Pictures of the sizes that cameras, phones and picture sites have, with captions: checked, decoded, written "
        "without their metadata, with a thumbnail each, as one step that can be undone."
    ),
    "page": (
        "Real Chromium on the served page. The first time thumbnails and sizes are not in the cache yet. Frames are those of "
        "a scroll through the whole list. Seconds unless the name says otherwise."
    ),
    "tagging": (
        "Beside what a person would write: one plain loop over the same pictures with the same network in the same "
        "onnxruntime, one picture after the other, that writes nothing. Both take turns; the medians count."
    ),
    "undo": (
        "Every caption of the dataset is changed in one edit, undone and redone. Undo is checked to give the same bytes. Plain "
        "writes are the same files without a history and without care for a power cut. Seconds."
    ),
}


def page_of(results: dict[str, Any]) -> str:
    """The page as Markdown. `results` is what the JSON file holds: figures and machine, by name."""
    parts = [
        "# Benchmarks\n\n"
        "Made by `python benchmarks/dataset.py` from `benchmarks/results/dataset.json`: do not edit.\n"
        "Figures about the protections: [security-tests.md](security-tests.md); what each adapter and optimizer learns:\n"
        "[learning.md](learning.md).\n"
    ]
    return "\n".join(parts + [_section(name, results[name]) for name in TITLES if name in results])


def _section(name: str, result: dict[str, Any]) -> str:
    measured = result["measured"]
    text = textwrap.fill(TEXTS[name], 125, break_on_hyphens=False, break_long_words=False)
    rows = [f"| {key} | {value} |" for key, value in _flat(result["figures"])]
    machine = f"{measured['date']}, {measured['processor']}, {measured['system']}, Python {measured['python']}"
    command = f"`python benchmarks/dataset.py {name}`, {machine}."
    return "\n".join([f"## {TITLES[name]}", "", text, "", "| what | figure |", "|---|---|", *rows, "", command, ""])


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested figures as rows; lists of numbers become one cell. The machine has a line of its own."""
    if isinstance(value, dict):
        shown = {key: part for key, part in value.items() if key not in ("machine", "measured")}
        return [row for key, part in shown.items() for row in _flat(part, f"{path}, {key}" if path else str(key))]
    if isinstance(value, list):
        return [(path.replace("_", " "), ", ".join(map(str, value)))]
    return [(path.replace("_", " "), str(value))]


def measure(name: str) -> Any:
    """What the script of that name prints."""
    command = [sys.executable, "-m", *f"benchmarks.{SCRIPTS[name]}".split()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout[done.stdout.index("{") :])


def main(arguments: list[str]) -> int:
    """Measures what is asked for, prints it, and keeps it. Returns the exit code."""
    from benchmarks.security import machine

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of: {', '.join(SCRIPTS)} (default: all)")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if unknown := set(options.figures) - set(SCRIPTS):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}. There are: {', '.join(SCRIPTS)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in options.figures or SCRIPTS:
        results[name] = {"measured": machine(), "figures": measure(name)}
        print(_section(name, results[name]), flush=True)
        if not options.no_save:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page_of(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
