"""Settings for sd-scripts: a TOML of its command line's options, with a dataset TOML and a prompt file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from trainer.config.foreign.prompts import prompts
from trainer.config.foreign.report import Imported
from trainer.config.foreign.sd_scripts_keys import TABLE
from trainer.config.foreign.sd_scripts_network import alpha_left_out, network
from trainer.config.foreign.sd_scripts_rules import length, loss_kind, optimizer, scheduler_class, trains_text_encoder
from trainer.config.foreign.taking import (
    Finish,
    Rule,
    Surroundings,
    Taking,
    WrongValueError,
    as_number,
    as_whole,
    go_through,
    later,
    unless_off,
    unused,
    whole,
)
from trainer.config.foreign.words import take_folder

PROGRAM = "sd-scripts"
FINISHES: tuple[Finish, ...] = (loss_kind, network, optimizer, scheduler_class, length, prompts)
"""In this order: lengths need batch and dataset, and a warm-up as a share needs the length."""
DATASET_TABLE: dict[str, Rule] = {
    "image_dir": take_folder,
    "num_repeats": whole("dataset.repeats"),
    "batch_size": whole("training.batch_size"),
    "is_reg": unused("the first folder to train on is the dataset"),
    "class_tokens": later,
    "metadata_file": unless_off(
        "captions come from files beside the pictures; import the pictures with their captions"
    ),
    "network_multiplier": unless_off("the LoRA is trained at its full strength", 1, 1.0),
    "custom_attributes": unless_off("pictures have no properties of one's own"),
}
"""What a dataset file has beyond the options of the command line."""
SAME_FOR_ALL = frozenset({"image_dir", "num_repeats", "is_reg", "resolution", "subsets", "class_tokens"})
"""Keys that may differ between the folders of a dataset file; any other that does is told."""


def import_sd_scripts(
    values: Mapping[str, Any], dataset: Mapping[str, Any] | None, around: Surroundings, base: Mapping[str, Any]
) -> Imported:
    """Takes the settings of a run of sd-scripts. `dataset`: the content of the dataset file, if there is one.

    Without `values` it is a dataset file alone, which says nothing of the rest.
    """
    is_whole = bool(values)
    given, doubles = one_level(values)
    folders = [] if dataset is None else dataset_folders(dataset)
    first = next((folder for folder in folders if not folder.get("is_reg")), {})
    taking = Taking(PROGRAM, {**given, **first}, around, base)
    for key in doubles:
        taking.refuse(key, "stands in several sections; the last one counts")
    _defaults(taking, is_whole=is_whole)
    finishes: list[Finish] = [_class_tokens, lambda state: _other_folders(state, folders, first), *FINISHES]
    if is_whole:
        finishes += [alpha_left_out, trains_text_encoder, _dataset_file(dataset is not None), _length_left_out]
    go_through(taking, {**TABLE, **DATASET_TABLE}, finishes)
    return taking.result(is_partial=not is_whole)


def one_level(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options with their sections taken away, as sd-scripts reads them, and the names that stood in several."""
    given: dict[str, Any] = {}
    doubles: list[str] = []
    for name, value in values.items():
        for key, inner in value.items() if isinstance(value, dict) else ((name, value),):
            if key in given:
                doubles.append(key)
            given[key] = inner
    return given, doubles


def dataset_folders(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each folder of a dataset file with everything that holds for it: its own, its dataset's, the general options.

    Raises WrongValueError for a file of another shape.
    """
    general = dataset.get("general", {})
    datasets = dataset.get("datasets", [])
    if not isinstance(general, dict) or not isinstance(datasets, list):
        raise WrongValueError("has no [[datasets]] as sd-scripts knows them")
    folders = []
    for entry in datasets:
        subsets = entry.get("subsets", []) if isinstance(entry, dict) else None
        if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
            raise WrongValueError("has a dataset without [[datasets.subsets]]")
        own = {key: value for key, value in entry.items() if key != "subsets"}
        folders += [{**general, **own, **subset} for subset in subsets]
    strange = [key for key in dataset if key not in ("general", "datasets")]
    return [{**dict.fromkeys(strange, "?"), **folder} for folder in folders]


def _defaults(taking: Taking, *, is_whole: bool) -> None:
    """What a file of sd-scripts means where it is silent, and Safelight would do something else.

    `is_whole`: it is that of a run, not only of its datasets.
    """
    silent: tuple[tuple[tuple[str, ...], Any, str, Any], ...] = (
        (("enable_bucket",), False, "dataset.aspect_buckets", False),
        (("caption_extension", "caption_extention"), ".caption", "dataset.caption_extension", ".caption"),
        (("learning_rate", "unet_lr"), 2e-6, "optimizer.learning_rate", 2e-6),
    )
    for keys, default, ours, value in silent:
        if not is_whole and not ours.startswith("dataset."):
            continue
        if all(taking.value(key) is None for key in keys):
            taking.left_out(keys[0], default, ours, value)


def _length_left_out(taking: Taking) -> None:
    if taking.value("max_train_steps") is None and taking.value("max_train_epochs") is None:
        taking.left_out("max_train_steps", 1600, "training.max_train_steps", 1600)


def _class_tokens(taking: Taking) -> None:
    key = "class_tokens"
    if taking.value(key) is not None:
        taking.take(key, "dataset.trigger_word", str(taking.given[key]), "there only for pictures without a caption")


def _dataset_file(is_here: bool) -> Finish:
    def finish(taking: Taking) -> None:
        if taking.value("dataset_config") is None:
            return
        if is_here:
            taking.pass_over("dataset_config", "the dataset file was imported together with this one")
        else:
            taking.refuse("dataset_config", "names another file: import both files together")

    return finish


def _other_folders(taking: Taking, folders: list[dict[str, Any]], first: Mapping[str, Any]) -> None:
    """Further folders, regularisation pictures, and further resolutions of the same folder."""
    more: list[str] = []
    prior: list[str] = []
    sides: list[int] = []
    seen = {str(first.get("image_dir"))}
    for number, folder in enumerate(folders, start=1):
        name, label = str(folder.get("image_dir", "")), f"folder {number}"
        if folder is first or not name:
            continue
        for key in folder.keys() - SAME_FOR_ALL:
            if key not in first or folder[key] != first[key]:
                taking.refuse(
                    f"{label}: {key}", f"(= {str(folder[key])[:40]}) holds for all pictures here, by the first folder"
                )
        if folder.get("is_reg"):
            prior.append(name)
        elif name in seen:
            if folder.get("resolution") != first.get("resolution"):
                sides.append(_side(folder.get("resolution")))
        else:
            seen.add(name)
            more.append(f"{_weight(folder, first)} {name}")
    if more:
        taking.take(
            "further folders", "dataset.more", more, "the weight is their repeats beside the first's", given=more
        )
    if prior:
        taking.take("folders with is_reg", "dataset.regularisation", list(dict.fromkeys(prior)), given=prior)
    if sides:
        taking.take("further resolutions", "dataset.more_resolutions", list(dict.fromkeys(sides)), given=sides)


def _side(resolution: Any) -> int:
    parts = resolution if isinstance(resolution, list) else [resolution]
    product = 1.0
    for part in parts:
        product *= as_number(part)
    side: float = product ** (1 / len(parts))
    return round(side)


def _weight(folder: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    try:
        share = Fraction(as_whole(folder.get("num_repeats", 1)), max(1, as_whole(first.get("num_repeats", 1))))
    except WrongValueError:
        return "1"
    return f"{float(share):.2f}".rstrip("0").rstrip(".")
