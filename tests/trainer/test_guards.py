"""Steps that go wrong: the cause is named, the last good state is back and saved, and the change to go on with works."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import make_config, prepared, trained
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.guards import find_cause, guarded_step
from trainer.jobs import Jobs
from trainer.loop import save
from trainer.runs import RunFolder, RunState
from trainer.setup import Run
from trainer.spikes import FEWEST, KEPT, RECENT, LossWatch
from trainer.step import Diverged
from trainer.workspace import Workspace

NAN = math.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("guards") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("guards") / "set", 4)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def run(base: Path, pictures: Path, workspace: Workspace) -> Run:
    return prepared(make_config(base, pictures), workspace)


def go_wrong(run: Run) -> tuple[Diverged, events.WentAstray, list[events.Event]]:
    """Takes a step that can't be taken; returns the error, the event about it and all events."""
    seen: list[events.Event] = []
    with pytest.raises(Diverged) as caught:
        guarded_step(run, seen.append, rescue=lambda *, stem: save(run, seen.append, stem=stem))
    assert not any(isinstance(event, events.StepDone) for event in seen)
    (told,) = [event for event in seen if isinstance(event, events.WentAstray)]
    return caught.value, told, seen


def steps(run: Run, count: int) -> list[events.Event]:
    seen: list[events.Event] = []
    for _ in range(count):
        guarded_step(run, seen.append, rescue=lambda *, stem: save(run, seen.append, stem=stem))
    return seen


