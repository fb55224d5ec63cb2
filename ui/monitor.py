"""The same view of a live run, a reloaded page and an old run: state, loss, samples, files, log, settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from security.redaction import redact
from trainer.config.files import config_text
from trainer.runs import Progress, RunFolder
from ui.messages import ShownError, number_of, text_of
from ui.services import Services
from ui.views import curve, run_detail, run_row
from ui.widgets import drawn_view

MAX_LOG_LINES = 5000


class RunMonitor:
    """The list of runs and one of them in detail. `view` is the component; its `again` event carries a run's id."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.view: gr.HTML = drawn_view("runs", functions=[self.runs_state, self.run_action], events=["again"])

    def runs_state(self, argument: Any = None) -> dict[str, Any]:
        """The list and the asked run (else the current one); log lines, curve and settings only where they are new."""
        jobs = self.services.jobs
        runs = jobs.runs()
        asked = argument.get("run") if isinstance(argument, dict) else None
        chosen = jobs.progress(asked) if isinstance(asked, str) else self._default(runs)
        rows = [run_row(progress) for progress in runs]
        if chosen is None:
            return {"runs": rows, "run": None}
        return {"runs": rows, "run": run_detail(chosen), **self._news(chosen, argument)}

    def _default(self, runs: list[Progress]) -> Progress | None:
        active = [run for run in runs if run.run_id == self.services.jobs.active_run_id]
        return (active or runs or [None])[0]

    def _news(self, progress: Progress, argument: Any) -> dict[str, Any]:
        jobs, run_id = self.services.jobs, progress.run_id
        shown = isinstance(argument, dict) and argument.get("shown") == run_id
        since = number_of(argument, "lines") if shown else 0
        news: dict[str, Any] = {"lines": jobs.lines(run_id, since)[-MAX_LOG_LINES:]}
        drawn = f"{progress.step} {len(progress.validations)} {len(progress.resumes)}"
        if not shown or argument.get("drawn") != drawn:
            news |= {"curve": curve(jobs.loss_curve(run_id), progress), "drawn": drawn}
        if not shown or not argument.get("config"):
            news["config"] = redact(config_text(RunFolder.find(self.services.workspace, run_id).config()))
        return news

    def run_action(self, argument: Any = None) -> dict[str, Any]:
        """Does what a button of a run says."""
        run_id, action = text_of(argument, "run"), text_of(argument, "action")
        if action == "extend":
            return _extend(self.services, run_id, argument.get("steps"))
        return run_action(self.services, run_id, action)


def _extend(services: Services, run_id: str, steps: Any) -> dict[str, Any]:
    """Lets a run go on from its last checkpoint to another number of steps."""
    done = services.jobs.progress(run_id).checkpoint_step or 0
    if not isinstance(steps, int) or isinstance(steps, bool) or steps <= done:
        raise ShownError(f"The number of steps is {steps}. It has to be over {done}, where {run_id} goes on from.")
    services.jobs.resume(run_id, {"training.max_train_steps": steps})
    return {"text": f"{run_id} goes on to step {steps}."}


def _retry(services: Services, run_id: str) -> None:
    """Lets a run that went astray go on with the change that its guard proposes."""
    astray = services.jobs.progress(run_id).astray
    if astray is None or not astray.setting:
        raise ShownError(f"Nothing is proposed for {run_id}. Reload the page.")
    services.jobs.resume(run_id, {astray.setting: astray.value})


def run_action(services: Services, run_id: str, action: str) -> dict[str, Any]:
    """Runs one action of the table below. Raises SafelightError when the run is no longer in a state for it."""
    jobs = services.jobs
    on_active: dict[str, tuple[Callable[[], None], str]] = {
        "pause": (jobs.pause, "Pausing after this step."),
        "stop": (jobs.stop, "Stopping after this step, then saving."),
        "save_now": (jobs.save_now, "Saving after this step."),
        "sample_now": (jobs.sample_now, "Drawing samples after this step."),
    }
    on_any: dict[str, tuple[Callable[[str], None], str]] = {
        "resume": (jobs.resume, f"{run_id} goes on."),
        "retry": (partial(_retry, services), f"{run_id} goes on with the change."),
        "cancel": (jobs.cancel, f"{run_id} is out of the queue."),
        "delete": (jobs.delete, f"{run_id} is deleted."),
    }
    if action in on_active:
        # the page of another visitor may be a second old: never stop a run that the user didn't mean
        if jobs.active_run_id != run_id:
            raise ShownError(f"{run_id} is not training any more.")
        work, text = on_active[action]
        work()
    elif action in on_any:
        work_on, text = on_any[action]
        work_on(run_id)
    else:
        raise ShownError(f"The page asked for {action!r}, which is no action. Reload the page.")
    return {"text": text}
