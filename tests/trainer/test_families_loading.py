"""Every family loads whole from a folder and from a single file, offline; what does not fit is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from security.errors import SafelightError
from tests import tiny
from trainer.families import FAMILIES, get_family
from trainer.families.base import Components, ModelFamily, UnusableModel

PROMPTS = ["a red circle, simple background", ""]


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


def _same_tensors(one: Components, other: Components) -> None:
    assert one.modules().keys() == other.modules().keys()
    for name, part in one.modules().items():
        expected, found = part.state_dict(), other.modules()[name].state_dict()
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{name}.{key}"


@pytest.mark.parametrize("text_model_prefix", [True, False])
def test_a_single_file_gives_back_every_tensor_of_the_folder(
    folder: Path, family: ModelFamily, components: Components, tmp_path: Path, text_model_prefix: bool
) -> None:
    linked = _linked(folder, tmp_path)
    path = tiny.as_single_file(linked, text_model_prefix=text_model_prefix)
    single = family.load(tiny.model_files(path, family.name), "cpu", torch.float32)
    _same_tensors(components, single)
    ours, theirs = (tiny.with_sizes(family, tiny.encode(family, one, PROMPTS)) for one in (single, components))
    latents, timesteps = torch.randn(2, 4, 8, 12), torch.tensor([3, 800])
    with torch.no_grad():
        found = family.predict(single.denoiser, latents, timesteps, ours)
        assert torch.equal(found, family.predict(components.denoiser, latents, timesteps, theirs))


def test_loading_opens_no_connection(folder: Path, family: ModelFamily, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments} was tried")

    linked = _linked(folder, tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for path in (folder, tiny.as_single_file(linked)):
        family.load(tiny.model_files(path, family.name), "cpu", torch.float32)


def test_everything_is_frozen_and_the_vae_stays_fp32(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    linked = _linked(folder, tmp_path)
    for path in (folder, tiny.as_single_file(linked)):
        loaded = family.load(tiny.model_files(path, family.name), "cpu", torch.bfloat16)
        for name, part in loaded.modules().items():
            expected = torch.float32 if name == "vae" else torch.bfloat16
            assert {parameter.dtype for parameter in part.parameters()} == {expected}, name
            assert not any(parameter.requires_grad for parameter in part.parameters())
            assert not any(layer.training for layer in part.modules())


def test_a_vae_that_allows_it_runs_in_the_models_format(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    _edit_json(copied / "vae" / "config.json", force_upcast=False)
    assert family.load(tiny.model_files(copied, family.name), "cpu", torch.bfloat16).vae.dtype == torch.bfloat16


def test_a_half_size_download_with_fp16_files_loads(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    for path in copied.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    family.load(tiny.model_files(copied, family.name), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_in.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
        ("text_encoder/model.safetensors", "encoder.layers.1.mlp.fc1.bias"),
    ],
)
def test_a_folder_with_a_missing_or_misshapen_tensor_is_refused_by_name(
    folder: Path, family: ModelFamily, tmp_path: Path, file: str, key: str
) -> None:
    copied = _copied(folder, tmp_path)
    part = file.split("/", maxsplit=1)[0]
    _edit_tensors(copied / file, lambda tensors: tensors.pop(key))
    with pytest.raises(UnusableModel, match=rf"{part} of .* lacks 1 tensors.*{key} first"):
        family.load(tiny.model_files(copied, family.name), "cpu", torch.float32)
    _edit_tensors(copied / file, lambda tensors: tensors.update({key: torch.zeros(3)}))
    with pytest.raises(SafelightError, match=key):
        family.load(tiny.model_files(copied, family.name), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        ("vae", {"latent_channels": 8}, "takes 4 channels, its VAE makes 8"),
        ("unet", {"cross_attention_dim": 40}, "reads prompts of width 40, its text encoders make"),
    ],
)
def test_parts_of_different_models_are_refused(
    folder: Path, family: ModelFamily, components: Components, part: str, setting: dict[str, int], message: str
) -> None:
    from trainer.families import loading

    module = copy.copy(components.modules()[part])
    module._internal_dict = type(module.config)({**module.config, **setting})
    other = dataclasses.replace(components, **{"denoiser" if part == "unet" else part: module})
    with pytest.raises(UnusableModel, match=message):
        loading._check(other)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.diffusion_model.out.2.bias", r"1 tensors of UNet2DConditionModel don't fit, conv_out\.bias first"),
        ("first_stage_model.decoder.conv_in.bias", r"1 tensors of AutoencoderKL don't fit, decoder\.conv_in\.bias"),
        ("encoder.layers.1.mlp.fc1.bias", r"1 tensors of text_encoder don't fit, encoder\.layers\.1\.mlp\.fc1\.bias"),
    ],
)
def test_a_single_file_with_a_missing_tensor_is_refused_by_name(
    folder: Path, family: ModelFamily, tmp_path: Path, key: str, message: str
) -> None:
    linked = _linked(folder, tmp_path)
    path = tiny.as_single_file(linked)

    def remove(tensors: dict[str, Tensor]) -> None:
        del tensors[next(name for name in tensors if name.endswith(key))]

    _edit_tensors(path, remove)
    with pytest.raises(UnusableModel, match=message):
        family.load(tiny.model_files(path, family.name), "cpu", torch.float32)


def test_a_vocabulary_of_its_own_needs_its_tokenizer_beside_the_file(tmp_path: Path) -> None:
    path = tiny.as_single_file(tiny.tiny_sd15(tmp_path / "sd15"))
    (path.parent / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(
        UnusableModel, match=r"vocabulary of 1514 tokens .* 49408.*vocab\.json and merges\.txt into tokenizer/"
    ):
        get_family("sd15").load(tiny.model_files(path, "sd15"), "cpu", torch.float32)


def test_clips_own_vocabulary_comes_with_safelight(tmp_path: Path) -> None:
    path = tiny.as_single_file(tiny.tiny_sdxl(tmp_path / "sdxl", full_vocabulary=True))
    assert not any(one.is_dir() for one in path.parent.iterdir())
    first, second = get_family("sdxl").load(tiny.model_files(path, "sdxl"), "cpu", torch.float32).tokenizers
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("a photo of a cat").input_ids == second("A  photo of a CAT").input_ids == ids
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
    known = [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558, 49407]
    assert first("a photograph of an astronaut riding a horse").input_ids == known


def test_heads_and_groups_that_no_shape_tells_come_from_the_sidecar(tmp_path: Path) -> None:
    path = tiny.as_single_file(tiny.tiny_sd15(tmp_path / "sd15"))
    family = get_family("sd15")
    sidecar = path.with_name("sd15.config.json")
    sidecar.write_text(json.dumps({"unet": {"attention_head_dim": 4, "norm_num_groups": 16}}))
    config = family.load(tiny.model_files(path, "sd15"), "cpu", torch.float32).denoiser.config
    assert (config.attention_head_dim, config.norm_num_groups) == (4, 16)
    sidecar.write_text(json.dumps({"unet": {"norm_num_groups": 24}}))
    with pytest.raises(UnusableModel, match=r"32, 64, 64.* channels.* 24 groups.*sd15\.config\.json"):
        family.load(tiny.model_files(path, "sd15"), "cpu", torch.float32)
    sidecar.write_text(json.dumps({"transformer": {}}))
    with pytest.raises(UnusableModel, match=r"sets 'transformer'.*unet, vae, text_encoder, scheduler"):
        family.load(tiny.model_files(path, "sd15"), "cpu", torch.float32)
    sidecar.write_text(json.dumps({"text_encoder": {"_attn_implementation": "someone/kernel"}}))
    with pytest.raises(SafelightError, match=r"_attn_implementation.*someone/kernel.*allowed are eager"):
        family.load(tiny.model_files(path, "sd15"), "cpu", torch.float32)


def test_an_inpainting_model_is_refused(tmp_path: Path) -> None:
    path = tiny.as_single_file(tiny.tiny_sd15(tmp_path / "sd15"))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    _edit_tensors(path, lambda tensors: tensors.update({key: torch.zeros(32, 9, 3, 3)}))
    with pytest.raises(SafelightError, match="9 channels instead of 4: an inpainting"):
        get_family("sd15").load(tiny.model_files(path, "sd15"), "cpu", torch.float32)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, family: ModelFamily, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    words = copied / "tokenizer" / "vocab.json"
    words.write_text(json.dumps(json.loads(words.read_text()) | {"extra</w>": 1514}))
    with pytest.raises(UnusableModel, match=r"1515 tokens.*1514"):
        family.load(tiny.model_files(copied, family.name), "cpu", torch.float32)


def test_the_embedded_model_loads_from_its_folder_and_from_a_single_file(tmp_path: Path) -> None:
    from trainer.demo import BASE_DIR

    family = get_family("sd15")
    (tmp_path / "demo").symlink_to(BASE_DIR)
    embedded = family.load(tiny.model_files(BASE_DIR, "sd15"), "cpu", torch.float32)
    path = tiny.as_single_file(tmp_path / "demo")
    encoder, unet, vae = embedded.text_encoders[0].config, embedded.denoiser.config, embedded.vae.config
    untold = {
        "unet": {key: unet[key] for key in ("attention_head_dim", "norm_num_groups")},
        "vae": {"norm_num_groups": vae["norm_num_groups"]},
        "text_encoder": {"num_attention_heads": encoder.num_attention_heads},
    }
    path.with_name("demo.config.json").write_text(json.dumps(untold))
    single = family.load(tiny.model_files(path, "sd15"), "cpu", torch.float32)
    _same_tensors(embedded, single)
    one, other = (tiny.encode(family, part, ["red apple, on white"]) for part in (embedded, single))
    assert torch.equal(one.hidden_states, other.hidden_states)
    latents, timesteps = torch.randn(1, *family.latent_shape(embedded, 64, 64)), torch.tensor([700])
    with torch.no_grad():
        found = family.predict(single.denoiser, latents, timesteps, other)
        assert torch.equal(found, family.predict(embedded.denoiser, latents, timesteps, one))
    assert torch.equal(family.decode_latents(single, latents), family.decode_latents(embedded, latents))


REAL_SIZES = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_real_models_sizes_are_read_off_their_shapes(name: str) -> None:
    """On the meta device: shapes of the real architecture under the original names give the shipped config back."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from trainer.families import single_file

    layout = sys.modules[f"trainer.families.{name}"]._LAYOUT
    configs = {
        one.parent.name: json.loads(one.read_text()) for one in (single_file.CONFIGS_DIR / name).glob("*/config.json")
    }
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }
        for one in layout.text_encoders:
            parts[one.folder] = getattr(transformers, one.class_name)(
                transformers.CLIPTextConfig(**configs[one.folder])
            )
    for part, module in parts.items():
        assert sum(parameter.numel() for parameter in module.parameters()) == REAL_SIZES[name][part]
    shapes = {"model.diffusion_model." + key: value for key, value in tiny.ldm_unet(parts["unet"].state_dict()).items()}
    shapes |= {"first_stage_model." + key: value for key, value in tiny.ldm_vae(parts["vae"].state_dict()).items()}
    for one in layout.text_encoders:
        state = parts[one.folder].state_dict()
        state = tiny.open_clip(state) if one.open_clip else {"text_model." + key: value for key, value in state.items()}
        shapes |= {one.prefix + key: value for key, value in state.items()}
    found = single_file.part_configs(
        layout, {key: tuple(value.shape) for key, value in shapes.items()}, Path("x.safetensors")
    )
    full = {
        part: {**module.config} if part in ("unet", "vae") else module.config.to_dict()
        for part, module in parts.items()
    }
    for part, config in found.items():
        for key, value in config.items():
            if part == "scheduler" or key in ("_class_name", "architectures"):
                continue
            expected = full[part][key]
            if key == "transformer_layers_per_block" and not isinstance(expected, list):
                expected = [expected] * len(configs["unet"]["block_out_channels"])
            assert value == expected, f"{part}.{key}"


def _linked(folder: Path, target: Path) -> Path:
    link = target / folder.name
    link.symlink_to(folder)
    return link


def _copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / folder.name))


def _edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
