"""The training loop: prepare, step, and what is due after a step. Readable top to bottom."""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial

from security.integrity import sha256_of
from security.roots import Root, replace_file
from trainer import events
from trainer.adapters.table import ADAPTERS
from trainer.config.schema import KeyFormat, TrainConfig
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.captions import split_tags
from trainer.device import device_label, dtype_label, peak_memory
from trainer.embeddings import FOLDER, GROUP, save_word
from trainer.guards import catch_up, guarded_step
from trainer.inputs import Inputs
from trainer.jobs import Control
from trainer.lora_files.exporting import save_lora, verify_export, written_formats
from trainer.metadata import ExportFacts, build_metadata, refuse_secret_entries
from trainer.optimizers import averaged_weights
from trainer.rebuild_record import record_results, record_run
from trainer.room import insist_on_writing, try_to_write
from trainer.runs import BEST_ENDING, RunFolder
from trainer.sampling import draw, drawn_together
from trainer.saving import save_state, settle, settle_if_written
from trainer.setup import Emit, Preparation, Run, StoppedEarly, prepare, steps_per_epoch
from trainer.speed.ahead import inputs_ahead
from trainer.speed.choose import makes_inputs_ahead
from trainer.speed.compiled import compile_if_it_pays
from trainer.step import window_losses
from trainer.validation import early_end, held_out_facts, measurements_of, validated
from trainer.workers import ALONE, Asked, Workers
from trainer.workspace import Workspace


def train(
    config: TrainConfig,
    inputs: Inputs,
    folder: RunFolder,
    workspace: Workspace,
    emit: Emit,
    control: Control,
    workers: Workers = ALONE,
) -> None:
    """Trains one LoRA into the run folder, from its last checkpoint if it has one; says everything by events.

    Raises SafelightError for what the user can mend. Asked to stop, it finishes its step, saves and returns.
    """
    try:
        run = prepare(config, inputs, folder, workspace, emit, control, workers)
        compile_if_it_pays(run, Preparation(emit, control), window_losses)
    except StoppedEarly:
        emit(events.Paused(0) if control.pause.is_set() else events.Finished(0, stopped=True))
        return
    metadata = build_metadata(config, export_facts(run))
    refuse_secret_entries(metadata, f"{config.name}.safetensors")  # now, not when there is a training to lose
    if workers.is_first:
        record_run(run, inputs)
    announce(run, emit)
    reason = ""
    with ExitStack() as stack:
        stack.enter_context(run.threads())
        stack.callback(settle, run, emit)  # also where a fault ends the run
        run.ahead = stack.enter_context(inputs_ahead(run)) if makes_inputs_ahead(config, run.device) else None
        rescue = partial(save, run, emit)
        while run.step < config.training.max_train_steps:
            asked = workers.agree(control)
            if something_is_due(run, asked):
                catch_up(run, emit, rescue=rescue)
            if asked.ends or (reason := do_what_is_due(run, emit, control, asked)):
                break
            guarded_step(run, emit, rescue=rescue)
            settle_if_written(run, emit)

        catch_up(run, emit, rescue=rescue)
        finish(run, emit, control, reason)


def something_is_due(run: Run, asked: Asked) -> bool:
    """Whether anything is to be done before the next step that asks what the run came to."""
    config = run.config
    periods = (config.validation.every_n_steps, config.sample.every_n_steps, config.save.every_n_steps)
    by_step = any(due(run.step, period) for period in periods)
    return asked.ends or asked.sample or asked.save or by_step or run.rescue_is_due()


