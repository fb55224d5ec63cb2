"""Pictures a second of tagging on the CPU, beside a plain onnxruntime loop over the same pictures.

    python benchmarks/tagging.py

The plain loop is what a person would write: open, square, scale, run, one picture after the other, one thread of Python,
nothing written. Ours is the whole of `tag_dataset`: checked decoding ahead, the network on its confined thread, captions
written through the history. Both load the network first and use the same number of threads in it. The rounds take turns;
the medians count.

Networks: `lite0`, the real one of the tests (needs the packages of requirements-test.txt), which is so quick that decoding
weighs most; `vit`, as large as WD ViT v3 (86 million numbers, 448 pixels), with random weights; or your own FOLDER with
model.onnx and selected_tags.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.security import machine  # noqa: E402
from tests.taggers import PHOTOS, put_tagger, random_vit, real_tagger  # noqa: E402
from trainer.dataset.studio import Dataset, Studio  # noqa: E402
from trainer.tagging.base import TaggingOptions  # noqa: E402
from trainer.tagging.onnx_session import num_threads  # noqa: E402
from trainer.tagging.run import tag_dataset  # noqa: E402
from trainer.tasks import TaskControl  # noqa: E402
from trainer.workspace import Workspace  # noqa: E402

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "motorcycle_left.png")
SIDE = 1024
"""Longer side in pixels, as pictures of a dataset for SDXL have it."""
THRESHOLD = 0.35


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of real photos, each cut out elsewhere."""
    random = np.random.default_rng(0)
    photos = []
    for name in NAMES:
        with Image.open(PHOTOS / name) as image:
            photos.append(image.convert("RGB"))
    paths = []
    for number in range(count):
        photo = photos[number % len(photos)]
        width, height = (int(side * random.uniform(0.6, 1.0)) for side in photo.size)
        left, top = (
            int(random.integers(0, 1 + whole - part)) for whole, part in zip(photo.size, (width, height), strict=True)
        )
        cut = photo.crop((left, top, left + width, top + height))
        scale = SIDE / max(cut.size)
        path = folder / f"{number:04}.jpg"
        cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BICUBIC).save(
            path, quality=90
        )
        paths.append(path)
    return paths


def plain_loop(folder: Path, pictures: Sequence[Path]) -> tuple[float, float]:
    """Seconds to load the network, and seconds for all pictures, of the loop that everybody writes."""
    import onnxruntime

    began = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    lines = (folder / "selected_tags.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = [line.split(",")[1] for line in lines]
    wanted = session.get_inputs()[0]
    side = wanted.shape[1]
    loaded = time.perf_counter()
    for path in pictures:
        image = Image.open(path).convert("RGB")
        longer = max(image.size)
        square = Image.new("RGB", (longer, longer), (255, 255, 255))
        square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
        numbers = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32)[None, :, :, ::-1]
        scores = session.run(None, {wanted.name: np.ascontiguousarray(numbers)})[0][0]
        ", ".join(name for name, score in zip(names, scores, strict=True) if score > THRESHOLD)
    return loaded - began, time.perf_counter() - loaded


class Clock(TaskControl):
    """Notes when the network was loaded: at the first report after that of loading."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[float, int]] = []

    def progress(self, done: int, total: int, text: str = "") -> None:
        """As every task's."""
        self.times.append((time.perf_counter(), done))


def ours(workspace: Workspace, dataset: Dataset, batch_size: int) -> tuple[float, float]:
    """Seconds to load (with all checks of the file), and seconds for all pictures, with writing the captions."""
    options = TaggingOptions(models=("measured",), batch_size=batch_size, mode="replace", general_threshold=THRESHOLD)
    names, clock = dataset.pictures(), Clock()
    began = time.perf_counter()
    tag_dataset(workspace, dataset, names, options, clock)
    ended = time.perf_counter()
    first, done = clock.times[1]  # the first batch: loading is told apart by the pace of the others
    pace = (clock.times[-1][0] - first) / max(1, len(names) - done)
    loading = first - began - pace * done
    return loading, ended - began - loading


def measure(folder: Path, pictures: int, rounds: int, batch_size: int) -> dict[str, Any]:
    """The figures of one network."""
    with tempfile.TemporaryDirectory() as place:
        workspace = Workspace.open(Path(place) / "workspace")
        put_tagger(workspace, "measured", folder)
        dataset = Studio(workspace).create("pictures")
        paths = make_pictures(dataset.path, pictures)
        turns: dict[str, Callable[[], tuple[float, float]]] = {
            "plain loop": lambda: plain_loop(folder, paths),
            "Safelight": lambda: ours(workspace, dataset, batch_size),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for turn in range(rounds + 1):
            for name, work in turns.items():
                shutil.rmtree(dataset.path / ".safelight", ignore_errors=True)
                for caption in dataset.path.glob("*.txt"):
                    caption.unlink()
                found = work()
                if turn:  # the first round warms up the disk and the processor
                    seconds[name].append(found)
    figures: dict[str, Any] = {"pictures": pictures, "pixels": f"{SIDE} on the longer side", "batch size": batch_size}
    for name, found in seconds.items():
        load, rate = (
            statistics.median(part) for part in zip(*((one[0], pictures / one[1]) for one in found), strict=True)
        )
        spread = [round(pictures / one[1], 2) for one in found]
        figures[name] = {"pictures a second": round(rate, 2), "rounds": spread, "seconds to load": round(load, 2)}
    figures["ratio"] = round(figures["Safelight"]["pictures a second"] / figures["plain loop"]["pictures a second"], 3)
    return figures


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--network", choices=("lite0", "vit"), action="append", help="default: both")
    parser.add_argument("--tagger", type=Path, metavar="FOLDER", help="measure this tagger instead")
    options = parser.parse_args()
    known = {"lite0": real_tagger, "vit": random_vit}
    folders = {name: known[name] for name in options.network or known}
    if options.tagger:
        folders = {options.tagger.name: lambda: options.tagger}
    result: dict[str, Any] = {"measured": {**machine(), "threads": num_threads()}, "networks": {}}
    for name, folder in folders.items():
        count = max(8, options.pictures // 8) if name == "vit" else options.pictures  # a second and more for each
        figures = measure(folder(), count, options.rounds, options.batch_size)
        size = (folder() / "model.onnx").stat().st_size
        figures["network"] = {
            "bytes": size,
            "sha256": hashlib.sha256((folder() / "model.onnx").read_bytes()).hexdigest(),
        }
        result["networks"][name] = figures
        rates = ", ".join(f"{who} {figures[who]['pictures a second']}/s" for who in ("plain loop", "Safelight"))
        print(f"{name}: {rates}, ratio {figures['ratio']}", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
