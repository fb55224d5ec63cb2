"""From settings to a run that is ready to step: load, freeze, adapt, scan, encode, build the optimizer, restore."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from security.errors import SafelightError
from security.roots import Root
from trainer import events
from trainer.adapters.place import adapt
from trainer.adapters.starts import continue_from, merge_loras
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.inactive import inactive_warning
from trainer.config.schema import TrainConfig
from trainer.dataset.batches import BatchPlan, PlacedPicture
from trainer.dataset.cache import TensorCache
from trainer.dataset.captions import changes_every_step, longest_caption
from trainer.dataset.complaints import picture_complaints
from trainer.dataset.manifest import changes_since, manifest_hash, run_manifest
from trainer.dataset.own_word import refuse_unused
from trainer.dataset.placing import place_alone, place_pictures
from trainer.dataset.scan import Picture, scan_folder
from trainer.dataset.sources import Role, Source
from trainer.device import choose_device, choose_dtype, threads_for
from trainer.embeddings import add_word, embedding_groups
from trainer.encoded import Prompts, encode_masks, encode_pictures
from trainer.events import Event
from trainer.families import get_family
from trainer.families.base import Components, ModelFamily, NoiseSchedule
from trainer.held_out import hold_out
from trainer.inputs import Inputs
from trainer.jobs import Control
from trainer.learning_rates import learning_rate_warnings
from trainer.optimizers import build_optimizer
from trainer.resume import restore
from trainer.runs import RunFolder
from trainer.workspace import Workspace

Emit = Callable[[Event], None]


class StoppedEarly(Exception):
    """The user ended the run while it was being prepared."""


@dataclass
class PictureSet:
    """Pictures with their buckets; by (index, flipped) latents (1, C, h, w) and, of masked pictures, weights
    (1, 1, h, w), both fp32 on the CPU."""

    placed: list[PlacedPicture]
    latents: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    masks: dict[tuple[int, bool], Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """A run that is ready to step. `step`: optimizer steps done. What it does is in trainer/loop.py.

    `changed`: settings that are others since the checkpoint it goes on from, in words. `memory`: what parts of the loop
    remember from step to step, nested values under a name of each part's own; checkpoints keep it.
    `saved_at`: when the last checkpoint was written, by the monotonic clock.
    """

    config: TrainConfig
    folder: RunFolder
    family: ModelFamily
    components: Components
    noise_schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype
    sources: tuple[Source, ...]
    pictures: PictureSet
    held_out: PictureSet
    dataset_sha256: str
    plan: BatchPlan
    prompts: Prompts
    adapted: dict[str, nn.Module]
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    started_at: float = field(default_factory=time.time)
    step: int = 0
    images_seen: int = 0
    resumed_from: int | None = None
    base_learning_rates: list[float] = field(default_factory=list)
    text_encoder_stopped: bool = False
    changed: dict[str, str] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)

    def rescue_is_due(self) -> bool:
        """Whether the last checkpoint is so long ago that a crash now would cost too much."""
        minutes = self.config.save.rescue_minutes
        return 0 < minutes <= (time.monotonic() - self.saved_at) / 60

    def threads(self) -> AbstractContextManager[None]:
        """As many of the CPU's threads as its steps are worth."""
        latent_pixels = max(latents[0, 0].numel() for latents in self.pictures.latents.values())
        parameters = sum(parameter.numel() for parameter in self.components.denoiser.parameters())
        return threads_for(self.device, parameters * latent_pixels * self.config.training.batch_size)


