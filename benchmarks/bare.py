"""The least that a step takes: the U-Net forward, backward and AdamW on inputs that are ready, with peft's LoRA.

`python bare.py SETTINGS` loops for ever and is ended by the stopwatch; with `--facts` it prints as JSON how many
floating-point operations a step has and how many a second this machine reaches in matrix products. SETTINGS is JSON:
the fields of `Work` in benchmarks/training.py.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TARGETS = {
    "attention": ["to_k", "to_q", "to_v", "to_out.0"],
    "attention+ff+proj": [
        *("to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    ],
}
"""Layers by the names of Safelight's setting `lora.targets`, as peft finds them."""
PEAK_SIDE = {"cpu": 3072, "cuda": 8192}
PEAK_SECONDS = 3.0


class BareStep:
    """A U-Net with a LoRA, an optimizer, and inputs that never change. On the device `meta` nothing is computed."""

    def __init__(self, work: dict[str, Any], device: str) -> None:
        from peft import LoraConfig

        self.device = torch.device(device)
        self.dtype = DTYPES[work["precision"]]
        self.unet = self._unet(work["base"]).requires_grad_(False)
        self.unet.add_adapter(
            LoraConfig(r=work["rank"], lora_alpha=work["rank"], target_modules=TARGETS[work["targets"]])
        )
        self.parameters = [one for one in self.unet.parameters() if one.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        if work["gradient_checkpointing"]:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.inputs = self._inputs(work["batch"], work["resolution"] // work["pixels_per_latent"])

    def _unet(self, base: str) -> Any:
        from diffusers import UNet2DConditionModel

        if self.device.type == "meta":
            with self.device:
                return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base, subfolder="unet"))
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=self.dtype)
        return unet.to(self.device)

    def _inputs(self, batch: int, side: int) -> dict[str, Any]:
        settings = self.unet.config
        latents = torch.randn(batch, settings.in_channels, side, side, device=self.device)
        words = torch.randn(batch, 77, settings.cross_attention_dim, device=self.device, dtype=self.dtype)
        extra = None
        if settings.addition_embed_type == "text_time":
            pooled = settings.projection_class_embeddings_input_dim - 6 * settings.addition_time_embed_dim
            extra = {
                "text_embeds": torch.randn(batch, pooled, device=self.device, dtype=self.dtype),
                "time_ids": torch.full((batch, 6), float(side * 8), device=self.device),
            }
        timesteps = torch.full((batch,), 500, device=self.device)
        return {
            "sample": latents,
            "timestep": timesteps,
            "encoder_hidden_states": words,
            "added_cond_kwargs": extra,
        }

    def loss(self) -> Tensor:
        """The loss of one forward pass."""
        mixed = self.dtype is not torch.float32 and self.device.type != "meta"
        with torch.autocast(self.device.type, self.dtype) if mixed else contextlib.nullcontext():
            answer = self.unet(**self.inputs, return_dict=False)[0]
        return torch.nn.functional.mse_loss(answer.float(), torch.zeros_like(self.inputs["sample"]))

    def step(self) -> None:
        """Forward, backward and the optimizer."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def operations(work: dict[str, Any]) -> int:
    """Floating-point operations of a forward and a backward pass, those of checkpointing included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    step = BareStep(work | {"precision": "fp32"}, "meta")
    # Plain matrix products are counted everywhere, fused attention is not.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step.loss().backward()
    return int(counter.get_total_flops())


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest product of two large square matrices."""
    side = PEAK_SIDE[device.type]
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest, ends = 0.0, time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        repeats = 10 if device.type == "cuda" else 1
        for _ in range(repeats):
            first @ second
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = max(fastest, repeats * 2 * side**3 / (time.perf_counter() - began))
    return fastest


def facts(work: dict[str, Any], device: str) -> dict[str, Any]:
    """What the share of the machine's peak is computed of, and what the machine and its packages are."""
    import diffusers
    import peft
    import transformers

    packages = {"torch": torch, "diffusers": diffusers, "transformers": transformers, "peft": peft}
    return {
        "operations": operations(work),
        "matrix_peak": matrix_peak(torch.device(device), DTYPES[work["precision"]]),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "versions": {name: module.__version__ for name, module in packages.items()},
    }


def main(arguments: list[str]) -> int:
    """Steps until it is ended, or prints the facts."""
    work, device = json.loads(arguments[0]), "cuda" if torch.cuda.is_available() else "cpu"
    if "--facts" in arguments:
        print(json.dumps(facts(work, device)))
        return 0
    step = BareStep(work, device)
    while True:
        step.step()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
