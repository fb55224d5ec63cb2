"""The Dataset tab: pictures with their captions, and the panels that work on them."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ui.services import Services
from ui.studio.exporting import EXPORT_PANEL
from ui.studio.grid import StudioDesk
from ui.studio.importing import IMPORT_PANEL
from ui.studio.masks import MASKS_PANEL
from ui.studio.panels import Panel
from ui.studio.prepare import PREPARE_PANEL
from ui.studio.publishing import PUBLISH_PANEL
from ui.studio.quality import QUALITY_PANEL
from ui.studio.sizes import SIZES_PANEL
from ui.studio.tagging import TAGGING_PANEL
from ui.studio.tags import TAGS_PANEL
from ui.widgets import drawn_view

PANELS: tuple[Panel, ...] = (
    IMPORT_PANEL,
    TAGGING_PANEL,
    TAGS_PANEL,
    QUALITY_PANEL,
    SIZES_PANEL,
    MASKS_PANEL,
    PREPARE_PANEL,
    EXPORT_PANEL,
    PUBLISH_PANEL,
)
"""The panels of the tab in the order of their buttons, which is the order of work: import, tagging, tags, quality, sizes,
masks, prepare, export. A row here and the script's name in ui/widgets.py place one."""


@dataclass(frozen=True)
class DatasetTab:
    """What other tabs connect to: `view` triggers `use` with a dataset's name; `panels` holds the view of each row of
    PANELS by its id."""

    view: gr.HTML
    panels: dict[str, gr.HTML]


def dataset_tab(services: Services) -> DatasetTab:
    """Draws the tab."""

    desk = StudioDesk(services)
    with gr.Column(elem_id="studio"):
        view = drawn_view("dataset", functions=desk.functions(), events=["use"])
        panels = {
            panel.id: drawn_view(f"studio_{panel.id}", functions=panel.functions(services), events=panel.events)
            for panel in PANELS
        }
        drawn_view("studio_grid")
    return DatasetTab(view, panels)
