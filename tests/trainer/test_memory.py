"""Less memory: the base in few bits, blocks computed twice, weights and activations elsewhere, and steps that ran out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15, tiny_sdxl
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, trained
from trainer import events
from trainer.adapters.layer import adapted_layers
from trainer.config.choices import AdapterName, BaseFormat, Checkpointing, Offload
from trainer.config.sections import MemoryConfig
from trainer.guards import guarded_step
from trainer.memory.fitting import load_of
from trainer.memory.formats import FORMATS
from trainer.memory.keeping import Keeping
from trainer.memory.layers import frozen_layers, store, stored_layers
from trainer.memory.plan import LEVELS, Level, activation_bytes, choose_level, needs, next_level, possible_levels
from trainer.memory.recovery import REMEMBERED, remembered_level
from trainer.setup import Run
from trainer.step import train_step, window, window_losses
from trainer.workspace import Workspace

BOUNDS = {"int8": 0.01, "fp8": 0.05, "nf4": 0.1}
"""How far a loss may be from that of the whole base, as a share of it."""
SMALLER = {"int8": 0.35, "fp8": 0.35, "nf4": 0.25}
"""Largest share of the fp32 blocks' bytes that a format may take. Factors weigh more in layers as thin as these."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"sd15": tiny_sd15(folder / "sd15"), "sdxl": tiny_sdxl(folder / "sdxl")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 6)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def elsewhere(run: Run, level: Level) -> Keeping:
    """Gives a run on the CPU a second memory, as a GPU has one, and sets the level."""
    run.keeping = Keeping(run.components.denoiser, run.device, run.config.memory.base_format, elsewhere=True)
    run.keeping.apply(level)
    if run.keeping.activations is not None:
        run.keeping.activations.smallest_bytes = 0
    return run.keeping


def steps(run: Run, number: int = 3) -> tuple[list[float], list[Tensor]]:
    found = [train_step(run).loss for _ in range(number)]
    return found, [parameter.detach().clone() for parameter in run.parameters]


# ---- the base in few bits ----


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_losses_on_a_small_base_are_near_those_on_the_whole(family: str, models, pictures, tmp_path) -> None:
    def run(form: str) -> list[float]:
        space = Workspace.open(tmp_path / form)
        config = make_config(models[family], pictures, memory={"base_format": form}, lora={"train_text_encoder": True})
        return losses(trained(config, space))

    whole = run("whole")
    for form, bound in BOUNDS.items():
        small = run(form)
        assert small != whole
        assert small == pytest.approx(whole, rel=bound), form


@pytest.mark.parametrize("form", BOUNDS)
def test_only_the_blocks_are_small_and_gradients_pass_them(form: str, models, pictures, workspace) -> None:
    run = prepared(make_config(models["sd15"], pictures, memory={"base_format": form}), workspace)
    network = run.components.denoiser
    layers = stored_layers(network)
    assert layers.keys() == {name for name, _ in frozen_layers(network)}
    assert not any(name.startswith(("conv_in", "conv_out", "time_embedding")) for name in layers)
    whole = sum(4 * layer.weight.numel() for layer in layers.values())
    assert run.keeping.block_bytes() < SMALLER[form] * whole
    window_losses(run, window(run)[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in run.parameters)


def test_nothing_of_a_whole_weight_is_kept_for_the_backward_pass() -> None:
    network = nn.ModuleDict(
        {"blocks": nn.Sequential(nn.Linear(32, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 2, 3))}
    )
    network.requires_grad_(False)
    store(network, BaseFormat.INT8, None)
    saved: list[Tensor] = []
    inputs = torch.randn(3, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda one: one):
        network["blocks"](inputs).sum().backward()
    assert inputs.grad is not None and not any(tensor.numel() in (32 * 32, 36) for tensor in saved)


@pytest.mark.parametrize("form", BaseFormat)
def test_a_stored_layer_has_the_gradients_of_the_layer_with_that_weight(form: BaseFormat) -> None:
    torch.manual_seed(1)
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(12, 20), nn.Conv2d(4, 6, 3, stride=2, padding=1)])})
    plain, made = copy.deepcopy(network).requires_grad_(False), network.requires_grad_(False)
    store(made, form, None)
    for number, inputs in enumerate((torch.randn(2, 5, 12), torch.randn(2, 4, 7, 9))):
        one, other = plain["blocks"][number], made["blocks"][number]
        one.weight.data = other.weight.clone()
        first, second = (inputs.clone().requires_grad_() for _ in range(2))
        one(first).square().sum().backward()
        other(second).square().sum().backward()
        assert torch.equal(one(first), other(second)) and torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("adapter", AdapterName)
