"""The panel "Prepare a version": a new dataset out of the open one, cropped, resized, mirrored or converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.files import ConfigError, Setting
from trainer.dataset.prepare import OPTIONS, prepare_dataset, prepare_options
from trainer.dataset.upscaling import FOLDER, list_upscalers
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.asked import dataset_of, help_of, names_of
from ui.studio.panels import Answer, Panel
from ui.studio.sizes import run_with

KIND = "prepare"
WORDS = {
    "crop": {"none": "keep whole pictures", "square": "squares", "training": "exactly as training would"},
    "mirror": {"no": "no", "add": "add a mirrored copy of each", "all": "mirror all"},
    "format": {"keep": "as they are", "png": "PNG", "jpg": "JPEG", "webp": "WebP"},
}
TITLES = {
    "crop": "Crop",
    "longest_side": "Longest side (pixels)",
    "shortest_side": "Shortest side (pixels)",
    "upscaler": "Enlarge with",
    "mirror": "Mirror",
    "background": "Colour behind transparent pictures",
    "format": "File format",
}


def _functions(services: Services) -> Sequence[Answer]:
    def prepare_state(argument: Any = None) -> dict[str, Any]:
        """The options, and a free name for the new dataset."""
        dataset = dataset_of(services, argument)
        networks = list_upscalers(services.workspace)
        return {
            "options": [_option(setting, networks) for setting in OPTIONS.values()],
            "name": services.studio.free_name(dataset.name),
            "note": ""
            if networks
            else f"To enlarge by a network, put its .onnx file into the workspace's folder {FOLDER}.",
        }

    def prepare_version(argument: Any = None) -> dict[str, Any]:
        """Starts to make it of the pictures of `names`."""
        dataset = dataset_of(services, argument)
        values = argument.get("options")
        if not isinstance(values, Mapping):
            raise ShownError("The page sent no options. Reload the page.")
        options, new = prepare_options(values), text_of(argument, "name").strip()
        names = names_of(argument, dataset)
        try:
            config = run_with(dataset.name, argument.get("training"))
        except ConfigError as error:
            raise ShownError(f"The Train form has a mistake: {error.faults[0].message}") from None
        services.refuse_paths(config)
        studio = services.studio

        def work(control: Any) -> str:
            return prepare_dataset(studio, dataset, new, options, config, names=names, control=control)

        return {"task": studio.tasks.start(KIND, f"Preparing {new}", dataset.name, work), "name": new}

    return [prepare_state, prepare_version]


PREPARE_PANEL = Panel("prepare", _functions)


def _option(setting: Setting, networks: Sequence[str]) -> dict[str, Any]:
    """One field of the form."""
    words = WORDS.get(setting.name, {})
    choices = [[value, words.get(value, value)] for value in setting.choices]
    if setting.name == "upscaler":
        choices = [["", "Lanczos"], *([name, name] for name in networks)]
    return {
        "name": setting.name,
        "title": TITLES[setting.name],
        "help": help_of(setting),
        "kind": "choice" if choices else setting.kind.value,
        "choices": choices,
        "default": setting.default,
        "maximum": setting.maximum,
    }
