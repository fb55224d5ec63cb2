"""Steps whose numbers are read late and whose inputs are made ahead come to the same LoRA, bit for bit, and tell the same."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.dataset.batches import Sample
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.speed.ahead import INPUTS_THREAD, Ahead, inputs_ahead
from trainer.speed.choose import makes_inputs_ahead, reads_late
from trainer.step import Diverged, read_last_step, train_step, train_step_late, window
from trainer.step_inputs import make_inputs
from trainer.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WAYS: dict[str, dict[str, Any]] = {
    "late": {"late_metrics": "on"},
    "ahead": {"prefetch": "on"},
    "both": {"late_metrics": "on", "prefetch": "on"},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "windows": {"training": {"gradient_accumulation_steps": 2}, "dataset": {"flip_augmentation": True}},
    "captions": {
        "dataset": {"shuffle_tags": True, "caption_dropout_rate": 0.3},
        "validation": {"every_n_steps": 2, "split": 0.3},
    },
    "text encoder": {"lora": {"train_text_encoder": True, "dropout": 0.1}, "save": {"every_n_steps": 3}},
    "no limit": {"training": {"max_grad_norm": 0}, "optimizer": {"schedule": "cosine"}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("overlap")
    tiny_sd15(path / "base")
    tiny_dataset(path / "set")
    return path


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not [one.name for one in threading.enumerate() if one.name.startswith(INPUTS_THREAD)]


def configured(place: Path, speed: dict[str, Any], **sections: dict[str, Any]) -> TrainConfig:
    plain: dict[str, dict[str, Any]] = {
        "model": {"base": str(place / "base")},
        "dataset": {"folder": str(place / "set"), "resolution": 64},
        "training": {"max_train_steps": 6, "batch_size": 2},
        "optimizer": {"learning_rate": 1e-3},
        "speed": speed,
    }
    merged = {name: {**plain.get(name, {}), **sections.get(name, {})} for name in {**plain, **sections}}
    return parse_config({"name": "way", **merged})


def came_to(config: TrainConfig, workspace: Workspace) -> tuple[list[events.Event], dict[str, Any]]:
    """All that a run tells but its times, and what its last checkpoint holds."""
    folder = RunFolder.create(workspace, config)
    seen: list[events.Event] = []
    train(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    checkpoint, _ = newest_good_checkpoint(folder.checkpoints_dir)
    assert checkpoint is not None
    told = [untimed(event) for event in seen if isinstance(event, (events.StepDone, events.Validated))]
    return told, {"lora": checkpoint.lora, "optimizer": checkpoint.optimizer, "losses": checkpoint.memory["losses"]}


def untimed(event: events.Event) -> events.Event:
    event = dataclasses.replace(event, time=0.0)
    if not isinstance(event, events.StepDone):
        return event
    times = ("seconds", "input_seconds", "wait_seconds", "processor_share")
    return dataclasses.replace(event, **dict.fromkeys(times, 0.0), memory_bytes=0, memory_total=0)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("settings", SETTINGS)
def test_nothing_is_another(place: Path, tmp_path: Path, settings: str) -> None:
    sections = SETTINGS[settings]
    usual = came_to(configured(place, {}, **sections), Workspace.open(tmp_path / "usual"))
    assert [event.step for event in usual[0] if isinstance(event, events.StepDone)] == [1, 2, 3, 4, 5, 6]
    for name, speed in WAYS.items():
        told, held = came_to(configured(place, speed, **sections), Workspace.open(tmp_path / name))
        assert told == usual[0], name
        assert same(held, usual[1]), name


def prepared(config: TrainConfig, workspace: Workspace) -> Run:
    folder = RunFolder.create(workspace, config)
    return prepare(config, find_inputs(config, workspace), folder, workspace, lambda event: None, Control())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_without_usable_numbers_changes_nothing(place: Path, tmp_path: Path, where: str) -> None:
    run = prepared(configured(place, {"late_metrics": "on"}), Workspace.open(tmp_path))
    assert run.reads_late and train_step_late(run) is None
    second = train_step_late(run)
    assert second is not None and second.step == 1 and run.step == 2
    state = {name: value.clone() for name, value in weights(run).items()}
    broken = run.parameters[0]
    if where == "loss":
        kept = {key: run.pictures.latents[key].clone() for key in run.pictures.latents}
        run.pictures.latents = dict.fromkeys(kept, torch.full_like(next(iter(kept.values())), float("nan")))
    else:
        handle = broken.register_hook(lambda gradient: gradient * float("inf"))
    assert train_step_late(run) is not None  # the step that is none is on its way
    if where == "loss":
        run.pictures.latents = kept
    else:
        handle.remove()
    with pytest.raises(Diverged, match="step 3"):
        train_step_late(run)
    assert (run.step, run.unread, run.images_seen) == (2, None, 4)
    assert same(weights(run), state)
    assert all(parameter.grad is None for parameter in run.parameters)
    again = train_step(run)
    assert again.step == 3 and torch.isfinite(torch.tensor(again.loss))


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Everything that learns and what the optimizer knows of it."""
    found = {str(number): parameter.detach() for number, parameter in enumerate(run.parameters)}
    for number, parameter in enumerate(run.parameters):
        found |= {f"{number} {key}": value for key, value in run.optimizer.state[parameter].items()}
    return found


