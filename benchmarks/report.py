"""Makes docs/benchmarks.md of the raw results of the dataset and of training: a section for each, a table in each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
DATASET_RESULTS = ROOT / "benchmarks" / "results" / "dataset.json"
TRAINING_RESULTS = ROOT / "benchmarks" / "results" / "training.json"
Result = dict[str, Any]

HEAD = """# Benchmarks

Made of `benchmarks/results/*.json` by the commands under each table, or by `python benchmarks/training.py page`: do not edit.
Figures about the protections: [security-tests.md](security-tests.md); what each adapter and optimizer learns:
[learning.md](learning.md).
"""
DATASET_TITLES = {
    "import": "Importing pictures",
    "page": "The Dataset tab with many pictures",
    "tagging": "Tagging on the CPU",
    "undo": "Undo",
}
DATASET_TEXTS = {
    "import": (
        "Pictures of the sizes that cameras, phones and picture sites have, with captions: checked, decoded, written "
        "without their metadata, with a thumbnail each, as one step that can be undone."
    ),
    "page": (
        "Real Chromium on the served page. The first time thumbnails and sizes are not in the cache yet. Frames are those of "
        "a scroll through the whole list. Seconds unless the name says otherwise."
    ),
    "tagging": (
        "Beside what a person would write: one plain loop over the same pictures with the same network in the same "
        "onnxruntime, one picture after the other, that writes nothing. Both take turns; the medians count."
    ),
    "undo": (
        "Every caption of the dataset is changed in one edit, undone and redone. Undo is checked to give the same bytes. Plain "
        "writes are the same files without a history and without care for a power cut. Seconds."
    ),
}
TRAINING_TEXTS = {
    "steps": (
        "Models have random weights of the real sizes; pictures have the size that is trained. Every program runs in a process "
        "of its own, as its users start it, and is timed from outside by torch's hook after each optimizer step; all take "
        "turns. `bare U-Net` is forward, backward and AdamW on inputs that are ready, with peft's LoRA. diffusers' script has "
        "no caches and encodes its pictures and captions at every step; the others train from theirs. Beside the median of a "
        "step stands its middle half. The share of the peak is that of the fastest product of two large matrices here. "
        "Memory is that of the whole process, or on a GPU what torch held there. The first step counts from the start of the "
        "program, with nothing encoded yet and in a later run. torchvision has no wheel on machines without a GPU's index: "
        "where it is not installed, the five transformations that the scripts use of it are done by PIL and torch."
    ),
    "ablation": (
        "Safelight's own ways to make a step fast, each switched off by its setting while the others stay on. Measured as "
        "above, all in turn."
    ),
    "threads": (
        "Safelight takes one thread for small steps by itself (`trainer/device.py`). Seconds a step of the embedded model, by "
        "pictures in a step; what it chooses should be near the best of each row."
    ),
    "around": (
        "What is not a step: a run from the command line, first with nothing encoded and then again, and "
        "the page, which answers while a run trains in the same program."
    ),
}
TRAINING_TITLES = {
    "steps": "Steps",
    "ablation": "What makes a step fast",
    "threads": "Threads of the CPU",
    "around": "Around the step",
}
AGAIN = (
    "`python benchmarks/training.py steps --size sd15 --precision bf16` measures Safelight and the bare U-Net, `--size` with "
    "tiny, sd15 or sdxl. With `--diffusers DIR --sd-scripts DIR`, paths of checkouts of "
    "[diffusers](https://github.com/huggingface/diffusers) and [sd-scripts](https://github.com/kohya-ss/sd-scripts), their "
    "scripts take turns with it on the same pictures; `--diffusers-python` and `--sd-scripts-python` name the Python of the "
    "environment that each of them asks for. `ablation`, `threads` and `around` in place of `steps` make the other tables, "
    "`python benchmarks/dataset.py` those about datasets. Nothing else should run meanwhile: programs whose threads wait "
    "busily lose most of their speed beside another one. On a GPU the same commands measure there."
)


def page_of(dataset: dict[str, Result], training: dict[str, Result]) -> str:
    """The page as Markdown. Both arguments are what a JSON file holds: figures and machine, by name."""
    parts = [HEAD]
    for kind, title in TRAINING_TITLES.items():
        names = [name for name in training if name.split()[0] == kind]
        if names:
            parts += [
                f"## {title}\n\n{filled(TRAINING_TEXTS[kind])}\n",
                *(section(name, training[name]) for name in names),
            ]
    parts += [dataset_section(name, dataset[name]) for name in DATASET_TITLES if name in dataset]
    return "\n".join([*parts, f"## Measuring again\n\n{filled(AGAIN)}\n"])


def filled(text: str) -> str:
    """A paragraph in lines of the page's width."""
    return textwrap.fill(text, 125, break_on_hyphens=False, break_long_words=False)


def write_page() -> None:
    """Makes the page anew."""
    PAGE.write_text(page_of(read(DATASET_RESULTS), read(TRAINING_RESULTS)), encoding="utf-8")


def read(path: Path) -> dict[str, Result]:
    """The results in a file, none where there is no file."""
    found: dict[str, Result] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def keep(path: Path, name: str, result: Result) -> None:
    """Adds a result, in place of an earlier one of the same name, and makes the page anew."""
    results = read(path) | {name: result}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page()


def measured_by(command: str, measured: dict[str, str]) -> str:
    """The line under a table: how it was made, when and on what."""
    machine = f"{measured['date']}, {measured['processor']}, {measured['system']}, Python {measured['python']}"
    return f"`{command}`, {machine}."


