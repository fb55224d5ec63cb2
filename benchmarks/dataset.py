"""Figures about the dataset studio, one command for each: `python benchmarks/dataset.py import`.

Without a name all of them are measured, one after the other, each by a script of its own. The raw results go to
benchmarks/results/dataset.json, next to what was measured when and on which machine; docs/benchmarks.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SCRIPTS = {
    "import": "importing",
    "page": "dataset_page",
    "tagging": "tagging --network lite0",
    "undo": "undo",
}
"""What can be measured, and by which module of this folder. Each prints JSON, perhaps after a line or two."""


def measure(name: str) -> Any:
    """What the script of that name prints."""
    command = [sys.executable, "-m", *f"benchmarks.{SCRIPTS[name]}".split()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout[done.stdout.index("{") :])


def main(arguments: list[str]) -> int:
    """Measures what is asked for, prints it, and keeps it. Returns the exit code."""
    from benchmarks import report
    from benchmarks.security import machine

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of: {', '.join(SCRIPTS)} (default: all)")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if unknown := set(options.figures) - set(SCRIPTS):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}. There are: {', '.join(SCRIPTS)}")
    for name in options.figures or SCRIPTS:
        result = {"measured": machine(), "figures": measure(name)}
        print(report.dataset_section(name, result), flush=True)
        if not options.no_save:
            report.keep(report.DATASET_RESULTS, name, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
