"""Which datasets a run reads, what each is for, and how much it counts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

from trainer.config.schema import DatasetConfig, weighted_dataset
from trainer.dataset.scan import find_dataset
from trainer.dataset.settings import load_settings
from trainer.workspace import Workspace


class Role(StrEnum):
    """What a dataset is for."""

    TRAINING = "training"
    REGULARISATION = "regularisation"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class Source:
    """One dataset of a run. `weight` multiplies its pictures' repeats; `trigger_word` goes in front of its captions.

    `name` is its own name, without the folders that it lies in: those are nobody's business.
    """

    name: str
    folder: Path
    role: Role = Role.TRAINING
    weight: Fraction = Fraction(1)
    trigger_word: str = ""


def find_sources(workspace: Workspace, settings: DatasetConfig) -> tuple[Source, ...]:
    """The datasets that the settings name: what is trained on, dataset.folder first, then the regularisation pictures.

    Raises SafelightError when one is missing or its own settings are damaged.
    """
    sources = []
    for number, (weight, name) in enumerate([(Fraction(1), settings.folder), *map(weighted_dataset, settings.more)]):
        folder = find_dataset(workspace, name)
        own = load_settings(folder).trigger_word
        # The run's own word is meant for what it is about; another dataset may have brought one of its own.
        trigger = (settings.trigger_word or own) if number == 0 else (own or settings.trigger_word)
        sources.append(Source(dataset_name(name), folder, Role.TRAINING, weight, trigger.strip()))
    # Without a trigger word: these pictures show what a prompt without it should go on giving.
    sources.extend(
        Source(dataset_name(name), find_dataset(workspace, name), Role.REGULARISATION)
        for name in settings.regularisation
    )
    return tuple(sources)


def find_held_out(workspace: Workspace, folder: str, trigger_word: str) -> Source | None:
    """The dataset of held-out pictures, which are asked for by the trigger word of the run; None for an empty name."""
    if not folder:
        return None
    return Source(dataset_name(folder), find_dataset(workspace, folder), Role.HELD_OUT, Fraction(1), trigger_word)


def dataset_name(folder: str) -> str:
    """The last part of a dataset's name or path."""
    return folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
