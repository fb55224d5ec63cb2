"""Whether the embedded model learns with every adapter and every optimizer: `python benchmarks/learning.py`.

Each cell is a run of its own in a process with one thread: the embedded base learns `ink` at 64 pixels, and the loss on
`ink_heldout` is measured before and after by the run itself. Without arguments every adapter is trained with adamw and every
optimizer with lora; `--matrix` trains all pairs. What is in benchmarks/results/learning.json is not measured again, so the
command can be stopped at any time; docs/learning.md is made of it. `--cell loha adamw --rate 2e-3` prints one cell and
keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "learning.json"
PAGE = ROOT / "docs" / "learning.md"
STEPS = 300
WANTED_CHANGE = -0.15
"""How far the held-out loss has to fall in STEPS; an adapter or optimizer that does not get there is not offered."""
ADAPTER_FACTORS = {"lora": 1.0, "locon": 1.0, "dora": 1.0, "loha": 1.0, "lokr": 4.0, "oft": 1.0, "boft": 1.0}
"""Each adapter's learning rate beside a LoRA's."""
RATES = {
    "adamw": 2e-3,
    "adamw_8bit": 2e-3,
    "prodigy": 1.0,
    "prodigy_plus_schedule_free": 1.0,
    "adafactor": 2e-3,
    "came": 3e-4,
    "lion": 3e-4,
    "muon": 2e-3,
    "schedule_free_adamw": 5e-3,
    "radam": 2e-3,
}
"""Each optimizer's learning rate for a LoRA."""
FINDS_ITS_OWN_RATE = ("prodigy", "prodigy_plus_schedule_free")
Cell = dict[str, Any]


def pairs(matrix: bool) -> list[tuple[str, str]]:
    """The (adapter, optimizer) pairs of a measurement."""
    if matrix:
        return [(adapter, optimizer) for adapter in ADAPTER_FACTORS for optimizer in RATES]
    return [(adapter, "adamw") for adapter in ADAPTER_FACTORS] + [("lora", one) for one in RATES if one != "adamw"]


def rate_of(adapter: str, optimizer: str) -> float:
    """The learning rate of a pair."""
    return RATES[optimizer] * (1.0 if optimizer in FINDS_ITS_OWN_RATE else ADAPTER_FACTORS[adapter])


def settings(adapter: str, optimizer: str, rate: float, steps: int) -> dict[str, Any]:
    """The settings of a cell; what is not named is the schema's default."""
    return {
        "name": "cell",
        "model": {"base": "demo", "precision": "fp32"},
        "dataset": {"folder": "ink", "resolution": 64, "caption_dropout_rate": 0.05},
        "lora": {"adapter": adapter},
        "optimizer": {"name": optimizer, "learning_rate": rate, **({"beta2": 0.99} if optimizer == "lion" else {})},
        "training": {"max_train_steps": steps, "batch_size": 4, "device": "cpu"},
        "validation": {"folder": "ink_heldout", "train_pictures": 0},
        "save": {"key_format": "kohya"},
    }


def train_cell(adapter: str, optimizer: str, rate: float, steps: int) -> Cell:
    """Trains one cell in this process and returns its figures."""
    import torch

    from trainer import events
    from trainer.adapters.table import ADAPTERS
    from trainer.config.files import parse_config
    from trainer.inputs import find_inputs
    from trainer.jobs import Control
    from trainer.loop import train
    from trainer.runs import RunFolder
    from trainer.workspace import Workspace

    torch.set_num_threads(1)
    config = parse_config(settings(adapter, optimizer, rate, steps))
    seen: list[events.Event] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(Path(folder) / "space")
        run = RunFolder.create(workspace, config)
        train(config, find_inputs(config, workspace), run, workspace, seen.append, Control())
        num_bytes = (run.path / "cell.safetensors").stat().st_size
    before, *_, after = [event.loss for event in seen if isinstance(event, events.Validated)]
    seconds = [event.seconds for event in seen if isinstance(event, events.StepDone)]
    started = next(event for event in seen if isinstance(event, events.Started))
    return {
        "learning_rate": rate,
        "steps": steps,
        "loss_before": round(before, 5),
        "loss_after": round(after, 5),
        "change": round(after / before - 1, 4),
        "steps_per_second": round(1 / statistics.median(seconds), 2),
        "parameters": started.trainable_parameters,
        "file_bytes": num_bytes,
        # By the adapter: this base itself has other blocks than the published models, which no other program knows.
        "loads_in": sorted(ADAPTERS[config.lora.adapter].loads_in),
    }


