"""Settings of files that an older version wrote: what was renamed is read under its new name."""

from __future__ import annotations

from typing import Any

MOVED = {"loss.noise_offset": "noise.offset", "training.gradient_checkpointing": "memory.checkpointing"}
"""Old name -> new name, as `section.field`."""
VALUES: dict[str, dict[Any, Any]] = {"memory.checkpointing": {True: "blocks", False: "auto"}}
"""What values of a renamed setting are called now. A switch that was off was nobody's choice: off was the default."""


def migrated(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a file with renamed settings in their new place; one that has both names keeps the new one's value."""
    result = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for old, new in MOVED.items():
        (section, field), (new_section, new_field) = old.split("."), new.split(".")
        held = result.get(section)
        if not isinstance(held, dict) or field not in held:
            continue
        value = held.pop(field)
        known = VALUES.get(new, {})
        value = known[value] if isinstance(value, bool) and value in known else value
        target = result.setdefault(new_section, {})
        if isinstance(target, dict):
            target.setdefault(new_field, value)
    return result
