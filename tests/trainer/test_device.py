"""How many of the CPU's threads a run takes."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_sd15
from tests.trainer.test_splitting import blobs, dataset
from tests.trainer.test_training import make_config, prepared
from trainer import events
from trainer.device import LEAST_SHARED_WORK, threads_for
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.workspace import Workspace


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads, whatever the tests were started with."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inside(device: str, work: float) -> int:
    with threads_for(torch.device(device), work):
        return torch.get_num_threads()


def test_small_steps_take_one_thread_and_give_the_others_back(two_threads, monkeypatch) -> None:
    assert inside("cpu", LEAST_SHARED_WORK / 2) == 1 and torch.get_num_threads() == 2
    assert inside("cpu", LEAST_SHARED_WORK) == 2
    assert inside("cuda", 1.0) == 2
    with pytest.raises(RuntimeError, match="out of memory"), threads_for(torch.device("cpu"), 1.0):
        raise RuntimeError("out of memory")
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert inside("cpu", 1.0) == 2


def test_a_run_trains_with_the_threads_that_its_work_is_worth(two_threads, tmp_path, monkeypatch) -> None:
    base = tiny_sd15(tmp_path / "base")
    dataset(tmp_path / "set", {"a.png": blobs(1), "b.png": blobs(2)})
    config = make_config(base, tmp_path / "set", training={"max_train_steps": 1, "batch_size": 2})
    workspace = Workspace.open(tmp_path / "space")
    run = prepared(config, workspace)
    height, width = run.pictures.latents[0, False].shape[-2:]
    work = sum(parameter.numel() for parameter in run.components.denoiser.parameters()) * height * width * 2
    seen = []
    inputs = find_inputs(config, workspace)
    for least in (work + 1, work):
        monkeypatch.setattr("trainer.device.LEAST_SHARED_WORK", least)

        def note(event: events.Event) -> None:
            if isinstance(event, events.StepDone):
                seen.append(torch.get_num_threads())

        train(config, inputs, RunFolder.create(workspace, config), workspace, note, Control())
    assert seen == [1, 2] and torch.get_num_threads() == 2
