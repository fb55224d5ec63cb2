"""How fast the Dataset tab is with many pictures, in real Chromium on the served page. Prints JSON; times in seconds.

`python benchmarks/dataset_page.py [--pictures 2000]` needs playwright and a Chromium (the first of the usual names, or
$CHROMIUM). Every figure is taken on a page of its own; a second time with thumbnails and sizes in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from tests.browser.conftest import ARGUMENTS, NAMES
from tests.ui.served import Served, served

TAGS = (
    "1girl",
    "solo",
    "smile",
    "standing",
    "outdoors",
    "night",
    "portrait",
    "hat",
    "flower",
    "tree",
    "sky",
    "water",
    "city",
)
SIZES = ((832, 1216), (1024, 1024), (1216, 832), (640, 960))
SCROLL_SECONDS = 6.0
READING_PACE = 3000
"""Pixels a second of somebody who looks for a picture with the wheel."""
DATASET = "benchmark"

READY = f"safelight.studio.name === '{DATASET}' && safelight.studio.rows.every((row) => row.bucket)"

FIRST_PAINT = """() => new Promise((done) => {
    const started = performance.now();
    const look = () => {
        const cards = safelight.studio.name === 'DATASET' ? [...document.querySelectorAll('.sl-cell')] : [];
        const seen = cards.filter((card) => card.getBoundingClientRect().top < innerHeight);
        const drawn = seen.filter((card) => card.querySelector('img').naturalWidth > 0);
        if (cards.length && !look.cards) look.cards = performance.now() - started;
        if (seen.length && drawn.length === seen.length) {
            return done({ cards: look.cards / 1000, thumbnails: (performance.now() - started) / 1000, in_sight: seen.length });
        }
        requestAnimationFrame(look);
    };
    safelight.studio.choose('DATASET');
    look();
})"""
"""From the choice of the dataset to its first cards, and to all thumbnails in sight."""

SCROLL = """([seconds, pace]) => new Promise((done) => {
    const frames = [];
    const whole = document.documentElement.scrollHeight - innerHeight;
    const height = pace ? Math.min(whole, pace * seconds) : whole;
    const started = performance.now();
    let last = started;
    let most = 0;
    const step = (now) => {
        frames.push(now - last);
        last = now;
        most = Math.max(most, document.querySelectorAll('.sl-cell').length);
        const share = (now - started) / (seconds * 1000);
        if (share >= 1) return done({ frames: frames.slice(1), most, height });
        scrollTo(0, height * share);
        requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
})"""
"""From the top on at a steady pace, without one to the very end; the time between frames in milliseconds."""


def make_pictures(folder: Path, number: int) -> None:
    """Pictures of training size with captions, the same ones every time."""
    folder.mkdir(parents=True)
    chance = random.Random(7)
    for index in range(number):
        width, height = chance.choice(SIZES)
        image = Image.new("RGB", (width, height), tuple(chance.randrange(60, 230) for _ in range(3)))
        draw = ImageDraw.Draw(image)
        for _ in range(8):
            x, y, radius = chance.randrange(width), chance.randrange(height), chance.randrange(20, width // 3)
            colour = tuple(chance.randrange(256) for _ in range(3))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        image.save(folder / f"{index:05d}.jpg", quality=85)
        tags = chance.sample(TAGS, chance.randrange(3, len(TAGS)))
        (folder / f"{index:05d}.txt").write_text(", ".join(tags), encoding="utf-8")


def open_page(browser: Browser, server: Served) -> Page:
    """The tab with the embedded dataset, in a browser that has seen nothing yet."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{server.address}/?tab=dataset&dataset=ink")
    page.wait_for_function("document.querySelector('.sl-cell img')?.naturalWidth > 0")
    page.wait_for_timeout(1000)
    return page


def first_paint(browser: Browser, server: Served) -> dict[str, Any]:
    """Choosing the dataset until its cards and their thumbnails are there."""
    page = open_page(browser, server)
    times: dict[str, Any] = page.evaluate(FIRST_PAINT.replace("DATASET", DATASET))
    started = time.perf_counter()
    page.wait_for_function(READY)
    times["all_sizes_after"] = time.perf_counter() - started
    page.context.close()
    return times


