"""Settings that make no sense together, each refused with the reason and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.config.choices import PredictionType, Switch
from trainer.config.sections import weighted_dataset

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig


def combination_faults(config: TrainConfig) -> list[str]:
    """A sentence for each combination that can't be run."""
    return [text for applies, text in [*_run_faults(config), *_dataset_faults(config)] if applies]


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
            validation.every_n_steps > 0 and not validation.folder,
            f"validation.every_n_steps is {validation.every_n_steps} but validation.folder is empty. "
            "Name a folder of held-out pictures or set it to 0.",
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
            config.dataset.keep_tokens > 0 and not config.dataset.shuffle_tags,
            f"dataset.keep_tokens is {config.dataset.keep_tokens} but dataset.shuffle_tags is off, so it would do nothing. "
            "Switch dataset.shuffle_tags on or set keep_tokens to 0.",
        ),
    ]
