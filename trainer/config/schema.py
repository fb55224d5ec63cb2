"""A run's settings: all groups, and the check that they fit together.

Other modules take every name of the settings from here.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from trainer.config.choices import (
    AdapterInit,
    AdapterName,
    BaseFormat,
    Checkpointing,
    HuberSchedule,
    KeyFormat,
    LoraTargets,
    LossType,
    Offload,
    OptimizerName,
    OutOfMemory,
    Precision,
    PredictionType,
    SavePrecision,
    ScheduleName,
    Switch,
    TimestepLaw,
)
from trainer.config.combinations import combination_faults
from trainer.config.sections import (
    WEIGHTED_DATASET,
    DatasetConfig,
    EmbeddingConfig,
    LoraConfig,
    LossConfig,
    MemoryConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    SampleConfig,
    SaveConfig,
    Section,
    SpeedConfig,
    TrainingConfig,
    ValidationConfig,
    weighted_dataset,
)

__all__ = [
    "WEIGHTED_DATASET",
    "AdapterInit",
    "AdapterName",
    "BaseFormat",
    "Checkpointing",
    "DatasetConfig",
    "EmbeddingConfig",
    "HuberSchedule",
    "KeyFormat",
    "LoraConfig",
    "LoraTargets",
    "LossConfig",
    "LossType",
    "MemoryConfig",
    "ModelConfig",
    "NoiseConfig",
    "Offload",
    "OptimizerConfig",
    "OptimizerName",
    "OutOfMemory",
    "Precision",
    "PredictionType",
    "SampleConfig",
    "SaveConfig",
    "SavePrecision",
    "ScheduleName",
    "Section",
    "SpeedConfig",
    "Switch",
    "TimestepLaw",
    "TrainConfig",
    "TrainingConfig",
    "ValidationConfig",
    "weighted_dataset",
]


class TrainConfig(Section):
    """Everything that makes a run; the same config and seed give the same LoRA."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "lora"
    """Name of the run and of the LoRA file: letters, digits, dot, dash and underscore."""
    model: ModelConfig = ModelConfig()
    dataset: DatasetConfig = DatasetConfig()
    lora: LoraConfig = LoraConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    memory: MemoryConfig = MemoryConfig()
    speed: SpeedConfig = SpeedConfig()
    loss: LossConfig = LossConfig()
    noise: NoiseConfig = NoiseConfig()
    sample: SampleConfig = SampleConfig()
    validation: ValidationConfig = ValidationConfig()
    save: SaveConfig = SaveConfig()

    @model_validator(mode="after")
    def settings_fit_together(self) -> Self:
        """Refuses combinations that make no sense, all at once."""
        if faults := combination_faults(self):
            raise ValueError("\n".join(faults))
        return self
