"""What this machine is and how busy it is, found out without importing torch."""

from __future__ import annotations

import logging
import platform
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from security.errors import FailedCommand
from security.processes import run
from trainer.models.text import gigabytes as gigabytes  # the page's other modules have it from here

logger = logging.getLogger("safelight.machine")

GPU_QUERY = "--query-gpu=name,memory.used,memory.total,utilization.gpu"
REFRESH_SECONDS = 2.0


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. Memory in bytes, `load` in percent."""

    name: str
    memory_used: int
    memory_total: int
    load: int


@dataclass(frozen=True)
class MachineFacts:
    """Memory and disk in bytes, `cpu_load` in percent of all cores. `accelerator` names a GPU that is not NVIDIA's."""

    gpus: tuple[Gpu, ...]
    accelerator: str
    num_cores: int
    cpu_load: float
    memory_used: int
    memory_total: int
    disk_free: int


class Machine:
    """The latest facts; refreshed in the background, and only while somebody asks."""

    def __init__(self, disk_path: Path) -> None:
        self._disk_path = disk_path
        self._guard = threading.Lock()
        self._measured_at = 0.0
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._facts = self._measure()

    def facts(self) -> MachineFacts:
        """Answers at once; asks for fresh numbers when the last ones are two seconds old."""
        with self._guard:
            due = time.monotonic() - self._measured_at > REFRESH_SECONDS
            if due:
                self._measured_at = time.monotonic()
        if due:
            threading.Thread(target=self._refresh, name="safelight-machine", daemon=True).start()
        return self._facts

    def _refresh(self) -> None:
        self._facts = self._measure(self._gpus())

    def _measure(self, gpus: tuple[Gpu, ...] = ()) -> MachineFacts:
        memory = psutil.virtual_memory()
        on_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return MachineFacts(
            gpus=gpus,
            accelerator="Apple GPU" if on_apple else "",
            num_cores=psutil.cpu_count() or 1,
            cpu_load=psutil.cpu_percent(),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            disk_free=shutil.disk_usage(self._disk_path).free,
        )

    def _gpus(self) -> tuple[Gpu, ...]:
        if self._nvidia_smi is None:
            return ()
        try:
            done = run([self._nvidia_smi, GPU_QUERY, "--format=csv,noheader,nounits"], timeout_seconds=10)
        except FailedCommand as error:
            logger.info("nvidia-smi gave no answer: %s", error)
            return ()
        return parse_gpus(done.stdout)


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's comma-separated answer; lines that make no sense (a driver error) are left out."""
    gpus = []
    for line in output.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
            mebibyte = 1 << 20
            load = int(parts[3]) if parts[3].isdigit() else 0
            gpus.append(Gpu(parts[0], int(parts[1]) * mebibyte, int(parts[2]) * mebibyte, load))
    return tuple(gpus)


def memory_line(facts: MachineFacts) -> str:
    """GPU and memory in one short line for the strip."""
    ram = f"{facts.memory_used / 1e9:.1f} of {facts.memory_total / 1e9:.0f} GB memory used"
    if facts.gpus:
        gpu = facts.gpus[0]
        more = f" (and {len(facts.gpus) - 1} more)" if len(facts.gpus) > 1 else ""
        return f"{gpu.name}{more} · {gpu.memory_used / 1e9:.1f} of {gpu.memory_total / 1e9:.0f} GB used"
    if facts.accelerator:
        return f"{facts.accelerator} · {ram}"
    return f"No NVIDIA GPU found - training runs on the CPU · {ram}"


def machine_line(facts: MachineFacts) -> str:
    """The machine in one line for the Start tab."""
    device = ", ".join(f"{gpu.name}, {gpu.memory_total / 1e9:.0f} GB" for gpu in facts.gpus) or facts.accelerator
    cores = f"{device or 'no NVIDIA GPU, training runs on the CPU'} · {facts.num_cores} CPU cores"
    return f"{cores} · {facts.memory_total / 1e9:.0f} GB memory · {gigabytes(facts.disk_free)} of disk free"
