"""What the page shows of a run, as plain values: words, numbers and links. Nothing here knows Gradio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from trainer import events
from trainer.families import FAMILIES
from trainer.lora_files.programs import programs_in_words
from trainer.pace import Pace
from trainer.preflight.estimates import judged
from trainer.rebuild import Checked
from trainer.runs import LossPoint, Progress, RunState
from trainer.words import duration
from ui.machine import gigabytes

FILES_PREFIX = "safelight"


@dataclass(frozen=True)
class StateLook:
    """How a state is told: its word, its tone (a colour that never stands alone), a mark for the tab title, what can be done."""

    word: str
    tone: str
    mark: str
    actions: tuple[str, ...]


_OVER = ("resume", "extend", "again", "delete")
STATES: dict[RunState, StateLook] = {
    RunState.WAITING: StateLook("Waiting", "quiet", "…", ("cancel",)),
    RunState.PREPARING: StateLook("Preparing", "busy", "…", ("stop",)),
    RunState.TRAINING: StateLook("Training", "good", "", ("pause", "stop", "save_now", "sample_now")),
    RunState.STOPPING: StateLook("Stopping", "busy", "…", ()),
    RunState.PAUSED: StateLook("Paused", "busy", "Ⅱ", _OVER),
    RunState.STOPPED: StateLook("Stopped", "quiet", "■", _OVER),
    RunState.FINISHED: StateLook("Finished", "good", "✓", ("extend", "again", "delete")),
    RunState.FAILED: StateLook("Failed", "bad", "✗", _OVER),
    RunState.INTERRUPTED: StateLook("Interrupted", "busy", "!", _OVER),
}
IDLE = StateLook("Idle", "quiet", "", ())


def percent(progress: Progress) -> int:
    """How much of the run is done, 0 to 100."""
    return min(100, 100 * progress.step // progress.total_steps) if progress.total_steps else 0


def headline(progress: Progress) -> str:
    """Where the run stands, in one line beside its state."""
    step, total = progress.step, progress.total_steps
    match progress.state:
        case RunState.WAITING:
            return "waits for the run before it"
        case RunState.PREPARING:
            counted = f" {progress.phase_done} of {progress.phase_total}" if progress.phase_total else ""
            return f"{progress.phase or 'starting'}{counted}"
        case RunState.TRAINING:
            if step == progress.first_step == 0:
                return "before the first step: measuring and drawing samples"
            if step == total:
                return f"all {total} steps are done: measuring, saving and drawing the last samples"
            parts = [f"step {step} of {total}", f"{percent(progress)}%"]
            if progress.eta_seconds is not None:
                parts.append(f"{duration(progress.eta_seconds)} left")
            if progress.loss is not None:
                parts.append(f"loss {progress.loss:.4f}")
            return " · ".join(parts)
        case RunState.STOPPING:
            return f"at step {step} of {total}: finishing this step, then saving"
        case RunState.PAUSED:
            return f"at step {step} of {total}, its memory is given back"
        case RunState.STOPPED:
            return progress.reason or f"at step {step} of {total}, everything is saved"
        case RunState.FINISHED:
            return f"{total} steps in {duration(progress.elapsed_seconds)} · {_num_files(progress)}"
        case RunState.FAILED:
            return f"at step {step}: {progress.message}" if step else progress.message
        case RunState.INTERRUPTED:
            return (
                f"Safelight was closed at step {step} of {total}"
                if total
                else "Safelight was closed before the first step"
            )


def _num_files(progress: Progress) -> str:
    count = len(progress.loras)
    return "1 file" if count == 1 else f"{count} files"


def title(progress: Progress | None) -> str:
    """The browser tab's title while this run is the current one."""
    if progress is None:
        return "Safelight"
    mark = f"{percent(progress)}%" if progress.state is RunState.TRAINING else STATES[progress.state].mark
    return f"{mark} {progress.run_id} - Safelight"


