"""Settings that do nothing in this combination: harmless, but whoever set them should know.

What can't be run at all is refused in combinations.py instead. A new row needs nothing else: the page, the command line
and the tests run over the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.adapters.table import ADAPTERS, listens
from trainer.config.choices import AdapterName, BaseFormat, LoraTargets, LossType, ScheduleName, TimestepLaw
from trainer.families import family_row
from trainer.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig


@dataclass(frozen=True)
class InactiveRow:
    """`settings` (`section.field`) do nothing where `applies`, which gets the config and the model family.

    The family is None where it is not known yet. `reason` is one sentence with the way to make them count.
    """

    settings: tuple[str, ...]
    applies: Callable[[TrainConfig, str | None], bool]
    reason: str


ROWS: tuple[InactiveRow, ...] = (
    InactiveRow(
        ("model.clip_skip",),
        lambda config, family: family is not None and not family_row(family).has_clip_skip,
        "Does nothing with this model, which always reads the same layer of its text encoders.",
    ),
    InactiveRow(
        ("dataset.max_aspect_ratio", "dataset.min_bucket_pictures"),
        lambda config, family: not config.dataset.aspect_buckets,
        "Does nothing while dataset.aspect_buckets is off, since all pictures are cut to one square.",
    ),
    InactiveRow(
        ("dataset.shuffle_tags", "dataset.keep_tokens", "dataset.tag_dropout_rate"),
        lambda config, family: config.dataset.caption_dropout_rate == 1.0,
        "Does nothing while dataset.caption_dropout_rate is 1, since no caption is ever shown.",
    ),
    InactiveRow(
        tuple(f"embedding.{field}" for field in ("num_vectors", "init_words", "learning_rate", "stop_step")),
        lambda config, family: not config.embedding.word,
        "Does nothing without a word to learn in embedding.word.",
    ),
    InactiveRow(
        ("speed.fused_lora", "speed.packed_weights"),
        lambda config, family: config.lora.adapter not in (AdapterName.LORA, AdapterName.LOCON),
        "Does nothing with this adapter, which computes with the base's weights in one way only.",
    ),
    InactiveRow(
        ("speed.fused_optimizer",),
        lambda config, family: not OPTIMIZERS[config.optimizer.name].fused,
        "Does nothing with this optimizer, which moves the weights in one way only.",
    ),
    InactiveRow(
        ("speed.late_metrics",),
        lambda config, family: (
            not (OPTIMIZERS[config.optimizer.name].fused and config.speed.fused_optimizer)
            or config.training.skip_spikes
            or config.training.max_weight_norm > 0
            or config.training.num_processes > 1
        ),
        "Does nothing without AdamW in one operation, with training.skip_spikes, training.max_weight_norm or several processes: "
        "they ask what a step came to before the next one.",
    ),
    InactiveRow(
        ("speed.compile",),
        lambda config, family: (
            config.training.num_processes > 1
            or config.memory.base_format is not BaseFormat.WHOLE
            or config.lora.dropout + config.lora.rank_dropout + config.lora.module_dropout > 0
        ),
        "Does nothing with several processes, with memory.base_format, or with one of the LoRA's kinds of dropout, which would "
        "draw other numbers.",
    ),
    InactiveRow(
        ("speed.channels_last",),
        lambda config, family: config.training.shard_base,
        "Does nothing with training.shard_base, which cuts the weights into parts as they lie.",
    ),
    InactiveRow(
        ("speed.mapped_latents",),
        lambda config, family: not config.dataset.cache_latents,
        "Does nothing while dataset.cache_latents is off: there is no file to read from, so they are held in memory.",
    ),
    InactiveRow(
        ("embedding.stop_step",),
        lambda config, family: config.embedding.stop_step >= config.training.max_train_steps,
        "Does nothing, since the run ends before: set it below training.max_train_steps.",
    ),
    InactiveRow(
        ("optimizer.text_encoder_learning_rate",),
        lambda config, family: not config.lora.train_text_encoder,
        "Does nothing while lora.train_text_encoder is off.",
    ),
    *(
        InactiveRow(
            (f"optimizer.{field}",),
            lambda config, family, field=field: field not in OPTIMIZERS[config.optimizer.name].uses,  # type: ignore[misc]
            "Does nothing with the optimizer in optimizer.name, which has no such number.",
        )
        for field in ("beta1", "beta2", "beta3", "epsilon", "d_coefficient")
    ),
    InactiveRow(
        ("memory.offload",),
        lambda config, family: config.training.device in ("cpu", "mps"),
        "Does nothing without a GPU that has a memory of its own: there is no other place to move anything to.",
    ),
    InactiveRow(
        ("training.shard_base",),
        lambda config, family: config.training.num_processes == 1,
        "Does nothing with one process, which has nobody to share the base with: see training.num_processes.",
    ),
    InactiveRow(
        ("training.skip_spikes",),
        lambda config, family: config.training.spike_factor == 0,
        "Does nothing while training.spike_factor is 0, which calls no step a spike.",
    ),
    InactiveRow(
        ("save.keep_last_loras",),
        lambda config, family: config.save.every_n_steps == 0,
        "Does nothing while save.every_n_steps is 0, since no LoRA files of single steps are written.",
    ),
    InactiveRow(
        ("optimizer.min_learning_rate_ratio",),
        lambda config, family: config.optimizer.schedule is ScheduleName.CONSTANT,
        "Does nothing on the constant schedule, which never falls: choose another optimizer.schedule.",
    ),
    InactiveRow(
        ("optimizer.num_cycles",),
        lambda config, family: config.optimizer.schedule is not ScheduleName.COSINE_WITH_RESTARTS,
        "Does nothing unless optimizer.schedule is cosine_with_restarts.",
    ),
    InactiveRow(
        ("optimizer.power",),
        lambda config, family: config.optimizer.schedule is not ScheduleName.POLYNOMIAL,
        "Does nothing unless optimizer.schedule is polynomial.",
    ),
    InactiveRow(
        ("training.max_weight_norm",),
        lambda config, family: config.lora.adapter in (AdapterName.DORA, AdapterName.OFT, AdapterName.BOFT),
        "Does nothing with the adapter in lora.adapter: a rotation has no length, and DoRA learns the lengths itself.",
    ),
    InactiveRow(
        ("loss.huber_delta", "loss.huber_schedule"),
        lambda config, family: config.loss.type not in (LossType.HUBER, LossType.SMOOTH_L1),
        "Does nothing unless loss.type is huber or smooth_l1.",
    ),
    InactiveRow(
        ("loss.huber_schedule",),
        lambda config, family: config.loss.huber_delta == 1.0,
        "Does nothing while loss.huber_delta is 1, which leaves no room to grow.",
    ),
    InactiveRow(
        ("noise.offset_random_strength",),
        lambda config, family: config.noise.offset == 0,
        "Does nothing while noise.offset is 0.",
    ),
    InactiveRow(
        ("noise.adaptive_offset",),
        lambda config, family: config.noise.offset == 0 and config.noise.adaptive_offset < 0,
        "Does nothing while noise.offset is 0, as there is nothing to take away from.",
    ),
    InactiveRow(
        ("noise.pyramid_discount",),
        lambda config, family: config.noise.pyramid_iterations == 0,
        "Does nothing while noise.pyramid_iterations is 0.",
    ),
    InactiveRow(
        ("noise.timestep_mean",),
        lambda config, family: config.noise.timestep_law is not TimestepLaw.LOGIT_NORMAL,
        "Does nothing unless noise.timestep_law is logit_normal.",
    ),
    InactiveRow(
        ("noise.timestep_scale",),
        lambda config, family: config.noise.timestep_law is TimestepLaw.UNIFORM,
        "Does nothing while noise.timestep_law is uniform.",
    ),
    *(
        InactiveRow(
            (f"lora.{field}" if field != "lora_plus_ratio" else "optimizer.lora_plus_ratio",),
            lambda config, family, field=field: not listens(config.lora.adapter, field),  # type: ignore[misc]
            f"Does nothing with this lora.adapter: {' or '.join(name.value for name in ADAPTERS if listens(name, field))} "
            "would use it.",
        )
        for field in sorted(set().union(*(row.listens_to for row in ADAPTERS.values())))
    ),
    InactiveRow(
        ("lora.conv_alpha",),
        lambda config, family: (
            config.lora.conv_rank == 0
            and not ADAPTERS[config.lora.adapter].takes_convolutions
            and config.lora.targets is not LoraTargets.ALL
            and not config.lora.target_patterns
        ),
        "Does nothing while no convolution is trained: set lora.conv_rank, lora.targets or lora.adapter.",
    ),
    InactiveRow(
        ("lora.targets", "lora.conv_rank"),
        lambda config, family: not config.lora.train_denoiser,
        "Does nothing while lora.train_denoiser is off.",
    ),
    InactiveRow(
        ("lora.targets",),
        lambda config, family: bool(config.lora.target_patterns),
        "Does nothing while lora.target_patterns chooses the layers.",
    ),
    InactiveRow(
        ("optimizer.learning_rate", "lora.target_patterns"),
        lambda config, family: not config.lora.train_denoiser,
        "Does nothing while lora.train_denoiser is off.",
    ),
    InactiveRow(
        ("lora.text_encoder_stop_step",),
        lambda config, family: not config.lora.train_text_encoder,
        "Does nothing while lora.train_text_encoder is off.",
    ),
    InactiveRow(
        ("lora.text_encoder_stop_step",),
        lambda config, family: config.lora.text_encoder_stop_step >= config.training.max_train_steps,
        "Does nothing, since the run ends before: set it below training.max_train_steps.",
    ),
    InactiveRow(
        ("loss.unmasked_weight",),
        lambda config, family: not config.loss.use_masks,
        "Does nothing while loss.use_masks is off.",
    ),
    InactiveRow(
        ("loss.prior_loss_weight",),
        lambda config, family: not config.dataset.regularisation,
        "Does nothing without pictures in dataset.regularisation.",
    ),
    InactiveRow(
        # Not width and height: a model's recipe sets them, so nobody has to be told.
        ("sample.negative_prompt", "sample.num_inference_steps", "sample.guidance_scale", "sample.seed"),
        lambda config, family: not config.sample.prompts,
        "Does nothing without sample.prompts.",
    ),
    InactiveRow(
        ("sample.negative_prompt",),
        lambda config, family: config.sample.guidance_scale == 1.0,
        "Does nothing while sample.guidance_scale is 1, which draws without a negative prompt.",
    ),
    InactiveRow(
        (
            "validation.num_timesteps",
            "validation.train_pictures",
            "validation.keep_best",
            "validation.early_stop_delta",
        ),
        lambda config, family: not (config.validation.folder or config.validation.split),
        "Does nothing without held-out pictures: set validation.split or validation.folder.",
    ),
    InactiveRow(
        ("validation.early_stop_delta",),
        lambda config, family: config.validation.early_stop_patience == 0,
        "Does nothing while validation.early_stop_patience is 0.",
    ),
)


def inactive_settings(config: TrainConfig, *, family: str | None = None) -> dict[str, str]:
    """Settings that differ from their default but do nothing here, each with one sentence why."""
    found: dict[str, str] = {}
    for row in ROWS:
        if row.applies(config, family):
            for name in row.settings:
                if _value(config, name) != _default(config, name):
                    found.setdefault(name, row.reason)
    return found


def inactive_warning(config: TrainConfig, family: str) -> str:
    """All of them in a text for the start of a run, a line each; empty when there are none."""
    found = inactive_settings(config, family=family)
    return "\n".join(f"{name} is {_value(config, name)}. {reason}" for name, reason in found.items())


def _value(config: TrainConfig, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def _default(config: TrainConfig, name: str) -> Any:
    section, field = name.split(".")
    return type(getattr(config, section)).model_fields[field].default
