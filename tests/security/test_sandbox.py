"""The sandbox of training runs and child processes: what it denies, what it leaves, and that it is never silently absent."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from security import sandbox, seccomp
from security.confined import CONFINEMENT_FAILED
from security.errors import FailedCommand
from security.policy import MAX_CHILD_OUTPUT_BYTES
from security.sandbox import Limits, SandboxState, confine_thread, probe, run_confined
from tests.security.denied_operations import ALLOWED_OPERATIONS, DENIED_OPERATIONS, Places, open_socket_files
from tests.security.landlock_threads import in_full_thread
from tests.tiny import tiny_dataset, tiny_sd15
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.jobs import Control, Jobs, Trainer
from trainer.runs import RunFolder, RunState
from trainer.workspace import Workspace

pytestmark = pytest.mark.skipif(not probe().active, reason=f"no sandbox here: {probe().detail}")

TESTS = Path(__file__).resolve().parents[1]
LIMITS = Limits(memory_bytes=1 << 30, cpu_seconds=30, file_bytes=1 << 20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def config(base: Path, workspace: Workspace) -> TrainConfig:
    tiny_dataset(workspace.datasets_dir / "mine", 2)
    return parse_config(
        {
            "name": "tiny",
            "model": {"base": str(base)},
            "dataset": {"folder": "mine", "resolution": 64},
            "training": {"max_train_steps": 2},
        }
    )


@pytest.fixture
def places(workspace: Workspace, config: TrainConfig, tmp_path: Path) -> Iterator[Places]:
    """The run's folder and what lies around it, a port that listens, an abstract socket and a process of the same user."""
    outside = tmp_path / "outside"
    for folder in (outside, outside / "doomed", workspace.datasets_dir / "other", workspace.runs_dir / "other"):
        folder.mkdir()
    for folder in (workspace.models_cache_dir, workspace.latents_cache_dir, workspace.cache_dir / "page"):
        folder.mkdir(parents=True)
    for path in (
        *(outside / "secret.txt", outside / "doomed.txt", workspace.datasets_dir / "other" / "a.png"),
        *(workspace.models_dir / "other.safetensors", workspace.runs_dir / "other" / "config.toml"),
        *(workspace.logs_dir / "safelight.log", workspace.cache_dir / "page" / "upload.png"),
    ):
        path.write_text("secret")
    name = f"safelight-{uuid.uuid4().hex}"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        abstract.bind("\0" + name)
        abstract.listen(50)
        others = open_socket_files(outside)
        run = RunFolder.create(workspace, config)
        port = server.getsockname()[1]
        dataset = workspace.datasets_dir / "mine"
        yield Places(run.path, dataset, workspace.path, outside, port, name, sleeper.pid)
    for other in others:
        other.close()
    sleeper.kill()
    sleeper.wait()


def tried(operations: dict[str, Callable[[Places], None]], places: Places) -> dict[str, int]:
    """What each operation came to: 0, or the error number."""
    results = {}
    for name, operation in operations.items():
        try:
            operation(places)
            results[name] = 0
        except OSError as error:
            results[name] = error.errno or -1
    return results


def probing(places: Places, operations: dict[str, Callable[[Places], None]], results: dict[str, int]) -> Trainer:
    """A trainer that trains nothing and tries the operations."""

    def train(*_: object) -> None:
        results.update(tried(operations, places))

    return train


def run_with(trainer: Trainer, workspace: Workspace, places: Places) -> None:
    """Lets a run's own thread work with that trainer, as the queue does with the real one."""
    folder = RunFolder(places.run)
    thread = threading.Thread(target=Jobs(workspace)._run, args=(folder, Control(), lambda _: trainer))
    thread.start()
    thread.join()


def test_without_the_sandbox_every_operation_works(places: Places) -> None:
    """The control: what is denied below is denied by the sandbox and by nothing else."""
    assert set(tried(DENIED_OPERATIONS, places).values()) == {0}


