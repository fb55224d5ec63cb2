"""Figures about training, one command for each table: `python benchmarks/training.py steps --size tiny`.

`steps` times Safelight's own way to train beside the bare U-Net, and beside other trainers on the same work where their
checkouts are given (`--diffusers DIR --sd-scripts DIR`), all in turn. `ablation` switches off what makes steps fast, one
by one. `threads` tries the number of threads. `around` measures what is not a step. The raw results go to
benchmarks/results/training.json; docs/benchmarks.md is made of them, by `page` alone if nothing is to be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import around, bases, contestants, peers, report
from benchmarks.contestants import Contestant, Times, Work

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = {"tiny": 20, "sd15": 2, "sdxl": 20}
"""Steps that are not counted, by size: caches of the machine fill, kernels are chosen."""
GPU_WINDOW = 10
"""On a GPU the clock is read once in so many steps, so that looking at it does not slow the program down."""
NUM_PICTURES = 16
"""Per picture of a batch."""
THREADS = (1, 2, 4, 8, 16)
BATCHES = (1, 4, 8, 16, 32)
"""Batches of the tiny model at which the number of threads is tried."""
PATHS = {
    "--models": "",
    **{f"--{name}": "DIR" for name in peers.PEERS},
    **{f"--{name}-python": "" for name in peers.PEERS},
}
"""Options with a path, and what is shown in its place in the results; options without are not shown."""
THREAD_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How a comparison is measured: everybody in turn, `rounds` times, `steps` steps each after the warm-up."""

    rounds: int
    steps: int
    warm_up: int
    window: int


def compare(entrants: Sequence[Contestant], plan: Plan) -> dict[str, Any]:
    """Times everybody in turn; one that breaks says so in place of its figures."""
    rounds: dict[str, list[Times]] = {one.name: [] for one in entrants}
    faults: dict[str, str] = {}
    for number in range(plan.rounds):
        for one in entrants:
            if one.name in faults:
                continue
            try:
                times = contestants.time_once(one, plan.steps, plan.warm_up, plan.window)
            except RuntimeError as error:
                sys.stderr.write(f"{error}\n")
                faults[one.name] = str(error).splitlines()[-1]
                continue
            rounds[one.name].append(times)
            median = statistics.median(times.seconds)
            sys.stderr.write(f"round {number + 1}: {one.name}: {median:.4f} s a step\n")
    return {
        one.name: {"notes": one.notes, "targets": one.work.targets, "batch": one.work.batch}
        | ({"fault": faults[one.name]} if one.name in faults else figures(rounds[one.name]))
        for one in entrants
    }


def figures(rounds: Sequence[Times]) -> dict[str, Any]:
    """Of some rounds: the median step with its middle half, the first step with caches cold and warm, and bytes."""
    seconds = [value for times in rounds for value in times.seconds]
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        "seconds": statistics.median(seconds),
        "quarters": [quarters[0], quarters[2]],
        "rounds": [statistics.median(times.seconds) for times in rounds],
        "first_step_cold": rounds[0].to_first_step,
        "first_step_warm": statistics.median(times.to_first_step for times in rounds[1:] or rounds),
        "peak_memory": max(times.peak_memory for times in rounds),
        "peak_gpu_memory": max(times.peak_gpu_memory for times in rounds),
        "raw": [[round(value, 6) for value in times.seconds] for times in rounds],
    }


