"""Compiled blocks come to the same LoRA; a run that cannot compile says so and goes on; the sandbox is not widened for it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from security.sandbox import confine_thread, is_confined, probe
from tests.tiny import tiny_dataset, tiny_sd15, tiny_sdxl
from trainer import events
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.setup import Preparation, Run, prepare
from trainer.speed.choose import PASSES_PER_SHAPE, should_compile, should_pack
from trainer.speed.compiled import CompiledBlocks, compile_if_it_pays, goes_on_without, is_of_compiler, repeated_blocks
from trainer.step import train_step, window_losses
from trainer.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler, which torch compiles with on the CPU"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose U-Net has one level, so that there is little to compile."""
    from diffusers import UNet2DConditionModel

    path = tmp_path_factory.mktemp("compiled")
    tiny_sd15(path / "base")
    tiny_dataset(path / "set", 4)
    shutil.rmtree(path / "base" / "unet")
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=8,
        sample_size=8,
    ).save_pretrained(path / "base" / "unet")
    return path


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled-code"))


def configured(place: Path, wanted: str, **sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "name": "way",
        "model": {"base": str(place / "base")},
        "dataset": {"folder": str(place / "set"), "resolution": 64, "aspect_buckets": False},
        "optimizer": {"learning_rate": 1e-3},
        "speed": {"compile": wanted},
    }
    values["training"] = {"max_train_steps": 4, "batch_size": 2, **sections.pop("training", {})}
    return parse_config({**values, **sections})


def prepared(config: TrainConfig, workspace: Workspace) -> Run:
    folder = RunFolder.create(workspace, config)
    return prepare(config, find_inputs(config, workspace), folder, workspace, lambda event: None, Control())


def came_to(config: TrainConfig, workspace: Workspace) -> tuple[list[events.Event], dict[str, torch.Tensor], bool]:
    folder = RunFolder.create(workspace, config)
    seen: list[events.Event] = []
    train(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    checkpoint, _ = newest_good_checkpoint(folder.checkpoints_dir)
    assert checkpoint is not None
    return seen, checkpoint.lora, checkpoint.memory["compiled"]


def losses_in(seen: list[events.Event]) -> list[float]:
    return [event.loss for event in seen if isinstance(event, events.StepDone)]


def warnings_in(seen: list[events.Event]) -> list[str]:
    return [event.message for event in seen if isinstance(event, events.Warned)]


def test_the_blocks_of_a_network_are_found_by_what_they_are(tmp_path: Path, place: Path) -> None:
    from diffusers import UNet2DConditionModel

    tiny_sdxl(tmp_path / "xl")
    run = prepared(configured(place, "off"), Workspace.open(tmp_path / "space"))
    for network in (UNet2DConditionModel.from_pretrained(tmp_path / "xl" / "unet"), run.components.denoiser):
        found = {type(one).__name__ for one in repeated_blocks(network)}
        assert found == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2))) == []


@has_compiler
@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["off", "blocks"])
def test_a_run_comes_to_the_same_lora(place: Path, tmp_path: Path, checkpointing: str) -> None:
    """Stated bounds: losses within 1e-5 of their size, weights on average within 1e-5."""
    sections = {"memory": {"checkpointing": checkpointing}}
    usual, weights, compiled = came_to(configured(place, "off", **sections), Workspace.open(tmp_path / "usual"))
    assert not compiled and not any("Compil" in event.phase for event in usual if isinstance(event, events.Preparing))
    seen, fast_weights, compiled = came_to(configured(place, "on", **sections), Workspace.open(tmp_path / "fast"))
    assert compiled and warnings_in(seen) == warnings_in(usual)
    phases = [(event.phase, event.done, event.total) for event in seen if isinstance(event, events.Preparing)]
    assert phases[-2] == ("Compiling for 64 x 64", 1, 1) and phases[-1][0].startswith("Compiled in ")
    assert losses_in(seen) == pytest.approx(losses_in(usual), rel=1e-5)
    distances = torch.cat([(fast_weights[name] - weight).abs().flatten() for name, weight in weights.items()])
    assert float(distances.mean()) <= 1e-5


@has_compiler
@pytest.mark.slow
def test_blocks_are_compiled_in_steps_alone(place: Path, tmp_path: Path) -> None:
    run = prepared(configured(place, "on"), Workspace.open(tmp_path))
    compile_if_it_pays(run, Preparation(lambda event: None, Control()), window_losses)
    frames = count_compiled()
    assert frames > 0
    train_step(run)
    assert count_compiled() == frames  # all of it was done before
    with torch.no_grad():
        window_losses(run, run.plan.batch(0))  # outside of steps
    assert count_compiled() == frames


def count_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["frames"]["total"])


