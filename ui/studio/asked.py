"""What the scripts of the Dataset tab ask for, checked: everything that comes from a browser may be anything."""

from __future__ import annotations

from typing import Any

from trainer.config.files import Setting
from trainer.dataset.captions import MAX_CAPTION_BYTES
from trainer.dataset.studio import Dataset
from ui.messages import ShownError, text_of
from ui.services import Services


def dataset_of(services: Services, argument: Any) -> Dataset:
    """The dataset that a script works on. Raises SafelightError for a name that leads nowhere."""
    return services.studio.open(text_of(argument, "dataset"))


def help_of(setting: Setting) -> str:
    """What a setting does, without the command line's words for its choices: the page's list has its own."""
    text = setting.help
    for choice in setting.choices:
        text = text.replace(f" ({choice})", "")
    return text


def names_of(argument: Any, dataset: Dataset) -> list[str]:
    """The pictures of `names`, in the dataset's order. Those gone meanwhile are left out; ShownError when none is left."""
    asked = argument.get("names") if isinstance(argument, dict) else None
    if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
        raise ShownError("The page sent no pictures. Reload the page.")
    wanted = set(asked)
    found = [name for name in dataset.pictures() if name in wanted]
    if not found:
        raise ShownError("There is no picture to work on: nothing is selected, and the filter shows none.")
    return found


def caption_of(argument: Any) -> str:
    """A caption as it is kept: one line. Raises ShownError for one that could not be read back."""
    text = argument.get("text") if isinstance(argument, dict) else None
    if not isinstance(text, str):
        raise ShownError("The page sent no caption. Reload the page.")
    line = " ".join(text.replace("\0", " ").split()).encode("utf-8", "replace").decode()  # JSON may hold half signs
    if len(line.encode()) > MAX_CAPTION_BYTES:
        raise ShownError(f"This caption is over {MAX_CAPTION_BYTES:,} bytes long; nothing was saved. Shorten it.")
    return line
