"""What of a dataset is learned: masks, regularisation pictures, chosen crops, and the list of it all in the run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from security.weights import check_safetensors
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, trained
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.dataset.settings import DatasetSettings, Mark, marks_bytes, mask_path, settings_bytes
from trainer.families.base import Conditioning
from trainer.inputs import find_inputs
from trainer.jobs import Control, Jobs
from trainer.loop import train
from trainer.runs import RunFolder, RunState
from trainer.setup import Run, prepare
from trainer.step import window_losses
from trainer.validation import held_out_loss
from trainer.workspace import Workspace

BOX = (48, 0, 96, 96)
"""The white part of every mask here: the right half, so that a mirrored one shows."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def masked(folder: Path, names: list[str], box: tuple[int, int, int, int] = BOX) -> Path:
    for name in names:
        path = mask_path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.new("L", (96, 96))
        mask.paste(255, box)
        mask.save(path)
    return folder


def whole_set(folder: Path) -> Path:
    """A dataset with everything: a mask, a chosen crop, repeats, a trigger word."""
    masked(tiny_dataset(folder, 4), ["000.png", "002.png"])
    own = folder / ".safelight"
    (own / "dataset.json").write_bytes(settings_bytes(DatasetSettings("mira", {"": 2})))
    (own / "marks.json").write_bytes(marks_bytes({"001.png": Mark((0.2, 0.8), 1.5)}) or b"")
    return folder


def everything(base: Path, tmp_path: Path, **sections: Any) -> TrainConfig:
    dataset = {
        "more": [f"0.3 {tiny_dataset(tmp_path / 'more', 3, seed=6)}"],
        "regularisation": [str(tiny_dataset(tmp_path / "prior", 5, seed=7))],
        "shuffle_tags": True,
        "flip_augmentation": True,
    }
    training = {"max_train_steps": 4, "gradient_accumulation_steps": 2, "batch_size": 3}
    values = {"dataset": dataset, "training": training, **sections}
    return make_config(base, whole_set(tmp_path / "set"), **values)


def first_look(run: Run, *indices: int) -> torch.Tensor:
    """The losses of these pictures' first looks, in one batch."""
    looks = {one.index: one for number in range(20) for one in run.plan.batch(number) if one.repeat == 0}
    return window_losses(run, [looks[index] for index in indices])


