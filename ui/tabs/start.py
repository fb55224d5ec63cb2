"""The Start tab: the three steps and where they stand, the last run, this machine, and the sample set in one click."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.dataset.scan import list_datasets
from trainer.demo import demo_config
from ui.machine import machine_line
from ui.messages import text_of
from ui.monitor import run_action
from ui.services import Services
from ui.views import run_detail
from ui.widgets import drawn_view


def start_tab(services: Services) -> gr.HTML:
    """Draws the tab; the view's `demo` event asks for the sample run."""

    def start_state(_argument: Any = None) -> dict[str, Any]:
        current = services.jobs.current()
        return {
            "steps": [_model_step(services), _dataset_step(services), _train_step(services)],
            "machine": machine_line(services.machine.facts()),
            "last": run_detail(current) if current else None,
            "busy": services.jobs.active_run_id is not None,
        }

    def start_action(argument: Any = None) -> dict[str, Any]:
        return run_action(services, text_of(argument, "run"), text_of(argument, "action"))

    return drawn_view("start", functions=[start_state, start_action], events=["demo"])


def start_demo(services: Services) -> str:
    """Starts (or queues) the run on the embedded model and pictures. Returns its id."""
    return services.jobs.submit(demo_config())


def _model_step(services: Services) -> dict[str, Any]:
    models = [info for info in services.library.models() if not info.problem]
    own = [info.name for info in models if not info.builtin]
    here = f"here: {', '.join(own[:3])}" + (f" and {len(own) - 3} more" if len(own) > 3 else "")
    sample = "the small sample model is here; add your own for real pictures" if models else "no model is here yet"
    return {
        "title": "Model",
        "what": "The image model that should learn something",
        "done": bool(own),
        "state": here if own else sample,
        "tab": "models",
        "button": "Models",
    }


def _dataset_step(services: Services) -> dict[str, Any]:
    own = [info for info in list_datasets(services.workspace) if not info.builtin and info.num_pictures]
    here = ", ".join(f"{info.name} ({info.num_pictures} pictures)" for info in own[:3])
    return {
        "title": "Dataset",
        "what": "15 to 50 pictures of one person, thing or style",
        "done": bool(own),
        "state": f"here: {here}" if own else "only the sample pictures are here; add your own",
        "tab": "dataset",
        "button": "Add pictures" if not own else "Dataset",
    }


def _train_step(services: Services) -> dict[str, Any]:
    finished = [run for run in services.jobs.runs() if run.loras]
    count = f"{len(finished)} run{'' if len(finished) == 1 else 's'} with a LoRA so far"
    return {
        "title": "Train",
        "what": "Choose how long, press Start, watch the samples",
        "done": bool(finished),
        "state": count if finished else "not trained yet",
        "tab": "train",
        "button": "Train",
    }
