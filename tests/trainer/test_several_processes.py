"""Runs on two real processes of the CPU: the same LoRA as from one, on with any number, stopped from outside, one killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, losses, make_config, trained
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.events import Event
from trainer.jobs import Jobs
from trainer.machines import Machines
from trainer.runs import RunFolder, RunReader, RunState
from trainer.workspace import Workspace

SECONDS = 120
STEADY = {"learning_rate": 1e-2, "epsilon": 1e-2}
"""A large epsilon makes Adam's step follow the gradient's size, so that rounding stays rounding."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("several")
    return {"base": tiny_sd15(folder / "base"), "set": tiny_dataset(folder / "set", 7)}


def config_of(places: dict[str, Path], **sections: Any) -> TrainConfig:
    return make_config(
        places["base"], places["set"], **{"optimizer": STEADY, "save": {"key_format": "kohya"}, **sections}
    )


def told(folder: RunFolder) -> list[Event]:
    whole = folder.events_path.read_text(encoding="utf-8").rpartition("\n")[0]  # the last line may be half written
    return [events.from_json(json.loads(line)) for line in whole.splitlines()]


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def workers_here() -> list[psutil.Process]:
    """The workers that this process has started, the first one first."""
    own = [one for one in psutil.Process().children() if any("worker.py" in part for part in one.cmdline())]
    return sorted(own, key=lambda one: one.create_time())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 1e-5) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], atol=tolerance, rtol=0) for name in first
    )


def test_two_processes_learn_what_one_learns_from_batches_that_they_split(places, tmp_path) -> None:
    """Three pictures among two, seven in all: short batches too. Held-out losses, samples and files are the same."""

    def config(count: int) -> TrainConfig:
        return config_of(
            places,
            training={"max_train_steps": 5, "batch_size": 3, "num_processes": count},
            dataset={"flip_augmentation": True, "shuffle_tags": True, "caption_dropout_rate": 0.3},
            validation={"split": 0.3, "num_timesteps": 2, "keep_best": False},
            sample={"prompts": ["a red circle"], "width": 64, "height": 64, "num_inference_steps": 2},
        )

    one, two = Workspace.open(tmp_path / "one"), Workspace.open(tmp_path / "two")
    seen = trained(config(1), one)
    jobs = Jobs(two)
    folder = RunFolder.find(two, jobs.submit(config(2)))
    assert jobs.wait(SECONDS)
    heard = told(folder)

    (first,) = [RunFolder(path) for path in one.runs_dir.iterdir()]
    assert same(final_state(first), final_state(folder))
    assert losses(heard) == pytest.approx(losses(seen), abs=1e-5)
    assert [one.images_seen for one in heard if isinstance(one, events.StepDone)] == [
        one.images_seen for one in seen if isinstance(one, events.StepDone)
    ]
    measured = [[one.loss for one in some if isinstance(one, events.Validated)] for some in (seen, heard)]
    assert measured[1] == pytest.approx(measured[0], abs=1e-6) and measured[1][0] == measured[0][0]
    assert [type(one).__name__ for one in heard if not isinstance(one, events.Preparing | events.Queued)][1:] == [
        type(one).__name__ for one in seen if not isinstance(one, events.Preparing)
    ]
    (started,) = [one for one in heard if isinstance(one, events.Started)]
    assert started.device == "2 x CPU, fp32"
    assert [one.active for one in heard if isinstance(one, events.Sandboxed)] == [True]
    names = [
        {path.relative_to(some.path).as_posix() for path in some.path.rglob("*.*")} - {"run.lock"}
        for some in (first, folder)
    ]
    assert names[0] == names[1]
    caches = [sorted(path.name for path in space.cache_dir.rglob("*.safetensors")) for space in (one, two)]
    assert caches[0] == caches[1]
    drawn = [
        hashlib.sha256((some.samples_dir / "step-00000000-00.png").read_bytes()).digest() for some in (first, folder)
    ]
    assert drawn[0] == drawn[1]


