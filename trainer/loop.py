"""The training loop: prepare, step, and what is due after a step. Readable top to bottom."""

from __future__ import annotations

import threading
import time
from collections import Counter

from security.integrity import sha256_of
from trainer import events
from trainer.checkpoints import save_checkpoint
from trainer.config.schema import KeyFormat, TrainConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.captions import split_tags
from trainer.device import device_label, dtype_label, peak_memory
from trainer.export import save_lora, verify_export
from trainer.inputs import Inputs
from trainer.jobs import Control
from trainer.metadata import ExportFacts, build_metadata, refuse_secret_entries
from trainer.optimizers import averaged_weights
from trainer.resume import capture
from trainer.runs import BEST_ENDING, RunFolder
from trainer.sampling import draw
from trainer.setup import Emit, Run, StoppedEarly, prepare, steps_per_epoch
from trainer.step import train_step
from trainer.validation import early_end, held_out_facts, kept_steps, measurements_of, validated
from trainer.workspace import Workspace


def train(
    config: TrainConfig, inputs: Inputs, folder: RunFolder, workspace: Workspace, emit: Emit, control: Control
) -> None:
    """Trains one LoRA into the run folder, from its last checkpoint if it has one; says everything by events.

    Raises SafelightError for what the user can mend. Asked to stop, it finishes its step, saves and returns.
    """
    try:
        run = prepare(config, inputs, folder, workspace, emit, control)
    except StoppedEarly:
        emit(events.Paused(0) if control.pause.is_set() else events.Finished(0, stopped=True))
        return
    metadata = build_metadata(config, export_facts(run))
    refuse_secret_entries(metadata, f"{config.name}.safetensors")  # now, not when there is a training to lose
    announce(run, emit)
    total = config.training.max_train_steps
    reason = ""
    if run.step == 0:
        validate(run, emit)
        draw_samples(run, emit, control)
    elif run.step < total and due(run.step, config.validation.every_n_steps) and not measurements_of(run).has(run.step):
        validate(run, emit)  # it was due when the run was stopped

    while run.step < total and not control.ends:
        emit(train_step(run))
        if run.step == total or control.ends:
            break
        if due(run.step, config.validation.every_n_steps):
            validate(run, emit)
            if reason := early_end(run):
                break
        if due(run.step, config.sample.every_n_steps) or taken(control.sample_now):
            draw_samples(run, emit, control)
        if due(run.step, config.save.every_n_steps) or taken(control.save_now):
            save(run, emit, stem=f"{config.name}-step{run.step:06d}")

    finish(run, emit, control, reason)


def announce(run: Run, emit: Emit) -> None:
    """Says what is about to be trained."""
    if run.resumed_from is not None:
        emit(events.Resumed(run.resumed_from, run.changed))
    emit(
        events.Started(
            total_steps=run.config.training.max_train_steps,
            first_step=run.step,
            num_images=len(run.pictures.placed),
            steps_per_epoch=steps_per_epoch(run),
            family=run.family.name,
            device=device_label(run.device, run.dtype),
            trainable_parameters=sum(parameter.numel() for parameter in run.parameters),
        )
    )


def finish(run: Run, emit: Emit, control: Control, reason: str = "") -> None:
    """The end of a run: a checkpoint always, the LoRA unless it is only paused, last samples unless it was cut short.

    `reason`: why it ends before its last step by itself, if it does.
    """
    total = run.config.training.max_train_steps
    if run.step < total and control.pause.is_set() and not control.stop.is_set():
        save_state(run, emit)
        emit(events.Paused(run.step))
        return
    if run.step == total and run.held_out.placed:
        save_state(run, emit)  # measuring may take minutes, in which nothing should be lost
        validate(run, emit)
    if run.step > 0:
        save(run, emit, stem=run.config.name)
    if run.step == total:
        draw_samples(run, emit, control)
    emit(events.Measured(peak_memory(run.device)[0], run.folder.num_bytes))
    emit(events.Finished(run.step, stopped=run.step < total, reason=reason))


def validate(run: Run, emit: Emit) -> None:
    """Measures the held-out loss, if there are held-out pictures, and keeps the LoRA if it is the best so far."""
    if not run.held_out.placed:
        return
    with averaged_weights(run.optimizer):
        event = validated(run)
    emit(event)
    if isinstance(event, events.Validated) and event.best and run.config.validation.keep_best:
        save(run, emit, stem=f"{run.config.name}{BEST_ENDING}")


