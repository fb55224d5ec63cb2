"""The model families that can be trained. Listing them imports no torch; `get_family` does."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.families.base import ModelFamily


@dataclass(frozen=True)
class FamilyRow:
    """One family: its name in settings, its name for people, where its code is, and what it calls itself in metadata.

    `architecture` is the name in the modelspec standard, `base_model_version` the one in `ss_base_model_version`.
    `has_clip_skip`: whether model.clip_skip chooses the text encoder's layer. `default_resolution` is in pixels.
    """

    name: str
    label: str
    module: str
    architecture: str
    base_model_version: str
    default_resolution: int
    has_clip_skip: bool


FAMILIES: dict[str, FamilyRow] = {
    row.name: row
    for row in (
        FamilyRow(
            name="sd15",
            label="Stable Diffusion 1.x",
            module="trainer.families.sd15",
            architecture="stable-diffusion-v1",
            base_model_version="sd_v1",
            default_resolution=512,
            has_clip_skip=True,
        ),
        FamilyRow(
            name="sdxl",
            label="Stable Diffusion XL",
            module="trainer.families.sdxl",
            architecture="stable-diffusion-xl-v1-base",
            base_model_version="sdxl_base_v1-0",
            default_resolution=1024,
            has_clip_skip=False,
        ),
    )
}


def family_row(name: str) -> FamilyRow:
    """The row of a family. Raises ValueError that lists the known ones; an unknown family is never guessed."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"Unknown model family {name!r}.{hint} Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def get_family(name: str) -> ModelFamily:
    """The family's code. Imports torch. Raises ValueError for an unknown name."""
    family: ModelFamily = importlib.import_module(family_row(name).module).FAMILY
    return family
