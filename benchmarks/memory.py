"""What each format of the base and each level of thrift costs: bytes of the base, peak memory, seconds of a step.

    python -m benchmarks.memory --size demo
    python -m benchmarks.memory --size sd15 --pixels 256
    python -m benchmarks.memory --count

The first two train a LoRA of rank 16 on a U-Net of that size with random weights, each case in a process of its own. The
last counts what autograd keeps of one picture on networks without any numbers: what trainer/memory/plan.py reckons with.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
CONFIGS = {
    "demo": "trainer/demo/base/unet/config.json",
    "sd15": "trainer/families/configs/sd15/unet/config.json",
    "sdxl": "trainer/families/configs/sdxl/unet/config.json",
}
CASES = [
    *((form, "off") for form in ("whole", "fp8", "int8", "nf4")),
    ("whole", "attention"),
    ("whole", "blocks"),
    ("nf4", "blocks"),
]
"""Formats and levels of checkpointing; a CPU has no other memory to move anything to."""


def network(size: str) -> Any:
    """A frozen U-Net of that size with random weights."""
    from diffusers import UNet2DConditionModel

    config = {key: value for key, value in json.loads((ROOT / CONFIGS[size]).read_text()).items() if key[0] != "_"}
    return UNet2DConditionModel.from_config(config).eval().requires_grad_(False)


def with_lora(unet: Any) -> Any:
    """The network with the adapter of the default settings."""
    from trainer.adapters.place import add_adapter
    from trainer.config.schema import LoraConfig
    from trainer.families.unet import LORA_TARGETS

    settings = LoraConfig()
    add_adapter(unet, settings, LORA_TARGETS[settings.targets], seed=0)
    return unet


def inputs(unet: Any, side: int, batch: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the network is called with: noise, a timestep, a caption, and sizes where it knows them."""
    import torch

    torch.manual_seed(0)
    width = unet.config.cross_attention_dim
    with torch.device(device):
        given = (torch.randn(batch, 4, side, side), torch.full((batch,), 500), torch.randn(batch, 77, width))
        sizes = {"text_embeds": torch.randn(batch, 1280), "time_ids": torch.ones(batch, 6)}
    return given, {"added_cond_kwargs": sizes} if unet.config.addition_embed_type else {}


def measure(size: str, form: str, checkpointing: str, *, pixels: int, steps: int) -> dict[str, Any]:
    """One case: the median of its steps after the first, the process's peak, and the first loss."""
    import torch

    from trainer.config.choices import BaseFormat, Checkpointing
    from trainer.memory.keeping import Keeping
    from trainer.memory.plan import Level

    torch.manual_seed(0)
    unet = network(size)
    keeping = Keeping(unet, torch.device("cpu"), BaseFormat(form), elsewhere=False)
    keeping.settle(away=False)
    base = sum(one.nbytes for one in (*unet.parameters(), *unet.buffers()))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on: Linux only
    optimizer = torch.optim.AdamW([one for one in with_lora(unet).parameters() if one.requires_grad], lr=1e-4)
    keeping.apply(Level(Checkpointing(checkpointing)))
    given, more = inputs(unet, pixels // 8, 1, "cpu")
    target, times, losses = torch.randn_like(given[0]), [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        with keeping.saving():
            loss = (unet(*given, return_dict=False, **more)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
    return {
        "size": size, "pixels": pixels, "format": form, "checkpointing": checkpointing, "base_bytes": base,
        "peak_bytes": peak_bytes(),
        "seconds": sorted(times[1:])[len(times[1:]) // 2], "loss": losses[0],
    }  # fmt: skip


def peak_bytes() -> int:
    """The most memory that this process had at once since its peak was last forgotten."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def count(size: str, side: int) -> dict[str, Any]:
    """Bytes in fp32 that autograd keeps of one picture of `side` latents, counted and as the plan reckons."""
    import torch

    from trainer.adapters.layer import adapted_layers
    from trainer.config.choices import Checkpointing
    from trainer.memory.keeping import set_checkpointing
    from trainer.memory.plan import LEVELS, Load, activation_bytes, unet_shape

    class Attention(torch.autograd.Function):
        """Keeps what attention in pieces keeps."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            ctx.save_for_backward(query, key, value, result := torch.empty_like(query))
            return result

    def in_pieces(query: Any, key: Any, value: Any, **options: Any) -> Any:
        return Attention.apply(query, key, value)

    torch.nn.functional.scaled_dot_product_attention = in_pieces
    with torch.device("meta"):
        unet = network(size)
    for layer in adapted_layers(with_lora(unet)).values():
        layer.adapter.fused = False  # one operation has no number format without a device
    load = Load(0, 0, 0, 0, side * side, False, unet_shape(unet.config))
    found: dict[str, Any] = {"size": size, "side": side}
    for level in LEVELS[:3]:
        set_checkpointing(unet, Checkpointing(level.checkpointing))
        seen: dict[int, Any] = {}

        def keep(tensor: Any, seen: dict[int, Any] = seen) -> Any:
            own = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
            if not own:
                seen.setdefault(tensor.untyped_storage()._cdata, tensor)
            return tensor

        given, more = inputs(unet, side, 1, "meta")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(*given, return_dict=False, **more)
        kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
        found[level.checkpointing.value] = {"counted": kept, "planned": activation_bytes(load, level)}
    return found


def main() -> None:
    """Runs the cases and adds them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(CONFIGS), default="demo")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--case", nargs=2, metavar=("FORMAT", "CHECKPOINTING"), help="one case, in this process")
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(measure(chosen.size, *chosen.case, pixels=chosen.pixels, steps=chosen.steps)))
        return
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.count:
        key, rows = "count", [count(size, side) for size, side in (("sd15", 64), ("sdxl", 128))]
    else:
        key, rows = f"{chosen.size} {chosen.pixels}", []
        for case in CASES:
            command = [sys.executable, "-m", "benchmarks.memory", "--size", chosen.size, "--pixels", str(chosen.pixels)]
            command += ["--steps", str(chosen.steps), "--case", *case]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
    held[key] = {"command": " ".join(["python -m benchmarks.memory", *sys.argv[1:]]), "rows": rows}
    held["machine"] = f"{platform.machine()}, CPU"
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
