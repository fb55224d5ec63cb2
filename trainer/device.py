"""Where and in which number format to compute."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.config.schema import Precision
from trainer.memory.host import host_memory, own_memory

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
LEAST_SHARED_WORK = 2e10
"""On two cores with sleeping threads, two were slower than one at 0.9e10 (the demo: 0.14 s for 0.09 s) and faster at 3.6e10."""


def choose_device(name: str) -> torch.device:
    """The device of a setting; `auto` takes the first CUDA GPU, then Apple's, then the CPU.

    Raises SafelightError when the named one isn't there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SafelightError(
            f"training.device is {name}, but torch sees {torch.cuda.device_count()} NVIDIA GPUs. Set it to auto or cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SafelightError(
            "training.device is mps, but this is no Mac with Apple's GPU support. Set it to auto or cpu."
        )
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The base model's number format. Raises SafelightError when the GPU can't compute in it."""
    if precision is Precision.AUTO:
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    if (
        precision is Precision.BF16
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise SafelightError("model.precision is bf16, which this GPU can't compute in. Set it to fp16 or auto.")
    return DTYPES[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision: the base and the activations in `dtype`, the LoRA's weights kept in fp32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


@contextlib.contextmanager
def threads_for(device: torch.device, work: float) -> Iterator[None]:
    """One thread for steps that are too small to share: waking the others would take longer than what they do.

    `work`: parameters of the denoiser times latent pixels of a batch. The number of threads follows from
    that alone, so that the same seed gives the same LoRA; OMP_NUM_THREADS has the last word.
    """
    before = torch.get_num_threads()
    alone = device.type == "cpu" and work < LEAST_SHARED_WORK and "OMP_NUM_THREADS" not in os.environ
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(before)


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """On `device`, in `dtype` if given. A GPU fetches it by itself from pinned memory; nobody waits for it then."""
    return tensor.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")


def device_label(device: torch.device, dtype: torch.dtype) -> str:
    """For people: `NVIDIA H200, bf16` or `CPU, fp32`."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else {"cpu": "CPU", "mps": "Apple GPU"}[device.type]
    )
    return f"{name}, {dtype_label(dtype)}"


def dtype_label(dtype: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return {value: key for key, value in DTYPES.items()}[dtype].value


def peak_memory(device: torch.device) -> tuple[int, int]:
    """The most bytes that were in use at once, and how many there are: of the GPU, or of this whole program and machine.

    0 for what this system does not tell.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return torch.cuda.max_memory_reserved(device), total - max(0, others)
    if sys.platform == "win32":
        return 0, 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 0


def memory_now(device: torch.device) -> tuple[int, int]:
    """Bytes that this program uses now, and all that it could: of the GPU, or of the machine beside other programs."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    own = own_memory()
    return own, own + host_memory()[0]


def processor_share(device: torch.device, processor_seconds: float, seconds: float) -> float:
    """The part of the processors that this program had of those that it could use; 0 where a GPU computes."""
    return processor_seconds / max(1e-9, seconds * torch.get_num_threads()) if device.type == "cpu" else 0.0
