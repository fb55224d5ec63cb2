"""Settings that make no sense together, each refused with the reason and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.adapters.patterns import pattern_faults
from trainer.adapters.table import ADAPTERS
from trainer.config.choices import AdapterInit, BaseFormat, KeyFormat, Offload, PredictionType, ScheduleName, Switch
from trainer.config.sections import MAX_RANK, block_rank, block_rate, weighted_dataset, weighted_lora
from trainer.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig


def combination_faults(config: TrainConfig) -> list[str]:
    """A sentence for each combination that can't be run."""
    groups = (
        _run_faults,
        _dataset_faults,
        _caption_faults,
        _size_faults,
        _optimizer_faults,
        _noise_faults,
        _lora_faults,
        _save_faults,
        _process_faults,
    )
    return [text for group in groups for applies, text in group(config) if applies]


def _optimizer_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    settings, name = config.optimizer, config.optimizer.name.value
    row = OPTIMIZERS[settings.name]
    block_factors = [float(line.rsplit(maxsplit=1)[1]) for line in config.lora.block_learning_rates]
    return [
        (
            not row.uses_schedule and settings.schedule is not ScheduleName.CONSTANT,
            f"optimizer.schedule is {settings.schedule.value} but optimizer.name is {name}, which averages its weights in "
            "place of a falling rate. Set optimizer.schedule to constant or choose another optimizer.",
        ),
        (
            not row.uses_schedule and config.training.max_weight_norm > 0,
            f"training.max_weight_norm is {config.training.max_weight_norm:g} but optimizer.name is {name}, which takes its "
            "steps beside the weights that would be shortened. Set it to 0 or choose another optimizer.",
        ),
        (
            config.lora.init is AdapterInit.PISSA and config.training.max_weight_norm > 0,
            f"training.max_weight_norm is {config.training.max_weight_norm:g} but lora.init is pissa, whose matrices begin as "
            "part of the model, so that shortening them would change it. Set it to 0 or choose another start.",
        ),
        (
            not row.uses_schedule and settings.beta1 == 0.0,
            f"optimizer.beta1 is 0 but {name} needs it to average its weights. Set it to 0.9.",
        ),
        (
            not row.uses_schedule and config.training.max_weight_norm > 0,
            f"training.max_weight_norm is {config.training.max_weight_norm:g}, but {name} keeps the weights in two copies, of "
            "which only one would be shortened. Set it to 0 or choose another optimizer.",
        ),
        (
            row.one_rate
            and config.lora.train_text_encoder
            and settings.text_encoder_learning_rate != settings.learning_rate,
            f"optimizer.text_encoder_learning_rate is {settings.text_encoder_learning_rate:g} and optimizer.learning_rate is "
            f"{settings.learning_rate:g}, but {name} finds one step size for everything. Set both to "
            f"{settings.learning_rate:g} or choose another optimizer.",
        ),
        (
            row.one_rate and bool(config.embedding.word) and config.embedding.learning_rate != settings.learning_rate,
            f"embedding.learning_rate is {config.embedding.learning_rate:g} and optimizer.learning_rate is "
            f"{settings.learning_rate:g}, but {name} finds one step size for everything. Set both to "
            f"{settings.learning_rate:g} or choose another optimizer.",
        ),
        (
            row.one_rate and settings.lora_plus_ratio != 1.0,
            f"optimizer.lora_plus_ratio is {settings.lora_plus_ratio:g}, but {name} finds one step size for everything. "
            "Set it to 1 or choose another optimizer.",
        ),
        (
            row.one_rate and any(factor not in (0.0, 1.0) for factor in block_factors),
            f"lora.block_learning_rates gives blocks rates of their own, but {name} finds one step size for everything: it "
            "can only freeze blocks, with 0. Choose another optimizer.",
        ),
    ]


def _process_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    training = config.training
    pictures = training.batch_size * training.gradient_accumulation_steps
    return [
        (
            pictures < training.num_processes,
            f"training.num_processes is {training.num_processes}, but a step has {pictures} "
            f"picture{'' if pictures == 1 else 's'} (training.batch_size x training.gradient_accumulation_steps) to share "
            f"among them. Set training.batch_size to {-(-training.num_processes // training.gradient_accumulation_steps)}, or "
            f"training.num_processes to {pictures}.",
        ),
        (
            training.num_processes > 1 and training.device not in ("auto", "cpu", "cuda"),
            f"training.num_processes is {training.num_processes}, but training.device is {training.device}: several processes "
            "take the first GPUs, one each. Set training.device to auto, or training.num_processes to 1.",
        ),
        (
            training.shard_base and training.max_weight_norm > 0,
            f"training.max_weight_norm is {training.max_weight_norm:g} and training.shard_base is on, but a layer's change can't "
            "be measured against a base of which each process has a part. Switch one of them off.",
        ),
        (
            training.shard_base and config.memory.base_format is not BaseFormat.WHOLE,
            f"memory.base_format is {config.memory.base_format.value} and training.shard_base is on, but only whole weights can "
            "be divided. Set memory.base_format to whole, or switch training.shard_base off.",
        ),
        (
            training.shard_base and config.memory.offload not in (Offload.AUTO, Offload.NONE),
            f"memory.offload is {config.memory.offload.value} and training.shard_base is on: parts of the base are on the GPUs, "
            "and the rest is not here. Set memory.offload to none, or switch training.shard_base off.",
        ),
        (
            training.shard_base and ADAPTERS[config.lora.adapter].needs_whole_base,
            f"lora.adapter is {config.lora.adapter.value} and training.shard_base is on, but what this adapter changes can't be "
            "told from a base of which each process has a part. Take lora, locon, loha or lokr, or no parts.",
        ),
    ]


