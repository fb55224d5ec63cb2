"""The machine in words, from what nvidia-smi and the system say."""

from __future__ import annotations

import time
from pathlib import Path

from ui.machine import Gpu, Machine, MachineFacts, gigabytes, machine_line, memory_line, parse_gpus

FACTS = MachineFacts((), "", 2, 10.0, 4_000_000_000, 16_000_000_000, 210_000_000_000)


def test_gpus_are_read_and_broken_lines_left_out() -> None:
    answer = "NVIDIA GeForce RTX 4090, 17613, 24564, 98\n[Unknown Error]\nTesla T4, 10, 15360, [N/A]\n"
    first, second = parse_gpus(answer)
    assert (first.name, first.load, first.memory_total) == ("NVIDIA GeForce RTX 4090", 98, 24564 << 20)
    assert second.load == 0
    assert parse_gpus("") == ()


def test_the_lines_name_the_gpu_or_its_absence() -> None:
    assert memory_line(FACTS) == "No NVIDIA GPU found - training runs on the CPU · 4.0 of 16 GB memory used"
    with_gpu = MachineFacts((Gpu("RTX 4090", 17 * 10**9, 24 * 10**9, 50),), "", 8, 1.0, 1, 2, 3)
    assert memory_line(with_gpu) == "RTX 4090 · 17.0 of 24 GB used"
    assert "RTX 4090, 24 GB" in machine_line(with_gpu)
    assert "210 GB of disk free" in machine_line(FACTS)


def test_sizes_are_short() -> None:
    assert [gigabytes(size) for size in (5, 1500, 6.9e9, 210e9)] == ["5 bytes", "1.5 kB", "6.9 GB", "210 GB"]


def test_facts_come_at_once_and_are_refreshed_behind(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    started = time.perf_counter()
    facts = machine.facts()
    assert time.perf_counter() - started < 0.5
    assert facts.memory_total > facts.memory_used > 0
    assert facts.disk_free > 0
