"""The first code of a worker, one of the processes that train together (see workers.py): finds the program and starts it.

Run as a script by its whole path. Argument: JSON with the module that does the work and the folders that code comes from.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Runs `main(said)` of the module, where `said` writes lines to the program that started this one; returns its code."""
    policy = json.loads(arguments[0])
    known = set(sys.path)
    sys.path += [path for path in policy["paths"] if path not in known]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from security.environment import offline_environment, private_files

    private_files()
    offline_environment()
    said = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message
    sys.stdout = sys.stderr
    work = importlib.import_module(policy["module"])
    return int(work.main(said))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # what libraries still hold open is no longer theirs to touch: the sandbox is shut
