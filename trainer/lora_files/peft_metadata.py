"""The settings that peft keeps beside a LoRA's tensors: diffusers writes them into the header as one JSON text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from security.configs import read_json
from security.errors import RefusedConfig, RefusedFile
from trainer.lora_files.names import TEXT_ENCODERS, UNET

ENTRY = "lora_adapter_metadata"


@dataclass(frozen=True)
class PeftSettings:
    """How peft scales a part's layers: alpha / rank, or alpha / root of rank (rs-LoRA), with exceptions by module."""

    alpha: float | None = None
    root: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)

    def alpha_for(self, module: str, rank: int) -> float | None:
        """The alpha that gives peft's scale when it is divided by the rank."""
        alpha = next((value for name, value in self.patterns.items() if _fits(name, module)), self.alpha)
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.root else alpha


def peft_settings(metadata: Mapping[str, str], name: str) -> dict[str, PeftSettings]:
    """The settings of each part that the header of the file `name` has. Raises RefusedFile for a text that is none."""
    text = metadata.get(ENTRY)
    if text is None:
        return {}
    try:
        values = read_json(text, max_bytes=len(text.encode()))
    except RefusedConfig as error:
        raise RefusedFile(f"The entry {ENTRY} of {name} can't be read: {error}") from None
    return {part: _settings(values, part, name) for part in (UNET, *TEXT_ENCODERS)}


def _settings(values: Mapping[str, Any], part: str, name: str) -> PeftSettings:
    alpha, patterns = values.get(f"{part}.lora_alpha"), values.get(f"{part}.alpha_pattern") or {}
    numbers = [*([] if alpha is None else [alpha]), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers):
        raise RefusedFile(f"The entry {ENTRY} of {name} has an alpha that is no number for {part}.")
    return PeftSettings(alpha, values.get(f"{part}.use_rslora") is True, dict(patterns))


def _fits(pattern: str, module: str) -> bool:
    """Whether a key of alpha_pattern means the module: by its whole name or its end, as diffusers writes them.

    peft takes them as regular expressions; one from a file is not run as such.
    """
    plain = pattern.removeprefix("^").removesuffix("$")
    return module == plain or module.endswith(f".{plain}")