def test_a_run_goes_on_with_any_number_of_processes(places, tmp_path) -> None:
    """One process, then two, then one, with accumulated batches dealt out whole: what one alone learns."""

    def config(count: int, steps: int) -> TrainConfig:
        return config_of(
            places,
            training={
                "max_train_steps": steps,
                "batch_size": 2,
                "gradient_accumulation_steps": 3,
                "num_processes": count,
            },
        )

    whole, cut = Workspace.open(tmp_path / "whole"), Workspace.open(tmp_path / "cut")
    seen = trained(config(1, 6), whole)
    jobs = Jobs(cut)
    run_id = jobs.submit(config(1, 2))
    assert jobs.wait(SECONDS)
    jobs.resume(run_id, {"training.max_train_steps": 4, "training.num_processes": 2})
    assert jobs.wait(SECONDS)
    jobs.resume(run_id, {"training.max_train_steps": 6, "training.num_processes": 1})
    assert jobs.wait(SECONDS)
    folder = RunFolder.find(cut, run_id)
    heard = told(folder)
    assert losses(heard) == pytest.approx(losses(seen), abs=1e-5)
    assert [one.step for one in heard if isinstance(one, events.StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [one.changed.get("training.num_processes") for one in heard if isinstance(one, events.Resumed)] == [
        "1 -> 2",
        "2 -> 1",
    ]
    (first,) = [RunFolder(path) for path in whole.runs_dir.iterdir()]
    assert same(final_state(first), final_state(folder))


def test_a_killed_worker_is_replaced_and_the_run_hears_what_the_user_asks(places, tmp_path, monkeypatch) -> None:
    """kill -9 of the second of two: both start again from the last checkpoint. Then save now, and stop."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    workspace = Workspace.open(tmp_path / "space")
    jobs = Jobs(workspace)
    config = config_of(
        places,
        training={"max_train_steps": 100_000, "batch_size": 2, "num_processes": 2},
        save={"rescue_minutes": 1e-4, "key_format": "kohya"},
    )
    folder = RunFolder.find(workspace, jobs.submit(config))
    reader = RunReader(folder)

    def step() -> int:
        return reader.progress(held=True, waiting=False).step

    def has(kind: type[Event]) -> bool:
        return any(isinstance(one, kind) for one in told(folder))

    wait_for(lambda: _goes_well(folder) and step() > 3 and has(events.CheckpointSaved))
    assert len(workers_here()) == 2
    heard_by = [one for worker in workers_here() for one in worker.net_connections("inet") if one.status == "LISTEN"]
    assert {one.laddr.ip for one in heard_by} <= {"127.0.0.1", "::1"}
    for one in workers_here():  # each has gone into the sandbox by itself, and none was given a token
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{one.pid}/status").read_text()
        assert b"HF_TOKEN" not in Path(f"/proc/{one.pid}/environ").read_bytes()
    os.kill(workers_here()[1].pid, signal.SIGKILL)
    wait_for(lambda: has(events.Resumed))
    (resumed,) = [one for one in told(folder) if isinstance(one, events.Resumed)]
    wait_for(lambda: step() > resumed.step + 2)
    jobs.save_now()
    wait_for(lambda: has(events.LoraSaved))
    jobs.stop()
    assert jobs.wait(SECONDS)
    progress = reader.progress(held=False, waiting=False)
    assert progress.state is RunState.STOPPED and progress.step > resumed.step
    warned = [one.message for one in told(folder) if isinstance(one, events.Warned)]
    assert any("worker 2 of 2 was ended from outside (SIGKILL)" in text for text in warned)
    steps = [one.step for one in told(folder) if isinstance(one, events.StepDone)]
    again = steps.index(resumed.step + 1, 1) if steps.count(resumed.step + 1) == 1 else _second(steps, resumed.step + 1)
    assert steps[again:] == list(range(resumed.step + 1, progress.step + 1))
    assert (folder.path / "tiny.safetensors").is_file() and not workers_here()


def _goes_well(folder: RunFolder) -> bool:
    assert not (failed := [one.message for one in told(folder) if isinstance(one, events.Failed)]), failed
    return True


def _second(steps: list[int], step: int) -> int:
    return steps.index(step, steps.index(step) + 1)


def test_a_fault_of_a_worker_ends_the_run_in_plain_words_and_starts_nothing_again(places, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    jobs = Jobs(workspace)
    training = {"batch_size": 2, "num_processes": 2, "device": "cuda"}
    config = config_of(
        places, training=training if not torch.cuda.is_available() else {**training, "num_processes": 64}
    )
    folder = RunFolder.find(workspace, jobs.submit(config))
    assert jobs.wait(SECONDS)
    failed = told(folder)[-1]
    assert isinstance(failed, events.Failed) and "NVIDIA GPU" in failed.message and failed.error_id == ""
    assert not workers_here()


def test_a_base_in_parts_gives_the_file_of_a_whole_one(places, tmp_path) -> None:
    """Also with more micro-batches than workers, a batch of which one worker has nothing, samples and held-out pictures."""

    def config(count: int) -> TrainConfig:
        return config_of(
            places,
            training={
                "max_train_steps": 3,
                "batch_size": 2,
                "gradient_accumulation_steps": 3,
                "num_processes": count,
                "shard_base": count > 1,
            },
            validation={"split": 0.3, "num_timesteps": 2, "keep_best": False},
            sample={"prompts": ["a red circle"], "width": 64, "height": 64, "num_inference_steps": 2},
            save={"key_format": "kohya", "precision": "fp32"},
        )

    one, two = Workspace.open(tmp_path / "one"), Workspace.open(tmp_path / "two")
    seen = trained(config(1), one)
    jobs = Jobs(two)
    folder = RunFolder.find(two, jobs.submit(config(2)))
    assert jobs.wait(SECONDS)
    heard = told(folder)
    assert losses(heard) == pytest.approx(losses(seen), abs=1e-5), heard[-1]
    (first,) = [RunFolder(path) for path in one.runs_dir.iterdir()]
    assert same(final_state(first), final_state(folder))
    files = [load_file(some.path / "tiny.safetensors") for some in (first, folder)]
    assert same(*files)
    measured = [[one.loss for one in some if isinstance(one, events.Validated)] for some in (seen, heard)]
    assert measured[1] == pytest.approx(measured[0], abs=1e-6)
    drawn = [np.asarray(Image.open(some.samples_dir / "step-00000003-00.png"), dtype=int) for some in (first, folder)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def test_two_machines_go_on_with_a_run_that_only_the_first_one_has(places, tmp_path) -> None:
    """Each with a workspace of its own, over loopback: the second one gets the checkpoint, and writes no LoRA."""

    def config(steps: int, count: int = 1) -> TrainConfig:
        return config_of(places, training={"max_train_steps": steps, "batch_size": 3, "num_processes": count})

    spaces = [Workspace.open(tmp_path / name) for name in ("whole", "first", "second")]
    seen = trained(config(4), spaces[0])
    trained(config(2), spaces[1])
    address = f"127.0.0.1:{free_port()}"
    first, second = (Jobs(space, Machines(2, number, address)) for number, space in enumerate(spaces[1:]))
    (run_id,) = [path.name for path in spaces[1].runs_dir.iterdir()]
    helper = RunFolder.find(spaces[2], second.submit(config(4)))
    first.resume(run_id, {"training.max_train_steps": 4})
    wait_for(lambda: any(isinstance(one, events.Sandboxed) for one in told(helper)))
    heard_by = [one for worker in workers_here() for one in worker.net_connections("inet") if one.status == "LISTEN"]
    assert f"127.0.0.1:{address.rpartition(':')[2]}" in {f"{one.laddr.ip}:{one.laddr.port}" for one in heard_by}
    assert {one.laddr.ip for one in heard_by} == {"127.0.0.1"} and len(heard_by) > 1
    assert first.wait(SECONDS) and second.wait(SECONDS)
    folder = RunFolder.find(spaces[1], run_id)
    assert losses(told(folder)) == pytest.approx(losses(seen), abs=1e-5)
    (whole,) = [RunFolder(path) for path in spaces[0].runs_dir.iterdir()]
    assert same(final_state(whole), final_state(folder))
    helped = told(helper)
    assert isinstance(helped[-1], events.Finished) and not list(helper.path.rglob("tiny*.safetensors"))
    assert any(isinstance(one, events.Warned) and "only helps" in one.message for one in helped)
    assert [one.step for one in helped if isinstance(one, events.StepDone)] == [3, 4]


def test_a_machine_that_waits_says_where_and_ends_at_once_when_asked(places, tmp_path) -> None:
    address = f"127.0.0.1:{free_port()}"
    jobs = Jobs(Workspace.open(tmp_path / "space"), Machines(2, 0, address))
    folder = RunFolder.find(jobs.workspace, jobs.submit(config_of(places, training={"batch_size": 2})))
    waiting = f"Waiting for the other machines at {address}"
    wait_for(lambda: any(isinstance(one, events.Preparing) and one.phase == waiting for one in told(folder)))
    wait_for(lambda: bool(workers_here()))
    jobs.stop()
    assert jobs.wait(10)
    assert isinstance(told(folder)[-1], events.Finished) and told(folder)[-1].stopped and not workers_here()
    warned = [one.message for one in told(folder) if isinstance(one, events.Warned)]
    assert any(f"waits at {address}" in text and "can join the run" in text for text in warned)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
