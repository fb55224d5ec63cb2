"""The status strip above the tabs: what runs or is fetched, and how to stop it. It polls; closing the page ends nothing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.machine import memory_line
from ui.messages import text_of
from ui.model_views import CANCEL, with_download
from ui.monitor import run_action
from ui.services import Services
from ui.tabs.models import download_action
from ui.task_views import CANCEL_TASK, LORA_KIND, with_task
from ui.views import strip_values
from ui.widgets import drawn_view


def status_strip(services: Services) -> gr.HTML:
    """Draws the strip; its `state` event fires when a run changes its state."""

    def strip_state(_argument: Any = None) -> dict[str, Any]:
        values = strip_values(services.jobs.current(), len(services.jobs.waiting))
        values = with_download(values, services.downloads.current())
        values = with_task(values, services.studio.tasks.current())
        return {**values, "machine": memory_line(services.machine.facts())}

    def strip_action(argument: Any = None) -> dict[str, Any]:
        if text_of(argument, "action") == CANCEL:
            return download_action(services, text_of(argument, "download"), "cancel")
        if text_of(argument, "action") == CANCEL_TASK:
            task = services.studio.tasks.get(text_of(argument, "task"))
            services.studio.tasks.cancel(task.id)
            left = "Nothing is left of it." if task.kind == LORA_KIND else "What it has done is kept and can be undone."
            return {"text": f"It ends soon. {left}"}
        return run_action(services, text_of(argument, "run"), text_of(argument, "action"))

    return drawn_view("strip", functions=[strip_state, strip_action], events=["state"])