def test_a_run_that_goes_astray_tells_the_right_step(place: Path, tmp_path: Path) -> None:
    """The rate rises until the numbers end; whichever way they are read, the same step is named and the same one kept."""
    ends = []
    for name, speed in {"now": {}, "late": WAYS["both"]}.items():
        workspace = Workspace.open(tmp_path / name)
        config = configured(
            place,
            speed,
            optimizer={"learning_rate": 10.0, "warmup_steps": 90, "weight_decay": 0.0},
            save={"every_n_steps": 8},
            training={"max_train_steps": 100, "batch_size": 1},
        )
        folder = RunFolder.create(workspace, config)
        seen: list[events.Event] = []
        with pytest.raises(Diverged) as error:
            train(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
        ends.append((str(error.value), [untimed(event) for event in seen if isinstance(event, events.StepDone)]))
        assert any(isinstance(event, events.WentAstray) for event in seen)
    assert ends[0] == ends[1]


def test_who_stops_a_run_has_all_its_steps(place: Path, tmp_path: Path) -> None:
    config = configured(place, WAYS["both"], training={"max_train_steps": 1000, "batch_size": 2})
    workspace, control = Workspace.open(tmp_path), Control()
    folder = RunFolder.create(workspace, config)
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.StepDone) and event.step == 3:
            control.stop.set()

    train(config, find_inputs(config, workspace), folder, workspace, emit, control)
    checkpoint, _ = newest_good_checkpoint(folder.checkpoints_dir)
    steps = [event.step for event in seen if isinstance(event, events.StepDone)]
    assert checkpoint is not None and steps == list(range(1, checkpoint.step + 1))
    assert len(checkpoint.memory["losses"]["recent"]) == checkpoint.step


def test_seconds_of_steps_that_overlap_add_up(place: Path, tmp_path: Path) -> None:
    run = prepared(configured(place, {"late_metrics": "on"}), Workspace.open(tmp_path))
    began = time.perf_counter()
    told = [train_step_late(run) for _ in range(6)]
    told.append(read_last_step(run))
    whole = time.perf_counter() - began
    seconds = [done.seconds for done in told if done is not None]
    assert len(seconds) == 6 and min(seconds) > 0
    assert 0.9 * whole < sum(seconds) <= whole


