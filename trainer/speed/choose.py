"""Which of the faster ways a run takes. What is chosen follows from the settings, the model and the size of the machine's
memory, never from a measured time: a run that goes on must compute as it began."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from security.sandbox import is_confined
from trainer.adapters.layer import adapted_layers
from trainer.adapters.low_rank import LoraAdapter
from trainer.config.choices import BaseFormat
from trainer.config.schema import Switch, TrainConfig
from trainer.families.base import Components
from trainer.memory.host import host_memory
from trainer.optimizers import OPTIMIZERS
from trainer.speed.layout import put_channels_last
from trainer.speed.packed import PackedConv2d, PackedLinear, can_pack, pack, packable_bytes

LARGEST_SHARE = 0.25
"""Share of the machine's memory that packed weights may take in addition."""
FEWEST_PASSES = 20
"""Ordering the weights takes as long as ten passes win: shorter runs are done sooner without."""
PASSES_PER_SHAPE = 1000
"""Compiling takes minutes for each shape, which a tenth of a second won at each pass earns back after about so many."""
WEIGHTLESS_KINDS = frozenset({"lora"})
"""Adapters that never ask for the base's weight in a step; the others would have it put together each time."""


def make_fast(
    config: TrainConfig, components: Components, adapted: Mapping[str, nn.Module], device: torch.device
) -> None:
    """Takes the faster ways that the settings allow; the networks compute as before."""
    fuse(adapted, config.speed.fused_lora)
    if should_pack(config, components.denoiser, device):
        pack(components.denoiser, everything=config.speed.packed_weights is Switch.ON)
    if lies_channels_last(config, components.denoiser, device):
        put_channels_last(components.denoiser)


def fuse(adapted: Mapping[str, nn.Module], fused: bool) -> None:
    """Lets LoRAs on linear layers be computed as one operation, or as the modules that they are made of."""
    for part in adapted.values():
        for layer in adapted_layers(part).values():
            if isinstance(layer.adapter, LoraAdapter):
                layer.adapter.fused = fused


def allows_compiling(config: TrainConfig) -> bool:
    """Whether blocks can be compiled with these settings and give the same numbers: nothing is drawn at random in them, and
    their weights are whole and here."""
    lora = config.lora
    return (
        config.training.num_processes == 1
        and config.memory.base_format is BaseFormat.WHOLE
        and lora.dropout == lora.rank_dropout == lora.module_dropout == 0
    )


def should_compile(config: TrainConfig, device: torch.device, num_shapes: int) -> bool:
    """Whether the denoiser's blocks are compiled for shapes of pictures: by itself on a GPU, in runs that earn it back."""
    wanted = config.speed.compile
    if wanted is Switch.OFF or not allows_compiling(config) or is_confined():
        return False
    passes = config.training.max_train_steps * config.training.gradient_accumulation_steps
    return wanted is Switch.ON or (device.type == "cuda" and passes >= PASSES_PER_SHAPE * num_shapes)


def lies_channels_last(config: TrainConfig, denoiser: nn.Module, device: torch.device) -> bool:
    """Whether frozen convolutions are put channels last: by itself where tensor cores compute, in 16 bits on a GPU."""
    wanted = config.speed.channels_last
    if config.training.shard_base:  # weights are cut into parts as they lie
        return False
    if wanted is Switch.AUTO:
        return device.type == "cuda" and next(denoiser.parameters()).dtype is not torch.float32
    return wanted is Switch.ON


def reads_late(config: TrainConfig, device: torch.device, dtype: torch.dtype, num_workers: int) -> bool:
    """Whether a step's loss and norm are read after the next step was begun.

    Only where nothing has to know them before: AdamW in one operation leaves out a step without usable numbers by itself.
    """
    wanted, training = config.speed.late_metrics, config.training
    possible = (
        bool(OPTIMIZERS[config.optimizer.name].fused)
        and config.speed.fused_optimizer
        and dtype is not torch.float16  # its loss scaler wants to know
        and not training.skip_spikes
        and training.max_weight_norm == 0
        and num_workers == 1
    )
    return possible and (wanted is Switch.ON or (wanted is Switch.AUTO and device.type == "cuda"))


def makes_inputs_ahead(config: TrainConfig, device: torch.device) -> bool:
    """Whether a thread makes the next step's inputs. On a CPU it would take the step's own processors."""
    return config.speed.prefetch is Switch.ON or (config.speed.prefetch is Switch.AUTO and device.type == "cuda")


def should_pack(config: TrainConfig, denoiser: nn.Module, device: torch.device) -> bool:
    """Whether the frozen weights are to be ordered for the CPU."""
    wanted = config.speed.packed_weights
    if wanted is Switch.OFF or device.type != "cpu" or not can_pack() or config.training.max_weight_norm > 0:
        return False
    if config.speed.compile is Switch.ON and should_compile(config, device, 1):  # compiled code orders them by itself
        return False
    if config.training.shard_base:  # ordered weights are no parameters any more, which could be divided
        return False
    if any(layer.kind not in WEIGHTLESS_KINDS for layer in adapted_layers(denoiser).values()):
        return False
    if wanted is Switch.ON:
        return True
    passes = config.training.max_train_steps * config.training.gradient_accumulation_steps
    return passes >= FEWEST_PASSES and packable_bytes(denoiser) <= LARGEST_SHARE * host_memory()[1]


def num_weights(part: nn.Module) -> int:
    """Numbers that a network holds, those of packed layers among them."""
    packed = sum(module.num_packed for module in part.modules() if isinstance(module, PackedLinear | PackedConv2d))
    return packed + sum(parameter.numel() for parameter in part.parameters())
