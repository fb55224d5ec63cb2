"""Learning rates outside the band in which an optimizer trains LoRAs well, told before the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.optimizers import OPTIMIZERS, LearningRateBand

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig

WORD_FACTOR = 10.0
"""How much higher the usual rate of a trained word's vectors is than that of a LoRA."""


def learning_rate_warnings(config: TrainConfig) -> list[str]:
    """A sentence for every rate that is used and lies outside the optimizer's band."""
    own = OPTIMIZERS[config.optimizer.name].band
    bands = [(name, rate, own) for name, rate in _used_rates(config)]
    if config.embedding.word:
        bands.append(("embedding.learning_rate", config.embedding.learning_rate, _band_of_words(own)))
    return [_warning(config, *one) for one in bands if not one[2].low <= one[1] <= one[2].high]


def _band_of_words(band: LearningRateBand) -> LearningRateBand:
    """Single vectors bear more than matrices do, unless the rate is a factor on a step size that the optimizer finds."""
    factor = 1.0 if band.usual == 1.0 else WORD_FACTOR
    return LearningRateBand(band.low * factor, band.usual * factor, band.high * factor)


def _used_rates(config: TrainConfig) -> list[tuple[str, float]]:
    rates = [("optimizer.learning_rate", config.optimizer.learning_rate)] if config.lora.train_denoiser else []
    if config.lora.train_text_encoder:
        rates.append(("optimizer.text_encoder_learning_rate", config.optimizer.text_encoder_learning_rate))
    return rates


def _warning(config: TrainConfig, name: str, rate: float, band: LearningRateBand) -> str:
    if rate > band.high:
        what = f"higher than {config.optimizer.name.value} bears well, so the pictures may break"
    else:
        what = f"so low for {config.optimizer.name.value} that little will be learned"
    return f"{name} is {rate:g}, {what}: usual is {band.usual:g}, from {band.low:g} to {band.high:g}."
