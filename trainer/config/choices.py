"""The words that settings with a choice take."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Number format of the frozen base model while training."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class BaseFormat(StrEnum):
    """How the weights of the frozen base are kept while training; each has a row in trainer/memory/formats.py."""

    WHOLE = "whole"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class Checkpointing(StrEnum):
    """Which parts of the base are computed a second time instead of being remembered."""

    AUTO = "auto"
    OFF = "off"
    ATTENTION = "attention"
    BLOCKS = "blocks"


class Offload(StrEnum):
    """What waits in the machine's memory instead of the GPU's."""

    AUTO = "auto"
    NONE = "none"
    ACTIVATIONS = "activations"
    BLOCKS = "blocks"
    BOTH = "both"


class OutOfMemory(StrEnum):
    """What to do with a step that the memory is too small for."""

    LOWER = "lower"
    FAIL = "fail"


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


class AdapterName(StrEnum):
    """Kind of adapter; each has a row in trainer/adapters/table.py."""

    LORA = "lora"
    LOCON = "locon"
    DORA = "dora"
    LOHA = "loha"
    LOKR = "lokr"
    OFT = "oft"
    BOFT = "boft"


class AdapterInit(StrEnum):
    """Where an adapter's matrices begin."""

    DEFAULT = "default"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"
    PISSA = "pissa"


class LoraTargets(StrEnum):
    """Layers of the denoiser that get an adapter."""

    CROSS_ATTENTION = "cross-attention"
    ATTENTION = "attention"
    ATTENTION_FEED_FORWARD = "attention+ff"
    ATTENTION_FEED_FORWARD_PROJECTION = "attention+ff+proj"
    ALL = "all"


class OptimizerName(StrEnum):
    """Optimizer; each has a row in trainer/optimizers.py."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    PRODIGY = "prodigy"
    PRODIGY_PLUS_SCHEDULE_FREE = "prodigy_plus_schedule_free"
    ADAFACTOR = "adafactor"
    CAME = "came"
    LION = "lion"
    MUON = "muon"
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"
    RADAM = "radam"


class ScheduleName(StrEnum):
    """Shape of the learning rate over the run."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    REX = "rex"


class LossType(StrEnum):
    """How the size of an error counts."""

    L2 = "l2"
    L1 = "l1"
    HUBER = "huber"
    SMOOTH_L1 = "smooth_l1"


class HuberSchedule(StrEnum):
    """How the border between small and large errors moves with the noise."""

    CONSTANT = "constant"
    SNR = "snr"
    EXPONENTIAL = "exponential"


class TimestepLaw(StrEnum):
    """Which amounts of noise are drawn how often."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit_normal"
    SIGMOID = "sigmoid"


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