def draw_samples(run: Run, emit: Emit, control: Control) -> None:
    """Draws every sample prompt with its own fixed seed; ends early when the user wants to stop."""
    settings = run.config.sample
    if not settings.prompts:
        return
    run.folder.samples_dir.mkdir(exist_ok=True)
    run.components.vae.to(run.device)
    with averaged_weights(run.optimizer):
        _draw_prompts(run, emit, control)
    run.components.vae.to("cpu")


def _draw_prompts(run: Run, emit: Emit, control: Control) -> None:
    settings = run.config.sample
    prompts = run.prompts.of_samples(settings)
    for index, prompt in enumerate(settings.prompts):
        image = draw(
            run.family,
            run.components,
            run.noise_schedule,
            settings,
            prompts,
            index=index,
            interrupted=lambda: control.ends,
        )
        if image is None:
            break
        path = run.folder.samples_dir / f"step-{run.step:08d}-{index:02d}.png"
        image.save(path)
        emit(
            events.SampleSaved(
                run.step, index, prompt, settings.seed + index, path.relative_to(run.folder.path).as_posix()
            )
        )


def save(run: Run, emit: Emit, *, stem: str) -> None:
    """Writes a checkpoint, and the LoRA as file(s) named `stem` in the run folder, read back and compared."""
    save_state(run, emit)
    with averaged_weights(run.optimizer):
        save_files(run, emit, stem=stem)


def save_files(run: Run, emit: Emit, *, stem: str) -> None:
    """Writes the LoRA as it is now."""
    settings = run.config.save
    formats = [KeyFormat.KOHYA, KeyFormat.DIFFUSERS] if settings.key_format is KeyFormat.BOTH else [settings.key_format]
    metadata = build_metadata(run.config, export_facts(run))
    for key_format in formats:
        suffix = "_diffusers" if key_format is KeyFormat.DIFFUSERS and len(formats) > 1 else ""
        path = run.folder.path / f"{stem}{suffix}.safetensors"
        num_bytes = save_lora(
            run.components, run.family, path, key_format=key_format, precision=settings.precision, metadata=metadata
        )
        verify_export(path, run.components, run.family, settings.precision)
        emit(events.LoraSaved(run.step, path.name, key_format.value, num_bytes, sha256_of(path)))


def export_facts(run: Run) -> ExportFacts:
    """What the LoRA file should say of this run, besides its settings."""
    files, placed = run.components.model_files, run.pictures.placed
    learned = [one for one in placed if not one.is_prior]
    return ExportFacts(
        family=run.family.name,
        base_name=files.name,
        base_fingerprint=files.fingerprint,
        prediction_type=run.noise_schedule.prediction_type,
        zero_terminal_snr=run.noise_schedule.zero_terminal_snr,
        num_train_images=round(sum(one.looks for one in learned)),
        num_reg_images=round(sum(one.looks for one in placed if one.is_prior)),
        step=run.step,
        started_at=run.started_at,
        finished_at=time.time(),
        mixed_precision=dtype_label(run.dtype).replace("fp32", "no"),
        tag_frequency=_tag_frequency(run, learned) if run.config.save.save_captions else None,
        trigger_words=tuple(dict.fromkeys(source.trigger_word for source in run.sources if source.trigger_word)),
        masked=bool(run.pictures.masks),
        dataset_sha256=run.dataset_sha256,
        held_out=held_out_facts(run),
    )


def _tag_frequency(run: Run, learned: list[PlacedPicture]) -> dict[str, Counter[str]]:
    """How often each tag occurs per epoch of a dataset, by the dataset's name."""
    counted: dict[str, Counter[str]] = {}
    for one in learned:
        tags = counted.setdefault(run.sources[one.source].name, Counter())
        for tag in split_tags(one.picture.caption):
            tags[tag] += one.picture.repeats
    return counted


def save_state(run: Run, emit: Emit) -> None:
    """Writes a checkpoint to go on from."""
    path = save_checkpoint(run.folder.checkpoints_dir, capture(run), keep_last=run.config.save.keep_last, protected=kept_steps(run))
    emit(events.CheckpointSaved(run.step, path.relative_to(run.folder.path).as_posix()))


def due(step: int, every_n_steps: int) -> bool:
    """Whether something that happens every n steps happens after this one; 0 means never."""
    return every_n_steps > 0 and step % every_n_steps == 0


def taken(request: threading.Event) -> bool:
    """Whether the user asked for something since the last look; asking once gives it once."""
    asked = request.is_set()
    request.clear()
    return asked
