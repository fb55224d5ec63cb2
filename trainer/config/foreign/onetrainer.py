"""Settings that OneTrainer saves as JSON, whole runs and its presets; what they leave out is OneTrainer's own default.

Facts from its configuration classes; https://github.com/Nerogar/OneTrainer, configuration version 11 and the older names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.config.foreign.onetrainer_lists import concepts, embedding, samples
from trainer.config.foreign.onetrainer_rules import (
    lengths,
    loss_mixture,
    loss_weight,
    noise_range,
    optimizer,
    parts_trained,
    peft,
    timesteps,
)
from trainer.config.foreign.report import Imported
from trainer.config.foreign.taking import (
    Finish,
    Rule,
    Surroundings,
    Taking,
    as_number,
    as_switch,
    as_text,
    as_whole,
    choice,
    go_through,
    later,
    number,
    switch,
    switched,
    unless_off,
    unused,
    whole,
)
from trainer.config.foreign.words import (
    ATTENTION,
    BASE_PRECISION,
    ELSEWHERE,
    KEYS_APART,
    NO_EMA,
    ONE_GPU,
    OTHER_FAMILY,
    OWN_LOG,
    WHOLE_STATE,
    WORKERS,
    name_of,
    take_base,
    take_schedule,
)

PROGRAM = "OneTrainer"
RENAMED: dict[str, str] = {
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
    "train_unet": "unet.train",
    "unet_learning_rate": "unet.learning_rate",
    "train_text_encoder": "text_encoder.train",
    "text_encoder_learning_rate": "text_encoder.learning_rate",
    "train_text_encoder_2": "text_encoder_2.train",
    "vae_model_name": "vae.model_name",
    "gradient_checkpointing": "unet.gradient_checkpointing",
    "enable_async_offloading": "async_offloading",
}
"""Names of older versions -> today's."""
SMALL = {"FLOAT_8": "fp8", "INT_8": "int8", "INT_W8A8": "int8", "NFLOAT_4": "nf4"}
"""Its names of formats that take fewer than 16 bits."""
ENCODERS_AWAY = "text encoders and the VAE leave the GPU by themselves"
FAMILIES = frozenset({"STABLE_DIFFUSION_15", "STABLE_DIFFUSION_XL_10_BASE"})
PARTS = ("unet", "text_encoder", "text_encoder_2")
OTHER_PARTS = (
    *("prior", "transformer", "unconditional_transformer", "text_encoder_3", "text_encoder_4", "effnet_encoder"),
    *("decoder", "decoder_text_encoder", "decoder_vqgan"),
)
FORMATS = {
    "safetensors": "both",
    "legacy_safetensors": "both",
    "kohya_lora": "kohya",
    "comfy_lora": "kohya",
    "legacy_lora": "kohya",
    "diffusers_lora": "diffusers",
}
_CLOUD = "training on rented machines is started there, with the same settings"


def _method(taking: Taking, key: str, value: Any) -> None:
    if as_text(value) == "LORA":
        taking.pass_over(key, "LoRAs are what is trained here")
    else:
        taking.refuse(key, "only LoRAs are trained here; the other settings were chosen for another kind of training")


def _model_type(taking: Taking, key: str, value: Any) -> None:
    if as_text(value) in FAMILIES:
        taking.pass_over(key, "the family is read from the model's own files")
    else:
        taking.refuse(key, "Safelight trains Stable Diffusion 1.x and SDXL; the values were chosen for another model")


def _prediction(word: str) -> Rule:
    def rule(taking: Taking, key: str, value: Any) -> None:
        if as_switch(value):
            taking.take(key, "model.prediction_type", word)
        else:
            taking.pass_over(key, "what a base predicts is read from its own files")

    return rule


def _terminal_snr(taking: Taking, key: str, value: Any) -> None:
    if as_switch(value):
        taking.take(key, "model.zero_terminal_snr", "on")
    else:
        taking.pass_over(key, "the noise schedule of a base is read from its own files")


def _output_name(taking: Taking, key: str, value: Any) -> None:
    path = as_text(value)
    stem = re.split(r"[/\\]", path)[-1].rpartition(".")[0] or path
    taking.take(key, "name", name_of(stem), "the file's name; runs lie in the workspace")


