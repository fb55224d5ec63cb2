"""The Models tab: fetching from a hub, what is here, what is suggested, and bringing in what is on this machine already."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from security.convert import describe
from security.errors import RefusedPath, SafelightError
from security.roots import resolve_user_path
from trainer.models.catalog import catalog
from trainer.models.converted import can_be_converted, import_checkpoint
from trainer.models.jobfiles import DownloadState
from trainer.models.library import ModelInfo, import_model, remove_model
from trainer.models.plans import Plan
from trainer.runs import RunFolder
from ui.machine import gigabytes
from ui.messages import ShownError, outcome, text_of
from ui.model_views import catalog_row, download_row, model_row, plan_view
from ui.services import IMPORT_FOLDER, Services
from ui.widgets import drawn_view

MAX_PLANS = 50
"""Links that were checked and not fetched yet, of all visitors together."""


@dataclass(frozen=True)
class ModelsTab:
    """What other tabs connect to: `view` triggers `use` with a model's name and `arrived` when one was fetched;
    `imported` is over when a model was brought in."""

    view: gr.HTML
    import_button: gr.Button
    imported: Dependency


class FetchDesk:
    """Answers the scripts of the tab. What a link brings is kept here, so that the page can't say anything else of it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._guard = threading.Lock()
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._bases: dict[str, str] = {}
        self._arrived: set[str] = set()

    def models_state(self, _argument: Any = None) -> dict[str, Any]:
        """The library, the downloads and what is suggested."""
        downloads = self.services.downloads.all()
        arrived = {one.id for one in downloads if one.state is DownloadState.DONE}
        if not arrived <= self._arrived:
            self.services.library.forget()
        self._arrived = arrived
        uses = self._uses()
        return {
            "downloads": [download_row(download) for download in downloads],
            "models": [model_row(info, uses[info.name]) for info in self.services.library.models()],
            "catalog": [catalog_row(row) for row in catalog()],
            "fault": self.services.downloads.fault,
        }

    def check_source(self, argument: Any = None) -> dict[str, Any]:
        """Asks the hub what a link brings; nothing is fetched yet."""
        file = argument.get("file") if isinstance(argument, dict) else None
        plan = self.services.downloads.plan(text_of(argument, "text"), file=file if isinstance(file, str) else "")
        plan_id = secrets.token_hex(8)
        with self._guard:
            self._plans[plan_id] = plan
            while len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        free = shutil.disk_usage(self.services.workspace.downloads_dir).free
        return plan_view(plan_id, plan, free)

    def download(self, argument: Any = None) -> dict[str, Any]:
        """Starts what was checked."""
        with self._guard:
            plan = self._plans.get(text_of(argument, "plan"))
        if plan is None:
            raise ShownError("This was checked too long ago. Press Check again.")
        name = argument.get("name")
        self.services.downloads.start(
            plan,
            name=name if isinstance(name, str) else "",
            convert=argument.get("convert") is True,
            confirmed=argument.get("confirmed") is True,
        )
        return {"text": f"{plan.title} is being fetched. You can close this page meanwhile."}

    def download_action(self, argument: Any = None) -> dict[str, Any]:
        """Does what a button of a download says."""
        return download_action(self.services, text_of(argument, "id"), text_of(argument, "action"))

    def remove(self, argument: Any = None) -> dict[str, Any]:
        """Takes a model out of the library; not the embedded one, nor one that a run needs now."""
        name = text_of(argument, "name")
        info = next((info for info in self.services.library.models() if info.name == name), None)
        if info is None or info.builtin:
            raise ShownError(f"{name} is not a model that can be removed.")
        for run in self.services.jobs.runs():
            if run.state.is_active and self._is_base(self._base(run.run_id), info):
                raise ShownError(f"{name} is in use by the run {run.run_id}. Stop the run first.")
        remove_model(self.services.workspace, name)
        self.services.library.forget()
        return {"text": f"{name} is removed."}

    def _uses(self) -> Counter[str]:
        """How many runs were trained on each base."""
        return Counter(self._base(run.run_id) for run in self.services.jobs.runs())

    def _base(self, run_id: str) -> str:
        """What a run was trained on, as its settings name it; "" if they can't be read. Settings never change."""
        if run_id not in self._bases:
            try:
                self._bases[run_id] = RunFolder.find(self.services.workspace, run_id).config().model.base
            except (SafelightError, OSError):  # damaged by hand or removed just now: no reason to hide all models
                return ""
        return self._bases[run_id]

    def _is_base(self, base: str, info: ModelInfo) -> bool:
        """Whether a run's base is that model, by its name or by a path to it or to the folder that it lies in."""
        if base == info.name:
            return True
        try:
            return info.path.resolve().is_relative_to(resolve_user_path(base, None))
        except RefusedPath:  # the name of another model, or a path that is gone
            return False


