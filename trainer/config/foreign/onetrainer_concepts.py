"""OneTrainer's concepts: folders of pictures, each with its own ways of showing them; here these hold for all folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.config.foreign.taking import OFF, Taking, WrongValueError, as_number, as_switch, as_whole
from trainer.config.foreign.words import take_folder

COLOURS = "colours and angles of pictures are never changed"
_AUGMENTATIONS = tuple(
    f"enable_{way}_{what}"
    for what in ("rotate", "brightness", "contrast", "saturation", "hue")
    for way in ("random", "fixed")
)


def take_concepts(taking: Taking, concepts: Sequence[Mapping[str, Any]], num_disabled: int) -> None:
    """Takes folders, repeats, held-out and regularisation folders, and the options of the first concept."""
    if num_disabled:
        taking.part("concepts: switched off", num_disabled)
        taking.pass_over("concepts: switched off", OFF)
    by_type: dict[str, list[Mapping[str, Any]]] = {}
    for concept in concepts:
        by_type.setdefault(str(concept.get("type", "STANDARD")), []).append(concept)
    trained = by_type.pop("STANDARD", [])
    _folders(taking, trained)
    held_out = by_type.pop("VALIDATION", [])
    if held_out:
        taking.part("concepts: VALIDATION", [concept.get("path") for concept in held_out])
        reason = "" if len(held_out) == 1 else "one folder is measured"
        taking.take("concepts: VALIDATION", "validation.folder", str(held_out[0].get("path", "")), reason)
    prior = by_type.pop("PRIOR_PREDICTION", [])
    if prior:
        paths = [str(concept.get("path", "")) for concept in prior]
        taking.part("concepts: PRIOR_PREDICTION", paths)
        reason = "the base's own prediction is not the target; the pictures themselves are"
        taking.take("concepts: PRIOR_PREDICTION", "dataset.regularisation", paths, reason)
    for kind, others in by_type.items():
        taking.part(f"concepts: {kind[:40]}", len(others))
        taking.refuse(f"concepts: {kind[:40]}", "there is no such kind of dataset")
    if trained:
        _options(taking, trained)


def _folders(taking: Taking, trained: list[Mapping[str, Any]]) -> None:
    if not trained:
        return
    paths = [str(concept.get("path", "")) for concept in trained]
    taking.part("concepts: path", paths[0])
    take_folder(taking, "concepts: path", paths[0])
    try:
        balances = [as_number(concept.get("balancing", 1.0)) for concept in trained]
    except WrongValueError as error:
        taking.part("concepts: balancing", [concept.get("balancing") for concept in trained])
        taking.refuse("concepts: balancing", f"{error}, so it can't be read")
        balances = [1.0] * len(trained)
    if any(concept.get("balancing_strategy", "REPEATS") != "REPEATS" for concept in trained):
        taking.part("concepts: balancing_strategy", "SAMPLES")
        taking.refuse("concepts: balancing_strategy", "weights are repeats, not numbers of samples")
        balances = [1.0] * len(trained)
    if balances[0] != 1.0:
        taking.part("concepts: balancing", balances[0])
        if balances[0] >= 1:
            reason = "" if balances[0] % 1 == 0 else "whole repeats only"
            taking.take("concepts: balancing", "dataset.repeats", round(balances[0]), reason)
        else:
            taking.pass_over("concepts: balancing", "one dataset is seen once per epoch; steps say how often in all")
    if len(trained) > 1:
        first = balances[0] or 1.0
        lines = [f"{weight / first:.2f}".rstrip("0").rstrip(".") + f" {path}" for weight, path in
                 zip(balances[1:], paths[1:], strict=True)]  # fmt: skip
        taking.part("concepts: further paths", paths[1:])
        taking.take(
            "concepts: further paths", "dataset.more", lines, "the weight is their balancing beside the first's"
        )


def _options(taking: Taking, trained: list[Mapping[str, Any]]) -> None:
    """The options of the first folder; where another differs, that is told."""
    parts = [(_part(concept, "image"), _part(concept, "text")) for concept in trained]
    image, text = parts[0]
    rules: tuple[tuple[Mapping[str, Any], str, Callable[[str, Any], None]], ...] = (
        (image, "enable_random_flip", lambda key, value: _switch(taking, key, "dataset.flip_augmentation", value)),
        (image, "enable_crop_jitter", lambda key, value: _crops(taking, key, value)),
        (text, "enable_tag_shuffling", lambda key, value: _switch(taking, key, "dataset.shuffle_tags", value)),
    )
    for values, name, rule in rules:
        if name in values:
            key = f"concepts: {name}"
            taking.part(key, values[name])
            try:
                rule(key, values[name])
            except WrongValueError as error:
                taking.refuse(key, f"{error}, so it can't be read")
    _text(taking, text)
    for name in (*_AUGMENTATIONS, "enable_fixed_flip", "enable_resolution_override", "enable_random_circular_mask_shrink",
                 "enable_random_mask_rotate_crop"):  # fmt: skip
        if image.get(name):
            taking.part(f"concepts: {name}", image[name])
            taking.refuse(f"concepts: {name}", COLOURS if name in _AUGMENTATIONS else "pictures are shown as they are")
    read = {
        "path",
        "type",
        "enabled",
        "balancing",
        "balancing_strategy",
        "image",
        "text",
        "name",
        "seed",
        "concept_stats",
    }
    for name in ("loss_weight", "image_variations", "text_variations", "include_subdirectories"):
        value = trained[0].get(name, 1)
        if name == "include_subdirectories" and name in trained[0]:
            taking.part(f"concepts: {name}", value)
            taking.pass_over(f"concepts: {name}", "folders inside a dataset are always read")
        elif value not in (1, 1.0):
            taking.part(f"concepts: {name}", value)
            taking.refuse(
                f"concepts: {name}", "captions and crops are drawn anew at each step, and all pictures count alike"
            )
        read.add(name)
    for name in trained[0].keys() - read:
        taking.part(f"concepts: {name[:60]}", trained[0][name])
        taking.refuse(f"concepts: {name[:60]}", "is not known as a setting of a concept")
    if any(pair != parts[0] for pair in parts[1:]):
        taking.part("concepts: options of further folders", len(parts) - 1)
        taking.refuse("concepts: options of further folders", "the first folder's options hold for all pictures")


def _part(concept: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = concept.get(name)
    return value if isinstance(value, dict) else {}


def _switch(taking: Taking, key: str, ours: str, value: Any) -> None:
    taking.take(key, ours, as_switch(value))


def _crops(taking: Taking, key: str, value: Any) -> None:
    if as_switch(value):
        taking.take(key, "dataset.random_crops", 4, "four crops of each picture are cached and taken in turn")
    else:
        taking.pass_over(key, OFF)


def _text(taking: Taking, text: Mapping[str, Any]) -> None:
    """How captions are found and changed."""
    source = str(text.get("prompt_source", "sample"))
    if source != "sample":
        taking.part("concepts: prompt_source", source)
        taking.refuse("concepts: prompt_source", "captions come from a text file beside each picture")
    if text.get("tag_delimiter", ",").strip() != ",":
        taking.part("concepts: tag_delimiter", text["tag_delimiter"])
        taking.refuse("concepts: tag_delimiter", "parts of a caption are separated by commas")
    if text.get("enable_tag_shuffling") and "keep_tags_count" in text:
        key = "concepts: keep_tags_count"
        taking.part(key, text["keep_tags_count"])
        try:
            taking.take(key, "dataset.keep_tokens", as_whole(text["keep_tags_count"]))
        except WrongValueError as error:
            taking.refuse(key, f"{error}, so it can't be read")
    if text.get("tag_dropout_enable"):
        _dropout(taking, text)
    if text.get("caps_randomize_enable"):
        taking.part("concepts: caps_randomize_enable", True)
        taking.refuse("concepts: caps_randomize_enable", "letters of captions are not changed")


def _dropout(taking: Taking, text: Mapping[str, Any]) -> None:
    key, mode = "concepts: tag_dropout_probability", str(text.get("tag_dropout_mode", "FULL"))
    taking.part(key, text.get("tag_dropout_probability", 0.0))
    ours = {"FULL": "dataset.caption_dropout_rate", "RANDOM": "dataset.tag_dropout_rate"}.get(mode)
    try:
        if ours is None:
            taking.refuse(key, f"by the rule {mode[:40]}; tags are dropped each with the same chance")
        else:
            taking.take(key, ours, as_number(text.get("tag_dropout_probability", 0.0)))
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
    if str(text.get("tag_dropout_special_tags_mode", "NONE")) != "NONE":
        taking.part("concepts: tag_dropout_special_tags", text.get("tag_dropout_special_tags"))
        taking.refuse("concepts: tag_dropout_special_tags", "no tags are treated apart; put those to keep in front")
