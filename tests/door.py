"""Homes with a copy of launch.py and next to nothing behind it, for tests that install for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import launch

PROGRAM = Path(launch.__file__)
LOCKED = {
    line.partition("==")[0]: line
    for file in (launch.REQUIREMENTS, launch.TEST_REQUIREMENTS)
    for line in launch.read_requirements(file)
}
"""The real entries, with their hashes."""
INICONFIG = LOCKED["iniconfig"]
FAKE_COMMAND = '''"""Stands in for the real command line."""
import json, os, signal, sys, time

def main(arguments):
    names = [name for name in os.environ if name.startswith(("MALLOC_", "OMP_WAIT_POLICY"))]
    print(json.dumps({"arguments": arguments, "malloc": {name: os.environ[name] for name in names}, "prefix": sys.prefix}))
    sys.stdout.flush()
    if arguments[:1] == ["wait"]:
        seen = []
        signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
        print("waiting", flush=True)
        while not seen:
            time.sleep(0.05)
        time.sleep(0.5)
        return 40 + len(seen)
    return int(arguments[1]) if arguments[:1] == ["code"] else 0
'''


def start(
    home: Path, *arguments: str, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs the copy of launch.py in `home` to its end."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "OMP_WAIT_POLICY", "SAFELIGHT_"))
    }
    environment = {**inherited, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [python, str(home / "launch.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def make_home(folder: Path, requirement: str = INICONFIG) -> Path:
    """A repository with the real launch.py and next to nothing behind it."""
    (folder / "ui").mkdir(parents=True)
    (folder / "ui" / "__init__.py").touch()
    (folder / "ui" / "cli.py").write_text(FAKE_COMMAND)
    shutil.copy(PROGRAM, folder)
    (folder / "requirements.txt").write_text(f"# roots\n{requirement}\n\n# What those bring\n")
    (folder / "requirements-test.txt").write_text("# nothing more\n")
    return folder


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and, on the last line, one sentence of ours with those words; no stack of calls."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("safelight: ")
    for word in words:
        assert word in last, last