def test_every_adapter_learns_on_a_small_base(adapter: AdapterName, models, pictures, workspace) -> None:
    settings = {"adapter": adapter.value, "block_size": 4}
    run = prepared(make_config(models["sd15"], pictures, memory={"base_format": "nf4"}, lora=settings), workspace)
    layer = next(iter(adapted_layers(run.components.denoiser).values()))
    assert float(layer.delta().abs().max()) < 1e-5, "an adapter begins with no change of the base as it is kept"
    before = [parameter.clone() for parameter in run.parameters]
    steps(run, 2)
    assert any(not torch.equal(one, other) for one, other in zip(before, run.parameters, strict=True))


def test_a_lora_of_a_small_base_is_saved_as_any_other(models, pictures, workspace) -> None:
    drawing = {"prompts": ["a bar"], "width": 64, "height": 64, "num_inference_steps": 2}
    parts: dict[str, Any] = {"memory": {"base_format": "int8"}, "lora": {"init": "pissa"}, "sample": drawing}
    config = make_config(models["sd15"], pictures, **parts)
    seen = trained(config, workspace)
    assert [event for event in seen if isinstance(event, events.LoraSaved)]
    assert [event for event in seen if isinstance(event, events.SampleSaved)]


# ---- computed twice, and elsewhere ----


@pytest.mark.parametrize("checkpointing", ["attention", "blocks"])
def test_computing_blocks_twice_changes_no_bit(checkpointing: str, models, pictures, tmp_path) -> None:
    results = []
    for level in ("off", checkpointing):
        space = Workspace.open(tmp_path / level)
        config = make_config(models["sdxl"], pictures, memory={"checkpointing": level}, lora={"dropout": 0.3})
        results.append((losses(trained(config, space)), final_state(only_run(space))))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][key]) for key, value in results[0][1].items())


@pytest.mark.parametrize("form", ["whole", "nf4"])
@pytest.mark.parametrize("checkpointing", [Checkpointing.OFF, Checkpointing.BLOCKS])
@pytest.mark.parametrize("offload", [Offload.ACTIVATIONS, Offload.BLOCKS, Offload.BOTH])
def test_offload_changes_no_number(form: str, checkpointing, offload, models, pictures, tmp_path) -> None:
    results = []
    for level in (Level(), Level(checkpointing, offload)):
        # A large epsilon makes Adam's step follow the gradient's size, so that rounding stays rounding.
        settings = {"learning_rate": 1e-2, "epsilon": 1e-2}
        config = make_config(models["sd15"], pictures, memory={"base_format": form}, optimizer=settings)
        run = prepared(config, Workspace.open(tmp_path / str(level.offload)))
        keeping = elsewhere(run, level)
        results.append(steps(run))
        if level.offloads_blocks:
            assert keeping.visits is not None and keeping.visits.copied > len(stored_layers(run.components.denoiser))
        if level.offloads_activations:
            assert keeping.activations is not None and keeping.activations.sent > 0
    # the last bits of a sum depend on where in the memory its numbers lie
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    differences = [float((one - other).abs().max()) for one, other in zip(results[0][1], results[1][1], strict=True)]
    assert max(differences) < 1e-6


def test_weights_that_are_away_come_one_after_the_other(models, pictures, workspace) -> None:
    run = prepared(make_config(models["sd15"], pictures), workspace)
    visits = elsewhere(run, Level(Checkpointing.OFF, Offload.BLOCKS)).visits
    assert visits is not None
    largest = max(layer.weight.nbytes for layer in stored_layers(run.components.denoiser).values())
    visits.ahead_bytes = 2 * largest
    most = 0
    bring = visits.bring

    def watched(layer: Any) -> Any:
        nonlocal most
        found = bring(layer)
        most = max(most, sum(piece.nbytes for held, _ in visits.here.values() for piece in held))
        return found

    visits.bring = watched  # type: ignore[method-assign]
    steps(run, 2)
    assert largest <= most <= 3 * largest < run.keeping.block_bytes()
    assert len(visits.here) > 1, "the next ones are on their way"