def scrolling(browser: Browser, server: Served, pace: int) -> dict[str, Any]:
    """SCROLL_SECONDS of scrolling at `pace` pixels a second; 0: the whole grid in that time. A screen shows a frame in 16.7 ms.

    `main_thread_per_frame` is processor time, which other programs on the machine don't make longer.
    """
    page = open_page(browser, server)
    page.evaluate(f"safelight.studio.choose('{DATASET}')")
    page.wait_for_function(READY)
    page.wait_for_timeout(1500)
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = _thread_seconds(tools)
    measured = page.evaluate(SCROLL, [SCROLL_SECONDS, pace])
    busy = _thread_seconds(tools) - before
    frames = sorted(measured["frames"])
    started = time.perf_counter()
    page.wait_for_function(
        "[...document.querySelectorAll('.sl-cell')].every((card) => card.querySelector('img').naturalWidth > 0)"
    )
    settled = time.perf_counter() - started
    page.context.close()
    return {
        "pixels": measured["height"],
        "frames": len(frames),
        "frame_median": statistics.median(frames) / 1000,
        "frame_95th": frames[int(0.95 * len(frames))] / 1000,
        "frame_longest": frames[-1] / 1000,
        "frames_over_50_ms": sum(frame > 50 for frame in frames),
        "main_thread_per_frame": busy / len(frames),
        "most_cards_in_the_page": measured["most"],
        "thumbnails_after_stopping": settled,
    }


def _thread_seconds(tools: CDPSession) -> float:
    metrics = tools.send("Performance.getMetrics")["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")


def saving(browser: Browser, server: Served) -> dict[str, Any]:
    """Typing a caption and leaving its box, until the page says that it is saved; then taking it back."""
    page = open_page(browser, server)
    page.evaluate(f"safelight.studio.choose('{DATASET}')")
    page.wait_for_function(READY)
    page.wait_for_timeout(1500)
    times = []
    for number in range(10):
        card = page.locator(".sl-cell").nth(number)
        card.locator("textarea").fill(f"a new caption, number {number}")
        started = time.perf_counter()
        card.locator("textarea").blur()
        card.get_by_text("Saved").wait_for()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    page.locator("#dataset-undo").click()
    page.wait_for_function("!document.querySelectorAll('.sl-cell textarea')[9].value.startsWith('a new caption')")
    undone = time.perf_counter() - started
    page.context.close()
    return {"saved_median": statistics.median(times), "saved_longest": max(times), "undo_until_shown": undone}


def filtering(browser: Browser, server: Served) -> dict[str, Any]:
    """A filter and a sort order over all rows, in the page itself."""
    page = open_page(browser, server)
    page.evaluate(f"safelight.studio.choose('{DATASET}')")
    page.wait_for_function(READY)
    found = page.evaluate(
        """() => {
            const started = performance.now();
            safelight.studio.find('tag:smile -tag:cat tokens:>10');
            return { filter: (performance.now() - started) / 1000, found: safelight.studio.shown.length };
        }"""
    )
    page.context.close()
    return dict(found)


def rounded(value: Any) -> Any:
    """Figures with as many digits as mean something."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=2000)
    number = parser.parse_args().pictures
    chromium = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if chromium is None:
        sys.stderr.write("No Chromium is on the PATH; name one with CHROMIUM=PATH.\n")
        return 2
    with tempfile.TemporaryDirectory() as place:
        make_pictures(Path(place) / "workspace" / "datasets" / DATASET, number)
        with served(Path(place) / "workspace") as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            results = {
                "pictures": number,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
                "browser": browser.version,
                "first_time": first_paint(browser, server),
                "again": first_paint(browser, server),
                "scroll_to_the_end_first_time": scrolling(browser, server, 0),
                "scroll_to_the_end": scrolling(browser, server, 0),
                "scroll_at_reading_pace": scrolling(browser, server, READING_PACE),
                "filter": filtering(browser, server),
                "caption": saving(browser, server),
            }
            browser.close()
    print(json.dumps(rounded(results), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