def run_row(progress: Progress) -> dict[str, Any]:
    """One line of the list of runs."""
    look = STATES[progress.state]
    short = f"{percent(progress)}%" if progress.state is RunState.TRAINING else ""
    if progress.state is RunState.FINISHED:
        short = _num_files(progress)
    return {
        "id": progress.run_id,
        "word": look.word,
        "tone": look.tone,
        "text": short,
        "can_cancel": progress.state is RunState.WAITING,
    }


def run_detail(progress: Progress) -> dict[str, Any]:
    """Everything of one run but its loss curve, log and settings."""
    look = STATES[progress.state]
    wanted = {"resume": progress.can_resume, "extend": bool(progress.checkpoint_step)}
    actions = [action for action in look.actions if wanted.get(action, True)]
    if progress.state is RunState.FAILED and progress.astray is not None and progress.astray.setting:
        actions.insert(0, "retry")
    return {
        "id": progress.run_id,
        "word": look.word,
        "tone": look.tone,
        # a failed run tells why just below
        "headline": f"at step {progress.step}" if progress.state is RunState.FAILED else headline(progress),
        "percent": percent(progress),
        "active": progress.state.is_active,
        "failed": progress.state is RunState.FAILED,
        "message": _what_to_do(progress),
        "warnings": list(progress.warnings),
        "actions": [[action, _label(action, progress)] for action in actions],
        "primary": _primary(actions, progress),
        "facts": _facts(progress),
        "loss_text": loss_text(progress),
        "notice": progress.notice,
        "best": best_text(progress),
        "samples": [_sample(progress.run_id, sample) for sample in progress.samples],
        "files": [
            {**_file(progress.run_id, saved), "recommended": saved in progress.recommended}
            for saved in reversed(progress.loras)
        ],
        "links": {
            "log": run_url(progress.run_id, "log.txt"),
            "config": run_url(progress.run_id, "config.toml"),
            "rebuild": run_url(progress.run_id, "rebuild.json") if progress.total_steps else "",
        },
        "step": progress.step,
        "total": progress.total_steps,
    }


def _primary(actions: list[str], progress: Progress) -> str:
    """The action that leads on; a run that failed before its first checkpoint would mostly fail in the same way again."""
    if "retry" in actions:
        return "retry"
    return "again" if progress.state is RunState.FAILED and not progress.checkpoint_step else "resume"


def _label(action: str, progress: Progress) -> str:
    if action == "resume":
        step = progress.checkpoint_step
        return f"Continue from step {step}" if step else "Start again from the beginning"
    if action == "retry" and progress.astray is not None:
        back = progress.astray.back_to
        how = f"Go on from step {back}" if back else "Try again"
        return f"{how} with {setting_in_words(progress.astray.setting, progress.astray.value)}"
    return {
        "extend": "Go on to another number of steps",
        "pause": "Pause",
        "stop": "Stop and save",
        "save_now": "Save now",
        "sample_now": "Sample now",
        "cancel": "Remove from the queue",
        "again": "Train again with these settings",
        "delete": "Delete",
    }[action]


def setting_in_words(name: str, value: float | str) -> str:
    """A setting with its value on a button: `learning rate 3e-05`."""
    words = name.rpartition(".")[2].replace("_", " ")
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"


def _what_to_do(progress: Progress) -> str:
    """One sentence for the states in which the user has to decide something."""
    saved = f"Saved at step {progress.checkpoint_step}. " if progress.checkpoint_step else ""
    match progress.state:
        case RunState.FAILED:
            error_id = f" (id {progress.error_id} in the log)" if progress.error_id else ""
            return f"{progress.message}{error_id} {saved}".strip()
        case RunState.INTERRUPTED:
            kept = saved or "No checkpoint was written yet. "
            return f"Safelight was closed, or the machine went off, at step {progress.step}. {kept}Continue goes on from there."
        case RunState.PAUSED:
            return f"{saved}Its memory is given back to the machine; Continue goes on from there."
    return ""


