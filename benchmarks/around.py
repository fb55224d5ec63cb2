"""What is not a step: the way to the first one, saving, samples, starting, and the page while a run trains."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bases, contestants, peers

ROOT = Path(__file__).resolve().parents[1]
STARTS = 3
"""How often what takes seconds is started; medians count."""
SAVE_EVERY, SAMPLE_EVERY, NUM_STEPS = 6, 8, 20
PROMPTS = ["a red house", "a cat at night"]
WATCHED_SECONDS = 40.0
PAUSE_SECONDS = 0.1
"""Between two requests to the page."""
Events = list[dict[str, Any]]


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """All figures. The page is measured with the embedded model alone, for which it is quickest to wait."""
    size = bases.SIZES[options.size]
    base = bases.build_base(size, (options.models or place / "models") / options.size)
    resolution, batch = options.resolution or size.resolution, options.batch or size.batch
    pictures = bases.write_pictures(place / "pictures", 16 * batch, resolution)
    work = contestants.Work(
        size=options.size,
        family=size.family,
        base=str(base),
        precision=options.precision,
        resolution=resolution,
        batch=batch,
        targets="attention+ff+proj",
        gradient_checkpointing=options.checkpointing,
        pixels_per_latent=size.pixels_per_latent,
    )
    folders = peers.Folders(base, pictures, place / "short")
    short = contestants.ours("a run of two steps", work, folders, settings={"training": {"max_train_steps": 2}})
    found: dict[str, Any] = {"work": contestants.facts_of_work(work, 16 * batch)}
    for name in ("with nothing encoded yet", "again"):
        events = train_once(short)
        found[name] = first_step(events) | encoding(events)
    folders = peers.Folders(base, pictures, place / "whole")
    whole = contestants.ours("a run with samples", work, folders, settings=around_settings(resolution))
    found["in the run"] = between_steps(train_once(whole))
    if options.size == "tiny":
        found |= starting() | page_while_training()
    return found


def around_settings(resolution: int) -> dict[str, dict[str, Any]]:
    """A short run that saves and draws now and then, never both after the same step."""
    return {
        "training": {"max_train_steps": NUM_STEPS},
        "save": {"every_n_steps": SAVE_EVERY},
        "sample": {"prompts": PROMPTS, "every_n_steps": SAMPLE_EVERY, "width": resolution, "height": resolution},
    }


def train_once(run: contestants.Contestant) -> Events:
    """Runs Safelight to its end; returns the events of the run, with `began`, when its process was started, as the first."""
    began = time.time()
    done = subprocess.run(
        [run.python, *run.command], cwd=run.scratch, env=run.environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{run.name} broke (exit code {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    newest = max(run.scratch.glob("workspace/runs/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    events = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [{"event": "began", "time": began}, *events]


def first_step(events: Events) -> dict[str, float]:
    """Seconds from the start of the program and from the queue to the end of the first step."""
    first = next(event["time"] for event in events if event["event"] == "StepDone")
    queued = next(event["time"] for event in events if event["event"] == "Queued")
    return {
        "start of the program to first step, seconds": round(first - events[0]["time"], 2),
        "Train to first step, seconds": round(first - queued, 2),
    }


def encoding(events: Events) -> dict[str, float]:
    """How fast pictures are encoded, from the run's reports of it."""
    reports = [event for event in events if event["event"] == "Preparing" and event["phase"] == "Encoding pictures"]
    done, seconds = (reports[-1][key] - reports[0][key] for key in ("done", "time")) if reports else (0, 0.0)
    return {"pictures encoded a second": round(done / seconds, 2)} if done and seconds > 0 else {}


