"""The options of a tagging from plain values, as a page or a command line has them, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from security.errors import RefusedConfig
from trainer.config.files import Setting, SettingKind, section_settings
from trainer.tagging.base import TaggingOptions

OPTIONS: dict[str, Setting] = {setting.name: setting for setting in section_settings(TaggingOptions)}
FOR_SENTENCES = ("prompt", "max_new_tokens")
"""Options of captioners alone."""
FOR_BOTH = ("models", "always_first", "mode", "batch_size", "device")
"""Options of taggers and captioners; the others are for tags alone."""


def tagging_options(values: Mapping[str, Any]) -> TaggingOptions:
    """Checked options. Lists may come as one text with commas between. Raises RefusedConfig that names every fault."""
    plain = {name: _as_list(value) if _is_list(name) else value for name, value in values.items()}
    try:
        return TaggingOptions.model_validate(plain)
    except ValidationError as error:
        raise RefusedConfig(" ".join(_fault(detail) for detail in error.errors())) from None


def title(name: str) -> str:
    """An option's name in words."""
    return name.replace("_", " ").capitalize()


def _is_list(name: str) -> bool:
    return name in OPTIONS and OPTIONS[name].kind is SettingKind.LINES


def _as_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for line in value.splitlines() for part in line.split(",") if part.strip())


def _fault(detail: Any) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    setting = OPTIONS.get(name)
    if setting is None:
        return f"{name[:80]!r} is no option of a tagging."
    allowed = f" Allowed: {setting.range_text}." if setting.range_text else ""
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{title(name)} is {str(detail.get('input'))[:80]!r}, but {reason}.{allowed}"
