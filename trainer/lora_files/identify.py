"""Which model family a LoRA file is for, told from its keys and shapes, then from what it says of itself. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from security.errors import RefusedFile
from security.weights import WeightsHeader
from trainer.families import FAMILIES
from trainer.lora_files import keys
from trainer.lora_files.keys import Key, parse_key
from trainer.lora_files.names import FAMILY_NAMES, OTHER_CONTEXT_WIDTHS, UNET

_FOREIGN = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "a LoRA of FLUX or a model like it"),
    (
        re.compile(r"joint_blocks|^transformer\.|lora_transformer"),
        "a LoRA of a transformer model (SD 3, FLUX, Qwen, ...)",
    ),
    (re.compile(r"^model\.diffusion_model\.|^first_stage_model\."), "a whole checkpoint"),
    (re.compile(r"^(string_to_param|emb_params|clip_[lg])$"), "a textual inversion embedding"),
    (re.compile(r"^layers\.|\.(self|cross)_attn\.[qkvo]\.lora"), "a LoRA of a transformer model"),
    (re.compile(r"^conv_in\.weight$|^down_blocks\..*[^AB]\.weight$"), "the U-Net of a whole model"),
    (re.compile(r"^embeddings\.|^text_model\."), "a text encoder"),
)
"""Names by which other files are known."""
_SDXL_ONLY = re.compile(r"add_embedding\.|transformer_blocks\.[1-9]")
"""Modules that SD 1.x lacks: SDXL's size embedding, and more than one transformer block at a place."""
_SD15_ONLY = re.compile(r"^down_blocks\.0\.attentions\.|^down_blocks\.3\.|^up_blocks\.3\.|^up_blocks\.2\.attentions\.")
"""Modules that SDXL lacks: its outermost blocks have no attention, and it has only three blocks on each side."""


def family_of(header: WeightsHeader, name: str) -> str:
    """The family of the LoRA file `name`: sd15 or sdxl.

    The inputs of the cross-attention tell it in published models; else names that only one family has; else the file's own
    words. Raises RefusedFile for another family's file or none that tells.
    """
    parsed = [(key, meaning) for key in header.tensors if (meaning := parse_key(key)) is not None]
    if not parsed:
        refuse_foreign(header.tensors.keys(), name)
    by_width = {one.context_width: family for family, one in FAMILY_NAMES.items()}
    for key, meaning in parsed:
        width = _context_width(header, key, meaning)
        if width in by_width:
            return by_width[width]
        if width in OTHER_CONTEXT_WIDTHS:
            raise RefusedFile(f"{name} is a LoRA of {OTHER_CONTEXT_WIDTHS[width]}. Known here: {_known()}.")
    said = _said(header.metadata)
    told = _told_by_names(parsed)
    if told is not None and said is not None and told != said:
        raise RefusedFile(f"{name} says that it is for {said}, its layers are {told}'s. Export it again.")
    if told or said:
        return told or said or ""
    raise RefusedFile(
        f"{name} does not tell which model it is for: its layers are in {_known()} alike, and its header has no "
        "modelspec.architecture or ss_base_model_version. Export it again, with its metadata."
    )


def refuse_foreign(names: Iterable[str], file_name: str) -> NoReturn:
    """Raises RefusedFile that says what a file without a LoRA's keys is instead."""
    listed = list(names)
    for pattern, meaning in _FOREIGN:
        if any(pattern.search(name) for name in listed):
            raise RefusedFile(f"{file_name} is {meaning}. LoRA files of {_known()} can be read.")
    raise RefusedFile(
        f"{file_name} has no keys of a LoRA of {_known()}; its first is {listed[0] if listed else 'none'}."
    )


def _context_width(header: WeightsHeader, key: str, meaning: Key) -> int | None:
    """Inputs of a cross-attention's keys or values, where this tensor's last side is that."""
    if meaning.place.part != UNET or not meaning.place.module.endswith(("attn2.to_k", "attn2.to_v")):
        return None
    shape = header.tensors[key].shape
    return shape[1] if meaning.suffix in (keys.DOWN, "hada_w1_b", "diff") and len(shape) >= 2 else None


def _told_by_names(parsed: list[tuple[str, Key]]) -> str | None:
    modules = {meaning.place for _, meaning in parsed}
    if any(place.part == "text_encoder_2" or _SDXL_ONLY.search(place.module) for place in modules):
        return "sdxl"
    if any(place.part == UNET and _SD15_ONLY.search(place.module) for place in modules):
        return "sd15"
    prefixes = {key.split("_text_model", 1)[0] for key, meaning in parsed if meaning.place.part != UNET}
    owners = {family for family, one in FAMILY_NAMES.items() if prefixes & set(one.kohya_text_encoders)}
    return next(iter(owners)) if len(owners) == 1 else None


def _said(metadata: dict[str, str]) -> str | None:
    """What the header says. Raises nothing: words that are not known here say nothing."""
    architecture = metadata.get("modelspec.architecture", "").split("/")[0]
    version = metadata.get("ss_base_model_version", "")
    for row in FAMILIES.values():
        if row.name in FAMILY_NAMES and (
            architecture == row.architecture or version.startswith(row.base_model_version)
        ):
            return row.name
    return None


def _known() -> str:
    return " and ".join(FAMILIES[name].label for name in FAMILY_NAMES)
