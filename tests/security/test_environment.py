"""The environment of the page and of training, tried in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from security.policy import DROPPED_VARIABLES, OFFLINE_VARIABLES

REPOSITORY = Path(__file__).resolve().parents[2]


def python(program: str, **variables: str) -> str:
    """Runs a program in a fresh Python with more variables; returns what it prints."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_variables_that_widen_what_is_served_are_removed(tmp_path: Path) -> None:
    hostile = {
        "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_VIBE_MODE": "1",
        "GRADIO_RUN_HISTORY": "True", "GRADIO_ROOT_PATH": "http://evil.example", "GRADIO_MCP_SERVER": "True",
        "GRADIO_SSR_MODE": "True", "GRADIO_SOMETHING_NEW": "1", "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_TEMP_DIR": "/tmp/shared", "NO_PROXY": "intranet.example", "HF_HUB_OFFLINE": "0",
        **dict.fromkeys(DROPPED_VARIABLES, "1"),
    }  # fmt: skip
    program = (
        "import os, sys, pathlib, stat\n"
        "from security.environment import closed_environment\n"
        f"folder = closed_environment(pathlib.Path({str(tmp_path)!r}) / 'new' / 'temp')\n"
        "print(sorted(name for name in os.environ if name.startswith('GRADIO')))\n"
        "print(os.environ['GRADIO_ANALYTICS_ENABLED'], os.environ['GRADIO_TEMP_DIR'] == str(folder))\n"
        "print(os.environ['NO_PROXY'], os.environ['no_proxy'])\n"
        f"print([name for name in {DROPPED_VARIABLES!r} if name in os.environ])\n"
        f"print(all(os.environ[name] == value for name, value in {OFFLINE_VARIABLES!r}.items()))\n"
        "print(oct(stat.S_IMODE(folder.stat().st_mode)), folder.parent.name)\n"
        "print('gradio' in sys.modules, 'torch' in sys.modules, 'starlette' in sys.modules)\n"
    )
    lines = python(program, **hostile).splitlines()
    assert lines[0] == "['GRADIO_ANALYTICS_ENABLED', 'GRADIO_TEMP_DIR']"
    assert lines[1] == "False True"
    assert lines[2].startswith("intranet.example,127.0.0.1,localhost,::1 ")
    assert "127.0.0.1,localhost,::1" in lines[2].split()[1]
    assert lines[3:5] == ["[]", "True"]
    assert lines[5] == "0o700 temp" or sys.platform == "win32"
    assert lines[6] == "False False False"
    assert list((tmp_path / "new" / "temp").iterdir()) == []


def test_temporary_folders_of_killed_programs_are_swept_and_those_in_use_are_not(tmp_path: Path) -> None:
    start = "import time, pathlib\nfrom security.environment import closed_environment\n"
    hold = start + f"print(closed_environment(pathlib.Path({str(tmp_path)!r})), flush=True)\ntime.sleep(60)"
    first, second = (
        subprocess.Popen([sys.executable, "-c", hold], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        assert first.stdout is not None
        assert second.stdout is not None
        killed, used = Path(first.stdout.readline().strip()), Path(second.stdout.readline().strip())
        (killed / "upload.bin").write_bytes(b"x")
        (tmp_path / "safelight-page-a-file").write_text("not ours to remove")
        (tmp_path / "safelight-page-other").mkdir()
        first.kill()
        first.wait()
        assert killed.is_dir()
        python(start + f"closed_environment(pathlib.Path({str(tmp_path)!r}))")
        assert not killed.exists()
        assert used.is_dir()
        assert (tmp_path / "safelight-page-a-file").exists()
        assert (tmp_path / "safelight-page-other").exists()
    finally:
        second.kill()
        second.wait()
        assert first.stdout is not None
        assert second.stdout is not None
        first.stdout.close()
        second.stdout.close()


def test_programs_that_start_at_once_leave_each_other_their_folders(tmp_path: Path) -> None:
    program = (
        "import pathlib, time, security.environment as environment\n"
        f"folders = [environment.closed_environment(pathlib.Path({str(tmp_path)!r})) for _ in range(25)]\n"
        "time.sleep(0.3)\n"
        "assert all((folder / 'lock').exists() for folder in folders)\n"
    )
    programs = [subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) for _ in range(4)]
    assert [one.wait(timeout=60) for one in programs] == [0] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="links as on Linux and macOS")
def test_the_sweep_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "lock").write_bytes(b"")
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp" / "safelight-page-link").symlink_to(tmp_path / "precious")
    temp = str(tmp_path / "temp")
    python(
        f"import pathlib, security.environment as environment\nenvironment.closed_environment(pathlib.Path({temp!r}))"
    )
    assert (tmp_path / "precious" / "lock").exists()


def test_the_hub_believes_that_it_is_offline() -> None:
    program = (
        "from security.environment import offline_environment\n"
        "offline_environment()\n"
        "import huggingface_hub.constants as constants\n"
        "print(constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_IMPLICIT_TOKEN)\n"
    )
    assert python(program, HF_HUB_OFFLINE="0").split() == ["True"] * 3


READERS = {
    "DIFFUSERS_DISABLE_REMOTE_CODE": ("diffusers", "utils/constants.py"),
    "USE_HUB_KERNELS": ("transformers", "integrations/hub_kernels.py"),
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": ("torch", "serialization.py"),
}


@pytest.mark.parametrize("variable", READERS)
def test_the_variables_are_still_the_ones_that_the_libraries_read(variable: str) -> None:
    package, file = READERS[variable]
    spec = importlib.util.find_spec(package)  # does not import it
    assert spec is not None
    assert spec.origin is not None
    assert f'"{variable}"' in (Path(spec.origin).parent / file).read_text(encoding="utf-8")
