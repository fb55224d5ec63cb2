"""How the settings of a run differ from those that it was trained with so far, and which of them may not."""

from __future__ import annotations

from typing import Any

from trainer.config.files import config_values
from trainer.config.schema import TrainConfig

FIXED_SECTIONS = frozenset({"lora", "embedding"})
"""These say which weights there are and how they are laid out."""
FREE = frozenset(
    {
        *("lora.dropout", "lora.rank_dropout", "lora.module_dropout", "lora.text_encoder_stop_step"),
        *("lora.block_learning_rates", "embedding.learning_rate", "embedding.stop_step"),
    }
)
"""What of them may change in mid-run all the same."""


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings as plain values by `section.field`."""
    flat: dict[str, Any] = {}
    for section, value in config_values(config).items():
        if isinstance(value, dict):
            flat |= {f"{section}.{field}": one for field, one in value.items()}
        else:
            flat[section] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(old, new) of every setting that is in both and differs; one that an older version did not know is not told."""
    return {name: (old[name], new[name]) for name in new if name in old and old[name] != new[name]}


def fixed_changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences that can't be made in mid-run."""
    return {
        name: pair
        for name, pair in differences(old, new).items()
        if name.partition(".")[0] in FIXED_SECTIONS and name not in FREE
    }


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Every difference in words, such as {"optimizer.learning_rate": "0.0001 -> 3e-05"}."""
    return {name: f"{_short(before)} -> {_short(after)}" for name, (before, after) in differences(old, new).items()}


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return f"{len(value)} line{'' if len(value) == 1 else 's'}"
    text = str(value) or "nothing"
    return text if len(text) <= 60 else text[:57] + "..."