@has_compiler
def test_a_run_whose_compiler_fails_says_so_once_and_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, weights, _ = came_to(configured(place, "off"), Workspace.open(tmp_path / "usual"))
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-compiler"),))
    seen, same_weights, compiled = came_to(
        configured(place, "on", speed={"compile": "on", "packed_weights": "auto"}), Workspace.open(tmp_path / "without")
    )
    said = [text for text in warnings_in(seen) if "Compiling failed" in text]
    assert len(said) == 1 and "from step 1" in said[0] and not compiled
    assert losses_in(seen) == losses_in(usual)
    assert all(torch.equal(same_weights[name], weight) for name, weight in weights.items())


def test_a_step_in_which_compiling_fails_is_taken_again(place: Path, tmp_path: Path) -> None:
    """In the middle of a run, as when pictures of a new shape come up; nothing that learns has changed."""
    run = prepared(configured(place, "on"), Workspace.open(tmp_path))
    other = prepared(configured(place, "off"), Workspace.open(tmp_path / "other"))
    run.compiled = CompiledBlocks(repeated_blocks(run.components.denoiser)[:1], 1)
    block = repeated_blocks(run.components.denoiser)[0]
    seen: list[events.Event] = []

    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here")

    run.compiled._calls = [(block, torch.compile(block._call_impl, backend=broken))]
    done = goes_on_without(run, seen.append, lambda: train_step(run))
    assert done.step == 1 and run.compiled is None and run.memory["compiled"] is False
    assert len(warnings_in(seen)) == 1 and "Compiling failed" in warnings_in(seen)[0]
    assert done.loss == train_step(other).loss
    assert all(torch.equal(one, two) for one, two in zip(run.parameters, other.parameters, strict=True))


def test_other_faults_are_none_of_the_compiler(place: Path, tmp_path: Path) -> None:
    assert not is_of_compiler(RuntimeError("shapes"))
    run = prepared(configured(place, "on"), Workspace.open(tmp_path))
    run.compiled = CompiledBlocks([], 1)

    def step() -> None:
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="another kind"):
        goes_on_without(run, lambda event: None, step)
    assert run.compiled is not None


def on_a_confined_thread(work: Any, write: list[Path], read: list[Path]) -> None:
    faults: list[BaseException] = []

    def whole() -> None:
        confine_thread(read=read, write=write)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            faults.append(error)

    thread = threading.Thread(target=whole)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


@pytest.mark.skipif(not probe().active, reason="this system has no sandbox")
def test_in_the_sandbox_nothing_is_compiled_and_the_run_says_so(place: Path, tmp_path: Path) -> None:
    """A compiler is a program, and the sandbox lets none be started. It is not opened for one."""
    seen: list[events.Event] = []
    workspace = Workspace.open(tmp_path)

    def work() -> None:
        assert is_confined()
        config = configured(place, "on")
        assert not should_compile(config, CUDA, 1)
        found, _, compiled = came_to(config, workspace)
        seen.extend(found)
        assert not compiled

    on_a_confined_thread(work, [tmp_path], [place])
    said = [text for text in warnings_in(seen) if "sandbox" in text]
    assert len(said) == 1 and said[0].startswith("speed.compile is on") and len(losses_in(seen)) == 4
    assert not is_confined()


def test_a_run_goes_on_as_it_began(place: Path, tmp_path: Path) -> None:
    run = prepared(configured(place, "on"), Workspace.open(tmp_path))
    preparation = Preparation(lambda event: None, Control())
    run.memory["compiled"] = False  # it had failed
    compile_if_it_pays(run, preparation, window_losses)
    assert run.compiled is None


def test_who_compiles(place: Path) -> None:
    long = {"max_train_steps": 3 * PASSES_PER_SHAPE}
    auto = configured(place, "auto", training=long)
    assert should_compile(auto, CUDA, 3) and not should_compile(auto, CUDA, 4) and not should_compile(auto, CPU, 1)
    halved = configured(place, "auto", training={"max_train_steps": 1000, "gradient_accumulation_steps": 2})
    assert should_compile(halved, CUDA, 2)
    assert should_compile(configured(place, "on"), CPU, 9)
    assert not should_compile(configured(place, "off", training=long), CUDA, 1)
    for sections in (
        {"lora": {"dropout": 0.1}},
        {"lora": {"module_dropout": 0.1}},
        {"memory": {"base_format": "int8"}},
        {"training": {"num_processes": 2}},
    ):
        assert not should_compile(configured(place, "on", **sections), CUDA, 1)
    assert not should_pack(configured(place, "on"), nn.Linear(2, 2), CPU)


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_losses_are_the_same(place: Path, tmp_path: Path) -> None:
    found = []
    for wanted in ("off", "on"):
        seen, _, compiled = came_to(
            configured(place, wanted, training={"device": "cuda"}), Workspace.open(tmp_path / wanted)
        )
        assert compiled == (wanted == "on"), warnings_in(seen)
        found.append(losses_in(seen))
    assert found[1] == pytest.approx(found[0], rel=1e-2)
