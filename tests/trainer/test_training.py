"""The run as a whole on tiny real models: right by diffusers' own computation, repeatable, resumable, exact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from security.integrity import check_own_hash, sha256_of
from tests.tiny import tiny_dataset, tiny_sd15, tiny_sdxl
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.step import train_step
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "eps": tiny_sd15(folder / "eps"),
        "v": tiny_sd15(folder / "v", prediction_type="v_prediction"),
        "v-ztsnr": tiny_sd15(folder / "vz", prediction_type="v_prediction", ztsnr=True),
        "xl": tiny_sdxl(folder / "xl"),
        "xl-v-ztsnr": tiny_sdxl(folder / "xlv", prediction_type="v_prediction", ztsnr=True),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 8)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def make_config(base: Path, pictures: Path, **sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": str(base), "precision": "fp32"},
        "dataset": {"folder": str(pictures), "resolution": 64},
        "lora": {"rank": 4, "alpha": 2.0},
        "optimizer": {"learning_rate": 1e-2},
        "training": {"max_train_steps": 4, "batch_size": 2, "device": "cpu"},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return parse_config(values)


def prepared(config: TrainConfig, workspace: Workspace) -> Run:
    folder = RunFolder.create(workspace, config)
    return prepare(config, find_inputs(config, workspace), folder, workspace, lambda event: None, Control())


def trained(
    config: TrainConfig, workspace: Workspace, folder: RunFolder | None = None, control: Control | None = None
) -> list[events.Event]:
    folder = folder or RunFolder.create(workspace, config)
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        folder.append(event)

    train(config, find_inputs(config, workspace), folder, workspace, emit, control or Control())
    return seen


def losses(seen: list[events.Event]) -> list[float]:
    return [event.loss for event in seen if isinstance(event, events.StepDone)]


def final_state(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(folder.checkpoints_dir)[-1]).lora


def only_run(workspace: Workspace) -> RunFolder:
    (path,) = workspace.runs_dir.iterdir()
    return RunFolder(path)


def shake(run: Run) -> None:
    """Gives the LoRA some effect, so that a forward pass that forgot it would show."""
    torch.manual_seed(5)
    for parameter in run.parameters:
        parameter.data += 0.02 * torch.randn_like(parameter)


# --- right ---


@pytest.mark.parametrize("name", ["eps", "xl"])
def test_four_accumulated_batches_of_one_are_a_batch_of_four(name: str, models, pictures, tmp_path) -> None:
    weights, curves = [], []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        workspace = Workspace.open(tmp_path / f"{batch_size}")
        config = make_config(
            models[name],
            pictures,
            training={"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_train_steps": 3},
            # A large epsilon makes Adam's step follow the gradient's size, so that rounding stays rounding.
            optimizer={"learning_rate": 1e-2, "epsilon": 1e-2},
        )
        curves.append(losses(trained(config, workspace)))
        weights.append(final_state(only_run(workspace)))
    for curve, weight in zip(curves[1:], weights[1:], strict=True):
        assert curve == pytest.approx(curves[0], abs=1e-5)
        for key, value in weights[0].items():
            assert torch.allclose(weight[key], value, atol=1e-5), key


def test_gradients_flow_into_every_lora_layer_and_nothing_else_moves(models, pictures, workspace) -> None:
    run = prepared(make_config(models["xl"], pictures, lora={"train_text_encoder": True}), workspace)
    frozen = {
        name: parameter.clone()
        for name, parameter in run.components.denoiser.named_parameters()
        if not parameter.requires_grad
    }
    before = [parameter.clone() for parameter in run.parameters]
    for _ in range(3):
        train_step(run)
    unmoved = [index for index, parameter in enumerate(run.parameters) if torch.equal(parameter, before[index])]
    # SDXL reads the first text encoder's layer before the last, so its very last layer can't learn.
    names = [
        name for part, module in run.adapted.items() for name, one in module.named_parameters() if one.requires_grad
    ]
    assert all("layers.2." in names[index] for index in unmoved)
    assert all(parameter.dtype is torch.float32 for parameter in run.parameters)
    for name, parameter in run.components.denoiser.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


def test_the_lora_stays_fp32_over_a_bf16_base(models, pictures, workspace) -> None:
    run = prepared(make_config(models["eps"], pictures, model={"precision": "bf16"}), workspace)
    assert run.components.denoiser.conv_in.weight.dtype is torch.bfloat16
    assert all(parameter.dtype is torch.float32 for parameter in run.parameters)
    values = [train_step(run).loss for _ in range(3)]
    exact = prepared(make_config(models["eps"], pictures), workspace)
    assert values == pytest.approx([train_step(exact).loss for _ in range(3)], rel=0.05)


@pytest.mark.parametrize("name", ["eps", "xl"])
def test_training_in_fp16_scales_its_loss(name: str, models, pictures, workspace) -> None:
    run = prepared(make_config(models[name], pictures, model={"precision": "fp16"}), workspace)
    assert run.scaler.is_enabled()
    before = [parameter.clone() for parameter in run.parameters]
    done = [train_step(run) for _ in range(4)]
    assert all(0 < one.loss < 10 for one in done)
    assert any(not torch.equal(parameter, old) for parameter, old in zip(run.parameters, before, strict=True))


def test_checkpointing_gives_the_same_numbers(models, pictures, tmp_path) -> None:
    results = []
    for on in ("off", "attention", "blocks"):
        workspace = Workspace.open(tmp_path / on)
        config = make_config(models["eps"], pictures, memory={"checkpointing": on}, lora={"dropout": 0.3})
        results.append(losses(trained(config, workspace)))
    assert results[0] == results[1] == results[2]


def test_a_run_learns(models, pictures, workspace) -> None:
    config = make_config(
        models["eps"],
        pictures,
        training={"max_train_steps": 60, "batch_size": 4},
        optimizer={"learning_rate": 5e-3},
        validation={"folder": str(pictures)},
    )
    with pytest.raises(ValueError, match="also trained on"):
        trained(config, workspace)
    other = tiny_dataset(workspace.path / "held-out", 4, seed=9)
    config = config.model_copy(update={"validation": config.validation.model_copy(update={"folder": str(other)})})
    seen = trained(config, workspace)
    first, last = [event.loss for event in seen if isinstance(event, events.Validated)]
    assert last < 0.9 * first


# --- exact: the same seed, a resume, a preview ---


def test_the_same_seed_gives_the_same_file(models, pictures, tmp_path) -> None:
    digests = []
    for seed in (1, 1, 2):
        workspace = Workspace.open(tmp_path / f"{len(digests)}")
        config = make_config(models["eps"], pictures, training={"seed": seed}, lora={"dropout": 0.2})
        trained(config, workspace)
        state = final_state(only_run(workspace))
        digests.append(hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_previews_and_validation_change_nothing(models, pictures, tmp_path) -> None:
    other = tiny_dataset(tmp_path / "held-out", 2, seed=9)
    watched = {
        "sample": {
            "prompts": ["a red circle"],
            "every_n_steps": 1,
            "width": 64,
            "height": 64,
            "num_inference_steps": 2,
        },
        "validation": {"folder": str(other), "every_n_steps": 1},
        "save": {"every_n_steps": 2},
    }
    states = []
    for number, sections in enumerate(({}, watched)):
        workspace = Workspace.open(tmp_path / str(number))
        trained(make_config(models["eps"], pictures, lora={"dropout": 0.2}, **sections), workspace)
        states.append(final_state(only_run(workspace)))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["eps", "xl"])
@pytest.mark.parametrize("how", ["stop", "pause"])
def test_ten_steps_are_five_and_five_more(name: str, how: str, models, pictures, tmp_path) -> None:
    sections: dict[str, Any] = {
        "training": {"max_train_steps": 10, "gradient_accumulation_steps": 2, "batch_size": 3},
        "optimizer": {"schedule": "cosine", "warmup_steps": 2, "learning_rate": 1e-3},
        "lora": {"dropout": 0.2, "train_text_encoder": True},
        "dataset": {"shuffle_tags": True, "caption_dropout_rate": 0.3, "flip_augmentation": True},
    }
    config = make_config(models[name], pictures, **sections)
    whole = Workspace.open(tmp_path / "whole")
    reference = trained(config, whole)

    halves = Workspace.open(tmp_path / "halves")
    folder = RunFolder.create(halves, config)
    control = Control()

    def emit(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 5:
            (control.stop if how == "stop" else control.pause).set()
        seen.append(event)

    seen: list[events.Event] = []
    train(config, find_inputs(config, halves), folder, halves, emit, control)
    assert isinstance(seen[-1], events.Finished if how == "stop" else events.Paused)
    assert any(isinstance(event, events.LoraSaved) for event in seen) == (how == "stop")
    again = trained(config, halves, folder)
    assert losses(seen) + losses(again) == losses(reference)
    expected, found = final_state(only_run(whole)), final_state(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(models, pictures, workspace) -> None:
    config = make_config(models["eps"], pictures, save={"every_n_steps": 2})
    trained(config, workspace)
    folder = only_run(workspace)
    newest = list_checkpoints(folder.checkpoints_dir)[-1]
    expected = final_state(folder)
    (newest / "lora.safetensors").write_bytes(b"damaged")
    seen = trained(config, workspace, folder)
    assert [event.step for event in seen if isinstance(event, events.Resumed)] == [2]
    assert any(isinstance(event, events.Warned) and newest.name in event.message for event in seen)
    found = final_state(folder)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_going_on_with_another_rank_is_refused(models, pictures, workspace) -> None:
    trained(make_config(models["eps"], pictures), workspace)
    with pytest.raises(ValueError, match=r"to step 4 with lora\.rank 4, and its settings say 8 now.*set it back"):
        trained(make_config(models["eps"], pictures, lora={"rank": 8}), workspace, only_run(workspace))


def test_an_edited_learning_rate_wins_over_the_checkpoint(models, pictures, workspace) -> None:
    trained(make_config(models["eps"], pictures), workspace)
    config = make_config(models["eps"], pictures, training={"max_train_steps": 6}, optimizer={"learning_rate": 3e-3})
    seen = trained(config, workspace, only_run(workspace))
    steps = [event for event in seen if isinstance(event, events.StepDone)]
    assert [(event.step, event.learning_rate) for event in steps] == [(5, 3e-3), (6, 3e-3)]


# --- what a run leaves and says ---


def test_the_events_tell_the_whole_story(models, pictures, tmp_path, workspace) -> None:
    other = tiny_dataset(tmp_path / "held-out", 2, seed=9)
    config = make_config(
        models["eps"],
        pictures,
        sample={"prompts": ["a", "b"], "every_n_steps": 2, "width": 64, "height": 96, "num_inference_steps": 2},
        validation={"folder": str(other), "every_n_steps": 2, "num_timesteps": 2, "keep_best": False},
        save={"every_n_steps": 2, "key_format": "both"},
    )
    seen = trained(config, workspace)
    folder = only_run(workspace)
    assert [event.step for event in seen if isinstance(event, events.StepDone)] == [1, 2, 3, 4]
    assert [event.step for event in seen if isinstance(event, events.SampleSaved)] == [0, 0, 2, 2, 4, 4]
    assert [event.step for event in seen if isinstance(event, events.Validated)] == [0, 2, 4]
    assert {event.step for event in seen if isinstance(event, events.CheckpointSaved)} == {2, 4}
    saved = {event.path for event in seen if isinstance(event, events.LoraSaved)}
    assert saved == {
        "tiny-step000002.safetensors",
        "tiny-step000002_diffusers.safetensors",
        "tiny.safetensors",
        "tiny_diffusers.safetensors",
    }
    for event in seen:
        if isinstance(event, events.SampleSaved | events.LoraSaved | events.CheckpointSaved):
            assert (path := folder.path / event.path).exists()
            assert not isinstance(event, events.LoraSaved) or (event.sha256 == sha256_of(path) and check_own_hash(path))
    assert isinstance(seen[-1], events.Finished) and not seen[-1].stopped


def test_stop_while_preparing_ends_at_once(models, pictures, workspace) -> None:
    control = Control()
    control.stop.set()
    seen = trained(make_config(models["eps"], pictures), workspace, control=control)
    assert isinstance(seen[-1], events.Finished) and seen[-1].stopped and seen[-1].step == 0


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"dataset": {"folder": "nothing"}}, "no dataset named"),
        ({"model": {"base": "nothing"}}, "nothing"),
        ({"training": {"device": "cuda:9"}}, "cuda:9"),
        ({"sample": {"prompts": ["x"], "width": 72, "height": 64}}, "sample.width is 72"),
    ],
)
def test_what_the_user_can_mend_is_said_plainly(sections: dict, words: str, models, pictures, workspace) -> None:
    with pytest.raises(ValueError, match=words):
        trained(make_config(models["eps"], pictures, **sections), workspace)


def test_pictures_and_captions_are_encoded_once(models, pictures, tmp_path, workspace) -> None:
    config = make_config(models["eps"], pictures)
    run = prepared(config, workspace)
    stored = {path: path.stat().st_mtime_ns for path in workspace.cache_dir.rglob("*.safetensors")}
    assert len(stored) == 8 + len({one.picture.caption for one in run.pictures.placed})
    again = prepared(config, workspace)
    assert {path: path.stat().st_mtime_ns for path in workspace.cache_dir.rglob("*.safetensors")} == stored
    assert all(torch.equal(again.pictures.latents[key], value) for key, value in run.pictures.latents.items())
    for path in stored:
        path.write_bytes(b"damaged")
    mended = prepared(config, workspace)
    assert all(torch.equal(mended.pictures.latents[key], value) for key, value in run.pictures.latents.items())
    assert json.dumps(config.model_dump(mode="json"))