def do_what_is_due(run: Run, emit: Emit, control: Control, asked: Asked) -> str:
    """Measures, draws and saves before the next step, whatever of it was not done before the run was interrupted here.

    Returns why the run should end now by itself, else an empty text.
    """
    settings, step = run.config, run.step
    if step == 0 or due(step, settings.validation.every_n_steps):
        if not measurements_of(run).has(step):
            validate(run, emit)
        # whoever lets a run go on that ended here by itself means it
        if step > 0 and run.memory.get("ended_early") != step and (reason := early_end(run)):
            run.memory["ended_early"] = step
            return reason
    first_time = run.memory.get("sampled") != step and (step == 0 or due(step, settings.sample.every_n_steps))
    if asked.sample or first_time:
        draw_samples(run, emit, control)
        run.memory["sampled"] = step
    if step == 0 and asked.save:
        control.save_now.set()  # once there is something to save
    first_time = run.memory.get("saved") != step and due(step, settings.save.every_n_steps)
    if step > 0 and (asked.save or first_time):
        run.memory["saved"] = step
        what, stem = f"what was due at step {step}", f"{settings.name}-step{step:06d}"
        if try_to_write(partial(save, run, emit, stem=stem, beside=True), what, run.folder.path, emit):
            forget_old_loras(run, emit)
    elif step > (run.resumed_from or 0) and run.rescue_is_due():
        work = partial(save_state, run, emit, beside=True)
        try_to_write(work, f"the checkpoint of step {step}", run.folder.path, emit)
    return ""


def announce(run: Run, emit: Emit) -> None:
    """Says what is about to be trained."""
    key_format, adapter = run.config.save.key_format, run.config.lora.adapter
    if key_format is KeyFormat.BOTH and KeyFormat.DIFFUSERS not in written_formats(key_format, adapter):
        reason = dict(ADAPTERS[adapter].not_read_by)["diffusers"]
        emit(events.Warned(f"Only the file with kohya's names will be written: {reason}."))
    if run.resumed_from is not None:
        emit(events.Resumed(run.resumed_from, run.changed))
    emit(
        events.Started(
            total_steps=run.config.training.max_train_steps,
            first_step=run.step,
            num_images=sum(one.is_first for one in run.pictures.placed),
            steps_per_epoch=steps_per_epoch(run),
            family=run.family.name,
            device=run.workers.label(device_label(run.device, run.dtype)),
            trainable_parameters=sum(parameter.numel() for parameter in run.parameters),
        )
    )


def finish(run: Run, emit: Emit, control: Control, reason: str = "") -> None:
    """The end of a run: a checkpoint always, the LoRA unless it is only paused, last samples unless it was cut short.

    `reason`: why it ends before its last step by itself, if it does.
    """
    total = run.config.training.max_train_steps
    what = f"the training up to step {run.step}", run.folder.path
    if run.step < total and control.pause.is_set() and not control.stop.is_set():
        insist_on_writing(partial(save_state, run, emit), *what, emit, control)
        emit(events.Paused(run.step))
        return
    if run.step == total and run.held_out.placed and not measurements_of(run).has(run.step):
        # measuring may take minutes, in which nothing should be lost
        insist_on_writing(partial(save_state, run, emit), *what, emit, control)
        validate(run, emit)
    if run.step > 0:
        insist_on_writing(partial(save, run, emit, stem=run.config.name), *what, emit, control)
    if run.workers.is_first:
        try_to_write(partial(record_results, run, reason), run.folder.rebuild_path.name, run.folder.path, emit)
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
        work = partial(save, run, emit, stem=f"{run.config.name}{BEST_ENDING}", beside=True)
        try_to_write(work, f"the best LoRA so far, of step {run.step},", run.folder.path, emit)


def draw_samples(run: Run, emit: Emit, control: Control) -> None:
    """Draws every sample prompt with its own fixed seed; ends early when the user wants to stop."""
    settings = run.config.sample
    if not settings.prompts or not run.workers.draws:
        return
    run.folder.samples_dir.mkdir(exist_ok=True)
    run.components.vae.to(run.device)
    with averaged_weights(run.optimizer):
        _draw_prompts(run, emit, control)
    run.components.vae.to("cpu")


def _draw_prompts(run: Run, emit: Emit, control: Control) -> None:
    settings = run.config.sample
    prompts = run.prompts.of_samples(settings)
    for indices in drawn_together(settings):
        images = draw(
            run.family,
            run.components,
            run.noise_schedule,
            settings,
            prompts,
            indices=indices,
            interrupted=lambda: run.workers.any_of(control.ends),
        )
        for index, image in zip(indices, images, strict=False):
            path = run.folder.samples_dir / f"step-{run.step:08d}-{index:02d}.png"
            picture = io.BytesIO()
            image.save(picture, "PNG")
            if not run.workers.is_first:
                continue
            if not try_to_write(partial(replace_file, path, picture.getvalue()), path.name, path.parent, emit):
                return
            name = path.relative_to(run.folder.path).as_posix()
            emit(events.SampleSaved(run.step, index, settings.prompts[index], settings.seed + index, name))
        if not images:
            return


