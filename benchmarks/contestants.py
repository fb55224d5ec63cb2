"""Who does the same work in the benchmarks of training, and how each is timed in a process of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers

ROOT = Path(__file__).resolve().parents[1]
STOPWATCH = ROOT / "benchmarks" / "stopwatch.py"
OURS = "Safelight"
BARE = "bare U-Net"


@dataclass(frozen=True)
class Work:
    """What is done in a step, the same for everybody. `targets`: layers, as in `lora.targets`."""

    size: str
    family: str
    base: str
    precision: str
    resolution: int
    batch: int
    targets: str
    gradient_checkpointing: bool = False
    rank: int = 16
    pixels_per_latent: int = 8


@dataclass(frozen=True)
class Contestant:
    """Somebody who does the work. `command`: program and arguments, to be run by `python` under the stopwatch."""

    name: str
    work: Work
    command: tuple[str, ...]
    python: str
    environment: dict[str, str]
    scratch: Path
    notes: str = ""


@dataclass(frozen=True)
class Times:
    """One round: seconds of each step or window after the warm-up, seconds to the first step, and bytes."""

    seconds: list[float]
    to_first_step: float
    peak_memory: int
    peak_gpu_memory: int


def facts_of_work(work: Work, num_pictures: int) -> dict[str, Any]:
    """What the results say of a work."""
    facts = {key: value for key, value in dataclasses.asdict(work).items() if key not in ("base", "targets")}
    return facts | {"pictures": num_pictures}


def ours(
    name: str,
    work: Work,
    folders: peers.Folders,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    variables: dict[str, str] | None = None,
) -> Contestant:
    """Safelight as `python launch.py train` runs it, in a workspace of its own.

    `settings` and environment `variables`: what is other than usual.
    """
    import launch

    folders.scratch.mkdir(parents=True)
    path = folders.scratch / "run.toml"
    path.write_text(run_file(work, folders, settings or {}), encoding="utf-8")
    program = (str(ROOT / "launch.py"), "--no-venv", "train", str(path))
    command = (*program, "--workspace", str(folders.scratch / "workspace"))
    environment = {**untuned_environment(), **launch.memory_settings(), **(variables or {})}
    return Contestant(name, work, command, sys.executable, environment, folders.scratch, "pictures and captions cached")


def run_file(work: Work, folders: peers.Folders, settings: dict[str, dict[str, Any]]) -> str:
    """A run's settings as TOML: those of the work, then `settings`; what is not named is the default."""
    import tomlkit

    values = run_settings(work, folders)
    for section, own in settings.items():
        values[section] = {**values.get(section, {}), **own}
    return tomlkit.dumps(values)


def run_settings(work: Work, folders: peers.Folders) -> dict[str, Any]:
    """Safelight's settings for the work; what is not named is the default."""
    return {
        "name": "benchmark",
        "model": {"base": str(folders.base), "precision": work.precision},
        "dataset": {"folder": str(folders.pictures[0]), "resolution": work.resolution},
        "lora": {"rank": work.rank, "alpha": float(work.rank), "targets": work.targets},
        "training": {"max_train_steps": peers.NUM_STEPS, "batch_size": work.batch},
        "memory": {"checkpointing": "blocks" if work.gradient_checkpointing else "off", "offload": "none"},
    }


def bare(name: str, work: Work, folders: peers.Folders) -> Contestant:
    """The U-Net alone, as somebody would write it without a thought for the machine."""
    folders.scratch.mkdir(parents=True)
    command = (str(ROOT / "benchmarks" / "bare.py"), json.dumps(dataclasses.asdict(work)))
    notes = "inputs are ready, nothing around the step"
    return Contestant(name, work, command, sys.executable, untuned_environment(), folders.scratch, notes)


def peer(name: str, script: Path, python: str, work: Work, folders: peers.Folders) -> Contestant:
    """Another trainer, as it is."""
    folders.scratch.mkdir(parents=True)
    one = peers.PEERS[name]
    command = (str(script), *one.command(work, folders))
    environment = peers.environment(untuned_environment(), folders.scratch, python)
    return Contestant(name, work, command, python, environment, folders.scratch, one.notes)


def untuned_environment() -> dict[str, str]:
    """This process's environment without what somebody may have set for threads and memory."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "MALLOC_"))}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def time_once(contestant: Contestant, steps: int, warm_up: int, window: int) -> Times:
    """Runs a contestant until `warm_up + steps` steps are done. Raises RuntimeError with its last words when it breaks."""
    scratch = contestant.scratch
    result, log = scratch / "result.json", scratch / "log.txt"
    result.unlink(missing_ok=True)
    command = [contestant.python, str(STOPWATCH), str(result), str(warm_up + steps), str(window), *contestant.command]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command, cwd=scratch, env=contestant.environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode or not result.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RuntimeError(f"{contestant.name} broke (exit code {done.returncode}):\n" + "\n".join(lines[-25:]))
    return times_of(json.loads(result.read_text(encoding="utf-8")), began, warm_up)


def times_of(figures: dict[str, Any], began: float, warm_up: int) -> Times:
    """What the stopwatch wrote, as seconds a step."""
    moments = figures["moments"]
    counted = [(step, moment) for step, moment in moments if step >= warm_up]
    seconds = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in itertools.pairwise(counted)]
    return Times(seconds, moments[0][1] - began, figures["peak_memory"], figures["peak_gpu_memory"])
