"""Jobs of ai-toolkit, as YAML or JSON: `config.process[0]` holds a training in groups.

Facts from its configuration classes; https://github.com/ostris/ai-toolkit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from security.errors import RefusedConfig
from trainer.config.foreign.ai_toolkit_rules import (
    accumulation,
    datasets,
    layer_names,
    length,
    network,
    rates,
    samples,
    schedule,
    trained_embedding,
    validation,
)
from trainer.config.foreign.report import Imported
from trainer.config.foreign.taking import (
    Finish,
    Rule,
    Surroundings,
    Taking,
    as_switch,
    as_text,
    choice,
    go_through,
    later,
    number,
    switch,
    switched,
    text,
    unless_off,
    unused,
    whole,
)
from trainer.config.foreign.words import (
    ATTENTION,
    BASE_PRECISION,
    ELSEWHERE,
    NO_EMA,
    ONE_GPU,
    OTHER_FAMILY,
    OWN_LOG,
    PUBLISHING,
    take_base,
    take_name,
)

PROGRAM = "ai-toolkit"
TRAINERS = ("sd_trainer", "ui_trainer", "diffusion_trainer")
GROUPS = ("network", "save", "train", "model", "sample", "logging", "embedding")
FORMATS = {
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
    "fp16": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
}
KEY_FORMATS = {"diffusers": "diffusers", "safetensors": "kohya"}
ARCHITECTURES = frozenset({"sd1", "sdxl"})
_OTHER_LOSS = "the loss compares prediction and target, by loss.type"
_OWN_NOISE = "noise is changed only by the settings of [noise]"


def _architecture(taking: Taking, key: str, value: Any) -> None:
    if as_text(value).partition(":")[0] in ARCHITECTURES:
        taking.pass_over(key, "the family is read from the model's own files")
    else:
        taking.refuse(key, "Safelight trains Stable Diffusion 1.x and SDXL; the values were chosen for another model")


def _prediction(taking: Taking, key: str, value: Any) -> None:
    if as_switch(value):
        taking.take(key, "model.prediction_type", "v_prediction")
    else:
        taking.pass_over(key, "what a base predicts is read from its own files")


def _ema(taking: Taking, key: str, value: Any) -> None:
    is_on = isinstance(value, dict) and bool(value.get("use_ema"))
    (taking.refuse if is_on else taking.pass_over)(key, NO_EMA)


def _trainer(taking: Taking, key: str, value: Any) -> None:
    if as_text(value) in TRAINERS:
        taking.pass_over(key, "is the training of a LoRA")
    else:
        taking.refuse(key, f"is no training of a LoRA; those are {', '.join(TRAINERS)}")


PROCESS: dict[str, Rule] = {
    "name": take_name,
    "type": _trainer,
    "training_folder": unused(ELSEWHERE),
    "device": unused("training.device finds the GPU"),
    "trigger_word": text("dataset.trigger_word"),
    **dict.fromkeys(["sqlite_db_path", "performance_log_every", "torch_profiler"], unused(OWN_LOG)),
    "datasets": later,
    **dict.fromkeys(
        ["slider", "adapter", "decorator", "guidance", "first_sample", "do_lorm", "validation"],
        unless_off("only LoRAs are trained here, with samples of one kind"),
    ),
    **dict.fromkeys(["lorm_extract_mode", "lorm_extract_mode_param"], unused("only LoRM reads it")),
    "job": unused("says which program of theirs runs it"),
    "meta": unused("a LoRA's metadata is written from its own run"),
}
NETWORK: dict[str, Rule] = {
    **dict.fromkeys(["type", "rank", "linear", "linear_alpha", "alpha", "conv", "conv_alpha"], later),
    **dict.fromkeys(["lokr_full_rank", "lokr_factor", "network_kwargs"], later),
    "dropout": number("lora.dropout"),
    "pretrained_lora_path": text("lora.continue_from"),
    "transformer_only": later,
    "all_layers": unless_off("layers that are neither linear nor convolutions are not trained"),
    "lorm": unless_off("there is no LoRM here"),
    **dict.fromkeys(["old_lokr_format", "split_multistage_loras", "layer_offloading"], unused(OTHER_FAMILY)),
}
SAVE: dict[str, Rule] = {
    "dtype": choice("save.precision", FORMATS, "LoRAs are saved in fp32, fp16 or bf16"),
    "save_every": whole("save.every_n_steps"),
    "max_step_saves_to_keep": whole("save.keep_last_loras"),
    "save_format": choice("save.key_format", KEY_FORMATS, "LoRAs are written with kohya's or diffusers' names"),
    **dict.fromkeys(["push_to_hub", "hf_repo_id", "hf_private"], unused(PUBLISHING)),
}
TRAIN: dict[str, Rule] = {
    "noise_scheduler": unless_off(OTHER_FAMILY, "ddpm", "ddim", "euler"),
    **dict.fromkeys(
        ["steps", "lr", "unet_lr", "text_encoder_lr", "embedding_lr", "optimizer", "optimizer_params"], later
    ),
    **dict.fromkeys(["lr_scheduler", "lr_scheduler_params", "validation_config"], later),
    **dict.fromkeys(["gradient_accumulation", "gradient_accumulation_steps", "loss_type"], later),
    "batch_size": whole("training.batch_size"),
    "dtype": choice("model.precision", FORMATS, BASE_PRECISION),
    "train_unet": switch("lora.train_denoiser"),
    "train_text_encoder": switch("lora.train_text_encoder"),
    "gradient_checkpointing": switched("memory.checkpointing", "blocks", "off"),
    "max_grad_norm": number("training.max_grad_norm"),
    "min_snr_gamma": number("loss.min_snr_gamma"),
    "snr_gamma": number("loss.min_snr_gamma"),
    "noise_offset": number("noise.offset"),
    "min_denoising_steps": whole("noise.min_timestep"),
    "max_denoising_steps": whole("noise.max_timestep"),
    "prompt_dropout_prob": number("dataset.caption_dropout_rate"),
    "reg_weight": number("loss.prior_loss_weight"),
    "ema_config": _ema,
    "start_step": unless_off("runs of Safelight resume from their own checkpoints"),
    "disable_sampling": later,
    "content_or_style": unless_off("timesteps are drawn by noise.timestep_law", "balanced"),
    "timestep_type": unused("only flow models read it"),
    "num_train_timesteps": unless_off("the noise schedule of the base has its own thousand timesteps", 1000),
    "merge_network_on_save": unless_off("merging a LoRA into its base is a tool of its own"),
    "merge_network_on_save_strength": unused("only merge_network_on_save reads it"),
    "weight_jitter": unless_off("weights are not disturbed"),
    "max_loss": unless_off("a spike of the loss is told; training.skip_spikes leaves its step out"),
    **dict.fromkeys(
        ["skip_first_sample", "force_first_sample"], unused("samples are always drawn before the first step too")
    ),
    **dict.fromkeys(
        ["unload_text_encoder", "cache_text_embeddings"], unused("text that isn't trained on is encoded once")
    ),
    **dict.fromkeys(["xformers", "sdp", "attention_backend"], unused(ATTENTION)),
    **dict.fromkeys(
        [
            *(
                "switch_boundary_every",
                "bypass_guidance_embedding",
                "audio_loss_multiplier",
                "train_refiner",
                "refiner_lr",
            ),
            *("adapter_lr", "linear_timesteps", "linear_timesteps2", "next_sample_timesteps", "train_turbo"),
            *("show_turbo_outputs", "single_item_batching", "free_u", "max_loss_debug"),
        ],
        unused(OTHER_FAMILY),
    ),
    **dict.fromkeys(
        [
            *("learnable_snr_gos", "inverted_mask_prior", "diff_output_preservation", "blank_prompt_preservation"),
            *("standardize_images", "standardize_latents", "do_cfg", "do_random_cfg", "correct_pred_norm"),
            *("t0_loss_target", "t0_velocity_equiv_weight", "do_fft_loss", "do_fft_velocity_equiv_weight"),
            *("do_prior_divergence", "target_norm_std", "do_guidance_loss", "do_guidance_loss_cfg_zero"),
            *("do_differential_guidance", "do_blank_stabilization", "latent_feature_extractor_path"),
            *("diffusion_feature_extractor_path", "do_paramiter_swapping", "adaptive_scaling_factor"),
            *("short_and_long_captions", "short_and_long_captions_encoder_split", "negative_prompt"),
            *(
                "adapter_assist_name_or_path",
                "match_adapter_assist",
                "match_adapter_chance",
                "prompt_saturation_chance",
            ),
        ],
        unless_off(_OTHER_LOSS),
    ),
    **dict.fromkeys(
        [
            *(
                "inverted_mask_prior_multiplier",
                "diff_output_preservation_multiplier",
                "diff_output_preservation_class",
            ),
            *(
                "blank_prompt_preservation_multiplier",
                "cfg_scale",
                "max_cfg_scale",
                "cfg_rescale",
                "target_norm_std_value",
            ),
            *("correct_pred_norm_multiplier", "guidance_loss_target", "guidance_loss_schedule", "unconditional_prompt"),
            *("differential_guidance_scale", "latent_feature_loss_weight", "diffusion_feature_extractor_weight"),
            *("paramiter_swapping_factor", "adapter_assist_type", "max_negative_prompts"),
        ],
        unused("only a switch beside it reads it"),
    ),
    **dict.fromkeys(
        [
            *(
                "noise_multiplier",
                "target_noise_multiplier",
                "img_multiplier",
                "noisy_latent_multiplier",
                "pred_scaler",
            ),
            *("latent_multiplier", "optimal_noise_pairing_samples"),
        ],
        unless_off(_OWN_NOISE, 1, 1.0),
    ),
    **dict.fromkeys(
        [
            *(
                "random_noise_multiplier",
                "do_signal_correction_noise",
                "do_batch_noise_correction",
                "random_noise_shift",
            ),
            *("do_signal_amplification", "match_noise_norm", "dynamic_noise_offset", "force_consistent_noise"),
            *("blended_blur_noise",),
        ],
        unless_off(_OWN_NOISE),
    ),
    **dict.fromkeys(
        ["batch_noise_correction_scale", "signal_amplification_strength", "signal_correction_noise_scale"],
        unused("only a switch beside it reads it"),
    ),
    "loss_target": unless_off(_OTHER_LOSS, "noise"),
}
MODEL: dict[str, Rule] = {
    "name_or_path": take_base,
    "arch": _architecture,
    "is_v_pred": _prediction,
    "is_xl": unused("the family is read from the model's own files"),
    **dict.fromkeys(
        [
            *(
                "is_v2",
                "is_v3",
                "is_pixart",
                "is_pixart_sigma",
                "is_auraflow",
                "is_flux",
                "is_lumina2",
                "is_ssd",
                "is_vega",
            ),
            *("refiner_name_or_path", "assistant_lora_path", "inference_lora_path", "unconditional_lora_path"),
        ],
        unless_off(OTHER_FAMILY),
    ),
    "lora_path": later,
    **dict.fromkeys(["vae_path", "unet_path", "te_name_or_path"], unless_off("all parts come from the base model")),
    **dict.fromkeys(["quantize", "quantize_te"], unless_off(BASE_PRECISION)),
    **dict.fromkeys(["qtype", "qtype_te", "quantize_kwargs", "text_encoder_bits"], unused(BASE_PRECISION)),
    "accuracy_recovery_adapter": unused(BASE_PRECISION),
    "layer_offloading": switched("memory.offload", "blocks"),
    **dict.fromkeys(["low_vram", "auto_memory"], unused("what does not fit is found out by itself")),
    "layer_offloading_transformer_percent": unused("only layer_offloading reads it"),
    "layer_offloading_text_encoder_percent": unused("only layer_offloading reads it"),
    "dtype": unused("the base computes in train.dtype"),
    **dict.fromkeys(["vae_dtype", "te_dtype", "vae_device", "te_device"], unused("is chosen by what the part needs")),
    "only_if_contains": layer_names,
    "ignore_if_contains": layer_names,
    **dict.fromkeys(["split_model_over_gpus", "split_model_other_module_param_count_scale"], unused(ONE_GPU)),
    **dict.fromkeys(
        ["compile", "block_compile", "compile_mode", "compile_fullgraph", "compile_dynamic", "cache_size_limit"],
        unused("compiling changes no result"),
    ),
    **dict.fromkeys(
        ["use_text_encoder_1", "use_text_encoder_2"], unless_off("a model is read with all its text encoders", True)
    ),
    **dict.fromkeys(
        [
            *("refiner_start_at", "use_flux_cfg", "latent_space_version", "experimental_xl", "unet_sample_size"),
            *("attn_masking", "extras_name_or_path", "model_kwargs", "model_paths", "in_context"),
        ],
        unused(OTHER_FAMILY),
    ),
}
SAMPLE: dict[str, Rule] = {
    **dict.fromkeys(["prompts", "samples", "sample_every"], later),
    "width": whole("sample.width"),
    "height": whole("sample.height"),
    "neg": text("sample.negative_prompt"),
    "seed": whole("sample.seed"),
    "guidance_scale": number("sample.guidance_scale"),
    "sample_steps": whole("sample.num_inference_steps"),
    "walk_seed": unused("each prompt has a seed of its own, counting up"),
    "sampler": unused("samples are drawn with DPM-Solver++, for every model"),
    "sample_start_step": unless_off("samples are drawn from the start"),
    "network_multiplier": unless_off("samples are drawn with the LoRA at its full strength", 1, 1.0),
    "guidance_rescale": unless_off("guidance is not rescaled"),
    **dict.fromkeys(
        [
            *("format", "num_frames", "fps", "extra_values", "adapter_conditioning_scale", "refiner_start_at"),
            "do_cfg_norm",
        ],
        unused(OTHER_FAMILY),
    ),
}
OTHERS: dict[str, Rule] = {
    **{f"logging.{name}": unused(OWN_LOG) for name in ("log_every", "verbose", "use_wandb", "use_ui_logger")},
    **{f"logging.{name}": unused(OWN_LOG) for name in ("project_name", "run_name")},
    **{f"embedding.{name}": later for name in ("trigger", "tokens", "init_words", "save_format", "trigger_class_name")},
}
TABLE: dict[str, Rule] = {
    **PROCESS,
    **{f"network.{name}": rule for name, rule in NETWORK.items()},
    **{f"save.{name}": rule for name, rule in SAVE.items()},
    **{f"train.{name}": rule for name, rule in TRAIN.items()},
    **{f"model.{name}": rule for name, rule in MODEL.items()},
    **{f"sample.{name}": rule for name, rule in SAMPLE.items()},
    **OTHERS,
}
FINISHES: tuple[Finish, ...] = (
    network, datasets, rates, schedule, accumulation, length, samples, validation, trained_embedding,
)  # fmt: skip


def is_ai_toolkit(values: Mapping[str, Any]) -> bool:
    """Whether an object is a job of ai-toolkit."""
    config = values.get("config")
    return isinstance(config, dict) and "process" in config


def import_ai_toolkit(values: Mapping[str, Any], around: Surroundings, base: Mapping[str, Any]) -> Imported:
    """Takes the first process of a job. Raises RefusedConfig for a job without one."""
    config = values["config"]
    processes = config.get("process")
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise RefusedConfig("The job has no process with settings. Is it whole?")
    given: dict[str, Any] = {key: value for key, value in values.items() if key != "config"}
    given |= {key: value for key, value in config.items() if key != "process"}
    for key, value in processes[0].items():
        if key in GROUPS and isinstance(value, dict):
            given |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            given[key] = value
    taking = Taking(PROGRAM, given, around, base)
    for number_ in range(1, len(processes)):
        taking.part(f"process {number_ + 1}", "")
        taking.refuse(f"process {number_ + 1}", "one training is one run: import it from a file of its own")
    go_through(taking, TABLE, FINISHES)
    return taking.result()