def facts_of(work: Work) -> dict[str, Any]:
    """Operations of a step, the machine's peak, the device and versions, from a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bare.py"), json.dumps(dataclasses.asdict(work)), "--facts"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=contestants.untuned_environment())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def work_of(options: argparse.Namespace, base: Path, targets: str, batch: int = 0) -> Work:
    """The work that the command line describes."""
    size = bases.SIZES[options.size]
    return Work(
        size=options.size,
        family=size.family,
        base=str(base),
        precision=options.precision,
        resolution=options.resolution or size.resolution,
        batch=batch or options.batch or size.batch,
        targets=targets,
        gradient_checkpointing=options.checkpointing,
        pixels_per_latent=size.pixels_per_latent,
    )


def plan_of(options: argparse.Namespace, device: str) -> Plan:
    """The rounds and steps that the command line asks for."""
    window = 1 if device == "CPU" else GPU_WINDOW
    steps = options.steps or bases.SIZES[options.size].steps
    warm_up = WARM_UP[options.size] if options.warm_up is None else options.warm_up
    return Plan(options.rounds, max(steps, 2 * window), max(1, warm_up), window)


def prepare(options: argparse.Namespace, place: Path) -> tuple[Path, tuple[Path, Path, Path]]:
    """The model and the pictures in a folder; the model in `--models` if that is given, where it is kept."""
    size = bases.SIZES[options.size]
    base = bases.build_base(size, (options.models or place / "models") / options.size)
    number = NUM_PICTURES * (options.batch or size.batch)
    return base, bases.write_pictures(place / "pictures", number, options.resolution or size.resolution)


def measure_steps(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds a step: Safelight, the bare U-Net, and the peers with the layers that each of them trains."""
    found = found_peers(options)
    base, pictures = prepare(options, place)
    wanted = ["attention", *(peers.PEERS[name].targets for name in found)]
    facts, entrants = {}, []
    for targets in dict.fromkeys(wanted):
        work = work_of(options, base, targets)
        facts[targets] = facts_of(work)
        mine = peers.Folders(base, pictures, place / f"ours-{targets}")
        entrants.append(contestants.ours(f"{contestants.OURS}, {targets}", work, mine))
        alone = peers.Folders(base, pictures, place / f"bare-{targets}")
        entrants.append(contestants.bare(f"{contestants.BARE}, {targets}", work, alone))
    for name, (script, python) in found.items():
        work = work_of(options, base, peers.PEERS[name].targets)
        entrants.append(contestants.peer(name, script, python, work, peers.Folders(base, pictures, place / name)))
    plan = plan_of(options, facts["attention"]["device"])
    versions = {name: peers.version(getattr(options, name.replace("-", "_"))) for name in found}
    return {
        "work": contestants.facts_of_work(work_of(options, base, "attention"), len(list(pictures[0].glob("*.png")))),
        "plan": dataclasses.asdict(plan),
        "facts": facts,
        "checkouts": versions,
        "contestants": compare(entrants, plan),
    }


def found_peers(options: argparse.Namespace) -> dict[str, tuple[Path, str]]:
    """By name of the peers that are given and train that size: script and Python. Raises WrongCheckout."""
    size, found = bases.SIZES[options.size], {}
    for name, one in peers.PEERS.items():
        checkout = getattr(options, name.replace("-", "_"))
        if checkout is not None:
            script = one.script(checkout, size.family)
            if options.size in one.sizes:
                found[name] = (script, getattr(options, name.replace("-", "_") + "_python"))
    return found


