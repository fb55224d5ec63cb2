"""The door: which Python it takes, what it installs, what it repairs, and the one sentence for everything that fails.

Installs for real, but only one tiny package, with a copy of launch.py in a temporary folder.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import launch
from tests.door import LOCKED, PROGRAM, assert_one_sentence, make_home, start

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and executables of POSIX systems")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose first start has installed everything."""
    home = make_home(tmp_path_factory.mktemp("door") / "a home")
    done = start(home, "first", "--flag", "two words")
    assert done.returncode == 0, done.stderr
    assert "installed in" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["arguments"] == ["first", "--flag", "two words"]
    assert Path(answer["prefix"]).resolve() == (home / ".venv").resolve()
    return home


def test_parses_under_old_pythons() -> None:
    """Python 3.6 has to read the whole file before it can say that it is too old."""
    ast.parse(PROGRAM.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13), (3, 15, 0)])
def test_unfit_python_gets_one_sentence(version: tuple[int, int, int]) -> None:
    code = f"import sys, runpy; sys.version_info = {version}; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert_one_sentence(done, f"Python {version[0]}.{version[1]}", "3.11 to 3.14")


def test_help_before_the_first_installation(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    done = start(home, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python launch.py")
    assert not (home / ".venv").exists()


def test_second_start_installs_nothing_and_passes_the_exit_code_on(installed: Path) -> None:
    log = (installed / ".venv" / "install.log").read_text()
    began = time.monotonic()
    done = start(installed, "code", "7")
    assert done.returncode == 7 and done.stderr == ""
    assert time.monotonic() - began < 5
    assert (installed / ".venv" / "install.log").read_text() == log


def test_versions_are_the_pinned_ones(installed: Path) -> None:
    assert [path.name for path in (installed / ".venv").rglob("iniconfig-*.dist-info")] == ["iniconfig-2.3.1.dist-info"]


@pytest.mark.skipif(not launch.memory_settings(), reason="these settings are glibc's")
def test_memory_settings_are_there_before_python_starts(installed: Path) -> None:
    assert json.loads(start(installed).stdout)["malloc"] == launch.RUNTIME
    chosen = json.loads(start(installed, MALLOC_TOP_PAD_="4096").stdout)["malloc"]
    assert chosen == {**launch.RUNTIME, "MALLOC_TOP_PAD_": "4096"}
    inside = start(installed, "--no-venv", python=str(installed / ".venv" / "bin" / "python"))
    assert json.loads(inside.stdout)["malloc"] == launch.RUNTIME


def test_interrupted_installation_is_done_again(installed: Path) -> None:
    """Without the marker, as kill -9 leaves it, and with a file cut in the middle, which pip takes for whole."""
    (installed / ".venv" / "safelight.json").unlink()
    module = next((installed / ".venv").rglob("iniconfig/__init__.py"))
    whole = module.read_bytes()
    module.write_bytes(whole[:100])
    done = start(installed, "code", "3")
    assert done.returncode == 3, done.stderr
    assert "repaired: iniconfig" in done.stderr
    assert module.read_bytes() == whole


def test_changed_requirements_are_installed(installed: Path) -> None:
    requirements = installed / "requirements.txt"
    requirements.write_text(requirements.read_text() + "# changed\n")
    assert "installed in" in start(installed).stderr
    assert start(installed).stderr == ""


def test_tests_bring_their_own_requirements(installed: Path) -> None:
    (installed / "requirements-test.txt").write_text(LOCKED["pluggy"].replace(" --hash", " \\\n    --hash") + "\n")
    assert start(installed, "runs").stderr == ""
    assert "installed in" in start(installed, "test").stderr
    assert list((installed / ".venv").rglob("pluggy-1.7.0.dist-info"))
    assert start(installed, "test").stderr == ""


@posix_only
def test_broken_environment_is_made_anew(installed: Path) -> None:
    python = installed / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text("not a program")
    done = start(installed, "code", "5")
    assert done.returncode == 5, done.stderr
    assert "broken; making a new one" in done.stderr


def test_unreachable_index_is_one_sentence(installed: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text(before.replace("iniconfig==2.3.1", "iniconfig==2.3.0"))
    done = start(installed, PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", **nowhere)
    assert_one_sentence(done, "package index can't be reached")
    requirements.write_text(before)
    assert start(installed).returncode == 0


def test_missing_build_is_one_sentence(installed: Path) -> None:
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text(before.replace("iniconfig==2.3.1", "iniconfig==99.0"))
    assert_one_sentence(start(installed, PIP_NO_INDEX="1"), "iniconfig==99.0 has no build for this system")
    requirements.write_text(before)
    assert start(installed).returncode == 0


@posix_only
def test_sigterm_reaches_the_command_once(installed: Path) -> None:
    command = [sys.executable, str(installed / "launch.py"), "wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("waiting" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 41


@posix_only
def test_interrupted_installation_leaves_no_pip_behind(installed: Path) -> None:
    """SIGTERM while pip waits for an index that never answers."""
    requirements = installed / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text(before.replace("iniconfig==2.3.1", "iniconfig==2.3.0"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {**os.environ, "PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": ""}
        environment["PIP_FIND_LINKS"] = ""
        command = [sys.executable, str(installed / "launch.py")]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        with connection:
            connection.settimeout(30)
            while connection.recv(4096):
                pass  # pip's request, then the end of the connection: pip is gone
    assert not (installed / ".venv" / "safelight.json").exists()
    assert process.stderr is not None and "The next start goes on" in process.stderr.read()
    requirements.write_text(before)
    assert start(installed).returncode == 0


def test_no_venv_names_what_is_missing(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", "no-such-package-1b7==1.0")
    done = start(home, "--no-venv")
    assert_one_sentence(done, "lacks some packages", "-m pip install no-such-package-1b7==1.0")
    assert not (home / ".venv").exists()


# What can't be brought about for real is brought about by replacing one function of the door.


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The imported launch module, looking at a home where nothing is installed. SIGTERM is put back afterwards."""
    home = make_home(tmp_path / "home", f"{LOCKED['torch']}\n{LOCKED['triton']}")
    venv = home / ".venv"
    for name, path in {
        "ROOT": home,
        "VENV": venv,
        "MARKER": venv / "safelight.json",
        "LOG": venv / "install.log",
        "LOCK": home / ".venv.lock",
        "REQUIREMENTS": home / "requirements.txt",
        "TEST_REQUIREMENTS": home / "requirements-test.txt",
        "CU126_REQUIREMENTS": home / "security" / "requirements-cu126.txt",
    }.items():
        monkeypatch.setattr(launch, name, path)
    monkeypatch.setattr(launch, "nvidia_driver", lambda: (None, 0.0))
    before = signal.getsignal(signal.SIGTERM)
    yield home
    signal.signal(signal.SIGTERM, before)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        launch.main(list(arguments))
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("driver", "gigabytes"), [((None, 0.0), "3 GB"), ((580, 9.0), "10 GB")])
def test_full_disk_is_seen_before(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], driver: tuple, gigabytes: str
) -> None:
    monkeypatch.setattr(launch, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 2 * 10**9))  # type: ignore[attr-defined]
    text = refusal(capsys)
    assert gigabytes in text and "2.0 GB are free" in text
    assert not (empty_home / ".venv").exists()


def test_disk_that_fills_up_is_one_sentence(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_up() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "make_venv", fill_up)
    assert "the disk is full" in refusal(capsys)


def installation(empty_home: Path, build: launch.TorchBuild) -> launch.Installation:
    launch.VENV.mkdir()
    return launch.Installation(build, tests=False, new_torch=True)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Max retries exceeded with url: /simple/torch/", "index can't be reached"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "index can't be reached"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "index can't be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "torch==2.13.0 has no build"),
        ("ERROR: something else", "pip failed (ERROR: something else)"),
        ("ERROR: first\nERROR: last\n  more", "pip failed (ERROR: last)"),
        ("killed", "pip failed (exit code 1)"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you\n"
            "    torch==2.13.0 from https://example.org/torch.whl (from -r pinned.txt (line 1)):\n        Expected sha256 0",
            "torch==2.13.0 is not the file that requirements.txt means: its SHA-256 differs",
        ),
    ],
)
def test_failures_of_pip_are_one_sentence(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, output: str, sentence: str
) -> None:
    steps = installation(empty_home, launch.TorchBuild("cpu"))
    monkeypatch.setattr(steps, "call", lambda arguments: (1, ["Collecting torch", output]))
    with pytest.raises(launch.Refused) as caught:
        steps.pip("install", "torch")
    assert sentence in str(caught.value)


def recorded(steps: launch.Installation, monkeypatch: pytest.MonkeyPatch, *, reachable: bool) -> list[list[str]]:
    """What would be run, each as the words of a pip command with the file of requirements replaced by its lines."""
    calls: list[list[str]] = []

    def call(arguments: Sequence[str]) -> tuple[int, list[str]]:
        words = [part for part in arguments if part not in ("-m", "pip")]
        calls.append([*words[:-1], *Path(words[-1]).read_text().splitlines()] if "--requirement" in words else words)
        return (0 if reachable or arguments[2] != "index" else 1), []

    monkeypatch.setattr(steps, "call", call)
    steps.install_torch()
    return calls


def test_cpu_build_comes_from_its_own_index_alone(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(installation(empty_home, launch.choose_torch()), monkeypatch, reachable=True)
    assert f"--index-url={launch.TORCH_INDEX}cpu" in calls[-1] and calls[-1][-1] == LOCKED["torch"]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(calls[-1])
    assert not [part for call in calls for part in call if "extra-index" in part]


@pytest.mark.parametrize(("names", "brought"), [("nvidia-cudnn-cu13", 13), ("nvidia-cudnn-cu12", 12), ("", 0)])
def test_torch_gets_the_parts_of_cuda_that_it_names(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, names: str, brought: int
) -> None:
    """They come from pip's own index, with their hashes, and only where torch itself asks for them."""
    steps = installation(empty_home, launch.TorchBuild("cuda", f"{launch.TORCH_INDEX}cu126"))
    steps.new_torch = False
    (empty_home / "security").mkdir()
    (empty_home / "security" / "requirements-cu126.txt").write_text("# parts\nnvidia-cudnn-cu12==9 \\\n    --hash=x\n")
    information = launch.site_packages() / "torch-2.13.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Name: torch\nRequires-Dist: {names}==9; platform_system == 'Linux'\n")
    monkeypatch.setattr(launch.sys, "platform", "linux")
    calls = recorded(steps, monkeypatch, reachable=True)
    if not brought:
        assert len(calls) == 1
        return
    assert calls[-1][-1] == (LOCKED["triton"] if brought == 13 else "nvidia-cudnn-cu12==9 --hash=x")
    assert "--require-hashes" in calls[-1] and not [part for part in calls[-1] if part.startswith("--index-url")]
    monkeypatch.setattr(launch.sys, "platform", "win32")  # there they are inside of torch
    assert len(recorded(steps, monkeypatch, reachable=True)) == 1


def test_an_index_without_known_hashes_is_taken_at_its_word_and_says_so(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFELIGHT_TORCH_INDEX", "https://example.org/whl/rocm7.1")
    calls = recorded(installation(empty_home, launch.choose_torch()), monkeypatch, reachable=True)
    assert calls[-1][-1] == "torch==2.13.0" and "--require-hashes" not in calls[-1]
    assert "hashes of torch from https://example.org/whl/rocm7.1 are not known" in capsys.readouterr().err


def test_unreachable_torch_index_falls_back_and_says_so(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = recorded(installation(empty_home, launch.choose_torch()), monkeypatch, reachable=False)
    assert not [part for part in calls[-1] if part.startswith("--index-url")]
    assert "can't be reached; taking torch from pip's own index" in capsys.readouterr().err


@pytest.mark.parametrize(("new", "commands"), [(True, ["uninstall", "install"]), (False, ["install"])])
def test_another_build_replaces_the_installed_one(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, new: bool, commands: list[str]
) -> None:
    """pip takes torch 2.13.0 for CPUs for the wanted 2.13.0; one that is right already is not fetched again."""
    steps = installation(empty_home, launch.TorchBuild("cuda", "https://example.org/cu126"))  # hashes are known
    steps.new_torch = new
    assert [call[0] for call in recorded(steps, monkeypatch, reachable=True)] == commands


@pytest.mark.parametrize(
    ("system", "driver", "kind", "index"),
    [
        ("linux", (None, 0.0), "cpu", "cpu"),
        ("linux", (580, 8.9), "cuda", ""),
        ("linux", (570, 8.9), "cuda", "cu126"),
        ("linux", (590, 6.1), "cuda", "cu126"),
        ("win32", (None, 0.0), "cpu", "cpu"),
        ("win32", (580, 8.9), "cuda", "cu130"),
        ("win32", (552, 8.9), "cuda", "cu126"),
        ("darwin", (None, 0.0), "mps", ""),
    ],
)
def test_torch_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch, system: str, driver: tuple[int | None, float], kind: str, index: str
) -> None:
    monkeypatch.delenv("SAFELIGHT_TORCH_INDEX", raising=False)
    monkeypatch.setattr(launch.sys, "platform", system)
    monkeypatch.setattr(launch.platform, "machine", lambda: "arm64" if system == "darwin" else "x86_64")
    monkeypatch.setattr(launch, "nvidia_driver", lambda: driver)
    build = launch.choose_torch()
    assert (build.kind, build.index) == (kind, launch.TORCH_INDEX + index if index else "")


def test_torch_index_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_TORCH_INDEX", "https://example.org/rocm")
    assert launch.choose_torch() == launch.TorchBuild("cuda", "https://example.org/rocm", is_hashed=False)
    monkeypatch.setenv("SAFELIGHT_TORCH_INDEX", "https://mirror.example.org/whl/cpu/")
    assert launch.choose_torch() == launch.TorchBuild("cpu", "https://mirror.example.org/whl/cpu/")


def test_intel_mac_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.sys, "platform", "darwin")
    monkeypatch.setattr(launch.platform, "machine", lambda: "x86_64")
    with pytest.raises(launch.Refused, match="Apple silicon"):
        launch.choose_torch()


@posix_only
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo '580.65.06, 9.0'; echo '580.65.06, 7.5'", (580, 7.5)),
        ("echo '535.183.01, 6.1'", (535, 6.1)),
        ("echo 'NVIDIA-SMI has failed'; exit 9", (None, 0.0)),
        ("echo 'No devices were found'", (None, 0.0)),
    ],
)
def test_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: tuple[int | None, float]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert launch.nvidia_driver() == found


def test_second_installation_waits_for_the_first(empty_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with launch.only_one_at_a_time():
            order.append("second")

    with launch.only_one_at_a_time():
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first done")
    waiting.join(10)
    assert order == ["first done", "second"]
    assert "another start is installing" in capsys.readouterr().err


def test_progress_shows_an_eta_on_a_terminal(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = installation(empty_home, launch.TorchBuild("cpu"))
    steps.on_terminal = True
    steps.begin_phase(0.5, 10)
    clock = iter(range(1, 100))
    monkeypatch.setattr(launch.time, "monotonic", lambda: steps.began + next(clock))
    for line in ["Collecting a==1", "Collecting b==1", "Collecting c==1"]:
        steps.take_in(line.split())
        steps.show()
    text = capsys.readouterr().err
    assert "9% installed, about" in text and "s left: fetching c==1" in text
    assert "\r" in text and "\n" not in text
