"""Training from the command line: starts a run, shows it until it ends, and ends it well on Ctrl+C."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from security.output import drain, terminal_columns
from security.roots import Root
from trainer.config.changes import differences, flat_settings
from trainer.config.files import apply_flags, config_values, load_values, parse_config
from trainer.config.schema import TrainConfig
from trainer.demo import demo_config
from trainer.jobs import Jobs
from trainer.logs import configure_logging
from trainer.lora_files.programs import told_in_words
from trainer.machines import ONE_MACHINE, Machines
from trainer.runs import Progress, RunFolder, RunState
from trainer.words import duration
from trainer.workspace import Workspace
from ui.rates import rates_line
from ui.settings_files import named_file
from ui.signals import ending_signals
from ui.views import best_text, plan_text

SAVE_SECONDS = 19.0
"""For the running step and its saving after a signal; the rest of the promised twenty seconds is for closing down."""
SAME_SIGNAL_SECONDS = 1.0
"""Signals that follow this fast are one: `timeout` and some shells send theirs to the process and to its group."""
PLAIN_LINE_SECONDS = 5.0
INTERRUPTED_TWICE = 130
_STEP_LINE = re.compile(r"^\d\d:\d\d:\d\d {2}step \d")


@dataclass(frozen=True)
class DemoResult:
    """What the demo reached. Losses are measured on pictures that it never trained on; paths are absolute."""

    run: str
    steps: int
    seconds: float
    held_out_loss_before: float
    held_out_loss_after: float
    folder: str

    @property
    def change(self) -> float:
        """Change of the held-out loss as a share of the loss before: -0.25 is a quarter less."""
        return self.held_out_loss_after / self.held_out_loss_before - 1


def demo(workspace: Workspace, steps: int | None, out: Path | None, *, as_json: bool) -> int:
    """Trains the demo LoRA, writes a contact sheet and a summary into the run folder, and copies all of it to `out`."""
    config = demo_config() if steps is None else demo_config(steps)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    configure_logging(workspace)
    jobs = Jobs(workspace)
    progress, code = Follower(jobs, jobs.submit(config), as_json=as_json).follow()
    if code != 0 or progress.state is not RunState.FINISHED:
        return code
    result = finish_demo(workspace, progress, out)
    if as_json:
        print(json.dumps({"event": "DemoResult", **asdict(result), "change": result.change}))
    else:
        print(
            f"held-out loss {result.held_out_loss_before:.3f} -> {result.held_out_loss_after:.3f} ({result.change:+.0%}) "
            f"after {result.steps} steps in {result.seconds:.0f} s"
        )
        print(f"LoRA, samples and contact_sheet.png: {result.folder}")
    return 0


def finish_demo(workspace: Workspace, progress: Progress, out: Path | None) -> DemoResult:
    """Writes contact_sheet.png and summary.json beside the run's LoRA; copies these and the samples to `out`."""
    from trainer.demo.sheet import contact_sheet

    folder = RunFolder.find(workspace, progress.run_id)
    result = DemoResult(
        run=progress.run_id,
        steps=progress.step,
        seconds=round(progress.elapsed_seconds, 1),
        held_out_loss_before=progress.validations[0].loss,
        held_out_loss_after=progress.validations[-1].loss,
        folder=str((out or folder.path).resolve()),
    )
    picture = io.BytesIO()
    contact_sheet(folder.path, progress.samples).save(picture, "PNG")
    files = {
        "contact_sheet.png": picture.getvalue(),
        "summary.json": json.dumps({**asdict(result), "change": result.change}, indent=1).encode(),
    }
    target = Root(folder.path)
    for name, data in files.items():
        target.write_bytes_atomic(target.child(name), data)
    if out is None:
        return result
    last = max(sample.step for sample in progress.samples)
    wanted = [lora.path for lora in progress.loras if lora.step == progress.step]
    wanted += [sample.path for sample in progress.samples if sample.step in (0, last)]
    copied = Root(out)
    for relative in wanted:
        with target.open_read(relative) as file:
            copied.write_bytes_atomic(copied.child(Path(relative).name), file.read())
    for name, data in files.items():
        copied.write_bytes_atomic(copied.child(name), data)
    return result


def train(
    workspace: Workspace, path: Path, flags: Sequence[str], machines: Machines = ONE_MACHINE, *, as_json: bool
) -> int:
    """Trains what a TOML file and flags say. Raises SafelightError for settings that can't be run."""
    config = parse_config(apply_flags(load_values(named_file(path)), flags))
    configure_logging(workspace)
    jobs = Jobs(workspace, machines)
    run_id = jobs.submit(config)
    if not as_json:
        print(rates_line(config, sys.stdout.encoding or "ascii"), flush=True)
    return Follower(jobs, run_id, as_json=as_json).follow()[1]


def resume(
    workspace: Workspace, run_id: str, flags: Sequence[str], machines: Machines = ONE_MACHINE, *, as_json: bool
) -> int:
    """Lets a run go on, with the settings that flags change. Raises SafelightError when it can't."""
    configure_logging(workspace)
    jobs = Jobs(workspace, machines)
    known = len(jobs.lines(run_id))
    follower = Follower(jobs, run_id, as_json=as_json, first_line=known)
    jobs.resume(run_id, changes_by(flags, RunFolder.find(workspace, run_id).config()))
    return follower.follow()[1]