# ---- the plan ----


def remembered(run: Run, level: Level) -> int:
    """Bytes that autograd keeps of a step at a level, weights left out."""
    run.keeping.apply(level)
    stays = {one.untyped_storage().data_ptr() for one in run.components.denoiser.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # or the place of one that is gone would be counted as another's

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stays:
            kept.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        window_losses(run, window(run)[0])
    return sum(sizes.values())


def test_the_plan_counts_what_a_step_remembers(models, pictures, workspace) -> None:
    run = prepared(make_config(models["sd15"], pictures), workspace)
    load = load_of(run)
    counted = {level.checkpointing: remembered(run, level) for level in (LEVELS[0], LEVELS[2])}
    assert counted[Checkpointing.BLOCKS] < 0.5 * counted[Checkpointing.OFF]
    assert 0.5 < activation_bytes(load, Level()) / counted[Checkpointing.OFF] < 2


def test_the_quickest_level_that_fits_is_chosen(models, pictures, workspace) -> None:
    load = load_of(prepared(make_config(models["sd15"], pictures, training={"batch_size": 6}), workspace))
    levels = possible_levels(MemoryConfig(), elsewhere=True)
    assert levels == list(LEVELS)
    sums = [sum(needs(load, level).values()) for level in LEVELS]
    assert choose_level(load, levels, 0) == LEVELS[0]
    assert choose_level(load, levels, 10 * sums[0]) == LEVELS[0]
    assert choose_level(load, levels, sums[0] - 1) != LEVELS[0]
    assert sum(needs(load, choose_level(load, levels, 1)).values()) == min(sums)
    assert possible_levels(MemoryConfig(), elsewhere=False) == list(LEVELS[:3])
    chosen = MemoryConfig.model_validate({"checkpointing": "blocks", "offload": "none"})
    assert possible_levels(chosen, elsewhere=True) == [LEVELS[2]]


def test_every_level_leads_to_the_last() -> None:
    level: Level | None = LEVELS[0]
    seen = []
    while level is not None:
        seen.append(level)
        level = next_level(level, elsewhere=True)
    assert seen[-1] == LEVELS[-1] and len(seen) == len(LEVELS) - 1, "activations that are away do not come back"
    assert next_level(LEVELS[2], elsewhere=False) is None


def test_a_run_says_what_it_will_need(models, pictures, workspace) -> None:
    config = make_config(models["sd15"], pictures, memory={"checkpointing": "attention"})
    (planned,) = [event for event in trained(config, workspace) if isinstance(event, events.MemoryPlanned)]
    assert planned.level == "the transformers are computed twice"
    assert planned.parts["base model"] > 100_000 and planned.total > sum(planned.parts.values())


# ---- out of memory ----


def fails_while_all_is_remembered(run: Run) -> None:
    """A layer that says what torch says without memory, unless its block is computed twice."""
    block = run.components.denoiser.mid_block

    def fail(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and not block.gradient_checkpointing:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    block.resnets[0].register_forward_pre_hook(fail)


def test_a_step_without_memory_is_taken_again_one_level_lower(models, pictures, tmp_path) -> None:
    config = make_config(models["sd15"], pictures, memory={"checkpointing": "off"}, lora={"dropout": 0.2})
    undisturbed = steps(prepared(config, Workspace.open(tmp_path / "one")))
    run = prepared(config, Workspace.open(tmp_path / "two"))
    fails_while_all_is_remembered(run)
    seen: list[events.Event] = []
    for _ in range(3):
        guarded_step(run, seen.append, rescue=lambda *, stem: None)
    assert losses(seen) == undisturbed[0]
    assert all(torch.equal(one, other) for one, other in zip(undisturbed[1], run.parameters, strict=True))
    warnings = [event.message for event in seen if isinstance(event, events.Warned)]
    assert len(warnings) == 2 and all("step 1 (tried to allocate 20.00 GiB)" in text for text in warnings)
    assert run.keeping.level == LEVELS[2] and run.memory[REMEMBERED]["checkpointing"] == "blocks"


def test_a_run_that_goes_on_begins_with_the_level_that_it_came_to(models, pictures, workspace) -> None:
    from trainer.checkpoints import save_checkpoint
    from trainer.resume import capture

    run = prepared(make_config(models["sd15"], pictures), workspace)
    fails_while_all_is_remembered(run)
    guarded_step(run, lambda event: None, rescue=lambda *, stem: None)
    save_checkpoint(run.folder.checkpoints_dir, capture(run), keep_last=1)
    again = prepared_again(run, workspace)
    assert again.step == 1 and again.keeping.level == LEVELS[2]
    again.changed = {"memory.checkpointing": "off instead of auto"}
    assert remembered_level(again) is None


def prepared_again(run: Run, workspace: Workspace) -> Run:
    from trainer.inputs import find_inputs
    from trainer.jobs import Control
    from trainer.setup import prepare

    return prepare(run.config, find_inputs(run.config, workspace), run.folder, workspace, lambda event: None, Control())


def test_a_run_that_may_not_do_with_less_ends(models, pictures, workspace) -> None:
    run = prepared(make_config(models["sd15"], pictures, memory={"on_out_of_memory": "fail"}), workspace)
    fails_while_all_is_remembered(run)
    with pytest.raises(SafelightError, match=r"too small for step 1 .* memory.on_out_of_memory to lower"):
        guarded_step(run, lambda event: None, rescue=lambda *, stem: None)
    assert all(parameter.grad is None for parameter in run.parameters)


def test_without_a_lower_level_it_is_told_what_to_change(models, pictures, workspace) -> None:
    run = prepared(make_config(models["sd15"], pictures, memory={"checkpointing": "blocks"}), workspace)
    block = run.components.denoiser.mid_block

    def fail(module: nn.Module, inputs: Any) -> None:
        raise MemoryError("DefaultCPUAllocator: not enough memory")

    block.register_forward_pre_hook(fail)
    with pytest.raises(SafelightError, match=r"Lower training.batch_size .* memory.base_format to int8 or nf4"):
        guarded_step(run, lambda event: None, rescue=lambda *, stem: None)


def test_what_torch_says_on_the_cpu_without_memory_is_understood(models, pictures, workspace) -> None:
    """The system itself refuses: a layer really asks for more than there is, until its block is computed twice."""
    run = prepared(make_config(models["sd15"], pictures, memory={"checkpointing": "off"}), workspace)
    block = run.components.denoiser.mid_block

    def ask_for_too_much(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and not block.gradient_checkpointing:
            torch.empty(2**50)

    block.resnets[0].register_forward_pre_hook(ask_for_too_much)
    seen: list[events.Event] = []
    guarded_step(run, seen.append, rescue=lambda *, stem: None)
    warnings = [event.message for event in seen if isinstance(event, events.Warned)]
    assert "allocate" in warnings[0] and run.step == 1 and run.keeping.level == LEVELS[2]


@pytest.mark.parametrize("shape", [(64, 32), (48, 33), (32, 16, 3, 3)])
def test_nf4_on_the_cpu_is_packed_and_unpacked_well_without_compiling_anything(shape: tuple[int, ...]) -> None:
    """Each number as the nearest level times its block's factor, in the order of bitsandbytes.

    On the CPU that compiles packing for every shape and unpacking for odd ones, a minute before the first step, and
    takes other blocks' factors for rows that are no whole number of blocks.
    """
    from bitsandbytes import functional
    from torch._dynamo.utils import counters

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    form = FORMATS[BaseFormat.NF4]
    before = dict(counters["frames"])
    pieces = form.pack(weight)
    unpacked = form.unpack(pieces, weight.shape, torch.float32)
    assert dict(counters["frames"]) == before and unpacked.shape == weight.shape
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(pieces[0], codes) and torch.equal(pieces[1], state.absmax)
    levels = functional.get_4bit_type("nf4", device="cpu")
    places = torch.stack([codes >> 4, codes & 15], dim=-1).flatten().long()
    factors = state.absmax.repeat_interleave(64)[: weight.numel()]
    assert torch.equal(unpacked.flatten(), levels[places] * factors)
    assert ((unpacked - weight).abs().flatten() <= 0.16 * factors).all()
