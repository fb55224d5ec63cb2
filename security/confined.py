"""The first code of a confined child process (see sandbox.run_confined): gives up its rights, then does its work.

Run as a script by its whole path. Arguments: the policy as JSON, then those of the module that does the work.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

CONFINEMENT_FAILED = 97
"""Exit code when the child could not be confined and so did nothing."""


def main(arguments: list[str]) -> int:
    """Confines this process, then runs the module that the policy names. Returns its exit code."""
    policy = json.loads(arguments[0])
    known = set(sys.path)
    sys.path += [path for path in policy["paths"] if path not in known]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from security.sandbox import confine_process

    state = confine_process(policy)
    if not state.active:
        sys.stderr.write(state.detail)
        return CONFINEMENT_FAILED
    work = importlib.import_module(policy["module"])
    return int(work.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