def _resolution(taking: Taking, key: str, value: Any) -> None:
    """`1024`, `512,768,1024` (each picture at one of them) or `1024x768`."""
    sides = [part.strip() for part in as_text(value).split(",") if part.strip()]
    areas = [re.split("x", side) for side in sides]
    numbers = [round((as_whole(area[0]) * as_whole(area[-1])) ** 0.5) for area in areas]
    if not numbers:
        taking.refuse(key, "names no side")
        return
    largest = max(numbers)
    taking.take(key, "dataset.resolution", largest, "" if len(numbers) == 1 and "x" not in sides[0] else "the largest")
    rest = [side for side in numbers if side != largest]
    if rest:
        taking.part(f"{key}: the others", rest)
        taking.take(
            f"{key}: the others",
            "dataset.more_resolutions",
            rest,
            "each picture is shown at each size, not at one by chance",
        )


def _layer_skip(taking: Taking, key: str, value: Any) -> None:
    taking.take(key, "model.clip_skip", as_whole(value) + 1, "theirs counts the layers left out, ours from the last")


def _ema(taking: Taking, key: str, value: Any) -> None:
    (taking.pass_over if as_text(value) == "OFF" else taking.refuse)(key, NO_EMA)


def _cycles(taking: Taking, key: str, value: Any) -> None:
    cycles = as_number(value)
    taking.take(
        key,
        "optimizer.num_cycles",
        max(1, round(cycles)),
        "" if cycles >= 1 and cycles % 1 == 0 else "whole cycles only",
    )


def _quantized(taking: Taking, key: str, value: Any) -> None:
    words = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
    word = as_text(value)
    if word in words:
        taking.take(key, "model.precision", words[word])
    elif word in SMALL:
        taking.take(key, "memory.base_format", SMALL[word])
    elif word == "NONE":
        taking.pass_over(key, "leaves the format open")
    else:
        taking.refuse(key, BASE_PRECISION)


def _fixed_precision(what: str) -> Rule:
    return unused(f"{what} is held in the precision that it needs")


def _part_rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "unet.weight_dtype": _quantized,
        "unet.gradient_checkpointing": switched("memory.checkpointing", "blocks", "off"),
        "unet.offload_fraction": switched("memory.offload", "blocks"),
        "unet.activation_offloading": switched("memory.offload", "activations"),
        "vae.model_name": unless_off("the base is trained with its own VAE"),
    }
    for part in (*PARTS, "vae"):
        rules |= {
            f"{part}.model_name": rules.get(f"{part}.model_name", unless_off("all parts come from the base model")),
            f"{part}.include": unused("all parts come from the base model"),
            f"{part}.train": later if part != "vae" else unused("the VAE is never trained"),
            f"{part}.stop_training_after": later,
            f"{part}.stop_training_after_unit": later,
            f"{part}.learning_rate": later if part != "vae" else unused("the VAE is never trained"),
            f"{part}.weight_dtype": rules.get(f"{part}.weight_dtype", _fixed_precision(part)),
            f"{part}.dropout_probability": unless_off("captions are left out for all text encoders together"),
            f"{part}.train_embedding": unused("embeddings are settings of their own"),
            f"{part}.attention_mask": unused("a model is read with the mask that it was trained with"),
            f"{part}.guidance_scale": unused(OTHER_FAMILY),
            f"{part}.gradient_checkpointing": rules.get(
                f"{part}.gradient_checkpointing", unused("goes with that of the denoiser")
            ),
            f"{part}.offload_fraction": rules.get(f"{part}.offload_fraction", unused(ENCODERS_AWAY)),
            f"{part}.activation_offloading": rules.get(f"{part}.activation_offloading", unused(ENCODERS_AWAY)),
        }
    return rules


