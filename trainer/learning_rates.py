"""Learning rates outside the band in which an optimizer trains LoRAs well, told before the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig


def learning_rate_warnings(config: TrainConfig) -> list[str]:
    """A sentence for every rate that is used and lies outside the optimizer's band."""
    return [_warning(config, name, rate) for name, rate in _used_rates(config) if not _fits(config, rate)]


def _used_rates(config: TrainConfig) -> list[tuple[str, float]]:
    rates = [("optimizer.learning_rate", config.optimizer.learning_rate)] if config.lora.train_denoiser else []
    if config.lora.train_text_encoder:
        rates.append(("optimizer.text_encoder_learning_rate", config.optimizer.text_encoder_learning_rate))
    return rates


def _fits(config: TrainConfig, rate: float) -> bool:
    band = OPTIMIZERS[config.optimizer.name].band
    return band.low <= rate <= band.high


def _warning(config: TrainConfig, name: str, rate: float) -> str:
    band = OPTIMIZERS[config.optimizer.name].band
    if rate > band.high:
        what = f"higher than {config.optimizer.name.value} bears well, so the pictures may break"
    else:
        what = f"so low for {config.optimizer.name.value} that little will be learned"
    return f"{name} is {rate:g}, {what}: usual is {band.usual:g}, from {band.low:g} to {band.high:g}."