def between_steps(events: Events) -> dict[str, float]:
    """Seconds that the run waits between two steps: for nothing, for a LoRA file with a checkpoint, for samples."""
    steps = {event["step"]: event for event in events if event["event"] == "StepDone"}
    gaps = {
        step: steps[step + 1]["time"] - steps[step + 1]["seconds"] - event["time"]
        for step, event in steps.items()
        if step + 1 in steps
    }
    usual = [gap for step, gap in gaps.items() if step % SAVE_EVERY and step % SAMPLE_EVERY]
    saving = [gap for step, gap in gaps.items() if step % SAVE_EVERY == 0]
    drawing = [gap for step, gap in gaps.items() if step % SAMPLE_EVERY == 0]
    return {
        "step, seconds": round(statistics.median(event["seconds"] for event in steps.values()), 4),
        "between two steps, seconds": round(statistics.median(usual), 4),
        "wait for saving, seconds": round(statistics.median(saving), 3),
        "sample, seconds": round(statistics.median(drawing) / len(PROMPTS), 3),
    }


def starting() -> dict[str, Any]:
    """Seconds until the page is served, and processor seconds of what is imported."""
    from tests.ui.served import served

    ready, busy = [], []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as place, served(Path(place) / "workspace") as page:
            ready.append(page.seconds_to_ready)
            busy.append(processor_seconds(page.process.pid))
    return {
        "start": {
            "launch.py to served page, seconds": round(statistics.median(ready), 2),
            "launch.py to served page, processor seconds": round(statistics.median(busy), 2),
            "launch.py --help, processor seconds": importing(["launch.py", "--no-venv", "--help"]),
            "import of the trainer, processor seconds": importing(["-c", "import trainer.loop"]),
        }
    }


def processor_seconds(pid: int) -> float:
    """What a running process has used of the processors."""
    import psutil  # type: ignore[import-untyped]

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def importing(arguments: Sequence[str]) -> float:
    """Median processor seconds of a short Python program."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return round(statistics.median(once() for _ in range(STARTS)), 2)


def page_while_training() -> dict[str, Any]:
    """Milliseconds of simple requests to the page, and of the page's own questions, idle and while the demo trains."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import ARGUMENTS, NAMES
    from tests.ui.served import served

    chromium = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if chromium is None:
        sys.stderr.write("The page is not measured: no Chromium is on the PATH; name one with CHROMIUM=PATH.\n")
        return {}
    with (
        tempfile.TemporaryDirectory() as place,
        served(Path(place) / "workspace") as server,
        sync_playwright() as player,
    ):
        browser = player.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(server.address)
        page.get_by_role("button", name="Try with the sample set").wait_for()
        idle = requests(server.address, WATCHED_SECONDS / 8, lambda: True)
        page.evaluate("performance.setResourceTimingBufferSize(10000)")
        page.get_by_role("button", name="Try with the sample set").click()
        chip = page.locator(".sl-strip .sl-chip")
        page.wait_for_function(
            "document.querySelector('.sl-strip .sl-chip')?.textContent === 'Training'", timeout=120_000
        )
        page.evaluate("performance.clearResourceTimings()")
        busy = requests(server.address, WATCHED_SECONDS, lambda: chip.inner_text() == "Training")
        own = page.evaluate(
            "performance.getEntriesByType('resource').filter((one) => one.initiatorType === 'fetch')"
            ".map((one) => one.duration)"
        )
        browser.close()
    return {
        "page, simple requests, milliseconds": {"idle": percentiles(idle), "while a run trains": percentiles(busy)},
        "page, its own questions while a run trains, milliseconds": percentiles(own),
    }


def requests(address: str, seconds: float, goes_on: Callable[[], bool]) -> list[float]:
    """Milliseconds of requests for the page and its settings, in turn, as long as it goes on."""
    import httpx

    found, ends = [], time.monotonic() + seconds
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as visitor:
        paths = ["/", "/config"]
        while time.monotonic() < ends and goes_on():
            for path in paths:
                began = time.perf_counter()
                visitor.get(path).raise_for_status()
                found.append(1000 * (time.perf_counter() - began))
                time.sleep(PAUSE_SECONDS)
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, the 95th percentile and the longest."""
    ordered = sorted(values)
    if not ordered:
        return {"number": 0}
    return {
        "number": len(ordered),
        "median": round(statistics.median(ordered), 1),
        "95th": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "longest": round(ordered[-1], 1),
    }
