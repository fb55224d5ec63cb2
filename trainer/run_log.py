"""A run's events in words: one line each, as the log of the page and the command line shows them."""

from __future__ import annotations

import datetime

from trainer import events
from trainer.events import Event
from trainer.lora_files.programs import told_in_words
from trainer.models.text import gigabytes
from trainer.words import duration

LOG_EVERY_N_STEPS = 10


def describe(event: Event, total_steps: int) -> str:
    """One log line for an event, or an empty text when the log leaves it out."""
    clock = _clock(event.time)
    match event:
        case events.Queued():
            text = f"run {event.name} created"
        case events.Preparing():
            counted = f" {event.done} of {event.total}" if event.total else ""
            if event.total and event.done not in (0, event.total):
                return ""
            text = f"{event.phase}{counted}"
        case events.Sandboxed():
            text = f"sandbox: {event.detail}"
        case events.Started():
            text = (
                f"training {event.family} on {event.device}: {event.total_steps} steps, {event.num_images} pictures, "
                f"{event.trainable_parameters:,} trainable parameters"
            )
        case events.Resumed():
            changed = "".join(f"; {name}: {change}" for name, change in event.changed.items())
            text = f"going on from step {event.step}{changed}"
        case events.StepDone():
            if event.step % LOG_EVERY_N_STEPS and event.step not in (1, total_steps):
                return ""
            gradient = "skipped" if event.gradient_norm is None else f"{event.gradient_norm:.3f}"
            text = (
                f"step {event.step}/{total_steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
                f"grad {gradient}  {event.seconds:.2f} s"
            )
        case events.Validated():
            text = _describe_validated(event)
        case events.SampleSaved():
            text = f"sample at step {event.step}: {event.prompt}"
        case events.CheckpointSaved():
            text = f"checkpoint at step {event.step}"
        case events.LoraSaved():
            loads = told_in_words(event.loads_in) or f"{event.key_format} keys"
            text = f"LoRA saved: {event.path} ({event.num_bytes / 1e6:.1f} MB). {loads}"
        case events.Planned():
            text = f"planned: about {duration(event.seconds)} (±{event.band:.0%}), by {event.source}"
        case events.MemoryPlanned():
            text = f"memory: {event.sentence}"
        case events.Measured():
            text = f"needed {gigabytes(event.memory_bytes)} of memory and {gigabytes(event.disk_bytes)} on the disk"
        case events.LoraRemoved():
            text = f"older LoRA deleted: {event.path}"
        case events.WentAstray():
            text = f"step {event.step} gave no usable numbers. {event.cause}"
        case events.Warned():
            text = f"warning: {event.message}"
        case events.Stopping():
            text = "pausing after this step" if event.pause else "stopping after this step, then saving"
        case events.Paused():
            text = f"paused at step {event.step}"
        case events.Finished():
            text = (
                f"stopped at step {event.step}, everything is saved" + (f". {event.reason}" if event.reason else "")
                if event.stopped
                else f"finished after {event.step} steps"
            )
        case events.Failed():
            text = f"failed at step {event.step}: {event.message}" + (
                f" (id {event.error_id})" if event.error_id else ""
            )
        case _:
            raise AssertionError(f"no log line for {type(event).__name__}")
    return f"{clock}  {text}"


def _describe_validated(event: events.Validated) -> str:
    text = f"held-out loss {event.loss:.4f} ± {event.spread:.4f} at step {event.step}"
    if event.train_loss is not None:
        text += f", on training pictures {event.train_loss:.4f} ± {event.train_spread:.4f}"
    if event.best:
        text += ", the lowest so far"
    return f"{text}. {event.notice}" if event.notice else text


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
