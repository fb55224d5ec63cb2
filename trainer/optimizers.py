"""The optimizers that can be chosen: rows over libraries, built from the settings."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.config.schema import OptimizerConfig, OptimizerName

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer: where its class is, and its constructor's arguments from the settings."""

    import_path: str
    arguments: Callable[[OptimizerConfig], dict[str, Any]]


def _adam_arguments(settings: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (settings.beta1, settings.beta2), "eps": settings.epsilon, "weight_decay": settings.weight_decay}


OPTIMIZERS: dict[OptimizerName, OptimizerRow] = {
    OptimizerName.ADAMW: OptimizerRow("torch.optim.AdamW", _adam_arguments),
    OptimizerName.RADAM: OptimizerRow(
        "torch.optim.RAdam", lambda settings: {**_adam_arguments(settings), "decoupled_weight_decay": True}
    ),
}


def build_optimizer(settings: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The chosen optimizer over parameter groups that each hold `params` and `lr`."""
    row = OPTIMIZERS[settings.name]
    module, _, name = row.import_path.rpartition(".")
    optimizer: Optimizer = getattr(importlib.import_module(module), name)(groups, **row.arguments(settings))
    return optimizer
