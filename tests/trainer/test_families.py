"""Each family encodes and predicts exactly as diffusers does, and a step's loss is diffusers' own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from trainer.config.schema import LoraTargets, ModelConfig
from trainer.families import FAMILIES, clip, family_row, get_family
from trainer.families.base import Components, Conditioning, ModelFamily, UnusableLatents, UnusableModel
from trainer.losses import elementwise_errors, mean_per_sample, min_snr_weights

PROMPTS = ["a red circle, simple background", ""]
LONG_PROMPT = "the art of one day in our new park with you and all my time for the big game " * 14
"""266 words of one token each."""


@pytest.fixture(scope="module")
def components(folder: Path, family: ModelFamily) -> Components:
    return family.load(tiny.model_files(folder, family.name), "cpu", torch.float32)


@pytest.fixture(scope="module")
def pipeline(components: Components, family: ModelFamily) -> Any:
    return family.build_pipeline(components, family.schedule(components, ModelConfig()))


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


# ---- prompts ----


def test_prompts_are_encoded_as_diffusers_does(
    family: ModelFamily, components: Components, pipeline: Any, monkeypatch: Any
) -> None:
    # diffusers 0.42 still asks CLIPTextModel for the inner model that transformers 5 merged into it.
    monkeypatch.setattr(type(components.text_encoders[0]), "text_model", property(lambda self: self), raising=False)
    prompts = [*PROMPTS, LONG_PROMPT]
    for clip_skip in (1, 2, 3):
        ours = tiny.encode(family, components, prompts, clip_skip=clip_skip)
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
    one, two = (tiny.encode(family, components, PROMPTS, clip_skip=number).hidden_states for number in (1, 2))
    assert torch.equal(one, two) is not FAMILIES[family.name].has_clip_skip


def test_long_prompts_are_read_in_pieces_of_75(family: ModelFamily, components: Components) -> None:
    words = LONG_PROMPT.split()
    assert family.count_tokens(components, LONG_PROMPT) == len(words) == 266
    whole = tiny.encode(family, components, [LONG_PROMPT, "blue"], max_token_length=225)
    assert whole.hidden_states.shape[1] == 3 * 77
    for piece in range(3):
        alone = tiny.encode(family, components, [" ".join(words[piece * 75 : piece * 75 + 75])])
        found = whole.hidden_states[:1, piece * 77 : piece * 77 + 77]
        torch.testing.assert_close(found, alone.hidden_states, rtol=0, atol=1e-5)
    short = tiny.encode(family, components, ["blue"])
    empty = tiny.encode(family, components, [""])
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
    torch.testing.assert_close(
        tiny.encode(family, components, ["<mine> red circle"]).pooled, expected, rtol=0, atol=1e-5
    )


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
    tiny.encode(family, components, [LONG_PROMPT])
    assert caplog.records == []


def test_conditionings_are_cached_cut_and_joined_without_loss(family: ModelFamily, components: Components) -> None:
    whole = tiny.with_sizes(family, tiny.encode(family, components, PROMPTS))
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
    conditioning = tiny.encode(family, components, ["red"])
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
            tiny.with_sizes(family, conditioning, 1021, 1333),
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
    conditioning = tiny.with_sizes(family, tiny.encode(family, base, prompts), 70, 100)
    with torch.no_grad():
        prediction = family.predict(
            base.denoiser, schedule.add_noise(latents, noise, timesteps), timesteps, conditioning
        )
    losses = mean_per_sample(elementwise_errors(prediction, schedule.target(latents, noise, timesteps)))
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
    counts = {targets: len(_matching(unet, family.lora_targets(targets))) for targets in LoraTargets}
    assert list(counts.values()) == sorted(set(counts.values())), "each preset takes more layers than the one before"
    assert counts[LoraTargets.ATTENTION_FEED_FORWARD_PROJECTION] == KOHYA_MODULES[name][0]
    assert sum(len(_matching(one, family.text_encoder_targets())) for one in encoders) == KOHYA_MODULES[name][1]


def _matching(part: torch.nn.Module, endings: list[str]) -> list[str]:
    return [name for name, _ in part.named_modules() if name.endswith(tuple(f".{ending}" for ending in endings))]