def test_a_run_is_denied_every_operation(places: Places, workspace: Workspace) -> None:
    results: dict[str, int] = {}
    run_with(probing(places, DENIED_OPERATIONS, results), workspace, places)
    assert len(results) == len(DENIED_OPERATIONS) >= 48
    let_through = {name: code for name, code in results.items() if code not in (errno.EACCES, errno.EPERM, errno.EXDEV)}
    assert not let_through
    assert sum(code == errno.EXDEV for code in results.values()) <= 3
    assert (places.outside / "secret.txt").read_text() == "secret"


def test_a_run_can_do_what_training_does(places: Places, workspace: Workspace) -> None:
    results: dict[str, int] = {}
    run_with(probing(places, ALLOWED_OPERATIONS, results), workspace, places)
    assert set(results.values()) == {0}, results


def test_threads_that_a_run_starts_are_bound_and_all_others_are_not(places: Places, workspace: Workspace) -> None:
    inner: dict[str, int] = {}
    outer: dict[str, int] = {}
    bound = threading.Event()

    def work_outside() -> None:
        bound.wait(60)
        outer.update(tried(DENIED_OPERATIONS, places))

    outside = threading.Thread(target=work_outside)
    outside.start()  # before the run's thread is bound; it works while that is

    def train(*_: object) -> None:
        inside = threading.Thread(target=lambda: inner.update(tried(DENIED_OPERATIONS, places)))
        inside.start()
        inside.join()
        bound.set()
        outside.join()

    run_with(train, workspace, places)
    assert 0 not in inner.values() and len(inner) == len(DENIED_OPERATIONS)
    assert set(outer.values()) == {0}


def test_a_real_run_trains_in_it_and_says_so(workspace: Workspace, config: TrainConfig) -> None:
    jobs = Jobs(workspace)
    run_id = jobs.submit(config)
    tiny_dataset(workspace.datasets_dir / "another", 2)
    dataset = config.dataset.model_copy(update={"folder": "another"})
    second = jobs.submit(config.model_copy(update={"dataset": dataset}))
    assert jobs.wait(120)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FINISHED and progress.loras, jobs.lines(run_id)
    assert progress.sandbox is not None and progress.sandbox.active
    assert not any("sandbox" in warning for warning in progress.warnings)
    lines = [line for _, line in jobs.lines(run_id)]
    said = [index for index, line in enumerate(lines) if "sandbox: On (Landlock" in line]
    assert len(said) == 1 and said[0] < lines.index(next(line for line in lines if "Reading pictures" in line))
    assert jobs.progress(second).state is RunState.FINISHED  # the first one's sandbox was not in its way
    assert Path("/etc/passwd").read_bytes()
    jobs.shutdown()


def test_where_there_is_no_sandbox_a_run_trains_and_says_so_once(
    places: Places, workspace: Workspace, config: TrainConfig
) -> None:
    folder = RunFolder(places.run)
    jobs = Jobs(workspace)
    for _ in range(2):
        in_full_thread(lambda: jobs._run(folder, Control()))
    progress = jobs.progress(folder.run_id)
    assert progress.state is RunState.FINISHED, jobs.lines(folder.run_id)
    assert progress.sandbox is not None and not progress.sandbox.active
    assert [warning for warning in progress.warnings if "not in a sandbox" in warning and "refused" in warning]
    assert len(progress.warnings) == len(set(progress.warnings))


def test_probe_restricts_nobody_else() -> None:
    assert probe() == SandboxState(True, probe().detail)
    assert Path("/etc/passwd").read_bytes()
    assert not [thread for thread in threading.enumerate() if "sandbox" in thread.name]


