"""Time and memory of the LoRA tools on models of the real sizes: `python benchmarks/lora_tools.py sd15|sdxl FOLDER`.

The model is random numbers in fp16 under the real names and shapes; its tokenizers and VAE are tiny, no tool reads them. Each
step runs in a process of its own, so that the peak of memory is its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS = ("lora", "bake", "extract", "resize", "merge", "verify")
RANK = 16


def make_model(family: str, folder: Path) -> None:
    """A diffusers folder whose U-Net and text encoders have the family's real shapes."""
    import numpy as np
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    from security.weights import TensorInfo
    from tests import tiny
    from trainer.lora_files.streaming import write_weights

    tiny.BUILDERS[family](folder, full_vocabulary=True)
    numbers = np.random.default_rng(0)
    configs = ROOT / "trainer" / "families" / "configs" / family
    for config in sorted(configs.glob("*/config.json")):
        part = config.parent.name
        if part == "vae":
            continue
        values = json.loads(config.read_text())
        with torch.device("meta"):
            if part == "unet":
                network = UNet2DConditionModel.from_config(values)
            else:
                cls = getattr(transformers, json.loads((folder / part / "config.json").read_text())["architectures"][0])
                network = cls(transformers.CLIPTextConfig(**values))
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        tensors = {name: TensorInfo("F16", shape, 2 * int(np.prod(shape)), 0) for name, shape in shapes.items()}
        for old in (folder / part).glob("*.safetensors"):
            old.unlink()
        name = "diffusion_pytorch_model.safetensors" if part == "unet" else "model.safetensors"
        write_weights(
            folder / part / name,
            tensors,
            {"format": "pt"},
            lambda key, shapes=shapes: [
                (numbers.standard_normal(shapes[key], dtype=np.float32) * 0.02).astype(np.float16).tobytes()
            ],
        )
        (folder / part / "config.json").write_text(json.dumps(values))


def run_step(step: str, folder: Path, family: str) -> None:
    """Does one step and prints what it took."""
    import torch

    from trainer.config.choices import SavePrecision
    from trainer.lora_files.changes import ranks_of
    from trainer.lora_files.checkpoint import Checkpoint
    from trainer.lora_files.file import LoraFile
    from trainer.lora_files.layers import LowRank
    from trainer.lora_files.operations import (
        Models,
        Weighted,
        bake_loras,
        extract_lora,
        merge_loras,
        resize_lora,
    )
    from trainer.lora_files.results import Form, save
    from trainer.lora_files.verify import look_at

    base, lora = folder / "base", Weighted(folder / "lora.safetensors", "lora")
    before, start, cpu = _peak_mb(), time.monotonic(), time.process_time()
    told = ""
    if step == "lora":
        layers = {}
        with Checkpoint(base) as checkpoint:
            for place in checkpoint.modules():
                shape = checkpoint.shape(place) or ()
                down = torch.randn(RANK, *shape[1:]) / shape[1] ** 0.5
                up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2)) / 50
                layers[place] = LowRank(down, up, float(RANK))
        save(LoraFile(family, layers), lora.path, Form(precision=SavePrecision.FP16))
        told = f"{len(layers)} layers, {lora.path.stat().st_size / 1e6:.0f} MB"
    elif step == "bake":
        told = bake_loras(base, [lora], folder / "baked").sentence
    elif step == "extract":
        told = extract_lora(
            Models(folder / "baked", base), folder / "out.safetensors", ranks_of(RANK, RANK), Form()
        ).sentence
    elif step == "resize":
        told = resize_lora(lora, folder / "small.safetensors", ranks_of(4, 4), Form()).sentence
    elif step == "merge":
        both = [lora, Weighted(folder / "out.safetensors", "out", -0.5)]
        told = merge_loras(both, folder / "both.safetensors", ranks_of(RANK, RANK), Form()).sentence
    elif step == "verify":
        told = str(look_at(lora.path, "lora", base=base).summary().get("strength"))
    took = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    print(json.dumps({"step": step, **took, "peak_mb": _peak_mb(), "before_mb": before, "result": told}), flush=True)


def _peak_mb() -> int:
    """The most memory that this process has had so far, in megabytes. rusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Makes the model and runs every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=["sd15", "sdxl"])
    parser.add_argument("folder", type=Path, help="an empty folder with room for four copies of the model")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.folder, options.family)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    make_model(options.family, options.folder / "base")
    for step in STEPS:
        command = [sys.executable, __file__, options.family, str(options.folder), "--step", step]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
