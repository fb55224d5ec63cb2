"""One check of a whole run: all findings, then a dry run of its largest pictures on a thread that is confined like a run."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from security.errors import Cancelled, SafelightError
from security.roots import Root
from trainer import events
from trainer.config.files import dump_config
from trainer.config.schema import TrainConfig
from trainer.inputs import Inputs, confine_run
from trainer.jobs import TRAINER_THREAD, Control, error_message, judged_runs, load_trainer
from trainer.preflight.checks import Finding, Level, Subject, disk_finding, find_all
from trainer.preflight.estimates import Estimate, keep_estimate, num_due, seconds_for_area, time_band
from trainer.runs import Progress, RunFolder
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from trainer.dataset.plan import DatasetPlan
    from trainer.preflight.dry_run import Measurements

logger = logging.getLogger("safelight.preflight")

FULL = 0.92
"""Share of the memory over which a run is likely to fail or to slow down to a crawl."""
WORDS = {"epsilon": "noise (epsilon)", "v_prediction": "velocity (v_prediction)"}


@dataclass(frozen=True)
class Preflight:
    """What was found. `estimate` is None when there was no dry run, or it failed."""

    findings: tuple[Finding, ...]
    estimate: Estimate | None

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What keeps the run from succeeding."""
        return tuple(one for one in self.findings if one.level is Level.FAULT)

    @property
    def sentence(self) -> str:
        """The outcome in a line."""
        warnings = sum(one.level is Level.WARNING for one in self.findings)
        told = f"{warnings} warning{'' if warnings == 1 else 's'}" if warnings else "no warnings"
        if self.faults:
            number = len(self.faults)
            return f"This run can't succeed as it is: {number} fault{'' if number == 1 else 's'}, {told}."
        return f"Ready to train: {told}."


@dataclass
class _Dry:
    """What the confined thread leaves behind."""

    findings: list[Finding] = field(default_factory=list)
    measurements: Measurements | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cancelled: bool = False


def preflight(
    workspace: Workspace,
    config: TrainConfig,
    *,
    past: Sequence[Progress] = (),
    tell: Callable[[int, int, str], None] = lambda done, total, text: None,
    dry_run: bool = True,
) -> Preflight:
    """Every check of a run, and its estimate. `past`: earlier runs, which show how good estimates are on this machine.

    `tell` may raise Cancelled. The estimate is kept, so that a run with the same settings is judged by it.
    """
    subject = Subject(workspace, config, tell)
    findings = find_all(subject)
    if not dry_run or subject.inputs is None or any(one.level is Level.FAULT for one in findings):
        return Preflight(tuple(findings), None)
    dry = _dry_run(workspace, config, subject.inputs, tell)
    if dry.cancelled:
        raise Cancelled("Cancelled. What was cached before is kept.")
    told = {one.text for one in findings}
    findings += [one for one in dry.findings if one.text not in told]
    if dry.measurements is None or subject.plan is None:
        return Preflight(tuple(findings), None)
    estimate = make_estimate(config, subject.plan, dry.measurements, dry.seconds, workspace, past)
    keep_estimate(workspace, config, estimate)
    return Preflight((*findings, *_about(estimate, workspace)), estimate)


def _dry_run(workspace: Workspace, config: TrainConfig, inputs: Inputs, tell: Callable[[int, int, str], None]) -> _Dry:
    """Runs the dry run on a thread of its own, because a thread's confinement can't be lifted, and cleans up."""
    workspace.checks_dir.mkdir(parents=True, exist_ok=True)
    root = Root(workspace.checks_dir)
    for left in workspace.checks_dir.glob("dry-*"):
        if time.time() - left.stat().st_mtime > 24 * 3600:  # of a check that was killed; a younger one may be at work
            root.remove_tree(left)
    folder = RunFolder(workspace.checks_dir / f"dry-{secrets.token_hex(6)}")
    folder.path.mkdir()
    root.write_text_atomic(folder.config_path, dump_config(config))
    dry, control = _Dry(), Control()

    def work() -> None:
        _work(workspace, config, inputs, folder, control, tell, dry)

    thread = threading.Thread(target=work, name=TRAINER_THREAD, daemon=True)
    thread.start()
    thread.join()
    root.remove_tree(folder.path)
    return dry


def _work(
    workspace: Workspace,
    config: TrainConfig,
    inputs: Inputs,
    folder: RunFolder,
    control: Control,
    tell: Callable[[int, int, str], None],
    dry: _Dry,
) -> None:
    try:
        load_trainer(workspace)
        from trainer.preflight.dry_run import measure, probe_prediction
        from trainer.setup import StoppedEarly, prepare

        sandboxed = confine_run(inputs, folder, workspace)
        level = Level.GOOD if sandboxed.active else Level.WARNING
        dry.findings.append(Finding("sandbox", level, sandboxed.detail))
        began, phase = time.monotonic(), ""

        def emit(event: events.Event) -> None:
            nonlocal began, phase
            if isinstance(event, events.Warned):
                dry.findings.append(Finding("dry run", Level.WARNING, event.message))
            if isinstance(event, events.MemoryPlanned):
                dry.findings.append(Finding("memory plan", Level.NOTE, f"Planned: {event.sentence}."))
            if isinstance(event, events.Preparing):
                now = time.monotonic()
                dry.seconds[phase] = dry.seconds.get(phase, 0.0) + now - began
                began, phase = now, event.phase
                try:
                    tell(event.done, event.total, event.phase)
                except Cancelled:
                    dry.cancelled = True
                    control.stop.set()

        try:
            run = prepare(config, inputs, folder, workspace, emit, control)
        except StoppedEarly:
            return
        emit(events.Preparing("Looking at the base's own answers"))
        dry.findings.append(_prediction(probe_prediction(run), run.noise_schedule.prediction_type))
        with run.threads():
            dry.measurements = measure(run, emit, lambda text: tell(0, 0, text))
        dry.findings.append(
            Finding("dry run", Level.GOOD, f"Steps work; the first loss is {dry.measurements.loss:.3f}.")
        )
    except Cancelled:
        dry.cancelled = True
    except SafelightError as error:
        dry.findings.append(Finding("dry run", Level.FAULT, str(error)))
    except Exception as error:  # the thread's last line: report, whatever it was
        error_id = secrets.token_hex(3).upper()
        logger.exception("a dry run failed (id %s)", error_id)
        text = f"{error_message(error, workspace.logs_dir)} (id {error_id})"
        dry.findings.append(Finding("dry run", Level.FAULT, text))