def looks_told(seen: int, pictures: int) -> str:
    """How often each picture was seen; a short run has not seen them all once. "" without pictures."""
    if not pictures:
        return ""
    looks = seen / pictures
    return f"{looks:.0f}" if looks >= 10 else f"{round(looks, 1):g}"


def _memory_told(pace: Pace | None) -> str | None:
    if pace is None or not pace.memory_bytes:
        return None
    total = f" of {gigabytes(pace.memory_total)}" if pace.memory_total else ""
    return f"{gigabytes(pace.memory_bytes)}{total}"


def _facts(progress: Progress) -> list[list[str]]:
    """Names and values of the small table beside the curve; what isn't known yet is left out."""
    facts: list[tuple[str, str | None]] = [
        ("Model family", _family_label(progress.family)),
        ("Device", progress.device or None),
        ("Pictures", str(progress.num_images) if progress.num_images else None),
        ("Looks at each picture", looks_told(progress.images_seen, progress.num_images) or None),
        ("Learning rate", f"{progress.learning_rate:.3g}" if progress.learning_rate is not None else None),
        ("Gradient norm", f"{progress.gradient_norm:.3g}" if progress.gradient_norm is not None else None),
        ("Pictures per second", f"{progress.pace.images_per_second:.3g}" if progress.pace else None),
        ("Memory in use", _memory_told(progress.pace)),
        ("Limited by", (progress.pace.limit or None) if progress.pace else None),
        ("Time per step", f"{progress.seconds_per_step:.2f} s" if progress.seconds_per_step is not None else None),
        ("Sandbox", _sandbox(progress)),
        ("Plan", plan_text(progress) or None),
        ("Running for", duration(progress.elapsed_seconds) if progress.elapsed_seconds else None),
    ]
    since = f" (since step {progress.resumes[-1]})" if progress.resumes else ""
    facts += [(f"Changed{since}", f"{name}: {change}") for name, change in progress.changes.items()]
    return [[name, value] for name, value in facts if value is not None]


def plan_text(progress: Progress) -> str:
    """What was planned, and once the run is over what happened; empty for a run that nothing was known of."""
    planned = progress.planned
    if planned is None:
        return ""
    if progress.measured is None or progress.state is not RunState.FINISHED:
        return f"about {duration(planned.seconds)} ±{planned.band:.0%}, by {planned.source}"
    return judged(planned, progress.elapsed_seconds, progress.measured)


def _sandbox(progress: Progress) -> str | None:
    return None if progress.sandbox is None else "on" if progress.sandbox.active else "off"


def _family_label(name: str) -> str | None:
    return FAMILIES[name].label if name in FAMILIES else name or None


def loss_text(progress: Progress) -> str:
    """The curve in words, for those who can't see it and those in a hurry."""
    texts = []
    if progress.loss is not None:
        texts.append(f"Loss {progress.loss:.4f} (smoothed) after {progress.step} steps.")
    if not progress.validations:
        return " ".join(texts)
    first, last, best = progress.validations[0], progress.validations[-1], progress.best
    if last is first:
        texts.append(f"Held-out loss {first.loss:.4f} at step {first.step}.")
    else:
        change = 100 * (last.loss - first.loss) / first.loss if first.loss else 0.0
        texts.append(
            f"Held-out loss {first.loss:.4f} at step {first.step}, {last.loss:.4f} at step {last.step} ({change:+.0f}%)."
        )
    if best is not None and best.step != last.step:
        texts.append(f"It was lowest at step {best.step}: {best.loss:.4f}.")
    if last.train_loss is not None:
        texts.append(f"Training pictures measured in the same way: {last.train_loss:.4f}.")
    return " ".join(texts)


def best_text(progress: Progress) -> str:
    """Which file to take, where the held-out loss says so; empty where it says nothing."""
    best, files = progress.best, progress.recommended
    if best is None or not files:
        return ""
    names = " and ".join(PurePosixPath(saved.path).name for saved in files)
    others = "" if best.step == progress.step else " No later step was better on pictures that are not trained."
    return f"Recommended: {names}, with the lowest held-out loss ({best.loss:.4f} at step {best.step}).{others}"