def measure_ablation(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds a step with everything on, with everything off, and with each fast way off alone."""
    base, pictures = prepare(options, place)
    slow = slow_settings()
    work = work_of(options, base, "attention+ff+proj")
    cases: dict[str, dict[str, Any]] = {"all as they are": {}, **{f"without {key}": {key: slow[key]} for key in slow}}
    cases["all off"] = slow
    entrants = [
        contestants.ours(
            name, work, peers.Folders(base, pictures, place / f"case-{number}"), settings={"speed": values}
        )
        for number, (name, values) in enumerate(cases.items())
    ]
    facts = facts_of(work)
    plan = plan_of(options, facts["device"])
    return {
        "work": contestants.facts_of_work(work, len(list(pictures[0].glob("*.png")))),
        "plan": dataclasses.asdict(plan),
        "facts": {work.targets: facts},
        "contestants": compare(entrants, plan),
    }


def slow_settings() -> dict[str, Any]:
    """By field of the section `speed`, the value that switches it off: False or `off`. Numbers are no ways of their own."""
    from trainer.config.sections import SpeedConfig

    slow: dict[str, Any] = {}
    for name, field in SpeedConfig.model_fields.items():
        if isinstance(field.default, str):
            slow[name] = type(field.default)("off")
        elif isinstance(field.default, bool):
            slow[name] = False
    return slow


def measure_threads(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds a step of the tiny model on as many threads as Safelight takes by itself, and on fixed numbers."""
    import os

    options.size = "tiny"
    found: dict[str, Any] = {}
    plan = dataclasses.replace(plan_of(options, "CPU"), steps=options.steps or THREAD_STEPS, warm_up=3)
    for batch in BATCHES:
        options.batch = batch
        base, pictures = prepare(options, place / str(batch))
        work = work_of(options, base, "attention", batch)
        cases: dict[str, dict[str, str]] = {"its own choice": {}} | {
            f"{number} thread{'s' * (number > 1)}": {"OMP_NUM_THREADS": str(number)}
            for number in THREADS
            if number <= (os.cpu_count() or 1)
        }
        entrants = [
            contestants.ours(
                name,
                work,
                peers.Folders(base, pictures, place / str(batch) / f"case-{number}"),
                settings={"training": {"device": "cpu"}},
                variables=values,
            )
            for number, (name, values) in enumerate(cases.items())
        ]
        found[f"batch {batch}"] = compare(entrants, plan)
    return {"plan": dataclasses.asdict(plan), "batches": found}


MEASURES = {
    "steps": measure_steps,
    "ablation": measure_ablation,
    "threads": measure_threads,
    "around": around.measure,
}


def title_of(options: argparse.Namespace) -> str:
    """Under which name a result is kept: a later one of the same name takes its place."""
    if options.what == "threads":
        return "threads"
    parts = [options.what, options.size, options.precision]
    parts += [f"batch {options.batch}"] if options.batch else []
    parts += [f"{options.resolution} px"] if options.resolution else []
    return " ".join(parts + (["checkpointing"] if options.checkpointing else []))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "what", choices=[*MEASURES, "page"], help="the table; page makes docs/benchmarks.md and no more"
    )
    parser.add_argument("--size", choices=bases.SIZES, default="tiny", help="of the model (default: tiny)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="pictures a step (default: the size's own)")
    parser.add_argument("--resolution", type=int, default=0, metavar="PX", help="side (default: the size's own)")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing, for everybody")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="how often everybody has a turn (default: 3)"
    )
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="steps of a turn that count")
    parser.add_argument("--warm-up", type=int, metavar="N", help="steps before those (default: the size's own)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="keep the random models there for the next time")
    for name in peers.PEERS:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"a checkout of {name}")
        text = f"the Python with what {name} needs (default: this one)"
        parser.add_argument(f"--{name}-python", default=sys.executable, metavar="FILE", help=text)
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser


def main(arguments: list[str]) -> int:
    """Measures what is asked for, prints it, and keeps it. Returns the exit code."""
    from benchmarks.security import machine

    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.what == "page":
        report.write_page()
        return 0
    try:
        found_peers(options)
    except peers.WrongCheckout as error:
        parser.error(str(error))
    command = shlex.join(["python", "benchmarks/training.py", *without_paths(arguments)])
    with tempfile.TemporaryDirectory(prefix="safelight-benchmark-") as place:
        result = MEASURES[options.what](options, Path(place))
    kept = {"measured": machine(), "command": command, "figures": result}
    title = title_of(options)
    print(report.section(title, kept))
    if not options.no_save:
        report.keep(report.TRAINING_RESULTS, title, kept)
    return 0


def without_paths(arguments: list[str]) -> list[str]:
    """The command line as it can be shown: paths of somebody's machine become words."""
    shown: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name not in PATHS:
            shown.append(argument)
            continue
        if not value:
            next(rest)
        shown += [name, PATHS[name]] if PATHS[name] else []
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