def changes_by(flags: Sequence[str], config: TrainConfig) -> dict[str, Any]:
    """The settings that flags make others than they are, as `section.field` -> value. Raises ConfigError."""
    changed = parse_config(apply_flags(config_values(config), flags))
    return {name: new for name, (_, new) in differences(flat_settings(config), flat_settings(changed)).items()}


class Follower:
    """Shows one run until it ends: one updating line on a terminal, plain lines in a file, or events as JSON lines."""

    def __init__(self, jobs: Jobs, run_id: str, *, as_json: bool, first_line: int = 0) -> None:
        self.jobs = jobs
        self.run_id = run_id
        self.as_json = as_json
        self.next_line = first_line
        self.events_path = RunFolder.find(jobs.workspace, run_id).events_path
        self.events_offset = self.events_path.stat().st_size if first_line else 0
        self.on_terminal = sys.stdout.isatty() and not as_json
        self.line_is_open = False
        self.shown, self.shown_at = "", time.monotonic()
        self.signalled_at: float | None = None
        self.stopping = False

    def follow(self) -> tuple[Progress, int]:
        """Waits for the end of the run. Returns how it stands and the exit code."""
        before = {number: signal.signal(number, self._on_signal) for number in ending_signals()}
        try:
            return self._wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> tuple[Progress, int]:
        while not self.jobs.wait(0.2):
            if self.signalled_at is not None and not self.stopping:
                self._stop()
            self._show()
            if self.signalled_at is not None and time.monotonic() - self.signalled_at > SAVE_SECONDS:
                self._say_error(
                    f"the run did not end in time; `resume {self.run_id}` goes on from its last checkpoint."
                )
                return self.jobs.progress(self.run_id), 1
        self._show()
        self._close_line()
        return self._result()

    def _result(self) -> tuple[Progress, int]:
        progress = self.jobs.progress(self.run_id)
        if progress.state is RunState.FAILED:
            self._say_error(progress.message)
            if (astray := progress.astray) is not None and astray.setting and not self.as_json:
                how = "Start again" if astray.back_to is None else "Go on with it"
                print(f"{how}: python launch.py resume {self.run_id} --{astray.setting} {astray.value}")
            return progress, 1 if progress.error_id else 2  # without an id it is something that the user can mend
        if progress.state in (RunState.STOPPED, RunState.PAUSED) and not self.as_json:
            print(progress.reason, end=" " if progress.reason else "")
            print(f"Stopped at step {progress.step} of {progress.total_steps}; `resume {self.run_id}` lets it go on.")
        if not self.as_json and progress.state is RunState.FINISHED and (plan := plan_text(progress)):
            print(plan)
        if not self.as_json and progress.loras:
            folder = RunFolder.find(self.jobs.workspace, self.run_id).path
            for lora in progress.loras:
                if lora.step == progress.step:
                    print("\n  ".join([f"LoRA: {folder / lora.path}", told_in_words(lora.loads_in)]).rstrip())
            if advice := best_text(progress):
                print(advice)
        return progress, 1 if progress.state is RunState.INTERRUPTED else 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signalled_at is None:
            self.signalled_at = now
        elif now - self.signalled_at > SAME_SIGNAL_SECONDS:
            drain()
            os._exit(INTERRUPTED_TWICE)

    def _stop(self) -> None:
        self.stopping = True
        self._say_error("finishing the step and saving; once more ends at once.")
        self.jobs.shutdown(timeout_seconds=0)

    def _show(self) -> None:
        if self.as_json:
            self._show_events()
            return
        lines = self.jobs.lines(self.run_id, self.next_line)
        self.next_line += len(lines)
        for _, text in lines:
            if not _STEP_LINE.match(text):
                self._close_line()
                print(text, flush=True)
        progress = self.jobs.progress(self.run_id)
        text = progress_text(progress)
        if self.on_terminal:
            width = terminal_columns() - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)
            self.line_is_open = True
        elif text != self.shown and time.monotonic() - self.shown_at > PLAIN_LINE_SECONDS:
            print(text, flush=True)
            self.shown, self.shown_at = text, time.monotonic()

    def _show_events(self) -> None:
        with self.events_path.open("rb") as file:
            file.seek(self.events_offset)
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self.events_offset += len(complete)
        sys.stdout.write(complete.decode())
        sys.stdout.flush()

    def _close_line(self) -> None:
        if self.line_is_open:
            print("\r\x1b[K", end="", flush=True)
            self.line_is_open = False

    def _say_error(self, text: str) -> None:
        self._close_line()
        sys.stderr.write(f"safelight: {text}\n")
        sys.stderr.flush()


def progress_text(progress: Progress) -> str:
    """A run in one short line."""
    if progress.state in (RunState.WAITING, RunState.PREPARING):
        counted = f" {progress.phase_done} of {progress.phase_total}" if progress.phase_total else ""
        return f"{progress.phase or 'starting'}{counted}"
    share = progress.step / progress.total_steps if progress.total_steps else 0.0
    parts = [f"step {progress.step}/{progress.total_steps} ({share:.0%})"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.seconds_per_step is not None:
        parts.append(f"{progress.seconds_per_step:.2f} s a step")
    if progress.pace is not None:
        parts.append(f"{progress.pace.images_per_second:.3g} pictures/s")
    if progress.eta_seconds is not None:
        parts.append(f"about {duration(progress.eta_seconds)} left")
    return "  ".join(parts)
