"""The Models tab: what is here, and bringing in a file or folder that is on this machine already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from security.roots import Root, resolve_user_path
from trainer.models.library import ModelInfo, import_model
from trainer.runs import RunFolder
from ui.machine import gigabytes
from ui.messages import ShownError, outcome, text_of
from ui.services import IMPORT_FOLDER, Services
from ui.widgets import drawn_view


@dataclass(frozen=True)
class ModelsTab:
    """What other tabs connect to: `view` triggers `use` with a model's name; `imported` is over when a model came in."""

    view: gr.HTML
    import_button: gr.Button
    imported: Dependency


def models_tab(services: Services) -> ModelsTab:
    """Draws the tab."""

    def models_state(_argument: Any = None) -> dict[str, Any]:
        return {"models": [_row(info) for info in services.library.models()]}

    def remove(argument: Any = None) -> dict[str, Any]:
        name = text_of(argument, "name")
        _remove(services, name)
        services.library.forget()
        return {"text": f"{name} is removed."}

    gr.Markdown("## Models on this machine")
    view = drawn_view("models", functions=[models_state, remove], events=["use"])
    gr.Markdown("## Bring in a model")
    gr.Markdown(_where(services))
    with gr.Row(equal_height=True):
        path = gr.Textbox(
            label="Path of a .safetensors file or a diffusers folder", max_lines=1, scale=3, elem_id="model-path"
        )
        name = gr.Textbox(label="Name in the library (optional)", max_lines=1, scale=1, elem_id="model-name")
    button = gr.Button("Check and import", elem_id="import-model")

    def bring_in(typed_path: str, typed_name: str) -> dict[str, str]:
        def work() -> str:
            source = resolve_user_path(typed_path or "", services.import_roots())
            info = import_model(services.workspace, source, (typed_name or "").strip() or None)
            services.library.forget()
            return f"{info.name} is here: {info.family_label}, {gigabytes(info.num_bytes)}, predicts {info.prediction_type}."

        return outcome(work)

    imported = button.click(bring_in, [path, name], view, api_visibility="private", show_progress="minimal")
    return ModelsTab(view, button, imported)


def _remove(services: Services, name: str) -> None:
    """Takes a model out of the library. Raises ShownError for the embedded one and for one that a run needs now."""
    info = next((info for info in services.library.models() if info.name == name), None)
    if info is None or info.builtin:
        raise ShownError(f"{name} is not a model that can be removed.")
    active = services.jobs.active_run_id
    if active and RunFolder.find(services.workspace, active).config().model.base == name:
        raise ShownError(f"{name} is in use by the run {active}. Stop the run first.")
    models_dir = services.workspace.models_dir
    Root(models_dir).remove_tree(models_dir / info.path.relative_to(models_dir).parts[0])


def _where(services: Services) -> str:
    place = (
        f"the folder `{IMPORT_FOLDER}` of the workspace"
        if services.access.open_to_others
        else "any folder of this machine"
    )
    return (
        f"Type where it lies; it may be in {place}. The file is checked before anything uses it: only safetensors weights are "
        "taken, nothing in it is run."
    )


def _row(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "family": info.family_label,
        "size": gigabytes(info.num_bytes),
        "prediction": info.prediction_type,
        "builtin": info.builtin,
        "problem": info.problem,
    }
