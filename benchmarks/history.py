"""Measures edits of 2,000 captions and pictures, and taking them back. `python -m benchmarks.history [NUMBER]`."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trainer.dataset.history import History

ROUNDS = 5


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(number: int) -> dict[str, list[float]]:
    """Seconds of every step, by name, over ROUNDS rounds."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset, cache = Path(folder) / "set", Path(folder) / "cache"
        for path in (dataset, cache):
            path.mkdir()
        for index in range(number):
            (dataset / f"{index}.png").write_bytes(b"\x89PNG" + bytes(100_000))
            (dataset / f"{index}.txt").write_text(f"a hat, red, smile, picture {index}", encoding="utf-8")
        history = History(dataset, cache)
        tagged = {f"{index}.txt": b"hat_v1, a hat, red, picture %d" % index for index in range(number)}
        removed = {f"{index}.png": None for index in range(number)}
        for _ in range(ROUNDS):
            steps: dict[str, Callable[[], object]] = {
                "change captions": lambda: history.apply("tag", tagged),
                "undo": history.undo,
                "redo": history.redo,
                "undo again": history.undo,
                "remove pictures": lambda: history.apply("remove", removed),
                "undo the removal": history.undo,
            }
            for name, work in steps.items():
                seconds.setdefault(name, []).append(timed(work))
            history.settle()
    return seconds


def main(number: int) -> None:
    """Prints the table."""
    print(f"{number:,} files each; median of {ROUNDS} rounds, and the slowest")
    for name, values in measure(number).items():
        print(f"{name:20} {statistics.median(values):7.3f} s {max(values):7.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
