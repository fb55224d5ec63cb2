"""Measures importing: pictures per second with captions and thumbnails, on pictures of mixed real sizes. Prints JSON.

    python -m benchmarks.importing [--pictures 2000] [--out FILE]

The pictures are made from the photos that scikit-image and scikit-learn bring, cut and scaled to the sizes that cameras,
phones and picture sites have, each a file of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from trainer.dataset.importing import import_paths
from trainer.dataset.studio import Studio
from trainer.dataset.thumbnails import thumbnail_of
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

SIZES = (
    ((512, 512), 10), ((640, 480), 10), ((768, 1024), 12), ((832, 1216), 14), ((1024, 1024), 16), ((1200, 1600), 10),
    ((1920, 1080), 14), ((2048, 1536), 8), ((3024, 4032), 4), ((4000, 3000), 2),
)  # fmt: skip
"""(width, height) in pixels, and of a hundred pictures how many have it."""
KINDS = (("jpg", 70), ("png", 15), ("webp", 10), ("jpg on its side", 5))
"""Formats, and of a hundred pictures how many have it. One in twenty was taken with the phone held upright."""


def photos() -> list[Image.Image]:
    """Real photos at their full size."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket")
    found = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    return found + [Image.fromarray(image) for image in load_sample_images().images]


def make_pictures(folder: Path, count: int) -> dict[str, Any]:
    """Writes pictures with captions. Returns what they are."""
    chance = random.Random(1)
    sources = photos()
    sizes, kinds = (
        chance.choices(*zip(*SIZES, strict=True), k=count),
        chance.choices(*zip(*KINDS, strict=True), k=count),
    )
    pixels = 0
    for number, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        source = chance.choice(sources)
        share = chance.uniform(0.6, 1.0)
        box = [int(side * share) for side in source.size]
        left, top = (chance.randrange(whole - part + 1) for whole, part in zip(source.size, box, strict=True))
        part = source.crop((left, top, left + box[0], top + box[1]))
        image = ImageOps.fit(part, size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if kind.endswith("side"):
            exif[0x0112] = 6
        options: dict[str, Any] = {"quality": 90, "exif": exif} if kind.startswith("jpg") else {}
        image.save(folder / f"p{number:05}.{kind.split()[0]}", **({"quality": 90} if kind == "webp" else options))
        (folder / f"p{number:05}.txt").write_text(f"photo number {number}, a test", encoding="utf-8")
        pixels += size[0] * size[1]
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return {"pictures": count, "megapixels": round(pixels / 1e6), "megabytes": round(num_bytes / 1e6)}


def folder_hash(folder: Path) -> str:
    """One hash of all pictures and captions, to see that undo and redo bring the same."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and ".safelight" not in path.parts)


def measure(count: int) -> dict[str, Any]:
    """The figures."""
    with tempfile.TemporaryDirectory(prefix="safelight-benchmark-") as name:
        source = Path(name) / "pictures"
        source.mkdir()
        made = make_pictures(source, count)
        studio = Studio(Workspace.open(Path(name) / "workspace"))
        started, processor = time.perf_counter(), time.process_time()
        report = import_paths(studio, "benchmark", [source], TaskControl())
        seconds = time.perf_counter() - started
        busy = time.process_time() - processor
        dataset = studio.open("benchmark")
        pictures = dataset.pictures()
        assert len(pictures) == count, report
        started = time.perf_counter()
        for picture in pictures:
            assert thumbnail_of(studio.workspace, dataset.path / picture).is_file()
        thumbnails = time.perf_counter() - started
        before = folder_hash(dataset.path)
        started = time.perf_counter()
        dataset.history.undo()
        undo = time.perf_counter() - started
        assert not list(_files(dataset.path))
        dataset.history.redo()
        assert folder_hash(dataset.path) == before
        kept = sum(picture.endswith(".jpg") for picture in pictures)
        return {
            "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0]},
            "source": made,
            "import with captions and thumbnails": {
                "seconds": round(seconds, 2),
                "pictures per second": round(count / seconds, 1),
                "megapixels per second": round(made["megapixels"] / seconds, 1),
                "processors busy": round(busy / seconds, 2),
                "JPEGs kept bit for bit": kept,
                "megabytes written": round(sum(path.stat().st_size for path in _files(dataset.path)) / 1e6),
            },
            "thumbnails looked up afterwards": {"seconds": round(thumbnails, 3)},
            "undo of the whole import": {"seconds": round(undo, 3)},
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    text = json.dumps(measure(options.pictures), indent=2) + "\n"
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
