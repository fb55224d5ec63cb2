"""Writes a run as files for sd-scripts: options, datasets and prompts, and a list of what they cannot say.

The list is made by reading the files back: whatever comes back different is on it, with the reason where one is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import tomlkit

from security.redaction import refuse_secrets
from trainer.config.foreign.report import shown
from trainer.config.foreign.sd_scripts import import_sd_scripts
from trainer.config.foreign.taking import Surroundings, flat
from trainer.config.schema import BaseFormat, Checkpointing, TrainConfig, weighted_dataset

OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw_8bit": "AdamW8bit",
    "prodigy": "Prodigy",
    "prodigy_plus_schedule_free": "prodigyplus.ProdigyPlusScheduleFree",
    "adafactor": "AdaFactor",
    "came": "pytorch_optimizer.CAME",
    "lion": "Lion",
    "muon": "torch.optim.Muon",
    "schedule_free_adamw": "AdamWScheduleFree",
    "radam": "RAdam",
}
"""Our optimizer -> the class that sd-scripts loads for it."""
LYCORIS = {"dora": "locon", "loha": "loha", "lokr": "lokr", "oft": "diag-oft", "boft": "boft"}
"""Adapters for which sd-scripts needs LyCORIS -> its algorithm."""
LYCORIS_PRESETS = {"attention": "attn-only", "attention+ff+proj": "attn-mlp", "all": "full"}
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_PATTERNS = "sd-scripts chooses layers by its own names, not by patterns"
_OWN = "sd-scripts has nothing like it"
REASONS: dict[str, str] = {
    "model.prediction_type": "sd-scripts has no `auto`: without --v_parameterization it takes the base for an epsilon one",
    "model.zero_terminal_snr": "sd-scripts has no `auto`: without --zero_terminal_snr the schedule stays as it is",
    "dataset.max_aspect_ratio": "sd-scripts limits the sides of buckets, in whole pixels",
    "dataset.min_bucket_pictures": _OWN,
    "dataset.trigger_word": "sd-scripts puts no word into captions; write it into them before",
    "dataset.random_crops": "sd-scripts crops anew at every step, and then can't cache encoded pictures",
    "dataset.cache_latents": "sd-scripts can't cache encoded pictures that are cropped anew at every step",
    "lora.targets": "sd-scripts' own LoRA always covers attention, feed-forward and projections",
    "lora.conv_rank": "sd-scripts writes it out where ours is 0 for the rank of the other layers",
    "lora.conv_alpha": "sd-scripts writes it out where ours is 0 for the alpha of the other layers",
    "lora.rs_lora": "sd-scripts' own LoRA has no such scale; set alpha to alpha x sqrt(rank) there",
    "lora.init": _OWN,
    "lora.target_patterns": _PATTERNS,
    "lora.exclude_patterns": _PATTERNS,
    "lora.block_ranks": _PATTERNS,
    "lora.block_learning_rates": _PATTERNS,
    "lora.text_encoder_stop_step": _OWN,
    "optimizer.schedule": "sd-scripts knows no REX; choose another schedule there",
    "optimizer.min_learning_rate_ratio": "only sd-scripts' cosine has a floor",
    "optimizer.epsilon": "this optimizer of sd-scripts has none, or two",
    "training.device": "accelerate chooses the GPU",
    "training.spike_factor": _OWN,
    "training.skip_spikes": _OWN,
    "memory.base_format": "sd-scripts keeps the base of these models whole or in fp8",
    "memory.checkpointing": "sd-scripts computes all blocks twice, or none",
    "memory.offload": "sd-scripts moves nothing of these models out of the GPU",
    "loss.unmasked_weight": "sd-scripts learns nothing where a mask is black",
    "noise.timestep_law": "sd-scripts draws the timesteps of these models evenly",
    "noise.timestep_mean": "sd-scripts draws the timesteps of these models evenly",
    "noise.timestep_scale": "sd-scripts draws the timesteps of these models evenly",
    "validation.folder": "sd-scripts holds out a share of the training pictures only",
    "save.key_format": "sd-scripts writes kohya's names",
    "save.keep_last": "sd-scripts keeps states by steps: save_last_n_steps_state",
    "save.save_captions": "sd-scripts always writes the tags' counts, unless --no_metadata",
}
"""Why a setting of ours does not come back as it was; others simply have nothing like them there."""


@dataclass(frozen=True)
class Lost:
    """A setting that the files cannot say: what it is here, what they make of it, and why."""

    setting: str
    value: str
    becomes: str
    reason: str

    def line(self) -> str:
        """In one line."""
        return f"{self.setting} = {self.value} becomes {self.becomes}: {self.reason}"


@dataclass(frozen=True)
class Exported:
    """Files by name, the first of them the one to train with, and what they cannot say."""

    files: dict[str, str]
    lost: tuple[Lost, ...]
    command: str
    notes: tuple[str, ...] = ()


def export_sd_scripts(
    config: TrainConfig, paths: Mapping[str, str] | None = None, *, is_sdxl: bool = False
) -> Exported:
    """The run for sd-scripts. `paths`: names of models and datasets in the library -> where they lie.

    Raises RefusedConfig if a text of the run holds a token.
    """
    where = dict(paths or {})
    options, dataset = _options(config, where), _dataset(config, where)
    prompts = _prompts(config)
    names = (f"{config.name}.toml", f"{config.name}_dataset.toml", f"{config.name}_prompts.txt")
    options["dataset_config"] = names[1]
    known = {**options, **({"sample_prompts": prompts} if prompts else {})}
    if prompts:
        options["sample_prompts"] = names[2]
    files = {names[0]: tomlkit.dumps(options), names[1]: tomlkit.dumps(dataset)}
    if prompts:
        files[names[2]] = prompts
    for text in files.values():
        refuse_secrets(text, f"The settings of {config.name}")
    script = "sdxl_train_network.py" if is_sdxl else "train_network.py"
    lost = tuple(_lost(config, known, dataset, where))
    return Exported(files, lost, f"accelerate launch {script} --config_file {names[0]}", tuple(_notes(config, where)))


def _notes(config: TrainConfig, where: Mapping[str, str]) -> list[str]:
    """What holds for the whole of the files, and whoever trains with them should know."""
    notes = []
    if config.model.prediction_type.value != "v_prediction":
        notes.append(
            "sd-scripts takes the base for one that predicts noise; for a v-prediction base add v_parameterization."
        )
    unknown = [name for name in (config.model.base, config.dataset.folder) if name not in where and "/" not in name]
    if unknown:
        notes.append(f"{' and '.join(unknown)} must be replaced by where the files lie on that machine.")
    if config.loss.use_masks:
        notes.append("Masks of a dataset are not handed over; sd-scripts takes them from the pictures' alpha channel.")
    return notes


def _lost(
    config: TrainConfig, options: Mapping[str, Any], dataset: Mapping[str, Any], where: Mapping[str, str]
) -> list[Lost]:
    """Everything that comes back different when the files are read again."""
    named = {path.lower(): name for name, path in where.items()}
    back = flat(import_sd_scripts(options, dataset, Surroundings(models=named), flat(TrainConfig())).config)
    ours = flat(config)
    names = {path: name for name, path in where.items()}
    for key in ("dataset.folder", "dataset.more", "dataset.regularisation", "lora.continue_from"):
        back[key] = _by_name(back[key], names)
    return [
        Lost(name, shown(name, ours[name]), shown(name, back[name]), REASONS.get(name, _OWN))
        for name in ours
        if ours[name] != back[name]
    ]


def _by_name(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_by_name(line, names) for line in value]
    weight, space, path = str(value).partition(" ")
    return names.get(value) or (f"{weight} {names[path]}" if space and path in names else value)


def _options(config: TrainConfig, where: Mapping[str, str]) -> dict[str, Any]:
    """The options of the command line. TOML keeps their order."""
    model, training, loss, save = config.model, config.training, config.loss, config.save
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": where.get(model.base, model.base),
        "output_name": config.name,
        "output_dir": "output",
        "save_model_as": "safetensors",
        "save_precision": {"fp32": "float"}.get(save.precision.value, save.precision.value),
        "max_train_steps": training.max_train_steps,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "clip_skip": model.clip_skip,
        "sdpa": True,
        "cache_latents": config.dataset.cache_latents and not config.dataset.random_crops,
        "prior_loss_weight": loss.prior_loss_weight,
        "loss_type": loss.type.value,
    }
    if model.precision.value in PRECISIONS:
        options["mixed_precision"] = PRECISIONS[model.precision.value]
    if model.prediction_type.value == "v_prediction":
        options["v_parameterization"] = True
    if model.zero_terminal_snr.value == "on":
        options["zero_terminal_snr"] = True
    if config.dataset.max_token_length > 75:
        options["max_token_length"] = config.dataset.max_token_length
    if options["cache_latents"]:
        options["cache_latents_to_disk"] = True
    if config.memory.checkpointing is not Checkpointing.AUTO:
        options["gradient_checkpointing"] = config.memory.checkpointing is not Checkpointing.OFF
    if config.memory.base_format is BaseFormat.FP8:
        options["fp8_base"] = True
    if not loss.use_masks:
        options["masked_loss"] = False
    if loss.type.value in ("huber", "smooth_l1"):
        options |= {"huber_c": loss.huber_delta, "huber_schedule": loss.huber_schedule.value}
    return {**options, **_when_set(config), **_every(config), **_network(config, where), **_optimizer(config)}


def _when_set(config: TrainConfig) -> dict[str, Any]:
    """Options that are only written when they are on."""
    noise, loss = config.noise, config.loss
    pairs: dict[str, tuple[Any, Any]] = {
        "min_snr_gamma": (loss.min_snr_gamma, 0.0),
        "debiased_estimation_loss": (loss.debiased_estimation, False),
        "noise_offset": (noise.offset, 0.0),
        "noise_offset_random_strength": (noise.offset_random_strength, False),
        "adaptive_noise_scale": (noise.adaptive_offset, 0.0),
        "multires_noise_iterations": (noise.pyramid_iterations, 0),
        "multires_noise_discount": (noise.pyramid_discount, 0.3),
        "ip_noise_gamma": (noise.input_perturbation, 0.0),
        "min_timestep": (noise.min_timestep, 0),
        "max_timestep": (noise.max_timestep, 1000),
        "validation_split": (config.validation.split, 0.0),
        "scale_weight_norms": (config.training.max_weight_norm, 0.0),
    }
    return {key: value for key, (value, off) in pairs.items() if value != off}


def _every(config: TrainConfig) -> dict[str, Any]:
    """What is done every so many steps."""
    save, result = config.save, {}
    if save.every_n_steps:
        result = {"save_every_n_steps": save.every_n_steps, "save_state": True}
        if save.keep_last_loras:
            result["save_last_n_steps"] = save.keep_last_loras * save.every_n_steps
    if config.sample.every_n_steps:
        result["sample_every_n_steps"] = config.sample.every_n_steps
    if config.validation.every_n_steps:
        result["validate_every_n_steps"] = config.validation.every_n_steps
    return result


def _network(config: TrainConfig, where: Mapping[str, str]) -> dict[str, Any]:
    lora = config.lora
    adapter, preset = lora.adapter.value, LYCORIS_PRESETS.get(lora.targets.value, "attn-mlp")
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {"network_module": "networks.lora"}
    if adapter in LYCORIS:
        options["network_module"] = "lycoris.kohya"
        arguments = {"algo": LYCORIS[adapter], "preset": preset, "rs_lora": lora.rs_lora or None}
        arguments["dora_wd"] = True if adapter == "dora" else None
        arguments["factor"] = lora.lokr_factor if adapter == "lokr" else None
        arguments["block_size"] = lora.block_size if adapter in ("oft", "boft") else None
        if lora.conv_rank and preset == "attn-mlp":
            arguments["preset"] = "full"
    if lora.conv_rank or adapter == "locon":
        arguments["conv_dim"] = lora.conv_rank or lora.rank
        arguments["conv_alpha"] = lora.conv_alpha or lora.alpha
    arguments |= {"rank_dropout": lora.rank_dropout or None, "module_dropout": lora.module_dropout or None}
    if config.optimizer.lora_plus_ratio != 1.0:
        arguments["loraplus_lr_ratio"] = config.optimizer.lora_plus_ratio
    options |= {"network_dim": lora.rank, "network_alpha": lora.alpha}
    if lora.dropout:
        options["network_dropout"] = lora.dropout
    if any(value is not None for value in arguments.values()):
        options["network_args"] = [f"{key}={value}" for key, value in arguments.items() if value is not None]
    if lora.continue_from:
        options["network_weights"] = where.get(lora.continue_from, lora.continue_from)
    if lora.merge_first:
        pairs = [line.partition(" ") for line in lora.merge_first]
        options["base_weights"] = [name.strip() for _, _, name in pairs]
        options["base_weights_multiplier"] = [float(weight) for weight, _, _ in pairs]
    options["network_train_unet_only"] = not lora.train_text_encoder
    if not lora.train_denoiser:
        options["network_train_text_encoder_only"] = True
    return options


def _optimizer(config: TrainConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    name, schedule = optimizer.name.value, optimizer.schedule.value
    betas = [optimizer.beta1, optimizer.beta2, *([optimizer.beta3] if name == "came" else [])]
    arguments = [f"weight_decay={optimizer.weight_decay}"]
    if name not in ("adafactor", "muon"):
        arguments.append(f"betas={','.join(str(beta) for beta in betas)}")
    if name in ("adamw", "adamw_8bit", "radam", "schedule_free_adamw"):
        arguments.append(f"eps={optimizer.epsilon}")
    if name.startswith("prodigy"):
        arguments.append(f"d_coef={optimizer.d_coefficient}")
    if schedule == "rex":
        schedule = "constant"
    if schedule == "constant" and optimizer.warmup_steps:
        schedule = "constant_with_warmup"
    options = {
        "optimizer_type": OPTIMIZERS[name],
        "optimizer_args": arguments,
        "unet_lr": optimizer.learning_rate,
        "text_encoder_lr": optimizer.text_encoder_learning_rate,
        "lr_warmup_steps": optimizer.warmup_steps,
        "lr_scheduler_num_cycles": optimizer.num_cycles,
        "lr_scheduler_power": optimizer.power,
    }
    if schedule == "cosine" and optimizer.min_learning_rate_ratio:
        schedule = "cosine_with_min_lr"
        options["lr_scheduler_min_lr_ratio"] = optimizer.min_learning_rate_ratio
    return {**options, "lr_scheduler": schedule}


def _dataset(config: TrainConfig, where: Mapping[str, str]) -> dict[str, Any]:
    """Folders with their repeats; another size of all of them is another dataset."""
    dataset = config.dataset
    general: dict[str, Any] = {
        "caption_extension": dataset.caption_extension,
        "shuffle_caption": dataset.shuffle_tags,
        "keep_tokens": dataset.keep_tokens,
        "caption_dropout_rate": dataset.caption_dropout_rate,
        "caption_tag_dropout_rate": dataset.tag_dropout_rate,
        "flip_aug": dataset.flip_augmentation,
        "random_crop": dataset.random_crops > 0,
        "enable_wildcard": dataset.wildcards,
    }
    texts = {
        "keep_tokens_separator": dataset.keep_tokens_separator,
        "caption_prefix": dataset.caption_prefix,
        "caption_suffix": dataset.caption_suffix,
    }
    general |= {key: text for key, text in texts.items() if text}
    more = [weighted_dataset(line) for line in dataset.more]
    common = math.lcm(*((weight * dataset.repeats).denominator for weight, _ in more), 1)
    weights = [(Fraction(1), dataset.folder), *more]
    subsets = [
        {"image_dir": where.get(name, name), "num_repeats": int(weight * dataset.repeats * common)}
        for weight, name in weights
    ]
    subsets += [{"image_dir": where.get(name, name), "is_reg": True} for name in dataset.regularisation]
    sizes = [dataset.resolution, *(int(side) for side in dataset.more_resolutions)]
    return {"general": general, "datasets": [_size(config, side, subsets) for side in sizes]}


def _size(config: TrainConfig, side: int, subsets: list[dict[str, Any]]) -> dict[str, Any]:
    root = math.sqrt(config.dataset.max_aspect_ratio)
    return {
        "resolution": side,
        "batch_size": config.training.batch_size,
        "enable_bucket": config.dataset.aspect_buckets,
        "min_bucket_reso": round(side / root),
        "max_bucket_reso": round(side * root),
        "subsets": subsets,
    }


def _prompts(config: TrainConfig) -> str:
    """A prompt file: each line with the size, steps, guidance and seed of the samples."""
    sample = config.sample
    negative = f" --n {' '.join(sample.negative_prompt.split())}" if sample.negative_prompt else ""
    rest = f"--w {sample.width} --h {sample.height} --s {sample.num_inference_steps} --l {sample.guidance_scale}"
    return "".join(
        f"{' '.join(prompt.split())} {rest} --d {sample.seed + number}{negative}\n"
        for number, prompt in enumerate(sample.prompts)
    )
