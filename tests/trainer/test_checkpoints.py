"""Checkpoints: exact, whole or not at all, damaged ones passed over, old ones pruned."""

from __future__ import annotations

import pytest
import torch

from trainer.checkpoints import (
    Checkpoint,
    DamagedCheckpoint,
    flatten,
    list_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    save_checkpoint,
    unflatten,
)


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
    elif isinstance(left, list | tuple):
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
    state = {0: {"x": torch.arange(3), "y": (1, 2.5, None, True)}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    tensors, structure = flatten(state)
    assert_equal(unflatten(tensors, structure), state)


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


def test_only_the_newest_are_kept(tmp_path) -> None:
    for step in (1, 2, 3, 10, 4):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000010"]


def test_a_crash_while_saving_leaves_the_older_checkpoint(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(5), keep_last=1)
    import trainer.checkpoints as module

    calls = iter([None, None])

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