def spoil(folder: Path, part: str, ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Changes one weight of a saved model; returns its name."""
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(ending))
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path, metadata={"format": "pt"})
    return name


def hole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[1] = NAN
    return tensor


# --- the cause is named ---


def test_weights_that_are_no_number_name_the_step_the_pictures_and_a_lower_rate(run: Run) -> None:
    steps(run, 1)
    run.parameters[0].data[:] = NAN
    error, told, _ = go_wrong(run)
    assert (told.step, told.setting, told.value, told.back_to) == (2, "optimizer.learning_rate", 1e-4, None)
    assert "step 2 is nan" in str(error) and "optimizer.learning_rate 0.0001" in str(error)
    assert "has to start again" in str(error) and told.module.startswith("unet.down_blocks.0.")
    assert len(told.pictures) == 2 and all(name.endswith(".png") and name in str(error) for name in told.pictures)


def test_the_damaged_picture_of_a_step_is_the_one_that_is_named(run: Run) -> None:
    from trainer.step import window

    first, second = window(run)[0]
    run.pictures.latents[second.index, False][0, 0, 0, 0] = math.inf
    error, told, _ = go_wrong(run)
    assert told.pictures == [run.pictures.placed[second.index].picture.name]
    assert run.pictures.placed[first.index].picture.name not in str(error)
    assert "cache" in told.cause and told.setting == ""


def test_a_broken_base_is_named_with_its_weight(pictures: Path, tmp_path: Path, workspace: Workspace, run: Run) -> None:
    folder = tiny_sd15(tmp_path / "broken")
    name = spoil(folder, "unet", "attn2.to_q.weight", hole)
    with pytest.raises(SafelightError, match=rf"{name} that are no numbers"):  # by the check of the library
        trained(make_config(folder, pictures), workspace)
    steps(run, 2)
    weights = dict(run.components.denoiser.named_parameters())
    weights["mid_block.resnets.0.conv1.weight"].data[0, 0] = NAN  # memory that fails
    error, told, _ = go_wrong(run)
    assert told.module == "unet.mid_block.resnets.0.conv1.weight" and told.setting == ""
    assert "9 of 36,864 numbers" in str(error) and told.back_to == 2


def test_the_first_module_that_overflows_in_fp16_asks_for_a_wider_format(pictures, tmp_path, workspace) -> None:
    folder = tiny_sd15(tmp_path / "wide")
    spoil(folder, "unet", "mid_block.resnets.0.conv1.weight", lambda tensor: tensor * 1e6)
    run = prepared(make_config(folder, pictures, model={"precision": "fp16"}), workspace)
    _, told, _ = go_wrong(run)
    assert told.module == "unet.mid_block.resnets.0.conv1"
    assert (told.setting, told.value) == ("model.precision", "fp32")


def test_the_first_module_whose_gradient_breaks_is_named(run: Run) -> None:
    layer = run.components.denoiser.mid_block.attentions[0].proj_out

    def break_gradient(module: Any, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * math.inf)

    layer.register_forward_hook(break_gradient)
    _, told, _ = go_wrong(run)
    assert "gradient of unet.mid_block." in told.cause and told.setting == "optimizer.learning_rate"


def test_a_fault_that_does_not_come_again_is_the_machines(run: Run) -> None:
    steps(run, 1)
    broken = iter([True])

    def once(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * NAN if next(broken, False) else output

    run.components.denoiser.conv_out.register_forward_hook(once)
    _, told, seen = go_wrong(run)
    assert "machine itself is not steady" in told.cause and told.back_to == 1 and told.setting == ""
    assert any(isinstance(event, events.CheckpointSaved) and event.step == 1 for event in seen)


@pytest.mark.parametrize(
    ("sections", "setting", "value"),
    [
        ({"optimizer": {"learning_rate": 1e-4}}, "optimizer.learning_rate", 3e-5),
        ({"optimizer": {"learning_rate": 9.0}}, "optimizer.learning_rate", 1e-4),
        ({"training": {"max_grad_norm": 0.0}}, "training.max_grad_norm", 1.0),
        (
            {"optimizer": {"name": "prodigy", "learning_rate": 1.0, "text_encoder_learning_rate": 1.0}},
            "optimizer.d_coefficient",
            0.5,
        ),
    ],
)
def test_the_change_fits_the_settings(sections, setting, value, base, pictures, workspace) -> None:
    run = prepared(make_config(base, pictures, **sections), workspace)
    run.parameters[0].data[:] = NAN
    cause = find_cause(run, Diverged("", NAN, NAN))
    assert (cause.setting, cause.value) == (setting, value)


# --- the last good state is back ---


def astray() -> dict[str, Any]:
    watch = LossWatch()
    for loss in [0.1] * RECENT + [9.0] * RECENT:
        watch.add(loss, spike=False)
    assert watch.astray
    return watch.kept()


def test_a_run_whose_losses_ran_away_goes_back_to_before_that(run: Run) -> None:
    for _ in range(2):
        steps(run, 2)
        save(run, lambda event: None, stem="x")
    good = load_checkpoint(list_checkpoints(run.folder.checkpoints_dir)[-1])
    steps(run, 1)
    run.memory["losses"] = astray()
    save(run, lambda event: None, stem="x")
    run.parameters[0].data[:] = NAN
    error, told, seen = go_wrong(run)
    assert (told.step, told.back_to) == (6, 4) and "back at step 4" in str(error)
    assert [path.name for path in list_checkpoints(run.folder.checkpoints_dir)] == ["step-00000002", "step-00000004"]
    after = load_checkpoint(list_checkpoints(run.folder.checkpoints_dir)[-1])
    assert all(torch.equal(after.lora[name], good.lora[name]) for name in good.lora)
    saved = [event.path for event in seen if isinstance(event, events.LoraSaved)]
    assert saved == ["tiny-step000004.safetensors", "tiny-step000004_diffusers.safetensors"]
    assert all((run.folder.path / path).is_file() for path in saved)


def test_weights_that_are_still_good_are_saved_as_they_are(run: Run) -> None:
    steps(run, 3)
    run.pictures.latents.update({key: one * NAN for key, one in run.pictures.latents.items()})
    before = [parameter.clone() for parameter in run.parameters]
    _, told, _ = go_wrong(run)
    assert told.back_to == 3
    found = load_checkpoint(list_checkpoints(run.folder.checkpoints_dir)[-1])
    assert all(torch.equal(one, found.lora[name]) for one, name in zip(before, found.parameters, strict=True))


def test_a_run_that_went_astray_goes_on_with_the_change(base: Path, pictures: Path, workspace: Workspace) -> None:
    jobs = Jobs(workspace)
    # a warm-up to a rate that no LoRA stands: the first steps are good, the later ones end in numbers too large for fp32
    config = make_config(
        base,
        pictures,
        optimizer={"learning_rate": 10.0, "warmup_steps": 90, "weight_decay": 0.0},
        training={"max_train_steps": 100, "batch_size": 1},
        save={"rescue_minutes": 1e-6},
    )
    run_id = jobs.submit(config)
    assert jobs.wait(120)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FAILED and progress.error_id == "", progress
    told = progress.astray
    assert told is not None and (told.setting, told.value) == ("optimizer.learning_rate", 1e-4)
    assert "Go on with optimizer.learning_rate 0.0001" in progress.message
    assert told.back_to is not None and 0 < told.back_to < told.step - 1
    assert any(saved.step == told.back_to for saved in progress.loras)
    jobs.resume(run_id, {told.setting: told.value})
    assert jobs.wait(120)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FINISHED and progress.astray is None and progress.step == 100, progress.message
    assert (progress.resumes, progress.changes) == (
        (told.back_to,),
        {"optimizer.learning_rate": "10.0 -> 0.0001"},
    )
    assert RunFolder.find(workspace, run_id).config().optimizer.learning_rate == 1e-4


# --- spikes ---


def test_the_usual_loss_is_the_median_of_the_last_steps() -> None:
    watch = LossWatch()
    for number in range(FEWEST - 1):
        watch.add(0.1 + 0.001 * number, spike=False)
    assert not watch.is_spike(100.0, 5.0)  # too few to know
    watch.add(0.2, spike=False)
    assert watch.is_spike(5.01 * 0.11, 5.0) and not watch.is_spike(4.99 * 0.11, 5.0)
    assert not watch.is_spike(100.0, 0.0)
    for _ in range(200):
        watch.add(1.0, spike=False)
    assert len(watch.recent) == KEPT and not watch.is_spike(4.9, 5.0)
    assert LossWatch.of({"losses": watch.kept()}) == watch


def test_a_gradient_out_of_all_bounds_makes_a_state_unfit_to_go_on_from() -> None:
    watch = LossWatch()
    for number in range(FEWEST):
        watch.add(0.1, 0.01 + 0.001 * number, spike=False)
    watch.add(0.1, 0.019 * 900, spike=False)  # once, by a hard picture
    assert not watch.astray
    watch.add(0.1, None, spike=False)  # a step that was left out
    watch.add(0.1, 0.021 * 1100, spike=False)
    assert watch.astray and LossWatch.of({"losses": watch.kept()}).astray
    watch.add(0.1, 0.01, spike=False)
    assert not watch.astray


def test_single_high_losses_are_no_training_astray() -> None:
    watch = LossWatch()
    for number in range(1000):
        watch.add(0.02 if number % 10 else 0.8, spike=False)  # timesteps differ this much
        assert not watch.astray
    for _ in range(RECENT):
        watch.add(2.0, spike=False)
    assert watch.astray
    watch.add(NAN, spike=False)
    assert watch.astray


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_names_its_pictures_and_is_left_out_if_wanted(skip: bool, pictures, workspace) -> None:
    config = make_config(
        tiny_sd15(workspace.path / "v", prediction_type="v_prediction"),  # whose target grows with the picture
        pictures,
        optimizer={"learning_rate": 1e-5},
        training={"max_train_steps": 100, "batch_size": 1, "spike_factor": 50.0, "skip_spikes": skip},
    )
    run = prepared(config, workspace)
    steps(run, FEWEST)
    name = run.pictures.placed[2].picture.name
    run.pictures.latents[2, False] *= 1e4
    warned: list[str] = []
    while not warned and run.step < FEWEST + 12:
        before = run.parameters[1].clone()
        seen = steps(run, 1)
        warned = [event.message for event in seen if isinstance(event, events.Warned)]
        moved = not torch.equal(run.parameters[1], before)
        assert moved or warned
    assert name in warned[0] and "times the usual one" in warned[0]
    assert moved != skip
    (done,) = [event for event in seen if isinstance(event, events.StepDone)]
    assert (done.gradient_norm is None) == skip and run.step == done.step


# --- what is refused when it is encoded ---


def test_a_picture_whose_latents_are_no_numbers_is_refused_by_name(pictures, tmp_path, workspace) -> None:
    folder = tiny_sd15(tmp_path / "vae")
    spoil(folder, "vae", "encoder.conv_in.weight", lambda tensor: tensor * 1e38)
    with pytest.raises(SafelightError, match=r"no usable numbers .* for 000\.png .computed in float32"):
        trained(make_config(folder, pictures), workspace)
    assert not list(workspace.latents_cache_dir.rglob("*.safetensors"))


def test_a_text_encoder_that_gives_no_numbers_is_refused_by_caption(pictures, tmp_path, workspace) -> None:
    folder = tiny_sd15(tmp_path / "text")
    spoil(folder, "text_encoder", "layers.0.mlp.fc1.weight", lambda tensor: tensor * 1e38)
    with pytest.raises(
        SafelightError, match=r"text encoder gave no usable numbers .* 'blue circle, simple background'"
    ):
        trained(make_config(folder, pictures), workspace)


def test_a_damaged_cache_entry_is_refused_by_picture(base, pictures, workspace) -> None:
    trained(make_config(base, pictures), workspace)
    for path in workspace.latents_cache_dir.rglob("*.safetensors"):
        save_file({name: tensor * NAN for name, tensor in load_file(path).items()}, path)
    with pytest.raises(SafelightError, match=r"What the cache has of 000\.png holds NaN"):
        trained(make_config(base, pictures), workspace)
