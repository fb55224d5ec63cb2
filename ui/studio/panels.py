"""What the Dataset tab needs to know of a panel to place it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ui.services import Services

Answer = Callable[[Any], dict[str, Any]]
"""A function that a panel's script calls: one argument (`{"dataset": ..., ...}`), a dict as answer, SafelightError if not."""


@dataclass(frozen=True)
class Panel:
    """One panel of the Dataset tab, drawn by `safelight.define("studio_ID", ...)` in ui/assets/studio_ID.js.

    `functions(services)` are what its script calls, `events` what it triggers for other tabs (connected in ui/app.py
    through `DatasetTab.panels[ID]`). The script's title, button and place come from `studio.panel(element, ...)`.
    """

    id: str
    functions: Callable[[Services], Sequence[Answer]]
    events: tuple[str, ...] = ()
