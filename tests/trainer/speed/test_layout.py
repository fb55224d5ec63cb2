"""Frozen convolutions whose weights lie channels last: they do, nothing else does, and a run comes to the same LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_dataset, tiny_sd15
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import finish
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.speed.choose import lies_channels_last
from trainer.step import train_step
from trainer.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    tiny_sd15(path / "base")
    tiny_dataset(path / "set")
    return path


def configured(place: Path, speed: dict[str, Any], **sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "name": "way",
        "model": {"base": str(place / "base")},
        "dataset": {"folder": str(place / "set"), "resolution": 64},
        "lora": {"targets": "all", "conv_rank": 4},
        "optimizer": {"learning_rate": 1e-3},
        "speed": {"packed_weights": "off", **speed},
    }
    values["training"] = {"max_train_steps": 4, "batch_size": 2, **sections.pop("training", {})}
    return parse_config({**values, **sections})


def prepared(config: TrainConfig, workspace: Workspace) -> Run:
    folder = RunFolder.create(workspace, config)
    return prepare(config, find_inputs(config, workspace), folder, workspace, lambda event: None, Control())


def in_order(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def large_kernels(run: Run) -> list[torch.Tensor]:
    """Weights that lie differently by order: of more than one channel and more than one pixel."""
    return [one for one in run.components.denoiser.parameters() if one.ndim == 4 and one.shape[-1] > 1]


@pytest.mark.parametrize("base_format", ["whole", "int8"])
def test_a_run_comes_to_the_same_lora(place: Path, tmp_path: Path, base_format: str) -> None:
    """Stated bounds: losses within 1e-5 of their size, weights on average within 1e-5."""
    found = []
    for wanted in ("off", "on"):
        workspace = Workspace.open(tmp_path / wanted)
        run = prepared(configured(place, {"channels_last": wanted}, memory={"base_format": base_format}), workspace)
        frozen = [one for one in large_kernels(run) if not one.requires_grad]
        if base_format == "whole":  # else they are no parameters
            assert frozen and all(in_order(one) is (wanted == "on") for one in frozen)
        assert not any(in_order(one) for one in run.parameters if one.ndim == 4)
        losses = [train_step(run).loss for _ in range(4)]
        finish(run, lambda event: None, Control())
        checkpoint, _ = newest_good_checkpoint(run.folder.checkpoints_dir)
        assert checkpoint is not None
        found.append((losses, checkpoint.lora))
    (losses, weights), (fast_losses, fast_weights) = found
    assert fast_losses == pytest.approx(losses, rel=1e-5)
    distances = torch.cat([(fast_weights[name] - weight).abs().flatten() for name, weight in weights.items()])
    assert float(distances.mean()) <= 1e-5


def test_who_puts_them_so(place: Path) -> None:
    def chosen(wanted: str, device: torch.device, dtype: torch.dtype, **training: Any) -> bool:
        denoiser = torch.nn.Conv2d(3, 4, 3).to(dtype)
        return lies_channels_last(configured(place, {"channels_last": wanted}, training=training), denoiser, device)

    assert chosen("auto", CUDA, torch.bfloat16) and chosen("auto", CUDA, torch.float16)
    assert not chosen("auto", CUDA, torch.float32) and not chosen("auto", CPU, torch.bfloat16)
    assert chosen("on", CPU, torch.float32) and not chosen("off", CUDA, torch.bfloat16)
    assert not chosen("on", CUDA, torch.bfloat16, shard_base=True, num_processes=2)


@pytest.mark.gpu
def test_on_a_gpu_losses_are_the_same(place: Path, tmp_path: Path) -> None:
    """Within what 16 bits can tell apart."""
    found = []
    for wanted in ("off", "auto"):
        config = configured(
            place, {"channels_last": wanted}, model={"base": str(place / "base"), "precision": "bf16"},
            training={"device": "cuda"},
        )  # fmt: skip
        run = prepared(config, Workspace.open(tmp_path / wanted))
        assert any(in_order(one) for one in large_kernels(run)) == (wanted == "auto")
        found.append([train_step(run).loss for _ in range(4)])
    assert found[1] == pytest.approx(found[0], rel=2e-2)