class Reads(TorchDispatchMode):
    """Notes each operation by which the program would wait for a GPU to tell it a number."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sections", [{}, SETTINGS["windows"], {"loss": {"type": "huber", "min_snr_gamma": 5.0}}])
def test_nothing_in_a_step_asks_for_a_number(place: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    """What would wait on a GPU can be counted on the CPU. Inputs are made by the thread, where numbers are drawn."""
    run = prepared(configured(place, WAYS["both"], **sections), Workspace.open(tmp_path))
    with inputs_ahead(run) as run.ahead:
        train_step_late(run)
        with Reads() as late:
            assert train_step_late(run) is not None
        read_last_step(run)
        with Reads() as usual:
            train_step(run)
    assert late.found == [] and "_local_scalar_dense" in usual.found


def test_inputs_made_ahead_are_those_of_the_step(place: Path, tmp_path: Path) -> None:
    run = prepared(configured(place, {}, dataset={"shuffle_tags": True}), Workspace.open(tmp_path))
    with inputs_ahead(run) as ahead:
        for step in range(3):
            shares = window(run, step)
            ahead.order(step, shares)
            for share in shares:
                made, now = ahead.take(step, share), make_inputs(run, step, share)
                assert torch.equal(made.latents, now.latents) and torch.equal(made.noise.mixed, now.noise.mixed)
                assert torch.equal(made.noise.timesteps, now.noise.timesteps) and made.captions == now.captions


def test_what_goes_wrong_ahead_is_raised_at_its_step_and_other_steps_are_forgotten() -> None:
    asked: list[int] = []

    def make(step: int, samples: tuple[Sample, ...]) -> Any:
        asked.append(step)
        if step == 2:
            raise OSError("gone")
        return step

    one = Sample(0, 0, "a")
    with Ahead(make) as ahead:
        ahead.order(1, [[one]])
        assert ahead.take(1, [one]) == 1 and asked == [1]
        ahead.order(2, [[one]])
        with pytest.raises(OSError, match="gone"):
            ahead.take(2, [one])
        ahead.order(3, [[one]])
        ahead.order(4, [[one]])  # a run that goes elsewhere
        assert ahead.take(4, [one]) == 4
        assert ahead.take(5, [one]) == 5  # never ordered
    assert asked.count(4) == 1


def test_who_reads_late_and_makes_ahead(place: Path) -> None:
    plain = configured(place, {})
    assert not reads_late(plain, CPU, torch.float32, 1) and reads_late(plain, CUDA, torch.bfloat16, 1)
    assert not makes_inputs_ahead(plain, CPU) and makes_inputs_ahead(plain, CUDA)
    on = {"late_metrics": "on", "prefetch": "on"}
    assert reads_late(configured(place, on), CPU, torch.float32, 1)
    assert makes_inputs_ahead(configured(place, on), CPU)
    off = {"late_metrics": "off", "prefetch": "off"}
    assert not reads_late(configured(place, off), CUDA, torch.bfloat16, 1)
    assert not makes_inputs_ahead(configured(place, off), CUDA)
    for speed, sections, dtype, workers in (
        ({**on, "fused_optimizer": False}, {}, torch.float32, 1),
        (on, {"optimizer": {"name": "radam"}}, torch.float32, 1),
        (on, {"training": {"skip_spikes": True}}, torch.float32, 1),
        (on, {"training": {"max_weight_norm": 1.0}}, torch.float32, 1),
        (on, {}, torch.float16, 1),
        (on, {}, torch.float32, 2),
    ):
        assert not reads_late(configured(place, speed, **sections), CUDA, dtype, workers)


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_and_the_numbers_are_the_same(place: Path, tmp_path: Path) -> None:
    found = []
    for name, speed in {"now": {"late_metrics": "off", "prefetch": "off"}, "late": {}}.items():
        run = prepared(configured(place, speed, training={"device": "cuda"}), Workspace.open(tmp_path / name))
        assert run.reads_late == (name == "late")
        if name == "now":
            found.append([train_step(run).loss for _ in range(4)])
            continue
        losses: list[float] = []
        with inputs_ahead(run) as run.ahead:
            for number in range(4):
                if number == 2:
                    torch.cuda.set_sync_debug_mode("error")  # any wait of the program for the GPU is a fault
                done = train_step_late(run)
                torch.cuda.set_sync_debug_mode("default")
                losses += [] if done is None else [done.loss]
        last = read_last_step(run)
        assert last is not None
        found.append([*losses, last.loss])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
