"""Puts a run's base model where it belongs, and chooses how thrifty its steps have to be for the memory that there is."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch

from trainer import events
from trainer.config.choices import BaseFormat, Checkpointing, Offload
from trainer.config.sections import MemoryConfig
from trainer.families.base import Components
from trainer.memory.formats import FORMATS
from trainer.memory.host import host_memory
from trainer.memory.keeping import Keeping
from trainer.memory.layers import Stored, frozen_layers, pieces
from trainer.memory.plan import FULL, Level, Load, choose_level, needs, possible_levels, unet_shape
from trainer.memory.recovery import remembered_level

if TYPE_CHECKING:
    from trainer.setup import Emit, Run
    from trainer.workers import Workers

STATE_BYTES = 8
"""Bytes that an optimizer remembers of each trained number: two in 32 bits, as AdamW does. Others need less."""


def bring_encoders(components: Components, device: torch.device) -> None:
    """What encodes pictures and captions goes to the device; the denoiser waits until that is done."""
    components.vae.to(device)
    for encoder in components.text_encoders:
        encoder.to(device)


def keep_base(settings: MemoryConfig, components: Components, device: torch.device) -> Keeping:
    """The denoiser on its device in the format of the settings, in part elsewhere where it would not fit."""
    keeping = Keeping(components.denoiser, device, settings.base_format, elsewhere=device.type == "cuda")
    away = settings.offload in (Offload.BLOCKS, Offload.BOTH)
    if settings.offload is Offload.AUTO and device.type == "cuda":
        whole = sum(parameter.nbytes for parameter in components.denoiser.parameters())
        away = whole * _share(settings.base_format, components.denoiser) > FULL * free_bytes(device)
    keeping.settle(away=away)
    return keeping


def _share(form: BaseFormat, denoiser: torch.nn.Module) -> float:
    """How large a base is in a format beside how large it is now."""
    width = next(denoiser.parameters()).element_size() * 8
    return 1.0 if form is BaseFormat.WHOLE else FORMATS[form].bits / width


def free_bytes(device: torch.device) -> int:
    """Bytes that the device still has for this program, its own reserve included; 0 where it does not say."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return host_memory()[0] if device.type == "cpu" else 0


def fit(run: Run, emit: Emit) -> None:
    """Chooses the level of the run's steps and carries it out: the one it went down to before, else the quickest that fits."""
    load = load_of(run)
    free = free_bytes(run.device)
    total = free + load.resident_bytes if free else 0
    levels = possible_levels(run.config.memory, elsewhere=run.keeping.elsewhere)
    level = remembered_level(run) or choose_level(load, levels, total)
    if run.keeping.visits is not None and not level.offloads_blocks:  # they did not fit, and are away already
        both = level.offload is Offload.ACTIVATIONS
        level = Level(level.checkpointing, Offload.BOTH if both else Offload.BLOCKS)
    if run.workers.sharded:  # they compute block by block together: all have to compute the same ones twice
        level = Level(*_told(run.workers, level))
    run.keeping.apply(level)
    emit(events.MemoryPlanned(str(level), needs(load, level), total))


def _told(workers: Workers, level: Level) -> tuple[Checkpointing, Offload]:
    """The first worker's level."""
    checkpointing, offload = json.loads(workers.told(json.dumps([level.checkpointing, level.offload]).encode()))
    return Checkpointing(checkpointing), Offload(offload)


def load_of(run: Run) -> Load:
    """What a run brings into the memory, counted on its own networks and pictures."""
    trained = sum(parameter.numel() for parameter in run.parameters)
    width = run.dtype.itemsize
    blocks = sum(_stored_bytes(layer, width) for _, layer in frozen_layers(run.components.denoiser))
    every = base_bytes(run)
    away = run.keeping.visits is not None and run.device.type != "cpu"
    return Load(
        blocks_bytes=blocks,
        rest_bytes=every if away else max(0, every - blocks),
        trained=trained,
        optimizer_bytes=STATE_BYTES * trained,
        pixels=run.pictures.latent_pixels() * run.config.training.batch_size,
        is_narrow=run.dtype is not torch.float32,
        shape=unet_shape(run.components.denoiser.config),
        copied_bytes=(4 + STATE_BYTES) * trained if run.saves_beside_steps else 0,
    )


def base_bytes(run: Run) -> int:
    """Bytes of everything frozen that lies on the run's device."""
    trained = {id(parameter) for parameter in run.parameters}
    found: dict[int, int] = {}
    for part in run.components.modules().values():
        for parameter in part.parameters():
            if id(parameter) not in trained and parameter.device.type == run.device.type:
                found[id(parameter)] = parameter.nbytes
    # weights that are ordered for the CPU are no parameters, and lie there twice
    packed = sum(getattr(module, "num_packed", 0) for module in run.components.denoiser.modules())
    stored = [layer for _, layer in frozen_layers(run.components.denoiser) if isinstance(layer, Stored)]
    pieces_here = (piece for layer in stored for piece in pieces(layer) if piece.device.type == run.device.type)
    return sum(found.values()) + sum(piece.nbytes for piece in pieces_here) + 2 * packed * run.dtype.itemsize


def _stored_bytes(layer: torch.nn.Linear | torch.nn.Conv2d, width: int) -> int:
    if isinstance(layer, Stored):
        return sum(piece.nbytes for piece in pieces(layer))
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features * layer.out_features * width
    return layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.kernel_size) * width