def save(run: Run, emit: Emit, *, stem: str, beside: bool = False) -> None:
    """Writes the LoRA as file(s) named `stem` in the run folder, read back and compared, and a checkpoint.

    The checkpoint comes last, whatever befalls the file: a run that is killed in between does both again. `beside`: the
    steps that follow don't wait for the checkpoint, unless the file could not be written. Of several workers the first
    one writes.
    """
    if not run.workers.is_first:
        return
    is_written = False
    try:
        with averaged_weights(run.optimizer):
            save_files(run, emit, stem=stem)
        is_written = True
    finally:
        save_state(run, emit, beside=beside and is_written)


def save_files(run: Run, emit: Emit, *, stem: str) -> None:
    """Writes the LoRA as it is now."""
    settings = run.config.save
    formats = written_formats(settings.key_format, run.config.lora.adapter)
    metadata = build_metadata(run.config, export_facts(run))
    for key_format in formats:
        suffix = "_diffusers" if key_format is KeyFormat.DIFFUSERS and len(formats) > 1 else ""
        path = run.folder.path / f"{stem}{suffix}.safetensors"
        num_bytes = save_lora(
            run.components, run.family, path, key_format=key_format, precision=settings.precision, metadata=metadata
        )
        loads_in = verify_export(path, run.components, run.family, key_format, settings.precision)
        emit(events.LoraSaved(run.step, path.name, key_format.value, num_bytes, sha256_of(path), loads_in))
    ending = stem.removeprefix(run.config.name)
    for path, loads_in in save_word(run.components, run.folder.path / FOLDER, ending):
        name, num_bytes = path.relative_to(run.folder.path).as_posix(), path.stat().st_size
        emit(events.LoraSaved(run.step, name, GROUP, num_bytes, sha256_of(path), loads_in))


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
        trigger_words=_trigger_words(run),
        masked=bool(run.pictures.masks),
        dataset_sha256=run.dataset_sha256,
        held_out=held_out_facts(run),
    )


def _trigger_words(run: Run) -> tuple[str, ...]:
    words = [*(source.trigger_word for source in run.sources), run.config.embedding.word]
    return tuple(dict.fromkeys(word for word in words if word))


def _tag_frequency(run: Run, learned: list[PlacedPicture]) -> dict[str, Counter[str]]:
    """How often each tag occurs per epoch of a dataset, by the dataset's name."""
    counted: dict[str, Counter[str]] = {}
    for one in (one for one in learned if one.is_first):
        tags = counted.setdefault(run.sources[one.source].name, Counter())
        for tag in split_tags(one.picture.caption):
            tags[tag] += one.picture.repeats
    return counted


def forget_old_loras(run: Run, emit: Emit) -> None:
    """Deletes LoRA files of single steps but the newest `save.keep_last_loras`, in each of their formats."""
    if not run.workers.is_first:
        return
    keep = run.config.save.keep_last_loras
    names = "|".join(re.escape(name) for name in (run.config.name, run.config.embedding.word) if name)
    pattern = re.compile(rf"({names})-step(\d{{6,}})(_diffusers)?\.safetensors")
    paths = [*run.folder.path.glob("*.safetensors"), *run.folder.path.glob(f"{FOLDER}/*.safetensors")]
    found = {path: match[2] for path in paths if (match := pattern.fullmatch(path.name))}
    steps = sorted({int(step) for step in found.values() if int(step) <= run.step})
    old = set(steps[:-keep]) if keep else set()
    for path in sorted(path for path, step in found.items() if int(step) in old):
        Root(run.folder.path).remove_tree(path)
        emit(events.LoraRemoved(int(found[path]), path.relative_to(run.folder.path).as_posix()))


def due(step: int, every_n_steps: int) -> bool:
    """Whether something that happens every n steps happens after this one; 0 means never."""
    return every_n_steps > 0 and step % every_n_steps == 0
