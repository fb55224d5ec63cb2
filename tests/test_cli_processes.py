"""`--gpus` and the flags of several machines: what they mean, what they refuse; the files for rented machines hold together."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest

from security.configs import read_yaml
from trainer.machines import ONE_MACHINE, Machines
from trainer.runs import RunFolder
from trainer.workspace import Workspace
from ui import cli
from ui.cli_processes import machines_of, process_flags

ROOT = Path(__file__).resolve().parent.parent
RENTED = ROOT / "docs" / "rented"
SKYPILOT_KEYS = {
    *(
        "name",
        "workdir",
        "num_nodes",
        "resources",
        "envs",
        "secrets",
        "volumes",
        "file_mounts",
        "setup",
        "run",
        "config",
    ),
}
"""Top-level fields of a task, as SkyPilot's documentation of the YAML names them."""
RESOURCE_KEYS = {"infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "disk_tier", "image_id", "ports"}
SKYPILOT_VARIABLES = {"SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE"}
"""What SkyPilot tells a task on each machine."""


def options_of(*arguments: str) -> argparse.Namespace:
    flags, rest = cli.split_settings(arguments)
    options = cli.build_parser().parse_args(rest)
    options.flags = flags
    return options


def test_gpus_is_the_setting_and_wins() -> None:
    options = options_of("train", "run.toml", "--training.num_processes", "2", "--gpus", "4")
    assert process_flags(options)[-2:] == ["--training.num_processes", "4"]
    assert process_flags(options_of("resume", "run", "--lora.rank", "2")) == ["--lora.rank", "2"]


def test_machines_are_told_by_their_flags() -> None:
    there = ["--nodes", "2", "--node-rank", "1", "--main-address", "10.0.0.5:29500"]
    assert machines_of(options_of("train", "run.toml", *there)) == Machines(2, 1, "10.0.0.5:29500")
    assert machines_of(options_of("train", "run.toml", "--nodes", "1", *there[2:])) is ONE_MACHINE
    assert machines_of(options_of("resume", "run")) is ONE_MACHINE


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus", "4"], "a step has 1 picture"),
        (["--gpus", "0"], "training.num_processes"),
        (["--nodes", "2"], "no address of a machine"),
        (["--nodes", "2", "--node-rank", "2", "--main-address", "10.0.0.5:29500"], "counted from 0"),
        (["--main-address", "10.0.0.5:29500"], "needs --nodes"),
    ],
)
def test_what_makes_no_sense_starts_no_run(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\nbase = "demo"\n', encoding="utf-8")
    assert cli.main(["train", str(path), "--workspace", str(tmp_path / "space"), *flags]) == cli.USER_FAULT
    assert words in capsys.readouterr().err
    assert not list(Workspace.open(tmp_path / "space").runs_dir.iterdir())


def test_more_processes_than_processors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = (os.cpu_count() or 1) + 2
    if many > 64:
        pytest.skip("this machine has more processors than a run may have processes")
    path = tmp_path / "run.toml"
    path.write_text(f"[training]\nbatch_size = {many}\nmax_train_steps = 1\n", encoding="utf-8")
    space = tmp_path / "space"
    code = cli.main(["train", str(path), "--workspace", str(space), "--gpus", str(many)])
    assert code == cli.USER_FAULT and "processors, and each process needs one" in capsys.readouterr().err
    (run,) = Workspace.open(space).runs_dir.iterdir()
    assert not RunFolder(run).checkpoints_dir.exists()


# ---- files for rented machines ----


def commands_in(text: str) -> list[list[str]]:
    """The words of every call of launch.py in a script, after its name."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [
        shlex.split(line.partition("launch.py")[2]) for line in lines if "launch.py " in line and "COPY" not in line
    ]


def test_the_file_for_skypilot_has_known_keys_variables_and_commands() -> None:
    path = RENTED / "skypilot.yaml"
    values = read_yaml(path)
    assert set(values) <= SKYPILOT_KEYS and set(values["resources"]) <= RESOURCE_KEYS
    assert re.fullmatch(r"[A-Z0-9]+:\d+", values["resources"]["accelerators"])
    scripts = values["setup"] + values["run"]
    used = set(re.findall(r"\$\{?([A-Za-z_]+)", scripts)) - {"main_address"}
    assert used - set(values["envs"]) == SKYPILOT_VARIABLES
    for source in values["file_mounts"].values():
        assert source == "./workspace"  # the usual one; it need not be there in a copy of the repository
    doctor, train = commands_in(scripts)
    assert options_of(*doctor).run is cli.show_doctor
    filled = [re.sub(r"\$SKYPILOT_\w+", "2", word).replace("$main_address", "10.0.0.5:29500") for word in train]
    filled[filled.index("--node-rank") + 1] = "1"
    options = options_of(*filled)
    assert options.run is cli.run_train and machines_of(options) == Machines(2, 1, "10.0.0.5:29500")
    assert process_flags(options) == ["--training.num_processes", "2"]


def test_the_container_copies_what_there_is_and_runs_commands_that_exist() -> None:
    text = (RENTED / "Dockerfile").read_text(encoding="utf-8")
    instructions = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known and instructions[0][0] == "FROM"
    copied = {source for name, rest in instructions if name == "COPY" for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {"launch.py", "security", "trainer", "ui", "requirements.txt"} <= copied
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["safelight"] and "useradd" in text  # not as root
    assert 'ENTRYPOINT ["python", "launch.py", "--no-venv"]' in text
    assert re.search(r"^FROM python:3\.1[1-4]", text, re.MULTILINE)
    shown = re.search(r"safelight (train .*)$", text, re.MULTILINE)
    assert shown is not None and options_of(*shlex.split(shown[1])).run is cli.run_train
    assert options_of("doctor").run is cli.show_doctor
