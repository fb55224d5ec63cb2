"""Parts of the page that scripts in ui/assets/ draw: one `gr.HTML` each, with constant markup and Python functions to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ui.messages import answered

ASSETS_DIR = Path(__file__).parent / "assets"
SCRIPTS = (
    "page",
    "strip",
    "chart",
    "samples",
    "runs",
    "start",
    "models",
    "studio",
    "studio_complete",
    "studio_filter",
    "studio_captions",
    "studio_card",
    "dataset",
    "studio_grid",
    "studio_viewer",
    "studio_import",
    "studio_networks",
    "studio_tagging",
    "studio_tags",
    "studio_quality",
    "studio_sizes",
    "studio_paint",
    "studio_masks",
    "studio_prepare",
    "studio_export",
    "studio_publish",
    "tools",
    "rates",
    "presets",
    "form",
    "check",
    "access",
    "settings",
    "tokens",
)
CALL = """
const context = {{ element, trigger, props, server, watch }};
const mount = () => (window.safelight ? window.safelight.mount({name!r}, context) : window.setTimeout(mount, 20));
mount(); // events: {events}
"""


def drawn_view(
    name: str,
    *,
    functions: Sequence[Callable[[Any], dict[str, Any]]] = (),
    events: Sequence[str] = (),
    value: Any = None,
) -> gr.HTML:
    """The view that `safelight.define(name, ...)` in ui/assets/ draws.

    Its markup never holds a value: Gradio evaluates templates as code, so values reach the script as data and become
    text nodes there. `functions` take one argument and answer with a dict; `events` are names that the script triggers.
    """
    quoted = ", ".join(f"'{event}'" for event in events)
    return gr.HTML(
        value,
        html_template="",
        js_on_load=CALL.format(name=name, events=quoted),
        server_functions=[answered(function) for function in functions],
        apply_default_css=False,
        elem_id=f"view-{name}",
        elem_classes="sl-view",
    )


def page_head() -> str:
    """Style sheet and scripts for the head of the page; the scripts in order, before the first view is drawn.

    The style sheet goes here and not into Gradio's `css`, which rewrites rules and loses some, and covers no dialogs.
    """
    style = (ASSETS_DIR / "page.css").read_text(encoding="utf-8")
    source = "\n".join((ASSETS_DIR / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return f"<style>{style}</style><script>{source}</script>"