def in_a_child(adapter: str, optimizer: str, rate: float, steps: int) -> Cell:
    """The same in a process of its own, on one thread and on nothing but the processor."""
    command = [sys.executable, str(Path(__file__)), "--here", "--cell", adapter, optimizer]
    command += ["--rate", str(rate), "--steps", str(steps)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:  # such as a run that diverged: a result like others
        return {"learning_rate": rate, "steps": steps, "change": 0.0, "fault": done.stderr.splitlines()[-1]}
    cell: Cell = json.loads(done.stdout.splitlines()[-1])
    return cell


def page_of(results: dict[str, Any]) -> str:
    """The page as Markdown, of what the JSON file holds."""
    machine, cells = results["measured"], results["cells"]
    lines = [
        "# What the embedded model learns with",
        "",
        "Made by `python benchmarks/learning.py` from `benchmarks/results/learning.json`: do not edit.",
        "",
        f"The embedded base learns 30 ink drawings at 64 pixels for {STEPS} steps of 4 pictures, with the schema's defaults but",
        "for the learning rate. The held-out loss is that of 8 drawings which are never trained on, before and after. An",
        "adapter or optimizer is offered if it falls by 15%. One thread of a CPU: speeds compare the rows, no more.",
        "",
        "| adapter | optimizer | learning rate | held-out loss | change | steps/s | file, kB | loads in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for adapter, optimizer in pairs(matrix=True):
        cell = cells.get(f"{adapter} {optimizer}")
        if cell and "fault" in cell:
            lines.append(f"| {adapter} | {optimizer} | {cell['learning_rate']:g} | {cell['fault']} | | | | |")
        elif cell:
            loss = f"{cell['loss_before']:.4f} to {cell['loss_after']:.4f}"
            lines.append(
                f"| {adapter} | {optimizer} | {cell['learning_rate']:g} | {loss} | {cell['change']:+.1%} | "
                f"{cell['steps_per_second']:g} | {cell['file_bytes'] / 1000:.0f} | {', '.join(cell['loads_in'])} |"
            )
    made = f"{machine['date']}, {machine['processor']}, {machine['system']}, Python {machine['python']}"
    return "\n".join([*lines, "", f"`python benchmarks/learning.py --matrix`, {made}.", ""])


def measure(wanted: list[tuple[str, str]], processes: int) -> bool:
    """Measures the pairs that have no figures yet. Returns whether all of them learn enough."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from benchmarks.security import machine

    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"cells": {}}
    todo = [pair for pair in wanted if f"{pair[0]} {pair[1]}" not in results["cells"]]
    todo.sort(key=lambda pair: pair not in pairs(matrix=False))
    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(in_a_child, *pair, rate_of(*pair), STEPS): " ".join(pair) for pair in todo}
        for done in as_completed(running):
            results["cells"][running[done]] = done.result()
            results["measured"] = machine()
            print(running[done], json.dumps(done.result()), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            PAGE.write_text(page_of(results), encoding="utf-8")
    return all(results["cells"][" ".join(pair)]["change"] <= WANTED_CHANGE for pair in wanted)


def main(arguments: list[str]) -> int:
    """Measures what is asked for. Returns 1 if a pair learns too little."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--matrix", action="store_true", help="all pairs of adapter and optimizer")
    parser.add_argument("--cell", nargs=2, metavar=("ADAPTER", "OPTIMIZER"), help="one pair, printed and not kept")
    parser.add_argument("--rate", type=float, help="learning rate of --cell (default: the pair's own)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of --cell (default: {STEPS})")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time; speeds are right with 1 only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.cell:
        return 0 if measure(pairs(options.matrix), options.processes) else 1
    adapter, optimizer = options.cell
    run = train_cell if options.here else in_a_child
    print(json.dumps(run(adapter, optimizer, options.rate or rate_of(adapter, optimizer), options.steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