def _save_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    adapter = config.lora.adapter
    reason = dict(ADAPTERS[adapter].not_read_by).get("diffusers", "")
    return [
        (
            config.save.key_format is KeyFormat.DIFFUSERS and bool(reason),
            f"save.key_format is diffusers but lora.adapter is {adapter.value}: {reason}. Set save.key_format to kohya, or "
            "choose another adapter.",
        ),
    ]


def _lora_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    lora, row, name = config.lora, ADAPTERS[config.lora.adapter], config.lora.adapter.value
    dropouts = [field for field in ("dropout", "rank_dropout", "module_dropout") if getattr(lora, field) > 0]
    high = [line for line in lora.block_ranks if block_rank(line)[1] > MAX_RANK]
    idle = [name for weight, name in map(weighted_lora, lora.merge_first) if weight == 0]
    uneven = [line for line in lora.block_learning_rates if block_rate(line)[1] not in (0.0, 1.0)]
    stop, total = lora.text_encoder_stop_step, config.training.max_train_steps
    optimizer, one_rate = config.optimizer.name.value, OPTIMIZERS[config.optimizer.name].one_rate
    return [
        *((True, fault) for fault in pattern_faults(lora)),
        (
            not lora.train_denoiser and not lora.train_text_encoder,
            "lora.train_denoiser and lora.train_text_encoder are both off, so nothing would be trained. Switch one of them on.",
        ),
        (
            not lora.train_denoiser and lora.train_text_encoder and 0 < stop < total,
            f"lora.text_encoder_stop_step is {stop} but lora.train_denoiser is off, so nothing would be trained after it. "
            f"Set it to 0, or training.max_train_steps to {stop}.",
        ),
        (
            lora.init not in row.inits,
            f"lora.init is {lora.init.value} but lora.adapter is {name}, which can't begin so. Set lora.init to "
            f"{' or '.join(init.value for init in row.inits)}, or lora.adapter to lora.",
        ),
        (
            lora.init is AdapterInit.PISSA and bool(dropouts),
            f"lora.init is pissa but lora.{' and lora.'.join(dropouts)} is on: pissa moves a part of the base into the "
            "adapter, and dropping it would drop that part of the base. Set it to 0, or lora.init to default.",
        ),
        (
            lora.init is AdapterInit.PISSA and bool(lora.continue_from),
            "lora.init is pissa but lora.continue_from names a LoRA to begin with. Set lora.init to default or empty "
            "lora.continue_from.",
        ),
        (
            bool(high),
            f"lora.block_ranks has the line {next(iter(high), '')!r}: a rank may be {MAX_RANK} at most. Set it lower.",
        ),
        (
            bool(idle),
            f"lora.merge_first gives {', '.join(idle)} the weight 0, so it would change nothing. Take the line out.",
        ),
        (
            one_rate and config.optimizer.lora_plus_ratio != 1,
            f"optimizer.lora_plus_ratio is {config.optimizer.lora_plus_ratio:g} but optimizer.name is {optimizer}, which "
            "finds one step size for everything. Set it to 1 or choose another optimizer.",
        ),
        (
            one_rate and bool(uneven),
            f"lora.block_learning_rates has the line {next(iter(uneven), '')!r} but optimizer.name is {optimizer}, which "
            "finds one step size for everything. Only the factor 0 goes with it: take the others out, or change the "
            "optimizer.",
        ),
    ]


