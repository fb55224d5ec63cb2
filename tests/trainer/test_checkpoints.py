"""Checkpoints: exact, whole or not at all, damaged ones passed over, old ones pruned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from trainer.checkpoints import (
    Checkpoint,
    DamagedCheckpoint,
    list_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    save_checkpoint,
)
from trainer.nested import flatten, unflatten


def make_checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.randn(3, 4)
    optimizer.step()
    return Checkpoint(
        step, step * 4, {"unet.a": parameter.detach().clone()}, optimizer.state_dict(), {"scale": 65536.0}
    )


def assert_equal(left: object, right: object) -> None:
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple | deque):
        assert type(left) is type(right) and len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right and type(left) is type(right)


def test_what_is_read_is_bit_for_bit_what_was_written(tmp_path) -> None:
    checkpoint = make_checkpoint(7)
    path = save_checkpoint(tmp_path, checkpoint, keep_last=3)
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.images_seen, loaded.scaler) == (7, 28, {"scale": 65536.0})
    assert_equal(loaded.lora, checkpoint.lora)
    assert_equal(loaded.optimizer, checkpoint.optimizer)


def test_nested_state_comes_back_as_it_was() -> None:
    shared = torch.arange(6).reshape(2, 3)
    state = {
        0: {"x": torch.arange(3), "y": (1, 2.5, None, True), ("a", 1): {3, 4}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "format": torch.bfloat16, "last": deque([0.5, math.inf])}],
        "views": [shared, shared.T, torch.ones(2, dtype=torch.bfloat16), torch.tensor(7, dtype=torch.uint8)],
        "none": {},
    }
    tensors, structure = flatten(state)
    assert_equal(unflatten(load(save(tensors)), json.loads(json.dumps(structure))), state)


def test_what_a_checkpoint_can_not_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        flatten({"x": object()})
    with pytest.raises(ValueError, match="surprise"):
        unflatten({}, {"surprise": 1})


@pytest.mark.parametrize("name", ["lora.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=3)
    path = save_checkpoint(tmp_path, make_checkpoint(10), keep_last=3)
    data = (path / name).read_bytes()
    if damage == "remove":
        (path / name).unlink()
    else:
        middle = len(data) // 2
        (path / name).write_bytes(
            data[:middle] if damage == "cut" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )
    with pytest.raises(DamagedCheckpoint, match="step-00000010"):
        load_checkpoint(path)
    found, complaints = newest_good_checkpoint(tmp_path)
    assert found is not None and found.step == 5
    assert len(complaints) == 1 and "step-00000010" in complaints[0]


def test_without_a_good_checkpoint_there_is_none(tmp_path) -> None:
    assert newest_good_checkpoint(tmp_path / "nothing") == (None, [])


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_only_the_newest_are_kept(tmp_path) -> None:
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_what_came_after_a_run_went_back_is_not_taken_for_newer(tmp_path) -> None:
    for step in (1, 2, 10, 4):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_protected_steps_and_the_newest_healthy_one_stay(tmp_path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=1, protected={1})
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    for step in (4, 5):
        astray = dataclasses.replace(make_checkpoint(step), healthy=False)
        save_checkpoint(tmp_path, astray, keep_last=1)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]
    found, complaints = newest_good_checkpoint(tmp_path, healthy=True)
    assert found is not None and (found.step, complaints) == (3, [])
    assert newest_good_checkpoint(tmp_path)[0].step == 5  # type: ignore[union-attr]


def test_damaged_ones_take_no_place_among_those_that_are_kept(tmp_path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=2)
    (tmp_path / "step-00000010" / "lora.safetensors").write_bytes(b"")
    newest_good_checkpoint(tmp_path)
    save_checkpoint(tmp_path, make_checkpoint(7), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000005",
        "step-00000007",
        "step-00000010.damaged",
    ]
    save_checkpoint(tmp_path, make_checkpoint(12), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000012"]


def test_the_same_step_again_replaces_what_is_there(tmp_path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=1)
    other = dataclasses.replace(make_checkpoint(5), images_seen=99)
    path = save_checkpoint(tmp_path, other, keep_last=1)
    assert load_checkpoint(path).images_seen == 99
    before = (path / "manifest.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, other, keep_last=1)
    assert (path / "manifest.json").stat().st_mtime_ns == before  # the very same state is not written twice
    assert [one.name for one in tmp_path.iterdir()] == ["step-00000005"]


def test_one_that_was_to_be_replaced_when_the_program_died_is_back(tmp_path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint(5), keep_last=1)
    path.rename(tmp_path / "step-00000005.replaced")
    (tmp_path / "step-00000005.partial").mkdir()
    (tmp_path / "step-00000005.partial" / "lora.safetensors").write_bytes(b"half")
    found, complaints = newest_good_checkpoint(tmp_path)
    assert found is not None and (found.step, complaints) == (5, [])
    assert names(tmp_path) == [one.name for one in tmp_path.iterdir()] == ["step-00000005"]


def test_a_checkpoint_of_another_version_is_passed_over(tmp_path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=3)
    path = save_checkpoint(tmp_path, make_checkpoint(6), keep_last=3)
    text = json.dumps({"step": 6}).encode()
    (path / "state.json").write_bytes(text)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256(text).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    found, complaints = newest_good_checkpoint(tmp_path)
    assert found is not None and found.step == 5
    assert "another version" in complaints[0]


def test_a_crash_while_saving_leaves_the_older_checkpoint(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=1)
    import trainer.checkpoints as module

    calls = iter([None, None])  # of the first two files

    def crash(descriptor: int) -> None:
        if next(calls, "crash") == "crash":
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_checkpoint(6), keep_last=1)
    monkeypatch.undo()
    found, complaints = newest_good_checkpoint(tmp_path)
    assert found is not None and found.step == 5 and complaints == []
    save_checkpoint(tmp_path, make_checkpoint(6), keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_a_crash_while_deleting_leaves_no_half_checkpoint(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=1)
    import security.roots as module

    def crash(name: str, *, dir_fd: int) -> None:
        (tmp_path / name / "optimizer.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_checkpoint(6), keep_last=1)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000006"]
    found, complaints = newest_good_checkpoint(tmp_path)
    assert found is not None and found.step == 6 and complaints == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
