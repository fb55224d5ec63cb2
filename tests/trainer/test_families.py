"""Each family loads, encodes and predicts exactly as diffusers does, from a folder and from a single file, offline."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from security.errors import SafelightError
from tests import tiny
from trainer.config.schema import LoraTargets, ModelConfig
from trainer.families import FAMILIES, clip, family_row, get_family
from trainer.families.base import Components, Conditioning, ModelFamily, UnusableLatents, UnusableModel
from trainer.losses import min_snr_weights, mse_per_sample

PROMPTS = ["a red circle, simple background", ""]
LONG_PROMPT = "the art of one day in our new park with you and all my time for the big game " * 14
"""266 words of one token each."""


@pytest.fixture(scope="module", params=sorted(tiny.BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def family(folder: Path) -> ModelFamily:
    return get_family(folder.name)


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


@pytest.fixture(scope="module")
def pipeline(components: Components, family: ModelFamily) -> Any:
    return family.build_pipeline(components, family.schedule(components, ModelConfig()))


def _same_tensors(one: Components, other: Components) -> None:
    assert one.modules().keys() == other.modules().keys()
    for name, part in one.modules().items():
        expected, found = part.state_dict(), other.modules()[name].state_dict()
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{name}.{key}"


def _encode(family: ModelFamily, components: Components, prompts: list[str], **options: int) -> Conditioning:
    with torch.no_grad():
        return family.encode_prompts(components, prompts, **({"clip_skip": 1, "max_token_length": 75} | options))


def _with_sizes(family: ModelFamily, conditioning: Conditioning, *sizes: int) -> Conditioning:
    one = family.size_conditioning((sizes or (64, 96))[:2], (0, 0), (64, 96))
    return conditioning.with_time_ids(None if one is None else one.repeat(len(conditioning), 1))


# ---- the table ----


def test_every_family_has_a_tiny_builder() -> None:
    assert tiny.BUILDERS.keys() == FAMILIES.keys()
    for name in FAMILIES:
        assert get_family(name).name == name


def test_listing_families_and_models_imports_no_torch() -> None:
    code = (
        "import sys, trainer.families, trainer.models.library, trainer.metadata;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_family_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r"sdxll.*Did you mean sdxl\?.*Known: sd15, sdxl"):
        family_row("sdxll")


# ---- loading ----


@pytest.mark.parametrize("text_model_prefix", [True, False])
def test_a_single_file_gives_back_every_tensor_of_the_folder(
    folder: Path, family: ModelFamily, components: Components, tmp_path: Path, text_model_prefix: bool
) -> None:
    linked = _linked(folder, tmp_path)
    path = tiny.as_single_file(linked, text_model_prefix=text_model_prefix)
    single = family.load(tiny.model_files(path, family.name), "cpu", torch.float32)
    _same_tensors(components, single)
    ours, theirs = (_with_sizes(family, _encode(family, one, PROMPTS)) for one in (single, components))
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
    one, other = (_encode(family, part, ["red apple, on white"]) for part in (embedded, single))
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


# ---- prompts ----


def test_prompts_are_encoded_as_diffusers_does(
    family: ModelFamily, components: Components, pipeline: Any, monkeypatch: Any
) -> None:
    # diffusers 0.42 still asks CLIPTextModel for the inner model that transformers 5 merged into it.
    monkeypatch.setattr(type(components.text_encoders[0]), "text_model", property(lambda self: self), raising=False)
    prompts = [*PROMPTS, LONG_PROMPT]
    for clip_skip in (1, 2, 3):
        ours = _encode(family, components, prompts, clip_skip=clip_skip)
        options = {"clip_skip": clip_skip - 1 or None} if FAMILIES[family.name].has_clip_skip else {}
        with torch.no_grad():
            reference = (
                pipeline.encode_prompt(prompts, "cpu", 1, False, **options)
                if options or family.name == "sd15"
                else (pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False))
            )
        torch.testing.assert_close(ours.hidden_states, reference[0], rtol=0, atol=1e-5)
        if ours.pooled is not None:
            torch.testing.assert_close(ours.pooled, reference[2], rtol=0, atol=1e-5)


def test_clip_skip_changes_the_layer_only_where_it_should(family: ModelFamily, components: Components) -> None:
    one, two = (_encode(family, components, PROMPTS, clip_skip=number).hidden_states for number in (1, 2))
    assert torch.equal(one, two) is not FAMILIES[family.name].has_clip_skip


def test_long_prompts_are_read_in_pieces_of_75(family: ModelFamily, components: Components) -> None:
    words = LONG_PROMPT.split()
    assert family.count_tokens(components, LONG_PROMPT) == len(words) == 266
    whole = _encode(family, components, [LONG_PROMPT, "blue"], max_token_length=225)
    assert whole.hidden_states.shape[1] == 3 * 77
    for piece in range(3):
        alone = _encode(family, components, [" ".join(words[piece * 75 : piece * 75 + 75])])
        found = whole.hidden_states[:1, piece * 77 : piece * 77 + 77]
        torch.testing.assert_close(found, alone.hidden_states, rtol=0, atol=1e-5)
    short = _encode(family, components, ["blue"])
    empty = _encode(family, components, [""])
    expected = torch.cat([short.hidden_states, empty.hidden_states, empty.hidden_states], dim=1)
    torch.testing.assert_close(whole.hidden_states[1:], expected, rtol=0, atol=1e-5)
    if short.pooled is not None:
        torch.testing.assert_close(whole.pooled[1:], short.pooled, rtol=0, atol=1e-5)


def test_gradients_reach_the_text_encoders_when_asked(family: ModelFamily, components: Components) -> None:
    weight = components.text_encoders[-1].get_input_embeddings().weight
    weight.requires_grad_(True)
    conditioning = family.encode_prompts(components, PROMPTS, clip_skip=1, max_token_length=75)
    assert conditioning.hidden_states.requires_grad
    weight.requires_grad_(False)


def test_the_pooled_prompt_is_read_at_the_end_marker_not_at_the_highest_id(tmp_path: Path) -> None:
    """With a token added after training the highest id is no longer the end marker."""
    family = get_family("sdxl")
    components = family.load(tiny.model_files(tiny.tiny_sdxl(tmp_path / "sdxl"), "sdxl"), "cpu", torch.float32)
    encoder, tokenizer = components.text_encoders[1], components.tokenizers[1]
    tokenizer.add_tokens("<mine>")
    encoder.resize_token_embeddings(len(tokenizer))
    ids = tokenizer("<mine> red circle", padding="max_length", return_tensors="pt").input_ids
    end = (ids[0] == tokenizer.eos_token_id).nonzero()[0, 0]
    assert ids[0].argmax() != end
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).last_hidden_state
        expected = encoder.text_projection(states[:, end])
    torch.testing.assert_close(_encode(family, components, ["<mine> red circle"]).pooled, expected, rtol=0, atol=1e-5)


def test_the_second_tokenizer_of_sdxl_pads_with_id_0(tmp_path: Path) -> None:
    folder = tiny.tiny_sdxl(tmp_path / "sdxl")
    family = get_family("sdxl")
    for path in (folder, tiny.as_single_file(folder)):
        tokenizers = family.load(tiny.model_files(path, "sdxl"), "cpu", torch.float32).tokenizers
        for tokenizer, pad in zip(tokenizers, (1513, 0), strict=True):
            ids = clip.tokenize(tokenizer, ["red", "blue " * 100], num_pieces=2)
            word = tokenizer("red", add_special_tokens=False).input_ids
            assert ids.shape == (2, 2, 77)
            assert ids[0, 0].tolist() == [1512, *word, 1513, *[pad] * (75 - len(word))]
            assert ids[0, 1].tolist() == [1512, 1513, *[pad] * 75]
            assert ids[1, 0, [0, -1]].tolist() == [1512, 1513] and pad not in ids[1, 0, 1:-1]


def test_long_prompts_are_counted_without_a_warning(
    family: ModelFamily, components: Components, caplog: pytest.LogCaptureFixture
) -> None:
    assert family.count_tokens(components, LONG_PROMPT) > 225
    _encode(family, components, [LONG_PROMPT])
    assert caplog.records == []


def test_conditionings_are_cached_cut_and_joined_without_loss(family: ModelFamily, components: Components) -> None:
    whole = _with_sizes(family, _encode(family, components, PROMPTS))
    again = Conditioning.cat([Conditioning.from_tensors(whole.row(index).to_tensors()) for index in range(len(whole))])
    assert again.to_tensors().keys() == whole.to_tensors().keys()
    for key, value in whole.to_tensors().items():
        assert torch.equal(value, again.to_tensors()[key])
    half = whole.to("cpu", torch.bfloat16)
    assert half.hidden_states.dtype == torch.bfloat16
    assert half.time_ids is None or half.time_ids.dtype == torch.float32


# ---- pictures ----


def test_pictures_become_the_mode_of_the_vae_scaled(family: ModelFamily, components: Components) -> None:
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = family.encode_images(components, pixels)
    with torch.no_grad():
        expected = components.vae.encode(pixels).latent_dist.mode() * components.vae.config.scaling_factor
    assert torch.equal(latents, expected)
    assert latents.shape[1:] == family.latent_shape(components, 96, 64)
    assert components.vae.config.scaling_factor == {"sd15": 0.18215, "sdxl": 0.13025}[family.name]
    with torch.no_grad():
        decoded = components.vae.decode(latents / components.vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(family.decode_latents(components, latents), decoded.clamp(-1, 1))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_are_refused_by_picture(
    family: ModelFamily, components: Components, wrong: float
) -> None:
    pixels = torch.rand(3, 3, 32, 32)
    pixels[1, 0, 5, 5] = wrong
    with pytest.raises(UnusableLatents, match="picture 1 of the batch") as caught:
        family.encode_images(components, pixels)
    assert caught.value.indices == [1]


def test_sides_that_do_not_fit_the_vae_are_refused(family: ModelFamily, components: Components) -> None:
    assert family.latent_shape(components, 64, 104) == (4, 13, 8)
    with pytest.raises(UnusableModel, match=r"100x64 pixels.*multiples of 8"):
        family.latent_shape(components, 100, 64)


def test_bucket_steps_keep_every_level_even(family: ModelFamily, components: Components) -> None:
    assert family.bucket_step(components) == tiny.LATENT_FACTOR * 4


# ---- the prediction ----


def test_picture_sizes_are_those_of_diffusers(family: ModelFamily, components: Components, pipeline: Any) -> None:
    found = family.size_conditioning((1021, 1333), (3, 14), (896, 1152))
    if family.name == "sd15":
        assert found is None
        return
    expected = pipeline._get_add_time_ids(
        (1021, 1333), (3, 14), (896, 1152), torch.float32, text_encoder_projection_dim=24
    )
    assert torch.equal(found, expected) and found.dtype == torch.float32


def test_picture_sizes_stay_exact_over_a_bf16_base(tmp_path: Path) -> None:
    family = get_family("sdxl")
    folder = tiny.tiny_sdxl(tmp_path / "sdxl")
    components = family.load(tiny.model_files(folder, "sdxl"), "cpu", torch.bfloat16)
    conditioning = _encode(family, components, ["red"])
    seen: list[Tensor] = []
    components.denoiser.add_time_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    timesteps: list[Tensor] = []
    components.denoiser.time_proj.register_forward_hook(lambda module, inputs, output: timesteps.append(inputs[0]))
    with torch.no_grad():
        # 1021 and 999 are not numbers of bf16: it would make 1020 and 1000 of them.
        prediction = family.predict(
            components.denoiser,
            torch.randn(1, 4, 8, 8),
            torch.tensor([999]),
            _with_sizes(family, conditioning, 1021, 1333),
        )
    assert seen[0].tolist() == [1021.0, 1333.0, 0.0, 0.0, 64.0, 96.0]
    assert timesteps[0].tolist() == [999]
    assert prediction.dtype == torch.bfloat16 and torch.isfinite(prediction).all()


STEPS = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal snr": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
}


@pytest.mark.parametrize("gamma", [0.0, 5.0], ids=["plain", "min-snr"])
@pytest.mark.parametrize("step", STEPS)
def test_the_loss_of_a_step_is_diffusers(
    family: ModelFamily, components: Components, pipeline: Any, step: str, gamma: float
) -> None:
    files = tiny.model_files(components.model_files.path, family.name, **STEPS[step])
    base = Components(**{**vars(components), "model_files": files})
    schedule = family.schedule(base, ModelConfig())
    pixels, noise = torch.rand(3, 3, 64, 96) * 2 - 1, torch.randn(3, 4, 8, 12)
    timesteps, prompts = torch.tensor([20, 500, 999]), [*PROMPTS, "a green frame"]
    latents = family.encode_images(base, pixels)
    conditioning = _with_sizes(family, _encode(family, base, prompts), 70, 100)
    with torch.no_grad():
        prediction = family.predict(
            base.denoiser, schedule.add_noise(latents, noise, timesteps), timesteps, conditioning
        )
    losses = mse_per_sample(prediction, schedule.target(latents, noise, timesteps))
    if gamma:
        losses = losses * min_snr_weights(schedule.snr(timesteps), gamma, schedule.prediction_type)
    expected = _diffusers_loss(pipeline, STEPS[step], gamma, pixels, noise, timesteps, prompts)
    assert abs(losses.mean().item() - expected) <= 1e-5 * max(1.0, abs(expected))
    assert losses.mean().item() > 1e-3


def _diffusers_loss(
    pipeline: Any,
    facts: dict[str, Any],
    gamma: float,
    pixels: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prompts: list[str],
) -> float:
    """The loss as diffusers' training examples compute it, with its scheduler, pipeline and SNR helper."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=facts["prediction_type"],
        rescale_betas_zero_snr=facts.get("zero_terminal_snr", False),
    )
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noisy = scheduler.add_noise(latents, noise, timesteps)
        added = None
        if hasattr(pipeline, "text_encoder_2"):
            states, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
            sizes = pipeline._get_add_time_ids(
                (70, 100), (0, 0), (64, 96), torch.float32, text_encoder_projection_dim=24
            )
            added = {"text_embeds": pooled, "time_ids": sizes.repeat(len(prompts), 1)}
        else:
            states, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
        prediction = pipeline.unet(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
    loss = torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="none")
    if gamma:
        snr = compute_snr(scheduler, timesteps)
        weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        weights = weights / (snr + 1) if is_velocity else weights / snr
        loss = loss.mean(dim=list(range(1, loss.ndim))) * weights
    return float(loss.mean())