def _noise_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    loss, noise = config.loss, config.noise
    return [
        (
            loss.debiased_estimation and loss.min_snr_gamma > 0,
            f"loss.debiased_estimation is on and loss.min_snr_gamma is {loss.min_snr_gamma:g}, but both say how much each "
            "timestep counts. Switch one of them off.",
        ),
        (
            noise.min_timestep >= noise.max_timestep,
            f"noise.min_timestep is {noise.min_timestep} and noise.max_timestep {noise.max_timestep}, so no timestep is left "
            "between them. Set the first one lower than the second.",
        ),
        (
            noise.pyramid_iterations == 1,
            "noise.pyramid_iterations is 1, but the first layer is as fine as the noise itself. Set it to 6, or to 0.",
        ),
        (
            noise.pyramid_iterations > 0 and (noise.offset > 0 or noise.adaptive_offset != 0),
            f"noise.pyramid_iterations is {noise.pyramid_iterations} and noise.offset or noise.adaptive_offset is set as well, "
            "but both move the brightness of the noise: the coarsest layers of the pyramid are an offset. Set one to 0.",
        ),
    ]


def _size_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    further = config.dataset.more_resolutions
    every = [config.dataset.resolution, *further]
    twice = sorted({str(one) for one in every if every.count(one) > 1})
    return [
        (
            bool(twice),
            f"dataset.more_resolutions names {', '.join(twice)} a second time, or as dataset.resolution does. "
            "Name each size once.",
        ),
    ]


def _caption_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    dataset = config.dataset
    return [
        (
            dataset.wildcards and dataset.keep_tokens_separator == "|",
            "dataset.keep_tokens_separator is | and dataset.wildcards is on, but | stands between the choices of a wildcard. "
            "Use another separator, such as |||.",
        ),
        (
            bool(dataset.keep_tokens_separator) and dataset.keep_tokens_separator in dataset.trigger_word,
            f"dataset.trigger_word is {dataset.trigger_word!r}, which holds dataset.keep_tokens_separator. Change one of them.",
        ),
    ]


def _dataset_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    dataset = config.dataset
    weighted = [weighted_dataset(line) for line in dataset.more]
    trained = [dataset.folder, *(name for _, name in weighted)]
    unseen = [name for weight, name in weighted if weight == 0]
    twice = sorted({name for name in trained if trained.count(name) > 1})
    both = sorted(set(trained) & set(dataset.regularisation))
    again = sorted({name for name in dataset.regularisation if dataset.regularisation.count(name) > 1})
    return [
        (
            bool(unseen),
            f"dataset.more gives {', '.join(unseen)} the weight 0, so it would never be seen. "
            "Take the line out or give it a weight.",
        ),
        (
            bool(twice),
            f"dataset.more names {', '.join(twice)} a second time. Name each dataset once; its weight says how often.",
        ),
        (
            bool(both),
            f"dataset.regularisation names {', '.join(both)}, which is also trained on. Take it out of one of them.",
        ),
        (bool(again), f"dataset.regularisation names {', '.join(again)} more than once. Name each dataset once."),
    ]


def _run_faults(config: TrainConfig) -> list[tuple[bool, str]]:
    sample, validation, optimizer, model = config.sample, config.validation, config.optimizer, config.model
    return [
        (
            sample.every_n_steps > 0 and not sample.prompts,
            f"sample.every_n_steps is {sample.every_n_steps} but sample.prompts is empty. Add a prompt or set it to 0.",
        ),
        (
            validation.every_n_steps > 0 and not (validation.folder or validation.split),
            f"validation.every_n_steps is {validation.every_n_steps} but validation.folder is empty and validation.split "
            "is 0. Name a folder of held-out pictures, hold out a share of the training pictures, or set it to 0.",
        ),
        (
            bool(validation.folder) and validation.split > 0,
            f"validation.split is {validation.split:g} and validation.folder is {validation.folder}: the held-out pictures "
            "come from one of them. Set validation.split to 0 or empty validation.folder.",
        ),
        (
            validation.early_stop_patience > 0 and validation.every_n_steps == 0,
            f"validation.early_stop_patience is {validation.early_stop_patience} but validation.every_n_steps is 0, so "
            "nothing is measured while the run goes on. Set validation.every_n_steps, or the patience to 0.",
        ),
        (
            optimizer.warmup_steps >= config.training.max_train_steps,
            f"optimizer.warmup_steps is {optimizer.warmup_steps} but the run has only "
            f"{config.training.max_train_steps} steps. Lower it or set training.max_train_steps higher.",
        ),
        (
            model.zero_terminal_snr is Switch.ON and model.prediction_type is PredictionType.EPSILON,
            "model.zero_terminal_snr is on but model.prediction_type is epsilon: at the last timestep there is only noise "
            "to predict, so nothing can be learned. Set model.prediction_type to v_prediction or zero_terminal_snr to off.",
        ),
        (
            config.dataset.keep_tokens > 0 and not config.dataset.shuffle_tags and config.dataset.tag_dropout_rate == 0,
            f"dataset.keep_tokens is {config.dataset.keep_tokens} but dataset.shuffle_tags is off and "
            "dataset.tag_dropout_rate is 0, so it would do nothing. Switch dataset.shuffle_tags on or set keep_tokens to 0.",
        ),
    ]
