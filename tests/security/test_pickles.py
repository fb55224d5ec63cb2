"""The check of PyTorch checkpoints: nothing but tensors and plain values, in a container that can be read in one way."""

from __future__ import annotations

import io
import os
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from security.errors import RefusedFile
from security.pickles import ALLOWED_GLOBALS, DTYPE_BYTES, OPERATIONS, STORAGE_BYTES, CheckedPickle, check_torch_file
from tests.security.bad_checkpoints import LIVE, NUM_BAD, bad_checkpoints, payloads
from tests.security.checkpoint_files import checkpoint, pickled

ROOT = Path(__file__).resolve().parents[2]
BAD = bad_checkpoints("/nonexistent/marker")


def checked(data: bytes, folder: Path) -> CheckedPickle:
    path = folder / "model.ckpt"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return check_torch_file(descriptor, path.name)
    finally:
        os.close(descriptor)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
GOOD: dict[str, tuple[Callable[[], Any], int, int]] = {
    "fp32": (lambda: {"a": torch.zeros(3)}, 1, 12),
    "fp16": (lambda: {"a": torch.zeros(3, dtype=torch.float16)}, 1, 6),
    "bf16": (lambda: {"a": torch.zeros(3, dtype=torch.bfloat16)}, 1, 6),
    "fp64": (lambda: {"a": torch.zeros(3, dtype=torch.float64)}, 1, 24),
    "float8": (lambda: {"a": torch.zeros(3).to(torch.float8_e4m3fn), "b": torch.zeros(3).to(torch.float8_e5m2)}, 2, 6),
    "whole numbers": (lambda: {str(t): torch.zeros(1, dtype=t) for t in (torch.int64, torch.int8, torch.uint8)}, 3, 10),
    "unsigned numbers": (lambda: {"a": torch.zeros(2, dtype=torch.uint16)}, 1, 4),
    "truths": (lambda: {"a": torch.zeros(2, dtype=torch.bool)}, 1, 2),
    "complex": (lambda: {"a": torch.zeros(2, dtype=torch.complex64)}, 1, 16),
    "state dict": (lambda: linear().state_dict(), 2, 60),
    "OrderedDict": (lambda: OrderedDict(a=torch.zeros(2)), 1, 8),
    "nested with counters": (
        lambda: {"state_dict": linear().state_dict(), "global_step": 70_000, "epoch": 1.5, "note": "x", "none": None},
        2,
        60,
    ),
    "parameters": (lambda: dict(linear().named_parameters()), 2, 60),
    "shared": (lambda: {"a": BASE, "b": BASE, "c": BASE[:0]}, 3, 192),
    "views": (lambda: {"a": BASE.T, "b": BASE[1:3, ::2]}, 2, 120),
    "one number": (lambda: {"a": torch.tensor(3.0)}, 1, 4),
    "no numbers": (lambda: {"a": torch.zeros(0, 5)}, 1, 0),
    "lists, tuples, large and negative numbers": (
        lambda: {
            "a": torch.zeros(1),
            "l": [1, -2, 1 << 40],
            "t": (1, (2, 3)),
            "s": torch.Size([1]),
            "d": torch.float16,
        },
        1,
        4,
    ),
    "a thousand names": (lambda: {f"layer.{index}.gewicht.ü": torch.zeros(1) for index in range(1000)}, 1000, 4000),
}
"""What people save. Number of tensors, and bytes of their numbers."""


@pytest.mark.parametrize(("make", "num_tensors", "num_bytes"), GOOD.values(), ids=GOOD.keys())
def test_what_people_save_is_accepted(
    make: Callable[[], Any], num_tensors: int, num_bytes: int, tmp_path: Path
) -> None:
    assert checked(saved(make()), tmp_path) == CheckedPickle(num_tensors, num_bytes)


def test_a_checkpoint_without_the_members_of_newer_versions_is_accepted(tmp_path: Path) -> None:
    assert checked(checkpoint(pickled()), tmp_path) == CheckedPickle(1, 16)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_everything_else_is_refused_and_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match=r"^model\.ckpt is .+\. .+"):
        checked(data, tmp_path)


def test_there_are_many_bad_ones() -> None:
    assert len(BAD) == NUM_BAD >= 190
    assert len(payloads(lambda key: key)) == len(LIVE) >= 30


def test_the_payloads_are_no_duds(tmp_path: Path) -> None:
    """Loaded without care, each one makes its marker; otherwise the refusals above would prove little."""
    names = {key: f"{tmp_path}/marker-{number}" for number, key in enumerate(sorted(LIVE))}
    for number, data in enumerate(payloads(names.__getitem__).values()):
        (tmp_path / f"{number}.pkl").write_bytes(data)
    child = [sys.executable, "-m", "tests.security.naive_child", str(tmp_path)]
    subprocess.run(child, cwd=ROOT, check=True, timeout=120, capture_output=True)
    assert not [key for key, marker in names.items() if not Path(marker).exists()]


def test_any_changed_byte_of_a_pickle_is_refused_or_harmless(tmp_path: Path) -> None:
    """No single flipped bit makes the check stumble, or lets a name or an instruction through that is not listed."""
    sound = pickled()
    for position in range(len(sound)):
        for bit in (0, 2, 4, 5, 7):
            broken = bytearray(sound)
            broken[position] ^= 1 << bit
            try:
                checked(checkpoint(bytes(broken)), tmp_path)
            except RefusedFile:
                continue
            assert names_in(bytes(broken)) <= ALLOWED_GLOBALS


def names_in(pickle: bytes) -> set[str]:
    found = [argument for code, argument, _ in pickletools.genops(pickle) if code.name == "GLOBAL"]
    return {str(argument).replace(" ", ".") for argument in found}


def test_any_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = saved(linear().state_dict())
    for end in range(0, len(whole), 7):
        with pytest.raises(RefusedFile):
            checked(whole[:end], tmp_path)


def test_what_torch_writes_needs_no_other_instruction() -> None:
    """Every listed instruction is one that torch writes, so that the list is not longer than it must be."""
    written: set[str] = set()
    for make, _, _ in GOOD.values():
        data = saved(make())
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            written |= {code.code for code, _, _ in pickletools.genops(archive.read("archive/data.pkl"))}
    listed = {code.decode("latin-1") for code in OPERATIONS} | {"\x80", "."}
    assert written <= listed
    assert listed - written <= {"r", "j", "a", "M", "e", "t", "\x89", "s"}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_the_sizes_are_those_of_torch() -> None:
    for name, size in DTYPE_BYTES.items():
        assert getattr(torch, name.removeprefix("torch.")).itemsize == size
    for name, size in STORAGE_BYTES.items():
        if name != "torch.storage.UntypedStorage":
            assert getattr(torch, name.removeprefix("torch.")).dtype.itemsize == size


def test_large_members_are_read_by_their_large_fields(tmp_path: Path) -> None:
    """Numbers that do not fit 32 bits stand elsewhere in a zip; torch always writes that record, here it counts."""
    data = saved({"a": torch.zeros(3)})
    end = data.rindex(b"PK\x05\x06")
    unknown = data[: end + 8] + b"\xff\xff\xff\xff" + b"\xff" * 8 + data[end + 20 :]
    assert checked(unknown, tmp_path).num_tensors == 1
    lying = data[: end + 8] + b"\x01\0\x01\0" + data[end + 12 :]
    with pytest.raises(RefusedFile, match="two zip directories differ"):
        checked(lying, tmp_path)