# ---- settings ----


def test_the_schedule_follows_settings_then_files(components: Components, family: ModelFamily) -> None:
    files = tiny.model_files(
        components.model_files.path, family.name, prediction_type="v_prediction", zero_terminal_snr=True
    )
    base = Components(**{**vars(components), "model_files": files})
    auto = family.schedule(base, ModelConfig())
    assert (auto.prediction_type, auto.zero_terminal_snr) == ("v_prediction", True)
    off = family.schedule(base, ModelConfig(zero_terminal_snr="off"))
    assert (off.prediction_type, off.zero_terminal_snr) == ("v_prediction", False)
    epsilon = family.schedule(base, ModelConfig(prediction_type="epsilon", zero_terminal_snr="off"))
    assert epsilon.prediction_type == "epsilon"
    with pytest.raises(UnusableModel, match="Zero terminal SNR needs a v-prediction model"):
        family.schedule(base, ModelConfig(prediction_type="epsilon"))


# ---- what gets a LoRA ----

KOHYA_MODULES = {"sd15": (192, 72), "sdxl": (722, 72 + 192)}
"""LoRA modules that kohya's trainer makes for the denoiser and for the text encoders."""


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_same_layers_as_in_kohyas_trainer_get_a_lora(name: str) -> None:
    import transformers
    from diffusers import UNet2DConditionModel

    from trainer.families import single_file

    family, layout = get_family(name), sys.modules[f"trainer.families.{name}"]._LAYOUT
    configs = single_file.CONFIGS_DIR / name
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((configs / "unet" / "config.json").read_text()))
        encoders = [
            getattr(transformers, one.class_name)(
                transformers.CLIPTextConfig(**json.loads((configs / one.folder / "config.json").read_text()))
            )
            for one in layout.text_encoders
        ]
    counts = [len(_matching(unet, family.lora_targets(targets))) for targets in LoraTargets]
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2] == KOHYA_MODULES[name][0]
    assert sum(len(_matching(one, family.text_encoder_targets())) for one in encoders) == KOHYA_MODULES[name][1]


def _matching(part: torch.nn.Module, endings: list[str]) -> list[str]:
    return [name for name, _ in part.named_modules() if name.endswith(tuple(f".{ending}" for ending in endings))]


# ---- helpers ----


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