def warnings(config: TrainConfig, workspace: Workspace, folder: RunFolder) -> list[str]:
    """What a run that is prepared in `folder` warns of."""
    seen: list[events.Event] = []
    prepare(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    return [event.message for event in seen if isinstance(event, events.Warned)]


# ---- masks ----


def test_masks_are_cut_and_mirrored_like_their_pictures_and_kept(base: Path, tmp_path: Path, workspace) -> None:
    folder = masked(tiny_dataset(tmp_path / "set", 2), ["000.png"])
    config = make_config(base, folder, dataset={"flip_augmentation": True}, loss={"unmasked_weight": 0.25})
    run = prepared(config, workspace)
    assert set(run.pictures.masks) == {(0, False), (0, True)}
    weights = run.pictures.masks[0, False]
    assert weights.shape == (1, 1, *run.pictures.latents[0, False].shape[-2:])
    expected = torch.tensor([0.25] * 4 + [1.0] * 4).expand(1, 1, 8, 8)
    assert torch.allclose(weights, expected)
    assert torch.allclose(run.pictures.masks[0, True], weights.flip(-1))
    stored = len(list(workspace.latents_cache_dir.rglob("*.safetensors")))
    assert stored == 4 + 2
    again = prepared(config, workspace)
    assert torch.equal(again.pictures.masks[0, True], run.pictures.masks[0, True])
    masked(folder, ["000.png"], (0, 0, 48, 96))
    changed = prepared(config, workspace)
    assert torch.allclose(changed.pictures.masks[0, False], expected.flip(-1))
    off = config.model_copy(update={"loss": config.loss.model_copy(update={"use_masks": False})})
    assert prepared(off, workspace).pictures.masks == {}


def test_what_is_masked_out_has_no_say_in_the_loss(base: Path, tmp_path: Path, workspace) -> None:
    folder = masked(tiny_dataset(tmp_path / "set", 2), ["000.png"], (48, 0, 96, 96))
    run = prepared(make_config(base, folder, loss={"unmasked_weight": 0.0}), workspace)
    weights = run.pictures.masks[0, False]
    assert (weights == 0).any()

    def gradient(index: int) -> torch.Tensor:
        """Of the loss by the denoiser's answer."""
        caught: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            output[0].retain_grad()
            caught.append(output[0])

        handle = run.components.denoiser.register_forward_hook(keep)
        first_look(run, index).sum().backward()
        handle.remove()
        assert caught[0].grad is not None
        return caught[0].grad

    found = gradient(0)
    black = (weights == 0).expand_as(found)
    assert (found[black] == 0).all() and (found[~black] != 0).any()
    assert (gradient(1) != 0).all()  # a picture without a mask is learned whole


def test_a_white_mask_changes_nothing_and_a_black_one_is_refused(base: Path, tmp_path: Path, workspace) -> None:
    folder = tiny_dataset(tmp_path / "set", 2)
    config = make_config(base, folder)
    found = []
    for box in (None, (0, 0, 96, 96), (0, 0, 0, 0)):
        if box is not None:
            masked(folder, ["001.png"], box)
        found.append(first_look(prepared(config, workspace), 1).item())
    # black everywhere: a tenth of everything is still the same share everywhere
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    nothing = make_config(base, folder, loss={"unmasked_weight": 0.0})
    with pytest.raises(ValueError, match=r"mask of 001\.png is black .* remove the mask, or raise"):
        prepared(nothing, workspace)


def test_held_out_pictures_are_measured_with_their_masks_and_crops(base: Path, tmp_path: Path, workspace) -> None:
    held_out = tiny_dataset(tmp_path / "held", 2, seed=9)
    config = make_config(base, tiny_dataset(tmp_path / "set", 2), validation={"folder": str(held_out)})
    plain = held_out_loss(prepared(config, workspace))
    masked(held_out, ["000.png"], (0, 0, 96, 96))
    assert held_out_loss(prepared(config, workspace)) == pytest.approx(plain, rel=1e-5)
    masked(held_out, ["000.png"])
    assert held_out_loss(prepared(config, workspace)) != pytest.approx(plain, rel=1e-3)
    (held_out / ".safelight" / "marks.json").write_bytes(marks_bytes({"001.png": Mark((0.0, 0.0), 2.0)}) or b"")
    cut = [one.placement.is_zoomed for one in prepared(config, workspace).held_out.placed]
    assert cut == [False, True]


# ---- captions and regularisation ----


def test_every_step_hears_the_datasets_own_trigger_word_first(base: Path, tmp_path: Path, workspace) -> None:
    run = prepared(everything(base, tmp_path), workspace)
    heard: list[str] = []
    encode = run.prompts.encode

    def listen(prompts: Sequence[str]) -> Conditioning:
        heard.extend(prompts)
        return encode(prompts)

    run.prompts.encode = listen  # type: ignore[method-assign]
    for run.step in range(6):
        window_losses(run, [sample for number in range(4) for sample in run.plan.batch(number)])
    parts = [caption.split(", ") for caption in heard]
    own = [caption for caption in parts if "mira" in caption]
    assert len({tuple(caption) for caption in own}) > 2 and all(caption[0] == "mira" for caption in own)
    assert (
        len({caption[0] for caption in parts if "mira" not in caption}) > 1
    )  # the prior's captions have no trigger word


def test_the_prior_loss_is_weighted_and_the_pictures_own_is_not(base: Path, tmp_path: Path, workspace) -> None:
    prior = str(tiny_dataset(tmp_path / "prior", 2, seed=7))
    folder = tiny_dataset(tmp_path / "set", 2)
    found = []
    for weight in (1.0, 0.25):
        config = make_config(
            base, folder, dataset={"regularisation": [prior]}, loss={"prior_loss_weight": weight, "min_snr_gamma": 5.0}
        )
        run = prepared(config, workspace)
        found.append(first_look(run, 0, 2, 1, 3).detach())
    assert [one.is_prior for one in run.pictures.placed] == [False, False, True, True]
    assert torch.allclose(found[1] / found[0], torch.tensor([1.0, 0.25, 1.0, 0.25]))


# ---- exact, written down, told ----


def test_four_steps_are_one_and_three_more_with_everything_on(base: Path, tmp_path: Path) -> None:
    config = everything(base, tmp_path)
    whole, halves = Workspace.open(tmp_path / "whole"), Workspace.open(tmp_path / "halves")
    reference = trained(config, whole)
    folder, control = RunFolder.create(halves, config), Control()
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 1:
            control.pause.set()
        seen.append(event)

    train(config, find_inputs(config, halves), folder, halves, emit, control)
    again = trained(config, halves, folder)
    assert losses(seen) + losses(again) == losses(reference)
    expected, found = final_state(only_run(whole)), final_state(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not [event for event in again if isinstance(event, events.Warned) and "not those" in event.message]
    assert folder.manifest_path.read_bytes() == only_run(whole).manifest_path.read_bytes()


def test_a_run_writes_down_what_it_learned_and_the_lora_names_it(base: Path, tmp_path: Path, workspace) -> None:
    config = everything(base, tmp_path, validation={"folder": str(tiny_dataset(tmp_path / "held", 1, seed=9))})
    trained(config, workspace)
    folder = only_run(workspace)
    text = folder.manifest_path.read_text(encoding="utf-8")
    values = json.loads(text)
    told = [(one["name"], one["role"], one["weight"], one["trigger_word"]) for one in values["datasets"]]
    assert told[0] == ("set", "training", 1.0, "mira") and told[1][:3] == ("more", "training", 0.3)
    assert [one[:2] for one in told[2:]] == [("prior", "regularisation"), ("held", "held out")]
    rows = {row["picture"]: row for row in values["datasets"][0]["pictures"]}
    data = (tmp_path / "set" / "001.png").read_bytes()
    assert rows["001.png"]["sha256"] == hashlib.sha256(data).hexdigest() and rows["001.png"]["looks_per_epoch"] == 2
    assert rows["001.png"]["mask_sha256"] is None and len(rows["000.png"]["mask_sha256"]) == 64
    assert rows["001.png"]["crop"] != rows["000.png"]["crop"]
    assert str(tmp_path) not in text and "red circle" not in text
    caption = f"mira, {(tmp_path / 'set' / '000.txt').read_text(encoding='utf-8')}"
    assert rows["000.png"]["caption_sha256"] == hashlib.sha256(caption.encode()).hexdigest()

    metadata = check_safetensors(folder.path / "tiny.safetensors").metadata
    assert metadata["safelight_dataset_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert metadata["modelspec.trigger_phrase"] == "mira" and metadata["ss_masked_loss"] == "True"
    assert metadata["ss_num_train_images"] == metadata["ss_num_reg_images"] == "9"  # 4 x 2 + 3 x 0.3
    assert metadata["ss_prior_loss_weight"] == "1.0"


def test_going_on_with_other_pictures_is_told(base: Path, tmp_path: Path, workspace) -> None:
    folder = tiny_dataset(tmp_path / "set", 4)
    config = make_config(base, folder, optimizer={"learning_rate": 1e-4})
    run = RunFolder.create(workspace, config)
    assert not warnings(config, workspace, run)
    masked(folder, ["000.png"])
    (folder / "001.png").unlink()
    (folder / "002.txt").write_text("another", encoding="utf-8")
    Image.new("RGB", (96, 96), "red").save(folder / "new.png")
    assert any("1 came, 1 went, 2 changed" in message for message in warnings(config, workspace, run))
    assert not any("not those" in message for message in warnings(config, workspace, run))
    run.manifest_path.write_text('{"datasets": 7}', encoding="utf-8")
    assert any("dataset.json of this run is damaged" in message for message in warnings(config, workspace, run))


def test_the_same_picture_may_not_be_held_out_and_in_any_dataset_of_the_run(base, tmp_path, workspace) -> None:
    held_out, other = tiny_dataset(tmp_path / "held", 1, seed=9), tiny_dataset(tmp_path / "other", 2, seed=8)
    (other / "copy.png").write_bytes((held_out / "000.png").read_bytes())
    for key, value in (("more", [f"1 {other}"]), ("regularisation", [str(other)])):
        sections: dict[str, Any] = {"dataset": {key: value}, "validation": {"folder": str(held_out)}}
        with pytest.raises(ValueError, match="also trained on"):
            trained(make_config(base, tiny_dataset(tmp_path / "set", 2), **sections), workspace)


def test_a_confined_run_reaches_all_of_its_datasets(base: Path, tmp_path: Path, workspace) -> None:
    config = everything(base, tmp_path, validation={"folder": str(tiny_dataset(tmp_path / "held", 1, seed=9))})
    config = config.model_copy(update={"training": config.training.model_copy(update={"max_train_steps": 1})})
    assert [path.name for path in find_inputs(config, workspace).folders] == ["set", "more", "prior", "held"]
    jobs = Jobs(workspace)
    run_id = jobs.submit(config)
    assert jobs.wait(120)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FINISHED, progress.message
    assert progress.num_images == 12


def test_a_picture_alone_in_its_size_is_told_and_the_setting_mends_it(base: Path, tmp_path: Path, workspace) -> None:
    folder = tiny_dataset(tmp_path / "set", 3)
    tiny_dataset(folder / "wide", 1, size=(150, 81))
    for minimum, told in ((1, True), (2, False)):
        config = make_config(base, folder, dataset={"resolution": 128, "min_bucket_pictures": minimum})
        messages = warnings(config, workspace, RunFolder.create(workspace, config))
        assert any("wide/000.png" in message and "min_bucket_pictures" in message for message in messages) is told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are no UTF-8")
def test_names_that_are_no_utf8_are_trained_and_told(base: Path, tmp_path: Path, workspace) -> None:
    folder = tiny_dataset(tmp_path / "set", 2)
    (folder / "001.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"broken\xe9.png")).write_bytes(b"no picture")
    config = make_config(base, folder, training={"max_train_steps": 1})
    seen = trained(config, workspace)
    assert isinstance(seen[-1], events.Finished)
    run = only_run(workspace)
    assert "broken\\\\udce9.png is left out" in run.events_path.read_text(encoding="utf-8")
    assert "caf\\udce9.png" in run.manifest_path.read_text(encoding="utf-8")