def test_a_system_that_denies_nothing_is_not_called_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some emulated kernels take the calls and do nothing; the state comes from a try, not from their word."""
    monkeypatch.setattr(sandbox.landlock, "restrict_thread", lambda rules: None)
    assert not probe().active and "lets everything be read" in probe().detail


def test_where_landlock_is_missing_the_state_says_what_that_means() -> None:
    states: list[SandboxState] = []
    in_full_thread(lambda: states.append(confine_thread(read=[], write=[])))
    assert not states[0].active
    assert states[0].detail.startswith("Off: the system refused it") and "all rights of this user" in states[0].detail


CHILD = "tests.security.confined_probe"


def child(
    folder: Path, *arguments: str, limits: Limits = LIMITS, **options: object
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return run_confined(
        CHILD, arguments, folder=folder, limits=limits, read=[TESTS], **{"timeout_seconds": 30, **options}
    )  # type: ignore[arg-type]


def test_a_child_has_its_folder_and_nothing_else(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    private = tmp_path / "private"
    done = child(
        private,
        "try",
        str(places.outside / "secret.txt"),
        str(places.outside / "new.txt"),
        str(places.port),
        str(places.other_process),
    )
    assert done.returncode == 0, done.stderr
    report = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    denied = {name: result for name, result in report.items() if name.startswith("denied-")}
    assert len(denied) == 9 and set(denied.values()) <= {"EACCES", "EPERM"}
    assert report["cwd"] == report["home"] == report["temporary"] == str(private)
    assert report["stdin"] == "empty" and report["session"] == "own"
    assert report["descriptors"] == "0,1,2" and report["isolated"] == "1"
    assert "canary" not in report["variables"] and "PYTHONPATH" not in report["variables"]
    assert report["wrote"] == "own.txt" and (private / "own.txt").read_text() == "x"


def test_a_child_sees_the_open_file_it_is_given_and_not_its_path(places: Places, tmp_path: Path) -> None:
    descriptor = os.open(places.outside / "secret.txt", os.O_RDONLY)
    try:
        done = child(tmp_path / "private", "read", str(descriptor), descriptors=[descriptor])
    finally:
        os.close(descriptor)
    assert done.stdout == "secret"


LIMIT_BREAKERS: dict[str, Limits] = {
    "memory": Limits(memory_bytes=200 << 20, cpu_seconds=30, file_bytes=1 << 20),
    "time": Limits(memory_bytes=1 << 30, cpu_seconds=1, file_bytes=1 << 20),
    "file": Limits(memory_bytes=1 << 30, cpu_seconds=30, file_bytes=1000),
    "files": Limits(memory_bytes=1 << 30, cpu_seconds=30, file_bytes=1 << 20, open_files=20),
}


@pytest.mark.parametrize("what", LIMIT_BREAKERS)
def test_a_child_that_takes_too_much_ends(what: str, tmp_path: Path) -> None:
    done = child(tmp_path / "private", what, limits=LIMIT_BREAKERS[what])
    assert done.returncode != 0 and "took it" not in done.stdout
    roomy = Limits(memory_bytes=2 << 30, cpu_seconds=60, file_bytes=1 << 24, open_files=1000)
    if what != "time":
        assert "took it" in child(tmp_path / "private", what, limits=roomy).stdout


def test_a_child_that_does_not_end_or_says_too_much_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(FailedCommand, match="did not end within 1 s"):
        child(tmp_path / "private", "sleep", timeout_seconds=1)
    with pytest.raises(FailedCommand, match=f"printed over {MAX_CHILD_OUTPUT_BYTES} bytes"):
        child(tmp_path / "private", "shout")


def test_a_child_that_cannot_be_confined_does_nothing(tmp_path: Path) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    in_full_thread(lambda: results.append(child(tmp_path / "private", "read", "0")))
    assert results[0].returncode == CONFINEMENT_FAILED and "Off: " in results[0].stderr
    assert list((tmp_path / "private").iterdir()) == []


def test_a_processor_without_a_filter_is_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what the system denies, not what it should."""
    assert "start no program and reach no network." in probe().detail and "second fence" in probe().detail
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    assert probe().active and "can still use UDP" in probe().detail
    monkeypatch.setattr(sandbox.landlock, "abi", lambda: 3)
    assert probe().active and "can use the network" in probe().detail
