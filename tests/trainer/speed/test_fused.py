"""A LoRA computed as one operation gives what its modules give; runs come to the same LoRA by either way."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.adapters.fused import can_fuse
from trainer.adapters.layer import AdaptedLayer, AdapterOptions
from trainer.adapters.low_rank import LoraAdapter
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.files import parse_config
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.speed.packed import can_pack, pack
from trainer.workspace import Workspace

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def _layer(dtype: torch.dtype, **options: Any) -> AdaptedLayer:
    torch.manual_seed(0)
    base = nn.Linear(512, 640).to(dtype).requires_grad_(False)
    adapter = LoraAdapter(base, AdapterOptions(16, 0.7, **options))
    nn.init.normal_(adapter.up.weight)
    return AdaptedLayer(base, adapter)


@pytest.mark.parametrize(
    "packed", [False, pytest.param(True, marks=pytest.mark.skipif(not can_pack(), reason="no oneDNN"))]
)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_one_operation_gives_what_the_modules_give(dtype: torch.dtype, packed: bool) -> None:
    found = []
    for fused in (False, True):
        layer = _layer(dtype)
        layer.adapter.fused = fused
        network = nn.Sequential(layer)
        if packed and fused:
            assert pack(network) == 1
        inputs = torch.randn(2, 30, 512, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype) if dtype is torch.bfloat16 else contextlib.nullcontext():
            answer = network(inputs)
        assert answer.dtype == dtype
        answer.float().square().sum().backward()
        down, up = layer.adapter.down.weight, layer.adapter.up.weight
        assert down.grad is not None and down.grad.dtype == torch.float32
        found.append([answer.detach().float(), inputs.grad.float(), down.grad, up.grad])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max() / one.abs().max()) < BOUNDS[dtype]


def test_what_drops_something_goes_by_its_modules() -> None:
    layer = _layer(torch.float32, dropout=0.5)
    inputs = torch.randn(3, 512)
    layer.train()
    assert not torch.equal(layer(inputs), layer(inputs))
    layer.eval()
    assert torch.equal(layer(inputs), layer(inputs))


def test_formats_that_differ_are_not_fused() -> None:
    base = nn.Linear(4, 4).to(torch.bfloat16)
    assert not can_fuse(base, torch.zeros(1, 4))
    assert not can_fuse(nn.Conv2d(4, 4, 1), torch.zeros(1, 4, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert can_fuse(base, torch.zeros(1, 4))
        assert not can_fuse(nn.Linear(4, 4), torch.zeros(1, 4))


def _final_weights(tmp_path: Path, name: str, speed: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    config = parse_config(
        {
            "name": name,
            "model": {"base": str(tmp_path / "base")},
            "dataset": {"folder": str(tmp_path / "set"), "resolution": 64},
            "training": {"max_train_steps": 4, "batch_size": 2},
            "lora": {"targets": "all"},
            "optimizer": {"learning_rate": 1e-3},
            "speed": speed,
        }
    )
    workspace = Workspace.open(tmp_path / "workspace")
    run = RunFolder.create(workspace, config)
    seen: list[events.Event] = []
    train(config, find_inputs(config, workspace), run, workspace, seen.append, Control())
    checkpoint, _ = newest_good_checkpoint(run.checkpoints_dir)
    assert checkpoint is not None
    return [one.loss for one in seen if isinstance(one, events.StepDone)], dict(checkpoint.lora)


@pytest.mark.parametrize("speed", [{"fused_lora": True}, {"fused_optimizer": True}, {"packed_weights": "on"}], ids=str)
def test_a_run_comes_to_the_same_lora_by_the_slow_way(tmp_path: Path, speed: dict[str, Any]) -> None:
    """Stated bounds: losses within 1e-5 of their size; weights on average within 1e-5, and all but one in a thousand within
    a fiftieth of the way that AdamW may have moved them: where a gradient is nothing, AdamW makes steps of its rounding."""
    tiny_sd15(tmp_path / "base")
    tiny_dataset(tmp_path / "set")
    slow = {"fused_lora": False, "fused_optimizer": False, "packed_weights": "off"}
    losses, weights = _final_weights(tmp_path, "slow", slow)
    fast_losses, fast_weights = _final_weights(tmp_path, "fast", {**slow, **speed})
    assert fast_losses == pytest.approx(losses, rel=1e-5)
    distances = torch.cat([(fast_weights[name] - weight).abs().flatten() for name, weight in weights.items()])
    assert float(distances.mean()) <= 1e-5
    assert float((distances > 4 * 1e-3 / 50).float().mean()) <= 1e-3
