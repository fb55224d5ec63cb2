"""The words that settings with a choice take."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Number format of the frozen base model while training."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class PredictionType(StrEnum):
    """What the base model predicts. `auto` reads it from the model's own files."""

    AUTO = "auto"
    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class Switch(StrEnum):
    """Yes, no, or as the model's own files say."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LoraTargets(StrEnum):
    """Layers of the denoiser that get a LoRA."""

    ATTENTION = "attention"
    ATTENTION_FEED_FORWARD = "attention+ff"
    ATTENTION_FEED_FORWARD_PROJECTION = "attention+ff+proj"


class OptimizerName(StrEnum):
    """Optimizer; each has a row in trainer/optimizers.py."""

    ADAMW = "adamw"
    RADAM = "radam"


class ScheduleName(StrEnum):
    """Shape of the learning rate over the run."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"


class SavePrecision(StrEnum):
    """Number format of the exported LoRA file."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class KeyFormat(StrEnum):
    """Key names of the exported LoRA file."""

    KOHYA = "kohya"
    DIFFUSERS = "diffusers"
    BOTH = "both"