def dataset_section(name: str, result: Result) -> str:
    """A section about the dataset studio."""
    rows = [f"| {key} | {value} |" for key, value in flat(result["figures"])]
    line = measured_by(f"python benchmarks/dataset.py {name}", result["measured"])
    head = [f"## {DATASET_TITLES[name]}", "", filled(DATASET_TEXTS[name]), "", "| what | figure |", "|---|---|"]
    return "\n".join([*head, *rows, "", line, ""])


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested figures as rows; lists of numbers become one cell. The machine has a line of its own."""
    if isinstance(value, dict):
        shown = {key: part for key, part in value.items() if key not in ("machine", "measured")}
        return [row for key, part in shown.items() for row in flat(part, f"{path}, {key}" if path else str(key))]
    if isinstance(value, list):
        return [(path.replace("_", " "), ", ".join(map(str, value)))]
    return [(path.replace("_", " "), str(value))]


def section(name: str, result: Result) -> str:
    """A table about training under its own small heading."""
    kind, figures = name.split()[0], result["figures"]
    make = {"steps": step_table, "ablation": ablation_table, "threads": thread_table, "around": around_table}[kind]
    head = [] if name == kind else [f"### {described(figures)}", ""]
    return "\n".join([*head, *make(figures), "", filled(measured_by(result["command"], result["measured"])), ""])


def described(figures: Result) -> str:
    """The work of a table in words."""
    work = figures["work"]
    devices = [facts["device"] for facts in figures.get("facts", {}).values()]
    size = {"tiny": "embedded model", "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}.get(work["size"], work["size"])
    checkpointing = ", gradient checkpointing" if work["gradient_checkpointing"] else ""
    words = f"{size}, {work['resolution']} px, batch {work['batch']}, {work['precision']}, rank {work['rank']}{checkpointing}"
    return ", ".join([words, *devices[:1]])


def step_table(figures: Result) -> Iterator[str]:
    """Safelight and others, by the layers that they train."""
    yield "| program | layers | s/step | steps/s | images/s | of peak | memory | first step, later | Safelight is |"
    yield "|---|---|---|---|---|---|---|---|---|"
    entrants = figures["contestants"]
    for name, one in sorted(entrants.items(), key=lambda item: item[1]["targets"]):
        label, layers = name.split(",")[0], one["targets"]
        if "fault" in one:
            yield f"| {label} | {layers} | {one['fault']} | | | | | | |"
            continue
        facts, ours = figures["facts"][one["targets"]], entrants[f"Safelight, {one['targets']}"]
        ratio = "" if one is ours or "fault" in ours else f"{one['seconds'] / ours['seconds']:.2f} times as fast"
        share = facts["operations"] / one["seconds"] / facts["matrix_peak"]
        yield (
            f"| {label} | {layers} | {spread(one)} | {1 / one['seconds']:.3g} | {one['batch'] / one['seconds']:.3g} | "
            f"{share:.0%} | {memory(one)} | {one['first_step_cold']:.1f} s, {one['first_step_warm']:.1f} s | {ratio} |"
        )
    yield ""
    yield filled(" ".join(_settings(figures)))


def spread(one: Result) -> str:
    """The median of a step's seconds and its middle half."""
    low, high = one["quarters"]
    return f"{one['seconds']:.3g} ({low:.3g} to {high:.3g})"


def memory(one: Result) -> str:
    """The peak, of the GPU where there is one."""
    return f"{(one['peak_gpu_memory'] or one['peak_memory']) / 1e9:.2f} GB"


def _settings(figures: Result) -> Iterator[str]:
    """What a table was measured with."""
    plan, facts = figures["plan"], next(iter(figures["facts"].values()))
    yield (
        f"{plan['rounds']} rounds of {plan['steps']} steps each after {plan['warm_up']} that do not count; "
        f"{figures['work']['pictures']} pictures; AdamW, fp32 LoRA in Safelight and the bare U-Net."
    )
    for targets, one in figures["facts"].items():
        yield f"A step with LoRA on {targets} has {one['operations'] / 1e12:.4g} TFLOP."
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"Measured peak: {facts['matrix_peak'] / 1e12:.3g} TFLOP/s on {facts['threads']} threads. {versions}."
    for name, version in figures.get("checkouts", {}).items():
        yield f"Checkout of {name}: {version or 'version unknown'}."


def ablation_table(figures: Result) -> Iterator[str]:
    """Each fast way off, beside all on."""
    yield "| what | s/step | steps/s | memory | first step, later | time of a step |"
    yield "|---|---|---|---|---|---|"
    entrants = figures["contestants"]
    whole = next(iter(entrants.values()))
    for name, one in entrants.items():
        if "fault" in one:
            yield f"| {name.replace('_', ' ')} | {one['fault']} | | | | |"
            continue
        change = "" if one is whole or "fault" in whole else f"{one['seconds'] / whole['seconds'] - 1:+.0%}"
        yield (
            f"| {name.replace('_', ' ')} | {spread(one)} | {1 / one['seconds']:.3g} | {memory(one)} | "
            f"{one['first_step_cold']:.1f} s, {one['first_step_warm']:.1f} s | {change} |"
        )
    yield ""
    yield filled(" ".join(_settings(figures)))


def thread_table(figures: Result) -> Iterator[str]:
    """Seconds a step by batch and threads."""
    batches = figures["batches"]
    names = list(next(iter(batches.values())))
    yield f"| in a step | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for batch, cases in batches.items():
        cells = [one.get("fault") or spread(one) for one in (cases[name] for name in names)]
        yield f"| {batch} | {' | '.join(cells)} |"


def around_table(figures: Result) -> Iterator[str]:
    """Named figures with their units."""
    yield "| what | figure |"
    yield "|---|---|"
    for key, value in flat({key: value for key, value in figures.items() if key != "work"}):
        yield f"| {key} | {value} |"
