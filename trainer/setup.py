"""From settings to a run that is ready to step: load, freeze, adapt, scan, encode, build the optimizer, restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from security.errors import SafelightError
from security.roots import Root
from trainer import events
from trainer.adapters.place import adapt
from trainer.adapters.starts import continue_from, merge_loras
from trainer.at_once import AtOnce
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
from trainer.dataset.splitting import Divided
from trainer.device import choose_device, choose_dtype, threads_for
from trainer.embeddings import add_word, embedding_groups
from trainer.encoded import Prompts, encode_masks
from trainer.events import Event
from trainer.families import get_family
from trainer.families.base import Components, ModelFamily, NoiseSchedule
from trainer.held_out import hold_out
from trainer.inputs import Inputs
from trainer.jobs import Control
from trainer.latents import Key, PictureEncoder, are_mapped, latents_bytes
from trainer.learning_rates import learning_rate_warnings
from trainer.memory.fitting import bring_encoders, fit, keep_base
from trainer.memory.keeping import Keeping
from trainer.optimizers import build_optimizer
from trainer.pace import PaceWatch
from trainer.resume import restore
from trainer.runs import RunFolder
from trainer.sharding import shard
from trainer.speed.choose import make_fast, num_weights, reads_late
from trainer.speed.late import Clock, Unread
from trainer.workers import ALONE, Workers
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from trainer.saving import Writing
    from trainer.speed.ahead import Ahead
    from trainer.speed.compiled import CompiledBlocks

Emit = Callable[[Event], None]


class StoppedEarly(Exception):
    """The user ended the run while it was being prepared."""


@dataclass
class PictureSet:
    """Pictures with their buckets; by (index, flipped) latents (1, C, h, w) and, of masked pictures, weights
    (1, 1, h, w), both fp32 on the CPU. Latents may be read from the disk each time that they are asked for."""

    placed: list[PlacedPicture]
    latents: Mapping[Key, Tensor] = field(default_factory=dict)
    masks: dict[Key, Tensor] = field(default_factory=dict)

    def latent_pixels(self) -> int:
        """Pixels of the largest latents. Looks at one picture of each bucket."""
        indices = {one.placement.bucket: index for index, one in enumerate(self.placed)}
        return max(int(self.latents[index, False][0, 0].numel()) for index in indices.values())


@dataclass
class Run:
    """A run that is ready to step. `step`: optimizer steps done. What it does is in trainer/loop.py.

    `changed`: settings that are others since the checkpoint it goes on from, in words. `memory`: what parts of the loop
    remember from step to step, nested values under a name of each part's own; checkpoints keep it.
    `saved_at`: when the last checkpoint was captured, by the monotonic clock. `writing`: that one, until it is told of.
    `input_seconds`: of the present step. `reads_late`: a step's numbers are read after the next one is begun; `unread`: that
    step. `ahead`: makes the inputs of the next step, while `train` runs. `compiled`: blocks that steps compute by compiled code.
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
    keeping: Keeping
    workers: Workers = ALONE
    started_at: float = field(default_factory=time.time)
    step: int = 0
    images_seen: int = 0
    resumed_from: int | None = None
    base_learning_rates: list[float] = field(default_factory=list)
    text_encoder_stopped: bool = False
    changed: dict[str, str] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)
    writing: Writing | None = None
    input_seconds: float = 0.0
    reads_late: bool = False
    unread: Unread | None = None
    clock: Clock = field(default_factory=Clock)
    ahead: Ahead | None = None
    compiled: CompiledBlocks | None = None
    pace: PaceWatch = field(default_factory=PaceWatch)

    def rescue_is_due(self) -> bool:
        """Whether the last checkpoint is so long ago that a crash now would cost too much."""
        minutes = self.config.save.rescue_minutes
        return 0 < minutes <= (time.monotonic() - self.saved_at) / 60

    @property
    def saves_beside_steps(self) -> bool:
        """Whether a copy of what is trained lies in the memory of the steps while it is written to the disk."""
        return self.config.speed.background_saving and self.device.type == "cpu"

    def computing(self) -> AbstractContextManager[None]:
        """For forward and backward of a step: by compiled blocks, if there are any."""
        return nullcontext() if self.compiled is None else self.compiled.working()

    def threads(self) -> AbstractContextManager[None]:
        """As many of the CPU's threads as its steps are worth."""
        latent_pixels = self.pictures.latent_pixels() * self.config.training.batch_size
        return threads_for(self.device, num_weights(self.components.denoiser) * latent_pixels)


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
    config: TrainConfig,
    inputs: Inputs,
    folder: RunFolder,
    workspace: Workspace,
    emit: Emit,
    control: Control,
    workers: Workers = ALONE,
) -> Run:
    """Everything before the first step. Raises SafelightError for what the user can mend, StoppedEarly on stop."""
    preparation = Preparation(emit, control)
    _warn_about_settings(config, inputs, emit)
    if inputs.fault and newest_good_checkpoint(folder.checkpoints_dir)[0] is None:
        raise SafelightError(inputs.fault)
    preparation.phase("Reading pictures")
    with workers.first_here_before_others():
        divided = _read_pictures(config, inputs, folder, workspace, preparation)

    preparation.phase("Loading the base model")
    device = workers.device(choose_device(config.training.device))
    dtype = choose_dtype(config.model.precision, device)
    family = get_family(inputs.model.family)
    components = family.load(inputs.model, "cpu", dtype)  # each part goes to the GPU for as long as it is needed
    warnings = merge_loras(components, family.name, inputs.merge_first)
    warnings += add_word(components, config.embedding) if config.embedding.word else []
    for warning in warnings:
        emit(events.Warned(warning))
    bring_encoders(components, device)

    step = family.bucket_step(components)
    _refuse_odd_sample_size(config, step)
    sets = [
        PictureSet(place_pictures(divided.trained, config.dataset, step)),
        PictureSet(place_alone(divided.held_out, config.dataset, step)),
    ]
    workers.wait_for_all()  # until all have read what the run's last session wrote
    manifest = _write_manifest(folder, inputs, sets, emit, workers)
    _refuse_other_machines(workers, inputs.model.fingerprint, manifest_hash(manifest))
    prompts = _encode(config, family, components, sets, workspace, preparation, workers)
    _warn_about_captions(config, family, components, sets[0], emit)
    _free_encoders(components, prompts)

    preparation.phase("Adding the LoRA")
    # a base in parts waits in the machine's memory until it is divided
    keeping = keep_base(config.memory, components, torch.device("cpu") if workers.sharded else device)
    adapted = adapt(config, family, components)
    word_parts = {name: part for name, part in components.modules().items() if name.startswith("text_encoder")}
    make_fast(config, components, adapted.parts, device)
    if workers.sharded:
        shard(components.denoiser, device, workers.count)
    learning = adapted.parts | (word_parts if config.embedding.word else {})
    groups = [*adapted.groups, *embedding_groups(components, config.embedding)]
    optimizer = build_optimizer(config.optimizer, groups, fused=config.speed.fused_optimizer)
    run = Run(
        config=config,
        folder=folder,
        family=family,
        components=components,
        noise_schedule=family.schedule(components, config.model).to(device),
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
        keeping=keeping,
        workers=workers,
        reads_late=reads_late(config, device, dtype, workers.count),
        base_learning_rates=[group["lr"] for group in optimizer.param_groups],
    )
    run.scaler.scale(torch.zeros((), device=device))  # it begins with its first use, which a worker may never come to
    _restore(run, inputs, emit)
    fit(run, emit)
    return run


