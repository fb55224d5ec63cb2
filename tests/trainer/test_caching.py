"""Encoding before the first step: read ahead, several at once, going on where it was, and read from the disk if need be."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from security.errors import RefusedFile, SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, trained
from trainer import events, latents
from trainer.at_once import READING_THREAD, AtOnce, read_ahead
from trainer.config.inactive import inactive_settings
from trainer.config.schema import Switch
from trainer.dataset.settings import mask_path
from trainer.families import unet
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.latents import MappedLatents, are_mapped
from trainer.memory.host import host_memory
from trainer.runs import RunFolder
from trainer.setup import StoppedEarly, prepare
from trainer.step import train_step
from trainer.workspace import Workspace

NUM_PICTURES = 7


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("caching") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two shapes, one with a mask, each with a caption of its own."""
    folder = tiny_dataset(tmp_path_factory.mktemp("caching") / "set", NUM_PICTURES)
    for number in (1, 4):
        Image.open(folder / f"{number:03}.png").resize((150, 75)).save(folder / f"{number:03}.png")
    for number in range(NUM_PICTURES):
        (folder / f"{number:03}.txt").write_text(f"caption {number}", encoding="utf-8")
    mask = mask_path(folder, "002.png")
    mask.parent.mkdir(parents=True)
    white = Image.new("L", Image.open(folder / "002.png").size)
    white.paste(255, (20, 10, 60, 50))
    white.save(mask)
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the VAE was given each time that it was asked."""
    calls: list[int] = []
    encode = unet.encode_images

    def counted(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return encode(vae, pixels)

    monkeypatch.setattr(unet, "encode_images", counted)
    return calls


def settings(base: Path, pictures: Path, **sections: Any) -> Any:
    sections = {"dataset": {"flip_augmentation": True}, "loss": {"use_masks": True}} | sections
    return make_config(base, pictures, **sections)


# --- reading ahead ---


def test_a_thread_reads_a_bounded_number_ahead_and_in_order() -> None:
    begun: list[int] = []
    threads = set()

    def read(number: int) -> int:
        begun.append(number)
        threads.add(threading.current_thread().name)
        return number * 10

    coming = read_ahead(range(20), read, depth=3)
    assert next(coming) == 0
    time.sleep(0.1)
    assert len(begun) <= 4  # the one that was asked for, and three ahead
    assert list(coming) == [number * 10 for number in range(1, 20)] and begun == list(range(20))
    assert all(name.startswith(READING_THREAD) for name in threads)


def test_what_reading_raises_comes_at_its_place_and_nothing_goes_on_behind() -> None:
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise RefusedFile("002.png is damaged.")
        return number

    found = []
    with pytest.raises(RefusedFile, match=r"002\.png"):
        for number in read_ahead(range(100), read, depth=2):
            found.append(number)
    assert found == [0, 1] and len(begun) <= 5
    left = read_ahead(range(100), read, depth=1)
    assert next(left) == 0
    left.close()
    before = len(begun)
    time.sleep(0.05)
    assert len(begun) == before
    assert not [one for one in threading.enumerate() if one.name.startswith(READING_THREAD)]


def test_pictures_are_read_while_others_are_encoded(base, pictures, tmp_path, monkeypatch) -> None:
    """Reading and encoding take 50 ms each here: one after the other it would be 14 x 50 ms of encoding and 7 of reading."""
    load, encode = latents.load_pixels, unet.encode_images
    at_work: set[str] = set()
    together = []

    def slowly(what: str, work: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            at_work.add(what)
            time.sleep(0.05)
            together.append(len(at_work) == 2)
            at_work.discard(what)
            return work(*arguments, **options)

        return run

    monkeypatch.setattr(latents, "load_pixels", slowly("reading", load))
    monkeypatch.setattr(unet, "encode_images", slowly("encoding", encode))
    prepared(settings(base, pictures), Workspace.open(tmp_path / "space"))
    assert any(together)


# --- several at once ---


def test_batches_hold_one_shape_each_and_give_the_same_but_for_the_last_bits(base, pictures, tmp_path, encoded) -> None:
    alone = prepared(settings(base, pictures), Workspace.open(tmp_path / "alone"))
    assert encoded == [1] * 2 * NUM_PICTURES
    encoded.clear()
    config = settings(base, pictures, speed={"caching_batch_size": 4})
    together = prepared(config, Workspace.open(tmp_path / "together"))
    assert sorted(encoded, reverse=True) == [4, 4, 4, 2]  # ten of one shape, four of the other
    assert together.pictures.latents.keys() == alone.pictures.latents.keys()
    for key, expected in alone.pictures.latents.items():
        torch.testing.assert_close(together.pictures.latents[key], expected, rtol=1e-5, atol=1e-5)
    for prompt, conditioning in alone.prompts.known.items():
        found = together.prompts.known[prompt]
        torch.testing.assert_close(found.hidden_states, conditioning.hidden_states, rtol=1e-5, atol=1e-5)
    assert train_step(together).loss == pytest.approx(train_step(alone).loss, rel=1e-4)


def test_captions_are_encoded_together_too(base, pictures, tmp_path, monkeypatch) -> None:
    from trainer.encoded import Prompts

    calls = []
    encode = Prompts._encode

    def counted(prompts: Prompts, texts: Any) -> Any:
        calls.append(len(texts))
        return encode(prompts, texts)

    monkeypatch.setattr(Prompts, "_encode", counted)
    prepared(settings(base, pictures, speed={"caching_batch_size": 3}), Workspace.open(tmp_path / "space"))
    assert calls == [3, 3, 1]
    calls.clear()
    prepared(settings(base, pictures), Workspace.open(tmp_path / "other"))
    assert calls == [1] * NUM_PICTURES


def test_a_picture_alone_never_depends_on_what_was_cached_before(base, pictures, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    first = prepared(settings(base, pictures), workspace)
    for number, path in enumerate(sorted(workspace.latents_cache_dir.rglob("*.safetensors"))):
        if number % 3:
            path.unlink()
    again = prepared(settings(base, pictures), workspace)
    assert all(torch.equal(again.pictures.latents[key], value) for key, value in first.pictures.latents.items())


def test_too_little_memory_for_several_is_told_and_each_is_encoded_alone(base, pictures, tmp_path, monkeypatch) -> None:
    calls: list[int] = []
    encode = unet.encode_images

    def short(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nAnd more.")
        return encode(vae, pixels)

    monkeypatch.setattr(unet, "encode_images", short)
    config = settings(base, pictures, speed={"caching_batch_size": 4})
    workspace = Workspace.open(tmp_path / "space")
    seen: list[events.Event] = []
    run = prepare(
        config, find_inputs(config, workspace), RunFolder.create(workspace, config), workspace, seen.append, Control()
    )
    told = [event.message for event in seen if isinstance(event, events.Warned) and "at once" in event.message]
    assert told == [
        "The memory is too small to encode 4 at once (CUDA out of memory. Tried to allocate 9 GiB.), so each is encoded "
        "alone. Lower speed.caching_batch_size to be spared the attempt."
    ]
    assert calls[0] == 4 and set(calls[1:]) == {1} and len(run.pictures.latents) == 2 * NUM_PICTURES


def test_other_errors_of_several_are_raised() -> None:
    def work(items: Any) -> list[int]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        AtOnce(2, lambda event: None).encode([1, 2], work)


# --- going on ---


def test_a_stopped_caching_goes_on_where_it_was(base, pictures, tmp_path, encoded) -> None:
    config, workspace, control = settings(base, pictures), Workspace.open(tmp_path / "space"), Control()

    def stop_in_the_middle(event: events.Event) -> None:
        if isinstance(event, events.Preparing) and event.phase == "Encoding pictures" and event.done == 3:
            control.stop.set()

    folder = RunFolder.create(workspace, config)
    with pytest.raises(StoppedEarly):
        prepare(config, find_inputs(config, workspace), folder, workspace, stop_in_the_middle, control)
    assert 6 <= len(encoded) < 2 * NUM_PICTURES
    before = len(encoded)
    run = prepared(config, workspace)
    assert len(encoded) == 2 * NUM_PICTURES and before < len(encoded)
    whole = prepared(config, Workspace.open(tmp_path / "whole"))
    assert all(torch.equal(run.pictures.latents[key], value) for key, value in whole.pictures.latents.items())


def test_reports_count_pictures_up_to_all_of_them(base, pictures, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    for size in (1, 4, 1):
        config = settings(base, pictures, speed={"caching_batch_size": size})
        seen: list[events.Event] = []
        folder = RunFolder.create(workspace, config)
        prepare(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
        for phase in ("Encoding pictures", "Encoding captions"):
            told = [(one.done, one.total) for one in seen if isinstance(one, events.Preparing) and one.phase == phase]
            assert [total for _, total in told] == [NUM_PICTURES] * len(told)
            assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == NUM_PICTURES


# --- from the disk ---


def test_mapped_latents_give_the_same_run_bit_for_bit(base, pictures, tmp_path) -> None:
    runs = {}
    for mapped in ("off", "on"):
        config = settings(
            base,
            pictures,
            dataset={"flip_augmentation": True, "caption_dropout_rate": 0.2},
            validation={"split": 0.3, "num_timesteps": 1},
            speed={"mapped_latents": mapped},
            training={"max_train_steps": 6},
        )
        workspace = Workspace.open(tmp_path / mapped)
        seen = trained(config, workspace)
        runs[mapped] = losses(seen), final_state(only_run(workspace))
        run = prepared(config, workspace)
        assert isinstance(run.pictures.latents, MappedLatents) == (mapped == "on")
        assert run.pictures.masks
    assert runs["on"][0] == runs["off"][0]
    assert all(torch.equal(runs["on"][1][name], value) for name, value in runs["off"][1].items())


def test_mapped_latents_hold_nothing_and_say_what_to_do_when_the_cache_is_emptied(base, pictures, tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "space")
    run = prepared(settings(base, pictures, speed={"mapped_latents": "on"}), workspace)
    found = run.pictures.latents
    assert isinstance(found, MappedLatents) and not found.held and len(found) == 2 * NUM_PICTURES
    assert run.pictures.latent_pixels() == max(one[0, 0].numel() for one in found.values())
    for path in workspace.latents_cache_dir.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(SafelightError, match=r"Continue the run: it is encoded again.*speed\.mapped_latents"):
        train_step(run)


def test_latents_that_find_no_room_on_the_disk_are_held(base, pictures, tmp_path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = settings(base, pictures, speed={"mapped_latents": "on"})
    workspace = Workspace.open(tmp_path / "space")
    folder = RunFolder.create(workspace, config)

    def full_from_the_third(event: events.Event) -> None:
        if isinstance(event, events.Preparing) and event.phase == "Encoding pictures" and event.done == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        if isinstance(event, events.Preparing) and event.phase == "Encoding captions":
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        run = prepare(config, find_inputs(config, workspace), folder, workspace, full_from_the_third, Control())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(run.pictures.latents, MappedLatents) and 0 < len(run.pictures.latents.held) < 2 * NUM_PICTURES
    whole = prepared(settings(base, pictures), Workspace.open(tmp_path / "whole"))
    assert all(torch.equal(run.pictures.latents[key], value) for key, value in whole.pictures.latents.items())


def test_latents_are_mapped_by_themselves_beyond_an_eighth_of_the_memory(base, pictures, tmp_path, monkeypatch) -> None:
    eighth = host_memory()[1] // 8
    assert not are_mapped(Switch.AUTO, eighth - 2**20) and are_mapped(Switch.AUTO, eighth + 2**20)
    assert are_mapped(Switch.ON, 1) and not are_mapped(Switch.OFF, 2**60)
    monkeypatch.setattr(latents, "MAPPED_SHARE", 1e-12)
    run = prepared(settings(base, pictures), Workspace.open(tmp_path / "space"))
    assert isinstance(run.pictures.latents, MappedLatents)


def test_without_a_cache_latents_are_held_and_the_setting_is_told_to_do_nothing(base, pictures, tmp_path) -> None:
    config = settings(base, pictures, dataset={"cache_latents": False}, speed={"mapped_latents": "on"})
    run = prepared(config, Workspace.open(tmp_path / "space"))
    assert not isinstance(run.pictures.latents, MappedLatents)
    assert "dataset.cache_latents" in inactive_settings(config)["speed.mapped_latents"]
