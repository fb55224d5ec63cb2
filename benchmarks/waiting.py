"""What a run waits for besides its steps: encoding before the first one, and checkpoints between them.

    python benchmarks/waiting.py encoding --vae demo --side 256 --pictures 24
    python benchmarks/waiting.py saving --megabytes 280

`encoding`: pictures a second, read and encoded in turn, and read ahead, at several batch sizes, each into an empty cache.
`saving`: seconds that a checkpoint of that size holds the steps, written at once and in the background, and what steps
(products of matrices) take meanwhile. Medians of all rounds; `--flush SECONDS` makes every flush to the disk so much slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BATCHES = (1, 4)
ROUNDS = 3
CONFIGS = {name: ROOT / f"trainer/families/configs/{name}/vae/config.json" for name in ("sd15", "sdxl")}
CONFIGS["demo"] = ROOT / "trainer/demo/base/vae/config.json"
STEP_SIDE = 512
"""Of the matrices that stand for the work of a step."""


def encoding(options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second, by the way that they are encoded."""
    with tempfile.TemporaryDirectory() as place:
        bench = _Bench(options, Path(place))
        ways: dict[str, Callable[[Path], None]] = {"in turn": bench.in_turn}
        ways |= {f"read ahead, {size} at once": lambda to, size=size: bench.ahead(to, size) for size in BATCHES}  # type: ignore[misc]
        bench.in_turn(Path(place) / "warm-up")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                way(Path(place) / f"{number} {name}")
                seconds[name].append(time.perf_counter() - began)
    return {
        f"{name}, pictures a second": round(options.pictures / statistics.median(own), 2)
        for name, own in seconds.items()
    }


class _Bench:
    """Pictures on the disk and a VAE with random weights."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        import torch
        from diffusers import AutoencoderKL

        from benchmarks.bases import write_pictures
        from trainer.config.schema import DatasetConfig
        from trainer.dataset.placing import place_alone
        from trainer.dataset.scan import scan_folder
        from trainer.families import get_family
        from trainer.families.base import Components
        from trainer.models.files import ModelFiles

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = {key: value for key, value in json.loads(CONFIGS[options.vae].read_text()).items() if key[0] != "_"}
        vae = AutoencoderKL.from_config(config).eval().requires_grad_(False).to(device)
        folder, *_ = write_pictures(place / "pictures", options.pictures, options.source or options.side)
        self.family = get_family("sd15")
        files = ModelFiles("bench", place, "folder", "sd15", "epsilon", False, 0, "0" * 64)
        self.components = Components(files, torch.nn.Identity(), [], [], vae, {})
        settings = DatasetConfig(resolution=options.side)
        self.placed = place_alone([(0, one) for one in scan_folder(folder, settings).pictures], settings, 8)

    def in_turn(self, to: Path) -> None:
        """As a loop does that reads a picture, encodes it, stores it."""
        from trainer.dataset.cache import TensorCache, cached, latents_key, load_pixels

        cache = TensorCache(to)
        for one in self.placed:
            cached(
                cache,
                latents_key(one, "bench", flip=False),
                lambda one=one: {  # type: ignore[misc]
                    "latents": self.family.encode_images(
                        self.components, load_pixels(one.picture.path, one.placement, flip=False)
                    )
                },
            )

    def ahead(self, to: Path, size: int) -> None:
        """As a run does."""
        from trainer.at_once import AtOnce
        from trainer.dataset.cache import TensorCache
        from trainer.latents import PictureEncoder

        at_once = AtOnce(size, lambda event: None)
        encoder = PictureEncoder(self.family, self.components, TensorCache(to), at_once)
        encoder.encode(self.placed, (False,), lambda done, total: None)


def saving(options: argparse.Namespace) -> dict[str, float]:
    """Seconds that a checkpoint holds the steps, and milliseconds of a step without one and beside one."""
    import torch

    from trainer.checkpoints import Checkpoint, save_checkpoint, snapshot

    if options.flush:
        _slow_down(options.flush)
    number = max(1, options.megabytes // 3)  # the LoRA, and two numbers that the optimizer keeps of each of its numbers
    lora = {str(index): torch.randn(500, 500) for index in range(number)}
    state = {index: {"exp_avg": tensor.clone(), "exp_avg_sq": tensor**2} for index, tensor in enumerate(lora.values())}
    checkpoint = Checkpoint(1, 1, lora, {"state": state}, {})
    matrix = torch.randn(STEP_SIDE, STEP_SIDE, device="cuda" if torch.cuda.is_available() else "cpu")

    def steps(goes_on: Callable[[], bool]) -> float:
        times = []
        while goes_on() or not times:
            began = time.perf_counter()
            float((matrix @ matrix).sum())
            times.append(time.perf_counter() - began)
        return 1000 * statistics.median(times)

    found: dict[str, list[float]] = {name: [] for name in ("at once", "background", "written", "alone", "beside")}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=options.folder) as place, ThreadPoolExecutor(1) as pool:
            ends = time.perf_counter() + 1.0
            found["alone"].append(steps(lambda ends=ends: time.perf_counter() < ends))  # type: ignore[misc]
            began = time.perf_counter()
            save_checkpoint(Path(place) / "at once", snapshot(checkpoint), keep_last=1)
            found["at once"].append(time.perf_counter() - began)
            began = time.perf_counter()
            writing = pool.submit(save_checkpoint, Path(place) / "background", snapshot(checkpoint), keep_last=1)
            found["background"].append(time.perf_counter() - began)
            found["beside"].append(steps(lambda writing=writing: not writing.done()))  # type: ignore[misc]
            found["written"].append(time.perf_counter() - began)
    middle = {name: statistics.median(own) for name, own in found.items()}
    return {
        "held by a checkpoint that is written at once, seconds": round(middle["at once"], 3),
        "held by one that is written in the background, seconds": round(middle["background"], 3),
        "until that one is on the disk, seconds": round(middle["written"], 3),
        "a step, milliseconds": round(middle["alone"], 3),
        "a step beside the writing, milliseconds": round(middle["beside"], 3),
    }


def _slow_down(seconds: float) -> None:
    flush = os.fsync

    def slowly(descriptor: Any) -> None:
        time.sleep(seconds)
        flush(descriptor)

    os.fsync = slowly


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("encoding")
    one.add_argument("--vae", choices=CONFIGS, default="demo")
    one.add_argument("--side", type=int, default=256, help="of the pictures that are encoded, in pixels")
    one.add_argument("--source", type=int, default=0, help="of the pictures on the disk; 0: as they are encoded")
    one.add_argument("--pictures", type=int, default=24)
    other = commands.add_parser("saving")
    other.add_argument(
        "--megabytes", type=int, default=280, help="of LoRA and optimizer together; SDXL at rank 16: 280"
    )
    other.add_argument("--flush", type=float, default=0.0)
    other.add_argument("--folder", type=Path, help="a folder of the disk that is measured")
    options = parser.parse_args()
    print(json.dumps({"encoding": encoding, "saving": saving}[options.command](options), indent=1))


if __name__ == "__main__":
    main()
