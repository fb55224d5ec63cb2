"""Every adapter in a run: what it computes, that it goes on bit for bit, and what a run can begin with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from security.errors import SafelightError
from tests.tiny import model_files, tiny_dataset, tiny_lora, tiny_sd15, tiny_sdxl
from tests.trainer.test_training import make_config, only_run, prepared, trained
from trainer import events
from trainer.adapters.layer import adapted_layers
from trainer.adapters.starts import merge_loras
from trainer.adapters.table import ADAPTERS
from trainer.adapters.weights import adapter_weights, load_adapter_weights
from trainer.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from trainer.config.choices import AdapterName
from trainer.config.schema import TrainConfig
from trainer.families import get_family
from trainer.families.base import Components
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.lora_files.programs import loads_in
from trainer.lora_files.reading import read_lora
from trainer.resume import capture, restore
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.step import train_step
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 4)


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(base, tmp_path_factory.mktemp("loras") / "first.safetensors")


def a_config(base: Path, pictures: Path, **lora: Any) -> TrainConfig:
    return make_config(base, pictures, lora={"block_size": 16, **lora})


def weights_of(run: Run) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in run.adapted.items()
        for name, tensor in adapter_weights(module).items()
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


VARIANTS: dict[str, dict[str, Any]] = {
    **{name.value: {"adapter": name.value} for name in AdapterName},
    "rs-lora": {"rs_lora": True},
    "pissa": {"init": "pissa"},
    "orthogonal": {"init": "orthogonal"},
    "gaussian": {"init": "gaussian"},
    "dropouts": {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2},
    "blocks": {"block_ranks": ["up_blocks 2 1"], "block_learning_rates": ["mid_block 0", "down_blocks 0.5"]},
}
GOLDEN: dict[str, list[float]] = {
    "lora": [1.1173623, 1.093441, 0.95679796],
    "locon": [1.1173623, 1.0943117, 0.94866335],
    "dora": [1.1173623, 1.090081, 0.95294845],
    "loha": [1.1173623, 1.0933994, 0.95507562],
    "lokr": [1.1173623, 1.0911684, 0.9566558],
    "oft": [1.1173623, 1.0713679, 0.85888791],
    "boft": [1.1173623, 1.059846, 0.81974632],
    "rs-lora": [1.1173623, 1.091234, 0.95172912],
    "pissa": [1.1173623, 1.0909442, 0.94619852],
    "orthogonal": [1.1173623, 1.0937215, 0.95479667],
    "gaussian": [1.1173623, 1.0911963, 0.955082],
    "dropouts": [1.1173623, 1.0937595, 0.95735586],
    "blocks": [1.1173623, 1.0958444, 0.95943642],
}
"""Losses of three steps at a rate of 1e-2; they change only when the mathematics of a run does."""


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_losses_and_going_on_bit_for_bit(name: str, base, pictures, tmp_path) -> None:
    """Three steps without a break against one step, a checkpoint on the disk, and two more in a freshly prepared run."""
    config = a_config(base, pictures, **VARIANTS[name])
    whole = prepared(config, Workspace.open(tmp_path / "whole"))
    found = [train_step(whole).loss for _ in range(3)]
    assert found == pytest.approx(GOLDEN[name], rel=1e-5), name

    halves = Workspace.open(tmp_path / "halves")
    first = prepared(config, halves)
    train_step(first)
    path = save_checkpoint(tmp_path / "checkpoints", capture(first), keep_last=1)
    second = prepared(config, halves)
    with torch.no_grad():  # nothing that was there before may remain, learned or not
        for part in second.adapted.values():
            for tensor in adapter_weights(part).values():
                tensor += 0.02
    assert not restore(second, load_checkpoint(path))
    assert [train_step(second).loss for _ in range(2)] == found[1:]
    assert same(weights_of(whole), weights_of(second))


def test_every_variant_has_its_golden_losses() -> None:
    assert GOLDEN.keys() == VARIANTS.keys()
    assert len({tuple(losses) for losses in GOLDEN.values()}) == len(GOLDEN)
    assert (
        len({losses[0] for losses in GOLDEN.values()}) == 1
    )  # the first step sees the base alone, whatever the adapter


@pytest.mark.parametrize("name", AdapterName)
def test_only_adapters_move_and_all_of_them_do(name: AdapterName, base, pictures, tmp_path) -> None:
    run = prepared(a_config(base, pictures, adapter=name.value, targets="all"), Workspace.open(tmp_path))
    frozen = {key: one.clone() for key, one in run.components.denoiser.named_parameters() if not one.requires_grad}
    before = [one.clone() for one in run.parameters]
    for _ in range(2):
        train_step(run)
    names = {id(one): key for key, one in run.components.denoiser.named_parameters()}
    still = [names[id(one)] for one, old in zip(run.parameters, before, strict=True) if torch.equal(one, old)]
    assert not still
    after = dict(run.components.denoiser.named_parameters())
    assert all(torch.equal(after[key], old) for key, old in frozen.items())


@pytest.mark.parametrize("name", AdapterName)
def test_the_file_of_a_run_is_what_was_trained(name: AdapterName, base, pictures, tmp_path) -> None:
    workspace = Workspace.open(tmp_path)
    config = make_config(
        base,
        pictures,
        lora={"adapter": name.value, "block_size": 16},
        training={"max_train_steps": 2},
        save={"precision": "fp32", "key_format": "kohya"},
    )
    trained(config, workspace)
    folder = only_run(workspace)
    run = prepared(config, workspace)
    restore(run, load_checkpoint(list_checkpoints(folder.checkpoints_dir)[-1]))
    file = read_lora(folder.path / "tiny.safetensors", "sd15")
    assert file.part("unet").keys() == adapted_layers(run.components.denoiser).keys()
    for module, layer in adapted_layers(run.components.denoiser).items():
        read = file.part("unet")[module].delta(layer.base.weight)
        torch.testing.assert_close(read.view(layer.weight.shape), layer.delta(), atol=1e-6, rtol=1e-4)


def test_weights_of_another_shape_are_refused(base, pictures, tmp_path) -> None:
    first = prepared(a_config(base, pictures), Workspace.open(tmp_path / "1"))
    other = prepared(a_config(base, pictures, rank=2), Workspace.open(tmp_path / "2"))
    more = prepared(a_config(base, pictures, targets="all"), Workspace.open(tmp_path / "3"))
    with pytest.raises(ValueError, match="and the network has"):
        load_adapter_weights(first.components.denoiser, adapter_weights(other.components.denoiser))
    with pytest.raises(ValueError, match=r"unexpected .*conv"):
        load_adapter_weights(first.components.denoiser, adapter_weights(more.components.denoiser))


# --- the text encoder ---


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_text_encoder_stops_at_its_step_also_after_a_resume(kind: str, base, pictures, tmp_path) -> None:
    model = base if kind == "sd15" else tiny_sdxl(tmp_path / "xl")
    config = a_config(model, pictures, train_text_encoder=True, text_encoder_stop_step=2, dropout=0.3)
    run = prepared(config, Workspace.open(tmp_path / "whole"))
    history, losses = [], []
    for _ in range(4):
        losses.append(train_step(run).loss)
        history.append(weights_of(run))
    texts, denoiser = ([key for key in history[0] if key.startswith("text") is wanted] for wanted in (True, False))
    for key in texts:
        assert torch.equal(history[1][key], history[3][key]), key
    assert any(not torch.equal(history[0][key], history[1][key]) for key in texts)
    assert any(not torch.equal(history[2][key], history[3][key]) for key in denoiser)

    encoders = [
        layer for name, part in run.adapted.items() if name != "unet" for layer in adapted_layers(part).values()
    ]
    assert encoders and not any(layer.training for layer in encoders)  # what no longer learns drops nothing either

    for stop_at in (1, 3) if kind == "sd15" else (3,):  # before and after the text encoder's last step
        workspace = Workspace.open(tmp_path / f"halves {stop_at}")
        first = prepared(config, workspace)
        for _ in range(stop_at):
            train_step(first)
        second = prepared(config, workspace)
        restore(second, capture(first))
        assert [train_step(second).loss for _ in range(4 - stop_at)] == losses[stop_at:]
        assert same(weights_of(second), history[-1])


def test_a_text_encoder_can_be_trained_alone(base, pictures, tmp_path) -> None:
    config = make_config(
        base,
        pictures,
        lora={"train_denoiser": False, "train_text_encoder": True},
        optimizer={"text_encoder_learning_rate": 1e-2},
        training={"max_train_steps": 2},
    )
    workspace = Workspace.open(tmp_path)
    run = prepared(config, workspace)
    assert not adapted_layers(run.components.denoiser) and list(run.adapted) == ["text_encoder"]
    before = [one.clone() for one in run.parameters]
    assert train_step(run).learning_rate == 1e-2
    assert any(not torch.equal(one, old) for one, old in zip(run.parameters, before, strict=True))
    shutil.rmtree(workspace.runs_dir)
    workspace.runs_dir.mkdir()
    trained(config, workspace)
    file = read_lora(only_run(workspace).path / "tiny.safetensors", "sd15")
    assert file.text_encoders == ("text_encoder",) and not file.part("unet")


# --- going on from a LoRA ---


def start(config: TrainConfig, workspace: Workspace) -> tuple[Run, list[str]]:
    seen: list[events.Event] = []
    folder = RunFolder.create(workspace, config)
    run = prepare(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    return run, [event.message for event in seen if isinstance(event, events.Warned)]


@pytest.mark.parametrize("name", [name for name in AdapterName if name is not AdapterName.LOCON])
def test_a_run_goes_on_from_a_file(name: AdapterName, base, pictures, tmp_path) -> None:
    given: dict[str, Any] = {"adapter": name.value, "rank": 4, "alpha": 3.0, "block_size": 16}
    path = tiny_lora(base, tmp_path / "given.safetensors", **given)
    config = a_config(base, pictures, **{**given, "alpha": 1.5, "continue_from": str(path)})
    run, warnings = start(config, Workspace.open(tmp_path / "space"))
    file = read_lora(path, "sd15")
    for module, layer in adapted_layers(run.components.denoiser).items():
        expected = file.part("unet")[module].delta(layer.weight)
        torch.testing.assert_close(layer.delta(), expected.view(layer.weight.shape), atol=1e-5, rtol=1e-4)
        assert layer.delta().any()
    assert not any("begin anew" in text for text in warnings)
    assert {program for program, fault in loads_in(file).items() if not fault} == ADAPTERS[name].loads_in


def test_a_run_goes_on_from_another_by_its_name_and_at_a_higher_rank(base, pictures, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    config = make_config(base, pictures, training={"max_train_steps": 1}, save={"precision": "fp32"})
    trained(config, workspace)
    first = only_run(workspace)
    lora = {"rank": 6, "conv_rank": 2, "continue_from": first.run_id}
    run, warnings = start(make_config(base, pictures, lora=lora), workspace)
    file = read_lora(first.path / "tiny.safetensors", "sd15")
    for module, layer in adapted_layers(run.components.denoiser).items():
        expected = file.part("unet").get(module)
        found = layer.delta()
        torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected.delta(layer.weight))
    assert any("begin anew" in text for text in warnings)  # the convolutions
    with pytest.raises(SafelightError, match=r"rank 4, and this run trains rank 2.*lora\.merge_first"):
        start(make_config(base, pictures, lora={**lora, "rank": 2, "conv_rank": 0}), workspace)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter": "loha"}, "holds lora layers, and lora.adapter trains loha"),
        ({"targets": "attention"}, "layers that this run does not train, such as unet .*would be lost.*lora.targets"),
        ({"train_denoiser": False, "train_text_encoder": True}, "Switch lora.train_denoiser on"),
    ],
)
def test_a_file_that_does_not_fit_the_settings_is_refused(
    changes: dict[str, Any], told: str, base, pictures, lora, tmp_path
) -> None:
    with pytest.raises(SafelightError, match=told):
        start(a_config(base, pictures, continue_from=str(lora), **changes), Workspace.open(tmp_path))


def test_a_lora_that_is_gone_stops_only_a_run_that_has_not_begun(base, pictures, lora, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    path = shutil.copy(lora, tmp_path / "mine.safetensors")
    config = a_config(base, pictures, continue_from=str(path))
    run, _ = start(config, workspace)
    train_step(run)
    save_checkpoint(run.folder.checkpoints_dir, capture(run), keep_last=1)
    path.unlink()
    again = prepare(config, find_inputs(config, workspace), run.folder, workspace, lambda event: None, Control())
    assert again.step == 1 and same(weights_of(again), weights_of(run))
    with pytest.raises(SafelightError, match=r"lora\.continue_from is .*mine\.safetensors"):
        start(config, workspace)


# --- LoRAs in the base ---


def loaded(base: Path, family: str = "sd15") -> Components:
    return get_family(family).load(model_files(base, family), "cpu", torch.float32)


def test_merged_loras_are_in_the_weights(base, lora, tmp_path) -> None:
    """Against the plain sum of what the files add to the untouched weights, whatever their order."""
    turned = tiny_lora(base, tmp_path / "turned.safetensors", adapter="oft", block_size=16, seed=3)
    untouched = loaded(base)
    merged = [loaded(base), loaded(base)]
    loras = [(0.8, lora), (-0.5, turned)]
    merge_loras(merged[0], "sd15", loras)
    merge_loras(merged[1], "sd15", loras[::-1])
    files = [(weight, read_lora(path, "sd15").part("unet")) for weight, path in loras]
    for name, module in untouched.denoiser.named_modules():
        if name in files[0][1]:
            weight = module.weight
            expected = weight + sum(share * layers[name].delta(weight).view(weight.shape) for share, layers in files)
            for one in merged:
                torch.testing.assert_close(one.denoiser.get_submodule(name).weight, expected, atol=1e-6, rtol=1e-5)
    prints = {one.model_files.fingerprint for one in (untouched, merged[0], merged[1])}
    assert len(prints) == 3  # nothing that was cached or saved of one may serve another


def test_a_merged_lora_is_what_a_run_begins_on(base, pictures, lora, tmp_path) -> None:
    """The merged base's first loss is that of a run which goes on from the same file; its own LoRA begins at nothing."""
    shared = Workspace.open(tmp_path / "space")
    merged, _ = start(a_config(base, pictures, merge_first=[f"1 {lora}"]), shared)
    begun, _ = start(a_config(base, pictures, continue_from=str(lora)), shared)
    plain, _ = start(a_config(base, pictures), shared)
    assert not any(layer.delta().any() for layer in adapted_layers(merged.components.denoiser).values())
    losses = [train_step(run).loss for run in (merged, begun, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_captions_are_encoded_by_the_merged_text_encoder(base, pictures, tmp_path) -> None:
    """Also where the same captions were cached for the base as it is."""
    workspace = Workspace.open(tmp_path / "space")
    config = make_config(
        base,
        pictures,
        lora={"train_denoiser": False, "train_text_encoder": True},
        optimizer={"text_encoder_learning_rate": 1e-1},
        training={"max_train_steps": 3},
    )
    trained(config, workspace)
    name = only_run(workspace).run_id
    plain, _ = start(a_config(base, pictures), workspace)
    merged, _ = start(a_config(base, pictures, merge_first=[f"1 {name}"]), workspace)
    caption = plain.pictures.placed[0].picture.caption
    first, second = (run.prompts.encode([caption]).hidden_states for run in (plain, merged))
    assert (first - second).abs().max() > 1e-3


def test_a_lora_of_another_model_is_refused(base, pictures, tmp_path) -> None:
    other = tiny_lora(tiny_sdxl(tmp_path / "xl"), tmp_path / "xl.safetensors", family="sdxl")
    for setting, value in (("merge_first", [f"1 {other}"]), ("continue_from", str(other))):
        with pytest.raises(SafelightError, match=r"lora\."):
            start(a_config(base, pictures, **{setting: value}), Workspace.open(tmp_path / setting))
    with pytest.raises(SafelightError, match="There is no LoRA"):
        start(a_config(base, pictures, merge_first=["1 nothing"]), Workspace.open(tmp_path / "none"))
