"""What the form of the Train tab starts from: "What are you teaching?", the memory, and presets of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from security.errors import SafelightError
from trainer.config.presets import (
    MEMORY,
    TITLES,
    Preset,
    delete_preset,
    memory_level,
    new_preset_path,
    own_preset,
    own_presets,
    rename_preset,
    save_preset,
)
from trainer.models.library import ModelInfo
from ui.recipes import Start, changes, preset_for
from ui.services import Services
from ui.widgets import drawn_view

NO_PURPOSE = ""
NO_PRESET = ""
NO_PRESET_HERE = "There is no preset for this model: it starts from its own settings, whatever you teach."


class StartChooser:
    """Three fields, and the view with the buttons for presets of one's own."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.purpose: Component
        self.memory: Component
        self.own: Component
        self.view: gr.HTML

    def place(self) -> None:
        """Creates the fields where the layout stands now."""
        with gr.Row():
            self.purpose = gr.Radio(
                [*((title, purpose.value) for purpose, title in TITLES.items()), ("Something else", NO_PURPOSE)],
                value=NO_PURPOSE,
                label="What are you teaching?",
                info="Chooses settings to start from; what you changed yourself stays.",
                interactive=True,
                elem_id="purpose",
                min_width=240,
                scale=2,
            )
            self.memory = gr.Dropdown(
                [("Any", 0), *((f"{level} GB", level) for level in MEMORY["sd15"])],
                value=self.machine_level(),
                label="Memory of the GPU",
                info="Of the GPU that trains; found by itself if it is NVIDIA's.",
                interactive=True,
                elem_id="memory-level",
                min_width=240,
            )
            self.own = gr.Dropdown(
                self._own_choices(),
                value=NO_PRESET,
                label="Your preset",
                info="Settings that you kept, laid over the others.",
                interactive=True,
                elem_id="own-preset",
                min_width=240,
            )
        functions = (self.list_own, self.may_save_own, self.rename_own, self.delete_own)
        self.view = drawn_view("presets", functions=functions, events=["save", "changed"])

    @property
    def fields(self) -> list[Component]:
        """The fields in the order in which `shown` fills them."""
        return [self.purpose, self.memory, self.own]

    def machine_level(self) -> int:
        """The level of the largest GPU of this machine, 0 if none is seen."""
        return memory_level(max((gpu.memory_total for gpu in self.services.machine.facts().gpus), default=0))

    def start_of(self, values: Mapping[Component, Any]) -> Start:
        """What the fields say. A preset that is gone counts as none."""
        return self._start(values.get(self.purpose), values.get(self.memory), values.get(self.own))

    def drafted(self, draft: Any) -> Start:
        """What a draft in a browser says; anything odd in it counts as nothing."""
        held = draft.get("start") if isinstance(draft, dict) else None
        held = held if isinstance(held, dict) else {}
        return self._start(held.get("purpose"), held.get("memory", self.machine_level()), held.get("own"))

    def _start(self, purpose: Any, memory: Any, own: Any) -> Start:
        values: Mapping[str, Any] = {}
        if isinstance(own, str) and own:
            try:
                values = own_preset(self.services.workspace.path, own).values
            except SafelightError:
                own = NO_PRESET
        return Start(
            purpose if purpose in set(TITLES) else NO_PURPOSE,
            memory if memory in MEMORY["sd15"] else 0,
            own if isinstance(own, str) else NO_PRESET,
            values,
        )

    def shown(self, start: Start) -> list[Any]:
        """The fields' values for a start, with fresh choices of one's own presets."""
        return [start.purpose, start.memory, gr.Dropdown(choices=self._own_choices(), value=start.own)]

    def reason(self, start: Start, info: ModelInfo | None) -> str:
        """In words where the form starts."""
        preset = preset_for(info, start)
        words = preset.reason if preset else NO_PRESET_HERE if start.purpose else ""
        return f"{words} Your preset {start.own} is laid over it.".strip() if start.own else words

    # -- presets of one's own --

    def _own_choices(self) -> list[tuple[str, str]]:
        presets, _ = own_presets(self.services.workspace.path)
        return [("None", NO_PRESET), *((preset.name, preset.name) for preset in presets)]

    def save(self, name: str, reason: str, typed: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
        """Keeps what differs from `plain` (the settings of the model alone) as a preset. Returns its name.

        Raises SafelightError for a name that is no good or taken, and when nothing differs.
        """
        changed = {change["name"]: typed[change["name"]] for change in changes(typed, plain)}
        if not changed:
            raise SafelightError("Nothing differs from the settings of this model, so there is nothing to keep.")
        return save_preset(self.services.workspace.path, name, changed, reason).stem

    def list_own(self, _argument: Any) -> dict[str, Any]:
        """The presets of one's own, and the files that can't be read."""
        presets, faults = own_presets(self.services.workspace.path)
        return {"presets": [_told(preset) for preset in presets], "faults": faults}

    def may_save_own(self, argument: Any) -> dict[str, Any]:
        """Refuses a name or reason that can't be kept, while the dialog that asks for them is still there."""
        asked = argument if isinstance(argument, dict) else {}
        new_preset_path(self.services.workspace.path, str(asked.get("name", "")), str(asked.get("reason", "")))
        return {}

    def rename_own(self, argument: Any) -> dict[str, Any]:
        """Gives one another name."""
        asked = argument if isinstance(argument, dict) else {}
        path = rename_preset(self.services.workspace.path, str(asked.get("name", "")), str(asked.get("new", "")))
        return {"text": f"Renamed to {path.stem}."}

    def delete_own(self, argument: Any) -> dict[str, Any]:
        """Deletes one."""
        delete_preset(self.services.workspace.path, str(argument))
        return {"text": f"Deleted the preset {argument}."}

    def refresh(self, own: Any) -> Any:
        """The dropdown after presets came or went; one that is gone is not chosen any more."""
        choices = self._own_choices()
        names = {name for _, name in choices}
        return gr.Dropdown(choices=choices, value=own if own in names else NO_PRESET)


def _told(preset: Preset) -> dict[str, str]:
    count = len(preset.values)
    return {"name": preset.name, "about": preset.reason or ("1 setting" if count == 1 else f"{count} settings")}
