"""Child processes: no shell, no secrets, an end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from security.errors import FailedCommand
from security.processes import run


def test_arguments_reach_the_program_untouched(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = [f"; touch {marker}", f"$(touch {marker})", f"`touch {marker}`", "a\nb", "--flag=x y", "*", "ü"]
    done = run([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *hostile], timeout_seconds=20)
    assert done.returncode == 0
    assert done.stdout.strip() == ascii(hostile)
    assert not marker.exists()


def test_children_see_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-1")
    monkeypatch.setenv("CIVITAI_TOKEN", "canary-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    program = "import os; print(sorted(os.environ.items()))"
    done = run([sys.executable, "-c", program], timeout_seconds=20, env={"EXTRA": "given"})
    assert "canary" not in done.stdout
    assert "'CUDA_VISIBLE_DEVICES', '1'" in done.stdout
    assert "'EXTRA', 'given'" in done.stdout


def test_exit_code_and_output_are_returned() -> None:
    done = run([sys.executable, "-c", "import sys; sys.stderr.write('oh'); sys.exit(3)"], timeout_seconds=20)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "oh")


def test_children_do_not_read_the_input_of_the_program() -> None:
    child = "import sys; print(repr(sys.stdin.read()))"
    program = f"import sys, security.processes as p; print(p.run([sys.executable, '-c', {child!r}], timeout_seconds=20).stdout)"
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, input="typed", capture_output=True, text=True
    )
    assert done.stdout.strip() == "''"


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    grandchild = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    start = time.perf_counter()
    with pytest.raises(FailedCommand, match="did not end within 2 s"):
        run([sys.executable, "-c", program], timeout_seconds=2)
    assert time.perf_counter() - start < 20
    if sys.platform != "win32":
        size = beat.stat().st_size if beat.exists() else 0
        time.sleep(0.4)
        assert (beat.stat().st_size if beat.exists() else 0) == size


def test_missing_programs_and_nul_are_named() -> None:
    with pytest.raises(FailedCommand, match="'no-such-program' is not installed"):
        run(["no-such-program"], timeout_seconds=1)
    with pytest.raises(FailedCommand, match="NUL"):
        run([sys.executable, "a\0b"], timeout_seconds=1)