def _prediction(seen: str, used: str) -> Finding:
    if not seen:
        text = f"The base's answers don't show clearly what it predicts; {WORDS[used]} is used."
        return Finding("prediction type", Level.NOTE, text, "model.prediction_type")
    if seen != used:
        text = (
            f"The base's own answers look like {WORDS[seen]}, but this run trains {WORDS[used]}: the result would be ruined. "
            f"Set model.prediction_type to {seen} or auto."
        )
        return Finding("prediction type", Level.WARNING, text, "model.prediction_type")
    return Finding("prediction type", Level.GOOD, f"The base predicts {WORDS[seen]}, as this run trains it.")


def make_estimate(
    config: TrainConfig,
    plan: DatasetPlan,
    found: Measurements,
    seconds: dict[str, float],
    workspace: Workspace,
    past: Sequence[Progress],
) -> Estimate:
    """The needs of a run from what a dry run measured. `seconds`: by phase of its preparation."""
    steps = config.training.max_train_steps
    sample, save = config.sample, config.save
    draws = num_due(steps, sample.every_n_steps, first=True, last=True) * len(sample.prompts)
    looks = num_due(steps, config.validation.every_n_steps, first=True, last=True)
    looks *= found.num_measured
    on_the_way = num_due(steps, save.every_n_steps, first=False, last=False)
    # at the most: each measurement may be the best so far
    bests = num_due(steps, config.validation.every_n_steps, first=False, last=True)
    bests = bests if looks and config.validation.keep_best else 0
    saves, kept = on_the_way + bests + 1, min(on_the_way, save.keep_last_loras or on_the_way)
    time_parts = {
        "loading": sum(taken for phase, taken in seconds.items() if not phase.startswith("Encoding")),
        "encoding pictures": 0.0
        if config.dataset.cache_latents
        else sum(taken for phase, taken in seconds.items() if phase.startswith("Encoding")),
        "steps": steps * seconds_for_area(found.steps, found.mean_area),
        "samples": draws * found.sample_seconds,
        "held-out loss": looks * found.validation_seconds,
        "saving": saves * found.save_seconds,
    }
    disk_parts = {
        "checkpoints": (min(saves, save.keep_last) + min(bests, 1)) * found.checkpoint_bytes,
        "LoRA files": (kept + min(bests, 1) + 1) * found.lora_bytes,
        "samples": draws * found.sample_bytes,
    }
    memory_total = found.memory_total or psutil.virtual_memory().total
    return Estimate(
        steps=steps,
        images=len(plan.placed),
        epochs=plan.epochs,
        seconds=sum(time_parts.values()),
        band=time_band(judged_runs(past)),
        memory_bytes=found.memory_bytes,
        memory_total=memory_total,
        disk_bytes=sum(disk_parts.values()),
        disk_free=shutil.disk_usage(workspace.path).free,
        source="a dry run with these settings",
        time_parts=time_parts,
        memory_parts=found.memory_parts,
        disk_parts=disk_parts,
    )


def _about(estimate: Estimate, workspace: Workspace) -> list[Finding]:
    findings = [disk_finding(estimate.disk_bytes, workspace)]
    if estimate.memory_bytes and estimate.memory_total:
        share = estimate.memory_bytes / estimate.memory_total
        told = f"{estimate.memory_bytes / 1e9:.1f} of {estimate.memory_total / 1e9:.1f} GB"
        if share > FULL:
            text = (
                f"The largest pictures need {told} of memory, which is too near the end. Lower training.batch_size or "
                "dataset.resolution, or keep the base smaller with memory.base_format."
            )
            findings.append(Finding("memory", Level.WARNING, text, "memory.base_format"))
        else:
            findings.append(Finding("memory", Level.GOOD, f"The largest pictures need {told} of memory."))
    return findings


def report_values(result: Preflight) -> dict[str, Any]:
    """The result as plain values, for JSON and the page."""
    estimate = result.estimate
    return {
        "sentence": result.sentence,
        "ok": not result.faults,
        "findings": [
            {"check": one.check, "level": one.level.value, "text": one.text, "setting": one.setting}
            for one in result.findings
        ],
        "estimate": None
        if estimate is None
        else {
            "steps": estimate.steps,
            "images": estimate.images,
            "epochs": estimate.epochs,
            "seconds": estimate.seconds,
            "seconds_range": list(estimate.seconds_range),
            "band": estimate.band,
            "memory_bytes": estimate.memory_bytes,
            "memory_total": estimate.memory_total,
            "disk_bytes": estimate.disk_bytes,
            "disk_free": estimate.disk_free,
            "source": estimate.source,
            "time_parts": dict(estimate.time_parts),
            "memory_parts": dict(estimate.memory_parts),
            "disk_parts": dict(estimate.disk_parts),
        },
    }
