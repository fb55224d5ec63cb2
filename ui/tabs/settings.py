"""The Settings tab: who can open the page, what protects it, where things are kept, this machine, versions, looks and keys."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from typing import Any

import gradio as gr

from ui.machine import machine_line
from ui.protections import protections
from ui.services import Services
from ui.tabs.access import access_tab
from ui.tabs.tokens import tokens_tab
from ui.widgets import drawn_view

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "gradio")


def settings_tab(services: Services) -> gr.HTML:
    """Draws the tab."""

    def settings_state(_argument: Any = None) -> dict[str, Any]:
        return {
            "workspace": services.workspace.path.name
            if services.access.open_to_others
            else str(services.workspace.path),
            "machine": machine_line(services.machine.facts()),
            "protections": [asdict(row) for row in protections(services)],
            "versions": [["Python", platform.python_version()], *([name, _version(name)] for name in PACKAGES)],
        }

    access_tab(services)
    view = drawn_view("settings", functions=[settings_state])
    tokens_tab(services)
    return view


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