def _warn_about_settings(config: TrainConfig, inputs: Inputs, emit: Emit) -> None:
    for warning in (inactive_warning(config, inputs.model.family), *learning_rate_warnings(config)):
        if warning:
            emit(events.Warned(warning))


def _read_pictures(
    config: TrainConfig, inputs: Inputs, folder: RunFolder, workspace: Workspace, preparation: Preparation
) -> Divided:
    emit = preparation.emit
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
    return divided


def _scan(config: TrainConfig, source: Source, emit: Emit) -> list[Picture]:
    scan = scan_folder(source.folder, config.dataset, trigger_word=source.trigger_word, use_masks=config.loss.use_masks)
    for name, reason in scan.skipped:
        emit(events.Warned(f"{name} is left out: {reason}"))
    if not scan.pictures:
        raise SafelightError(
            f"No usable pictures in {source.name}. Add PNG, JPEG or WebP files, or choose another dataset."
        )
    return list(scan.pictures)


def _write_manifest(folder: RunFolder, inputs: Inputs, sets: list[PictureSet], emit: Emit, workers: Workers) -> str:
    """Writes down what is trained on, and says so when a run goes on with other pictures than it began with."""
    text = run_manifest(inputs.sources, sets[0].placed, inputs.held_out, sets[1].placed)
    if complaint := changes_since(folder.manifest_path, text):
        emit(events.Warned(complaint))
    if workers.is_first_here:
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
    workers: Workers,
) -> Prompts:
    latent_cache = TensorCache(workspace.latents_cache_dir) if config.dataset.cache_latents else None
    flips = (False, True) if config.dataset.flip_augmentation else (False,)
    sizes = [
        latents_bytes(family, components, one.placed, own) for one, own in zip(sets, (flips, (False,)), strict=True)
    ]
    at_once = AtOnce(config.speed.caching_batch_size, preparation.emit)
    encoder = PictureEncoder(
        family,
        components,
        latent_cache,
        at_once,
        mapped=latent_cache is not None and are_mapped(config.speed.mapped_latents, workers.local_count * sum(sizes)),
    )
    encode = partial(_encode_sets, config, encoder, flips, preparation)
    if workers.local_count > 1 and latent_cache is not None:  # each makes a part, and all read the whole from the cache
        encode([PictureSet([one for one in some.placed if workers.is_mine(one.picture.content_hash)]) for some in sets])
        workers.wait_for_all()
    encode(sets)
    prompts = Prompts(
        family=family,
        components=components,
        config=config,
        live=config.lora.train_text_encoder or bool(config.embedding.word),
        cache=TensorCache(workspace.text_cache_dir),
        at_once=at_once,
    )
    wanted_prompts = {one.picture.caption for pictures in sets for one in pictures.placed}
    if config.dataset.caption_dropout_rate > 0:
        wanted_prompts.add("")
    if config.sample.prompts:
        wanted_prompts |= {*config.sample.prompts, config.sample.negative_prompt}
    report = preparation.counting("Encoding captions")
    prompts.prepare(filter(workers.is_mine, wanted_prompts), report)
    workers.wait_for_all()
    prompts.prepare(wanted_prompts, report)
    if any(cache is not None and cache.is_full for cache in (latent_cache, prompts.cache)):
        preparation.emit(
            events.Warned(
                "The disk is full, so what was encoded is kept in memory only: this run trains all the same, and the next "
                "one encodes it again. Make room soon: its checkpoints need some too."
            )
        )
    return prompts


