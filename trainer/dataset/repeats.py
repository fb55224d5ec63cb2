"""How often an epoch looks at the pictures of each folder, kept with the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from security.errors import SafelightError
from trainer.dataset.settings import MAX_REPEATS
from trainer.dataset.studio import Dataset


def folders_of(names: Sequence[str]) -> list[str]:
    """The folders that these pictures lie in, by name; "" is the top."""
    return sorted({name.rpartition("/")[0] for name in names})


def set_repeats(dataset: Dataset, folder: str, repeats: int | None) -> None:
    """How often the pictures of a folder are seen, as one step to undo; None leaves it to the folder's name or the run.

    Raises SafelightError for a folder without pictures and a number out of range; nothing is changed then.
    """
    known = folders_of(dataset.pictures())
    if folder not in known:
        named = ", ".join(name or "the top folder" for name in known[:10]) or "none"
        raise SafelightError(f"There are no pictures in a folder {folder[:100]!r} of {dataset.name}. It has: {named}.")
    if repeats is not None and not 1 <= repeats <= MAX_REPEATS:
        raise SafelightError(f"The repeats are {repeats}; allowed are 1 to {MAX_REPEATS}. Nothing was changed.")
    shown = folder or "the top folder"
    with dataset.history.locked():
        settings = dataset.settings
        kept = {name: number for name, number in settings.repeats.items() if name != folder}
        label = f"Repeats of {shown} as before"
        if repeats is not None:
            kept, label = {**kept, folder: repeats}, f"Repeats of {shown}: {repeats}"
        dataset.set_settings(label, replace(settings, repeats=kept))