@dataclass
class Preparation:
    """Says what is being done, and ends it when the user asks."""

    emit: Emit
    control: Control

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Reports a phase. Raises StoppedEarly when the user wants to stop."""
        if self.control.ends:
            raise StoppedEarly
        self.emit(events.Preparing(text, done, total))

    def counting(self, text: str) -> Callable[[int, int], None]:
        """A report of (done, total) for a phase."""
        return lambda done, total: self.phase(text, done, total)


def prepare(
    config: TrainConfig, inputs: Inputs, folder: RunFolder, workspace: Workspace, emit: Emit, control: Control
) -> Run:
    """Everything before the first step. Raises SafelightError for what the user can mend, StoppedEarly on stop."""
    preparation = Preparation(emit, control)
    if inactive := inactive_warning(config, inputs.model.family):
        emit(events.Warned(inactive))
    for warning in learning_rate_warnings(config):
        emit(events.Warned(warning))
    if inputs.fault and newest_good_checkpoint(folder.checkpoints_dir)[0] is None:
        raise SafelightError(inputs.fault)
    preparation.phase("Reading pictures")
    scanned = [(source, _scan(config, source, emit)) for source in inputs.sources]
    held_out = [] if inputs.held_out is None else _scan(config, inputs.held_out, emit)
    _refuse_leaks([picture for _, pictures in scanned for picture in pictures], held_out)
    divided = hold_out(
        config,
        scanned,
        held_out,
        manifest_path=folder.manifest_path,
        cache_dir=workspace.latents_cache_dir,
        emit=emit,
        progress=preparation.counting("Comparing pictures"),
    )

    own = [picture for source, some in divided.trained if source.role is Role.TRAINING for picture in some]
    refuse_unused(config.embedding.word, config.dataset, own)

    preparation.phase("Loading the base model")
    device = choose_device(config.training.device)
    dtype = choose_dtype(config.model.precision, device)
    family = get_family(inputs.model.family)
    components = family.load(inputs.model, device, dtype)
    warnings = merge_loras(components, family.name, inputs.merge_first)
    warnings += add_word(components, config.embedding) if config.embedding.word else []
    for warning in warnings:
        emit(events.Warned(warning))
    noise_schedule = family.schedule(components, config.model)

    step = family.bucket_step(components)
    _refuse_odd_sample_size(config, step)
    sets = [
        PictureSet(place_pictures(divided.trained, config.dataset, step)),
        PictureSet(place_alone(divided.held_out, config.dataset, step)),
    ]
    manifest = _write_manifest(folder, inputs, sets, emit)
    prompts = _encode(config, family, components, sets, workspace, preparation)
    _warn_about_captions(config, family, components, sets[0], emit)
    _free_encoders(components, prompts)

    preparation.phase("Adding the LoRA")
    adapted = adapt(config, family, components)
    if config.training.gradient_checkpointing:
        components.denoiser.enable_gradient_checkpointing()
    word_parts = {name: part for name, part in components.modules().items() if name.startswith("text_encoder")}
    learning = adapted.parts | (word_parts if config.embedding.word else {})
    groups = [*adapted.groups, *embedding_groups(components, config.embedding)]
    optimizer = build_optimizer(config.optimizer, groups)
    run = Run(
        config=config,
        folder=folder,
        family=family,
        components=components,
        noise_schedule=noise_schedule.to(device),
        device=device,
        dtype=dtype,
        sources=inputs.sources,
        pictures=sets[0],
        held_out=sets[1],
        dataset_sha256=manifest_hash(manifest),
        plan=BatchPlan(sets[0].placed, config.training.batch_size, config.training.seed),
        prompts=prompts,
        adapted=learning,
        parameters=[parameter for group in optimizer.param_groups for parameter in group["params"]],
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
        base_learning_rates=[group["lr"] for group in optimizer.param_groups],
    )
    _restore(run, inputs, emit)
    return run


def _scan(config: TrainConfig, source: Source, emit: Emit) -> list[Picture]:
    scan = scan_folder(source.folder, config.dataset, trigger_word=source.trigger_word, use_masks=config.loss.use_masks)
    for name, reason in scan.skipped:
        emit(events.Warned(f"{name} is left out: {reason}"))
    if not scan.pictures:
        raise SafelightError(
            f"No usable pictures in {source.name}. Add PNG, JPEG or WebP files, or choose another dataset."
        )
    return list(scan.pictures)


def _write_manifest(folder: RunFolder, inputs: Inputs, sets: list[PictureSet], emit: Emit) -> str:
    """Writes down what is trained on, and says so when a run goes on with other pictures than it began with."""
    text = run_manifest(inputs.sources, sets[0].placed, inputs.held_out, sets[1].placed)
    if complaint := changes_since(folder.manifest_path, text):
        emit(events.Warned(complaint))
    Root(folder.path).write_text_atomic(folder.manifest_path, text)
    return text


def _refuse_leaks(training: list[Picture], held_out: list[Picture]) -> None:
    trained = {picture.content_hash: picture.path.name for picture in training}
    leaks = [picture.path.name for picture in held_out if picture.content_hash in trained]
    if leaks:
        raise SafelightError(
            f"{len(leaks)} of the held-out pictures are also trained on (such as {leaks[0]}), so their loss would say nothing. "
            "Remove them from one of the two folders."
        )


def _refuse_odd_sample_size(config: TrainConfig, step: int) -> None:
    for name, side in (("width", config.sample.width), ("height", config.sample.height)):
        if config.sample.prompts and side % step:
            nearest = max(step, round(side / step) * step)
            raise SafelightError(
                f"sample.{name} is {side}, but this model draws multiples of {step} pixels. Set it to {nearest}."
            )


def _encode(
    config: TrainConfig,
    family: ModelFamily,
    components: Components,
    sets: list[PictureSet],
    workspace: Workspace,
    preparation: Preparation,
) -> Prompts:
    latent_cache = TensorCache(workspace.latents_cache_dir) if config.dataset.cache_latents else None
    flips = (False, True) if config.dataset.flip_augmentation else (False,)
    for pictures, text, wanted in (
        (sets[0], "Encoding pictures", flips),
        (sets[1], "Encoding held-out pictures", (False,)),
    ):
        report = preparation.counting(text)
        pictures.latents = encode_pictures(
            family, components, pictures.placed, flips=wanted, cache=latent_cache, report=report
        )
        pictures.masks = encode_masks(
            pictures.placed, pictures.latents, unmasked_weight=config.loss.unmasked_weight, cache=latent_cache
        )
    prompts = Prompts(
        family=family,
        components=components,
        config=config,
        live=config.lora.train_text_encoder or bool(config.embedding.word),
        cache=TensorCache(workspace.text_cache_dir),
    )
    wanted_prompts = {one.picture.caption for pictures in sets for one in pictures.placed}
    if config.dataset.caption_dropout_rate > 0:
        wanted_prompts.add("")
    if config.sample.prompts:
        wanted_prompts |= {*config.sample.prompts, config.sample.negative_prompt}
    prompts.prepare(wanted_prompts, preparation.counting("Encoding captions"))
    if any(cache is not None and cache.is_full for cache in (latent_cache, prompts.cache)):
        preparation.emit(
            events.Warned(
                "The disk is full, so what was encoded is kept in memory only: this run trains all the same, and the next "
                "one encodes it again. Make room soon: its checkpoints need some too."
            )
        )
    return prompts


def _warn_about_captions(
    config: TrainConfig, family: ModelFamily, components: Components, pictures: PictureSet, emit: Emit
) -> None:
    limit = config.dataset.max_token_length
    long = [
        one.picture.path.name
        for one in pictures.placed
        if one.is_first
        and family.count_tokens(components, longest_caption(one.picture.prepared, config.dataset)) > limit
    ]
    if long:
        emit(
            events.Warned(
                f"{len(long)} captions have more than {limit} tokens (such as {long[0]}'s); the rest of them is not learned. "
                "Shorten them or raise dataset.max_token_length."
            )
        )
    for _, text in picture_complaints(pictures.placed, config.training.batch_size):
        emit(events.Warned(text))


def _free_encoders(components: Components, prompts: Prompts) -> None:
    """Gives back what no step needs. The VAE decodes samples; until then it waits in main memory."""
    components.vae.to("cpu")
    if not prompts.live and not changes_every_step(prompts.config.dataset):
        components.text_encoders = [None] * len(components.text_encoders)


def _restore(run: Run, inputs: Inputs, emit: Emit) -> None:
    checkpoint, complaints = newest_good_checkpoint(run.folder.checkpoints_dir)
    for complaint in complaints:
        emit(events.Warned(complaint))
    if checkpoint is not None:
        for sentence in restore(run, checkpoint):
            emit(events.Warned(sentence))
        return
    if inputs.continue_from is not None:
        taken, anew = continue_from(run.components, run.family.name, inputs.continue_from)
        if anew:
            emit(events.Warned(f"{inputs.continue_from.name} has {taken} of the layers; {anew} others begin anew."))


def steps_per_epoch(run: Run) -> float:
    """Optimizer steps that one look at every picture takes."""
    return run.plan.batches_per_epoch / run.config.training.gradient_accumulation_steps