def _encode_sets(
    config: TrainConfig,
    encoder: PictureEncoder,
    flips: tuple[bool, ...],
    preparation: Preparation,
    sets: list[PictureSet],
) -> None:
    """Fills in the latents and masks of training and held-out pictures, which are never flipped."""
    for pictures, text, wanted in zip(
        sets, ("Encoding pictures", "Encoding held-out pictures"), (flips, (False,)), strict=True
    ):
        pictures.latents = encoder.encode(pictures.placed, wanted, preparation.counting(text))
        pictures.masks = encode_masks(
            pictures.placed, pictures.latents, unmasked_weight=config.loss.unmasked_weight, cache=encoder.cache
        )


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


def _refuse_other_machines(workers: Workers, base: str, pictures: str) -> None:
    """Raises SafelightError where the workers of a run on several machines would not train the same thing.

    Asked before anything is encoded, which can take hours.
    """
    if different := workers.differing({"base model": base, "pictures or captions": pictures}):
        raise SafelightError(
            f"The machines of this run have other {' and other '.join(different)}. Copy those of machine 0 to the others, and "
            "start again."
        )


def steps_per_epoch(run: Run) -> float:
    """Optimizer steps that one look at every picture takes."""
    return run.plan.batches_per_epoch / run.config.training.gradient_accumulation_steps