def curve(points: list[LossPoint], progress: Progress) -> dict[str, Any]:
    """The loss curve's numbers, rounded: what the chart and its table are drawn from."""
    return {
        "points": [[point.step, _short(point.low), _short(point.high), _short(point.smoothed)] for point in points],
        "validations": [_measured(validated) for validated in progress.validations],
        "best": progress.best.step if progress.best else None,
        "resumes": list(progress.resumes),
        "total": progress.total_steps,
    }


def _measured(one: events.Validated) -> list[float | None]:
    """Step, held-out loss with its standard error, loss on training pictures with its own."""
    return [one.step, *(_short(value) for value in (one.loss, one.spread, one.train_loss, one.train_spread))]


def _short(value: float | None) -> float | None:
    """Five digits are more than a screen shows; not-a-number has no JSON form and becomes a gap."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _sample(run_id: str, sample: Any) -> dict[str, Any]:
    # The time in the address lets browsers keep a picture for good: one drawn again after a resume has another address.
    url = f"{run_url(run_id, sample.path)}?v={sample.time:.0f}"
    return {
        "step": sample.step,
        "index": sample.index,
        "prompt": sample.prompt,
        "seed": sample.seed,
        "url": url,
        "thumb": f"{url}&thumb=1",
    }


def _file(run_id: str, saved: Any) -> dict[str, Any]:
    # Runs of older versions don't tell; they wrote plain LoRAs only.
    older = "ComfyUI, A1111, Forge and most tools" if saved.key_format == "kohya" else "diffusers and peft"
    return {
        "name": PurePosixPath(saved.path).name,
        "step": saved.step,
        "size": gigabytes(saved.num_bytes),
        "fits": programs_in_words(saved.loads_in) if saved.loads_in else older,
        "unfit": list(dict.fromkeys(sentence for sentence in saved.loads_in.values() if sentence)),
        "usable": not saved.loads_in or "" in saved.loads_in.values(),
        "is_word": saved.key_format == "embedding",
        "sha256": saved.sha256,
        "url": run_url(run_id, saved.path),
    }


def rebuild_told(checked: Checked) -> dict[str, Any]:
    """What the dialog says of an imported file that rebuilds a run: everything that is other than it was."""
    lines = [["bad" if one.decisive else "busy", one.text] for one in checked.differences]
    if not checked.possible:
        intro = (
            "The form has the settings of that run, but something is missing here. Choose it in the form, then start."
        )
    elif not checked.is_same:
        intro = "The form has the settings of that run, but the LoRA will be another one:"
    elif lines:
        intro = (
            "Pictures, captions and base are those of that run. Start training, and the LoRA is the same but for this:"
        )
    else:
        intro = "Everything is as in that run. Start training, and the LoRA is the same, bit for bit."
    return {"title": "A run to rebuild", "intro": intro, "lines": lines}


def run_url(run_id: str, path: str) -> str:
    """Where ui/downloads.py serves a file of a run; relative, so that it also works behind a share link."""
    return f"{FILES_PREFIX}/runs/{quote(run_id, safe='')}/{quote(path)}"


def strip_values(progress: Progress | None, num_waiting: int) -> dict[str, Any]:
    """The status strip."""
    look = STATES[progress.state] if progress else IDLE
    values: dict[str, Any] = {
        "word": look.word,
        "tone": look.tone,
        "title": title(progress),
        "name": progress.run_id if progress else "",
        "run": progress.run_id if progress else "",
        "headline": headline(progress) if progress else "Nothing is training",
        "percent": percent(progress) if progress else 0,
        "active": bool(progress and progress.state.is_active),
        "actions": [],
        "waiting": num_waiting,
    }
    if progress:
        values["actions"] = [
            [action, _label(action, progress)] for action in look.actions if action in ("pause", "stop")
        ]
    return values
