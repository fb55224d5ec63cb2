"""Builds the page from the TABS table: the strip, the tabs, and what connects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from trainer.dataset.scan import find_dataset
from trainer.dataset.settings import load_settings
from ui.messages import shown_to_the_user
from ui.services import Services
from ui.strip import status_strip
from ui.studio.sizes import JOINED_PICTURES
from ui.tabs.dataset import dataset_tab
from ui.tabs.models import models_tab
from ui.tabs.runs import runs_tab
from ui.tabs.settings import settings_tab
from ui.tabs.start import start_demo, start_tab
from ui.tabs.tools import tools_tab
from ui.tabs.train import KEEP_DRAFTS, READ_DRAFT, TrainTab


@dataclass(frozen=True)
class Tab:
    """One tab: its id in addresses, its label, and the function that draws it and returns what others connect to."""

    id: str
    label: str
    build: Callable[[Services], Any]


TABS = (
    Tab("start", "Start", start_tab),
    Tab("models", "Models", models_tab),
    Tab("dataset", "Dataset", dataset_tab),
    Tab("train", "Train", TrainTab),
    Tab("runs", "Runs", runs_tab),
    Tab("tools", "Tools", tools_tab),
    Tab("settings", "Settings", settings_tab),
)
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
QUIET: dict[str, Any] = {**PRIVATE, "queue": False}
"""For handlers that can't fail: answered at once, without the queue's stream, of which a browser can hold only six."""


def build_app(services: Services) -> gr.Blocks:
    """The whole page. It holds no state of a run: every number on it is asked from `services`."""
    with gr.Blocks(title="Safelight", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        strip = status_strip(services)
        parts: dict[str, Any] = {}
        items: dict[str, gr.Tab] = {}
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for tab in TABS:
                with gr.Tab(tab.label, id=tab.id, elem_id=f"panel-{tab.id}") as items[tab.id]:
                    parts[tab.id] = tab.build(services)
        _connect(page, services, tabs, items, strip, parts)
        train: TrainTab = parts["train"]
        items["train"].select(train.library_choices, None, train.library_fields, **QUIET)
    return page


def _connect(
    page: gr.Blocks,
    services: Services,
    tabs: gr.Tabs,
    items: dict[str, gr.Tab],
    strip: gr.HTML,
    parts: dict[str, Any],
) -> None:
    train: TrainTab = parts["train"]
    monitor = parts["runs"].view
    models, dataset = parts["models"], parts["dataset"]
    base, folder = train.form.fields["model.base"], train.form.fields["dataset.folder"]
    trigger_word = train.form.fields["dataset.trigger_word"]
    min_bucket_pictures = train.form.fields["dataset.min_bucket_pictures"]
    filled, watched, told = train.form.outputs, train.form.inputs, [train.tools, train.draft]
    looked = train.watched

    def to_run(run_id: str) -> tuple[Any, dict[str, str]]:
        return gr.Tabs(selected="runs"), {"run": run_id}

    @shown_to_the_user()
    def try_sample_set() -> tuple[Any, dict[str, str]]:
        return to_run(start_demo(services))

    @shown_to_the_user()
    def start_training(values: dict[gr.components.Component, Any]) -> tuple[Any, dict[str, str]]:
        return to_run(train.submit(values))

    def train_again(event: gr.EventData) -> list[Any]:
        return [gr.Tabs(selected="train"), *train.fill_from_run(str(event.run))]

    def use(event: gr.EventData) -> tuple[Any, str]:
        return gr.Tabs(selected="train"), str(event.name)

    @shown_to_the_user()
    def use_dataset(event: gr.EventData) -> tuple[Any, str, Any]:
        """A dataset without a trigger word leaves the typed one. It is read here: the browser may not have it yet."""
        name = str(event.name)
        word = load_settings(find_dataset(services.workspace, name)).trigger_word
        return gr.Tabs(selected="train"), name, word or gr.skip()

    def sizes(values: dict[gr.components.Component, Any]) -> dict[str, Any]:
        """The Dataset tab shows what training will do, with the settings as they stand."""
        return {"training": train.form.plain_values(values)}

    def opening_tab(request: gr.Request) -> Any:
        """The run that is going on, if the address (which the page's script follows) names no tab."""
        named = "tab" in request.query_params
        return gr.Tabs(selected="runs") if services.jobs.active_run_id and not named else gr.skip()

    parts["start"].demo(try_sample_set, None, [tabs, monitor], **PRIVATE)
    train.start.click(start_training, watched, [tabs, monitor], validator=train.form.faults, **PRIVATE)
    monitor.again(train_again, None, [tabs, *filled], **PRIVATE).then(train.look, looked, told, **QUIET)
    models.view.use(use, None, [tabs, base], **PRIVATE).then(
        train.follow_model, {*looked, train.draft}, filled, **QUIET
    ).then(train.look, looked, told, **QUIET)
    models.view.arrived(train.library_choices, None, train.library_fields, **QUIET)
    dataset.view.use(use_dataset, None, [tabs, folder, trigger_word], **PRIVATE).then(train.look, looked, told, **QUIET)
    items["dataset"].select(sizes, watched, dataset.view, **QUIET)
    dataset.panels["sizes"].join(lambda: JOINED_PICTURES, None, min_bucket_pictures, **QUIET).then(
        train.look, looked, told, **QUIET
    ).then(sizes, watched, dataset.view, **QUIET)
    models.imported.then(train.library_choices, None, train.library_fields, **QUIET)
    strip.state(train.start_label, None, train.start, **QUIET)
    page.load(opening_tab, None, tabs, **QUIET)
    page.load(train.library_choices, None, train.library_fields, **QUIET).then(
        train.restore_all, train.draft, [*filled, *train.chooser.fields], js=READ_DRAFT, **QUIET
    ).then(None, js=KEEP_DRAFTS).then(train.start_label, None, train.start, **QUIET).then(
        train.look, looked, told, **QUIET
    ).then(sizes, watched, dataset.view, **QUIET)