RUN: dict[str, Rule] = {
    "__version": unused("the version of the file's form"),
    "training_method": _method,
    "model_type": _model_type,
    "base_model_name": take_base,
    "output_model_destination": _output_name,
    "output_dtype": choice(
        "save.precision",
        {"float_32": "fp32", "float_16": "fp16", "bfloat_16": "bf16"},
        "LoRAs are saved in fp32, fp16 or bf16",
    ),
    "output_model_format": choice(
        "save.key_format",
        {
            "safetensors": "both",
            "kohya_lora": "kohya",
            "comfy_lora": "kohya",
            "diffusers_lora": "diffusers",
            "legacy_safetensors": "both",
        },
        "LoRAs are written with kohya's or diffusers' names",
    ),
    "train_dtype": later,
    "weight_dtype": _quantized,
    "fallback_train_dtype": unused("a format that the machine can't compute in is refused before the run"),
    "force_v_prediction": _prediction("v_prediction"),
    "force_epsilon_prediction": _prediction("epsilon"),
    "rescale_noise_scheduler_to_zero_terminal_snr": _terminal_snr,
    "text_encoder_layer_skip": _layer_skip,
    "continue_last_backup": unless_off("runs of Safelight resume from their own checkpoints"),
    "lora_model_name": later,
    "epochs": later,
    "batch_size": whole("training.batch_size"),
    "gradient_accumulation_steps": whole("training.gradient_accumulation_steps"),
    "learning_rate": later,
    "learning_rate_scheduler": take_schedule,
    "custom_learning_rate_scheduler": unless_off("code of one's own can't be named in settings"),
    "scheduler_params": unless_off("only schedules of one's own read it"),
    "learning_rate_warmup_steps": later,
    "learning_rate_cycles": _cycles,
    "learning_rate_min_factor": number("optimizer.min_learning_rate_ratio"),
    "learning_rate_scaler": unless_off("the learning rate is used as it is given", "NONE"),
    "loss_scaler": unless_off("the loss is a mean over the pictures of a step", "NONE"),
    "clip_grad_norm": number("training.max_grad_norm"),
    "ema": _ema,
    "dropout_probability": number("lora.dropout"),
    "resolution": _resolution,
    "aspect_ratio_bucketing": switch("dataset.aspect_buckets"),
    "latent_caching": switch("dataset.cache_latents"),
    "masked_training": later,
    "unmasked_weight": later,
    "unmasked_probability": unless_off(
        "a mask is used at every step; loss.unmasked_weight says how much the rest counts"
    ),
    "normalize_masked_area_loss": unused("the loss is always a mean over the area that counts"),
    "masked_prior_preservation_weight": unless_off(
        "what lies outside of a mask is not held to the base's own prediction"
    ),
    "offset_noise_weight": number("noise.offset"),
    "generalized_offset_noise": unless_off("the offset is the same at every timestep"),
    "perturbation_noise_weight": number("noise.input_perturbation"),
    **dict.fromkeys(["min_noising_strength", "max_noising_strength", "timestep_distribution"], later),
    **dict.fromkeys(["noising_weight", "noising_bias", "loss_weight_fn", "loss_weight_strength"], later),
    **dict.fromkeys(["mse_strength", "mae_strength", "huber_strength", "log_cosh_strength", "huber_delta"], later),
    "min_snr_gamma": number("loss.min_snr_gamma"),
    "vb_loss_strength": unused("only models with a learned variance read it"),
    "timestep_shift": unless_off("only flow models shift their timesteps", 1, 1.0),
    "dynamic_timestep_shifting": unless_off("only flow models shift their timesteps"),
    **dict.fromkeys(["layer_filter", "layer_filter_preset", "layer_filter_regex"], later),
    **dict.fromkeys(["peft_type", "lora_rank", "lora_alpha", "lora_decompose", "oft_block_size"], later),
    **dict.fromkeys(["lokr_dim", "lokr_decompose_factor", "lokr_full_matrix"], later),
    "lora_decompose_norm_epsilon": unused("the norm of a DoRA never reaches 0"),
    "lora_decompose_output_axis": later,
    "lora_weight_dtype": unused("the LoRA's own weights always stay in fp32"),
    "oft_block_share": unless_off("each block of a rotation is its own"),
    "oft_scaled": unless_off("rotations have no trained scale"),
    "lokr_decompose_both": unless_off("only the second factor of a LoKr is split"),
    "lokr_use_tucker": unless_off("convolutions are split in two factors, not in Tucker's three"),
    "lokr_weight_decompose": unless_off("only a LoRA can be a DoRA"),
    "lokr_dora_on_output": unused("only lokr_weight_decompose reads it"),
    "lokr_vec_trick": unused("it changes only how the same thing is computed"),
    "validation": unused("is on when the dataset has held-out pictures"),
    **dict.fromkeys(["validate_after", "validate_after_unit", "sample_after", "sample_after_unit"], later),
    **dict.fromkeys(["save_every", "save_every_unit", "samples", "concepts", "embedding"], later),
    **dict.fromkeys(["additional_embeddings", "embedding_learning_rate"], later),
    "sample_definition_file_name": later,
    "concept_file_name": later,
    "rolling_backup_count": whole("save.keep_last"),
}
NOTED: dict[str, Rule] = {
    **dict.fromkeys(["debug_mode", "debug_dir", "only_cache"], unless_off("is a tool for its developers", "debug")),
    **dict.fromkeys(["workspace_dir", "cache_dir", "huggingface_cache_dir", "save_filename_prefix"], unused(ELSEWHERE)),
    "offline_mode": unused("training makes no connection"),
    **dict.fromkeys(
        ["tensorboard", "tensorboard_expose", "tensorboard_always_on", "tensorboard_port"], unused(OWN_LOG)
    ),
    **dict.fromkeys(["samples_to_tensorboard", "sample_image_format", "sample_video_format"], unused(OWN_LOG)),
    **dict.fromkeys(["sample_audio_format", "sample_skip_first", "save_skip_first"], unused("every one is kept")),
    "prevent_overwrites": unused("a run never writes over another"),
    "include_train_config": unused("the settings lie beside every LoRA"),
    **dict.fromkeys(
        [
            "multi_gpu",
            "device_indexes",
            "gradient_reduce_precision",
            "fused_gradient_reduce",
            "async_gradient_reduce",
            "async_gradient_reduce_buffer",
        ],
        unused(ONE_GPU),
    ),
    "async_offloading": unused("what waits outside the GPU always comes while another part computes"),
    "force_circular_padding": unless_off("pictures are not trained as tiles"),
    "compile": unused("compiling changes no result"),
    "clear_cache_before_training": unused("the cache goes by content, so it is never out of date"),
    **dict.fromkeys(
        ["ema_decay", "ema_update_step_interval", "non_ema_sampling"], unused("only their moving average reads it")
    ),
    "dataloader_threads": unused(WORKERS),
    **dict.fromkeys(["train_device", "temp_device", "enable_autocast_cache"], unused("training.device finds the GPU")),
    "frames": unused(OTHER_FAMILY),
    "attention_mechanism": unused(ATTENTION),
    "quantization": unused(BASE_PRECISION),
    **dict.fromkeys(
        [
            "text_encoder_sequence_length",
            "text_encoder_2_sequence_length",
            "text_encoder_3_layer_skip",
            "text_encoder_4_layer_skip",
        ],
        unused(OTHER_FAMILY),
    ),
    "text_encoder_2_layer_skip": unless_off(
        "SDXL was trained with one layer of its text encoders, which is the one used"
    ),
    "custom_conditioning_image": unless_off("inpainting models are not trained here"),
    **dict.fromkeys(["preserve_embedding_norm", "embedding_weight_dtype", "bundle_additional_embeddings"], later),
    "cloud": unused(_CLOUD),
    "secrets": unless_off(KEYS_APART),
    "optimizer_defaults": unused("what the page remembers of other optimizers"),
    **dict.fromkeys(["backup_after", "backup_after_unit", "rolling_backup", "backup_before_save"], unused(WHOLE_STATE)),
    "enable_activation_offloading": switched("memory.offload", "activations"),
    "layer_offload_fraction": switched("memory.offload", "blocks"),
}
TABLE: dict[str, Rule] = {**RUN, **_part_rules(), **NOTED}
FINISHES: tuple[Finish, ...] = (
    concepts, peft, parts_trained, optimizer, loss_mixture, loss_weight, noise_range, timesteps, embedding, lengths, samples,
)  # fmt: skip


def import_onetrainer(values: Mapping[str, Any], around: Surroundings, base: Mapping[str, Any]) -> Imported:
    """Takes the settings of a run or a preset of OneTrainer; what it leaves out is OneTrainer's default."""
    given: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key in (*PARTS, "vae", "optimizer", *OTHER_PARTS):
            given |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            name = RENAMED.get(key, key)
            given[name], labels[name] = value, key
    taking = Taking(PROGRAM, given, around, base, labels)
    others = {key: unused(OTHER_FAMILY) for key in given if key.partition(".")[0] in OTHER_PARTS}
    optimizer_keys = {key: later for key in given if key.startswith("optimizer.")}
    go_through(taking, {**TABLE, **others, **optimizer_keys}, FINISHES)
    return taking.result()


def is_onetrainer(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a configuration of OneTrainer."""
    return "training_method" in values or ("model_type" in values and "base_model_name" in values)
