"""What a LoRA file says about itself: kohya's `ss_*` entries and the modelspec standard. Imports no torch.

Other programs read these to know the base model, the rank and the resolution. Only what is true and known is written;
captions only if the user wants it, and no path of the machine ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from security.redaction import refuse_secrets
from trainer.adapters.table import ADAPTERS, listens
from trainer.config.schema import AdapterInit, AdapterName, KeyFormat, LoraConfig, LossType, TrainConfig
from trainer.config.sections import weighted_lora
from trainer.families import family_row

_NETWORK_MODULES = {AdapterName.LORA: "networks.lora", AdapterName.LOCON: "networks.lora"}
"""Adapters that kohya's own trainer makes; LyCORIS makes the others."""
_ALGORITHMS = {
    AdapterName.DORA: "locon",
    AdapterName.LOHA: "loha",
    AdapterName.LOKR: "lokr",
    AdapterName.OFT: "diag-oft",
    AdapterName.BOFT: "boft",
}
"""Adapters as LyCORIS calls them."""
_PREDICTION_NAMES = {"epsilon": "epsilon", "v_prediction": "v"}
"""Prediction types in the words of modelspec."""
IMPLEMENTATIONS = {
    KeyFormat.KOHYA: "https://github.com/Stability-AI/generative-models",
    KeyFormat.DIFFUSERS: "diffusers",
}
"""Whose module names the keys follow, as modelspec wants it told."""


@dataclass(frozen=True)
class HeldOutFacts:
    """What was measured on pictures that are not trained: how many, the loss of this step (None: not measured) and the
    best step so far with its loss (None: no step was)."""

    num_pictures: int
    loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None


@dataclass(frozen=True)
class ExportFacts:
    """What only the run knows. `base_name` is the model's name without its path; times in seconds since the epoch.

    `base_fingerprint` is the base's content hash. `tag_frequency` counts captions' tags by dataset; None leaves them out.
    `mixed_precision`: the base's format as kohya calls it, "no", "fp16" or "bf16". `num_train_images` and
    `num_reg_images` are samples of an epoch; `masked`: whether any picture had a mask; `dataset_sha256`: the hash of
    the run's dataset.json.
    """

    family: str
    base_name: str
    base_fingerprint: str
    prediction_type: str
    zero_terminal_snr: bool
    num_train_images: int
    step: int
    started_at: float
    finished_at: float
    mixed_precision: str = "no"
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    num_reg_images: int = 0
    trigger_words: tuple[str, ...] = ()
    masked: bool = False
    dataset_sha256: str = ""
    held_out: HeldOutFacts | None = None


def build_metadata(config: TrainConfig, facts: ExportFacts) -> dict[str, str]:
    """All entries as texts, ready for a .safetensors header. The writer adds the hash and the key names' origin."""
    return _kohya_entries(config, facts) | _modelspec_entries(config, facts)


def refuse_secret_entries(entries: Mapping[str, str], name: str) -> None:
    """Raises RefusedConfig if the entries for the file `name` hold a token: a caption or a trigger word may."""
    refuse_secrets("\n".join([*entries, *entries.values()]), f"The metadata of {name}")


def _kohya_entries(config: TrainConfig, facts: ExportFacts) -> dict[str, str]:
    """Entries of kohya's sd-scripts, in its own forms: Python's words for yes, no and none."""
    optimizer, dataset, training = config.optimizer, config.dataset, config.training
    clip_skip = config.model.clip_skip if family_row(facts.family).has_clip_skip else None
    values: dict[str, object] = {
        "ss_network_module": _NETWORK_MODULES.get(config.lora.adapter, "lycoris.kohya"),
        "ss_network_dim": config.lora.rank,
        "ss_network_alpha": config.lora.alpha,
        "ss_network_dropout": config.lora.dropout or None,
        "ss_network_args": json.dumps(_network_arguments(config), sort_keys=True),
        "safelight_merged_first": "; ".join(_merged_first(config.lora)) or None,
        "ss_base_model_version": family_row(facts.family).base_model_version,
        "ss_v2": False,
        "ss_sd_model_name": facts.base_name,
        "safelight_base_fingerprint": facts.base_fingerprint,
        "ss_output_name": config.name,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.learning_rate if config.lora.train_denoiser else None,
        "ss_text_encoder_lr": optimizer.text_encoder_learning_rate if config.lora.train_text_encoder else None,
        "ss_optimizer": optimizer.name,
        "ss_lr_scheduler": optimizer.schedule.value,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_max_train_steps": training.max_train_steps,
        "ss_steps": facts.step,
        "ss_num_train_images": facts.num_train_images,
        "ss_num_reg_images": facts.num_reg_images,
        "ss_prior_loss_weight": config.loss.prior_loss_weight if facts.num_reg_images else None,
        "ss_masked_loss": facts.masked,
        "safelight_dataset_sha256": facts.dataset_sha256 or None,
        "ss_batch_size_per_device": training.batch_size,
        "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.memory.checkpointing.value in ("attention", "blocks"),
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_scale_weight_norms": training.max_weight_norm or None,
        "ss_mixed_precision": facts.mixed_precision,
        "ss_seed": training.seed,
        "ss_resolution": (dataset.resolution, dataset.resolution),
        "ss_enable_bucket": dataset.aspect_buckets,
        "ss_max_token_length": dataset.max_token_length,
        "ss_shuffle_caption": dataset.shuffle_tags,
        "ss_keep_tokens": dataset.keep_tokens,
        "ss_keep_tokens_separator": dataset.keep_tokens_separator or None,
        "ss_caption_tag_dropout_rate": dataset.tag_dropout_rate,
        "ss_enable_wildcard": dataset.wildcards,
        "ss_caption_dropout_rate": dataset.caption_dropout_rate,
        "ss_flip_aug": dataset.flip_augmentation,
        "ss_cache_latents": dataset.cache_latents,
        "ss_clip_skip": clip_skip,
        "ss_min_snr_gamma": config.loss.min_snr_gamma or None,
        "ss_debiased_estimation": config.loss.debiased_estimation,
        **_loss_and_noise_entries(config),
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
    }
    entries = {key: str(value) for key, value in values.items()} | _held_out_entries(facts)
    if config.save.save_captions and facts.tag_frequency is not None:
        counted = {name: dict(tags) for name, tags in facts.tag_frequency.items()}
        entries["ss_tag_frequency"] = json.dumps(counted, ensure_ascii=False)
    return entries