def download_action(services: Services, download_id: str, action: str) -> dict[str, Any]:
    """Cancels, goes on with or forgets a download. Raises SafelightError when it is no longer in a state for it."""
    downloads = services.downloads
    name = downloads.get(download_id).name
    actions: dict[str, tuple[Callable[[str], None], str]] = {
        "cancel": (downloads.cancel, f"{name} is stopped. What has come is kept."),
        "resume": (downloads.resume, f"{name} goes on."),
        "remove": (downloads.remove, f"{name} is off the list."),
    }
    if action not in actions:
        raise ShownError(f"The page asked for {action!r}, which is no action. Reload the page.")
    work, text = actions[action]
    work(download_id)
    return {"text": text}


def models_tab(services: Services) -> ModelsTab:
    """Draws the tab."""

    desk = FetchDesk(services)
    gr.Markdown("## Fetch a model")
    view = drawn_view(
        "models",
        functions=[desk.models_state, desk.check_source, desk.download, desk.download_action, desk.remove],
        events=["use", "arrived"],
    )
    gr.Markdown("## Bring in a model that is on this machine")
    gr.Markdown(_where(services))
    with gr.Row(equal_height=True):
        path = gr.Textbox(
            label="Path of a .safetensors file or a diffusers folder", max_lines=1, scale=3, elem_id="model-path"
        )
        name = gr.Textbox(label="Name in the library (optional)", max_lines=1, scale=1, elem_id="model-name")
    convert = gr.Checkbox(
        label="Convert in a sandbox first",
        info="For .ckpt, .pt, .pth and .bin files, which can run code when opened. Takes a minute or more; Linux only.",
        value=False,
        elem_id="import-convert",
    )
    button = gr.Button("Check and import", elem_id="import-model")

    def bring_in(typed_path: str, typed_name: str, converts: bool) -> dict[str, str]:
        def work() -> str:
            source = resolve_user_path(typed_path or "", services.import_roots())
            chosen, told = (typed_name or "").strip() or None, ""
            if converts and can_be_converted(source):
                info, conversion = import_checkpoint(services.workspace, source, chosen)
                told = f" Converted: {describe(conversion)}"
            else:
                info = import_model(services.workspace, source, chosen)
            services.library.forget()
            return (
                f"{info.name} is here: {info.family_label}, {gigabytes(info.num_bytes)}, "
                f"predicts {info.prediction_type}.{told}"
            )

        return outcome(work)

    imported = button.click(bring_in, [path, name, convert], view, api_visibility="private", show_progress="minimal")
    return ModelsTab(view, button, imported)


def _where(services: Services) -> str:
    place = (
        f"the folder `{IMPORT_FOLDER}` of the workspace"
        if services.access.open_to_others
        else "any folder of this machine"
    )
    return (
        f"Type where it lies; it may be in {place}. The file is checked before anything uses it: only safetensors weights are "
        "taken, nothing in it is run. Other checkpoints can be converted first."
    )
