"""The machine's memory, with and without the limit of a container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from trainer.memory.host import host_memory

REPOSITORY = Path(__file__).resolve().parents[2]


def test_without_a_limit_it_is_the_machine(tmp_path: Path) -> None:
    available, total = host_memory(tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < available < total


def test_a_container_has_less(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("30000000\n")
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.stat").write_text("anon 20000000\ninactive_file 10000000\n")
    assert host_memory(tmp_path) == (30000000, 50000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path)[1] == psutil.virtual_memory().total


def test_the_older_interface_is_read_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.usage_in_bytes").write_text("40000000\n")
    (folder / "memory.limit_in_bytes").write_text("50000000\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 2000000\n")
    assert host_memory(tmp_path) == (12000000, 50000000)


def test_what_is_taken_is_seen() -> None:
    """In a program of its own: other parts of this one give memory back at the same time."""
    lines = (
        "from trainer.memory.host import own_memory",
        "before = own_memory()",
        "held = b'x' * 100_000_000",
        "print(own_memory() - before)",
    )
    told = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert 95_000_000 < int(told.stdout) < 120_000_000