def _held_out_entries(facts: ExportFacts) -> dict[str, str]:
    """What the held-out loss says of this file: `safelight_is_best` is whether no other step of the run is better."""
    held_out = facts.held_out
    if held_out is None:
        return {}
    values: dict[str, object] = {
        "ss_num_validation_images": held_out.num_pictures,
        "safelight_held_out_loss": held_out.loss,
        "safelight_best_step": held_out.best_step,
        "safelight_best_held_out_loss": held_out.best_loss,
        "safelight_is_best": None if held_out.best_step is None else held_out.best_step == facts.step,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _loss_and_noise_entries(config: TrainConfig) -> dict[str, object]:
    """What of the loss and the noise is not as usual, under sd-scripts' names where it has one."""
    loss, noise = config.loss, config.noise
    bordered = loss.type in (LossType.HUBER, LossType.SMOOTH_L1)
    return {
        "ss_loss_type": loss.type.value,
        "ss_huber_schedule": loss.huber_schedule.value if bordered else None,
        "ss_huber_c": loss.huber_delta if bordered else None,
        "ss_noise_offset": noise.offset or None,
        "ss_noise_offset_random_strength": noise.offset_random_strength,
        "ss_adaptive_noise_scale": noise.adaptive_offset or None,
        "ss_multires_noise_iterations": noise.pyramid_iterations or None,
        "ss_multires_noise_discount": noise.pyramid_discount if noise.pyramid_iterations else None,
        "ss_ip_noise_gamma": noise.input_perturbation or None,
        "ss_min_timestep": noise.min_timestep or None,
        "ss_max_timestep": noise.max_timestep,
        "safelight_timestep_law": noise.timestep_law.value,
    }


def _network_arguments(config: TrainConfig) -> dict[str, str]:
    """What kohya's trainer calls network arguments, under its and LyCORIS's names: only what differs from a plain LoRA."""
    lora = config.lora
    convolutions = lora.conv_rank or (lora.rank if ADAPTERS[lora.adapter].takes_convolutions else 0)
    given: dict[str, object] = {
        "algo": _ALGORITHMS.get(lora.adapter),
        "dora_wd": lora.adapter is AdapterName.DORA,
        "conv_dim": convolutions,
        "conv_alpha": convolutions and (lora.conv_alpha or lora.alpha),
        "rank_dropout": lora.rank_dropout,
        "module_dropout": lora.module_dropout,
        "rs_lora": lora.rs_lora,
        "factor": lora.lokr_factor if lora.adapter is AdapterName.LOKR else None,
        "block_size": lora.block_size if listens(lora.adapter, "block_size") else None,
        "init": lora.init.value if lora.init is not AdapterInit.DEFAULT else None,
        "loraplus_lr_ratio": config.optimizer.lora_plus_ratio if config.optimizer.lora_plus_ratio != 1 else None,
        "block_ranks": ", ".join(lora.block_ranks),
        "block_learning_rates": ", ".join(lora.block_learning_rates),
        "targets": lora.targets.value if not lora.target_patterns else ", ".join(lora.target_patterns),
        "exclude_patterns": ", ".join(lora.exclude_patterns),
    }
    return {name: str(value) for name, value in given.items() if value}


def _merged_first(lora: LoraConfig) -> list[str]:
    """Weight and name of each LoRA that is in the base; a path's folders are nobody's business."""
    return [
        f"{weight:g} {name.replace(chr(92), '/').rpartition('/')[2]}"
        for weight, name in map(weighted_lora, lora.merge_first)
    ]


def _modelspec_entries(config: TrainConfig, facts: ExportFacts) -> dict[str, str]:
    """Entries of modelspec 1.0.0 (https://github.com/Stability-AI/ModelSpec)."""
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family_row(facts.family).architecture}/lora",
        "modelspec.title": config.name,
        "modelspec.date": datetime.fromtimestamp(facts.finished_at, UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{config.dataset.resolution}x{config.dataset.resolution}",
        "modelspec.prediction_type": _PREDICTION_NAMES[facts.prediction_type],
    }
    if family_row(facts.family).has_clip_skip:
        entries["modelspec.encoder_layer"] = str(config.model.clip_skip)
    triggers = facts.trigger_words or (config.dataset.trigger_word,)
    if any(triggers):
        entries["modelspec.trigger_phrase"] = ", ".join(triggers)
    return entries
