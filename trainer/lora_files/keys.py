"""Keys of LoRA files: which module and which tensor of it a key means, in every naming in use, and keys for writing.

Imports no torch: a file's header is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from trainer.lora_files.names import (
    CLIP_NAMES,
    FAMILY_NAMES,
    TEXT_ENCODERS,
    UNET,
    Place,
    text_module,
    to_original,
    unet_module,
)


class FileFormat(StrEnum):
    """How the keys of a file are written."""

    KOHYA = "kohya"
    """`lora_unet_...lora_down.weight`: SDXL in the original block numbering, SD 1.x in diffusers'. Every tool reads it."""
    KOHYA_RENUMBERED = "kohya-renumbered"
    """The same with the other block numbering: OneTrainer's SDXL files, and SD 1.x files made from the original code."""
    DIFFUSERS = "diffusers"
    """`unet.down_blocks...lora_A.weight`, of diffusers and peft, also in their older forms."""
    COMFYUI = "comfyui"
    """`diffusion_model.input_blocks...`, ComfyUI's own names."""
    LYCORIS = "lycoris"
    """`lycoris_down_blocks_...`, of LyCORIS used alone; for the U-Net only."""


@dataclass(frozen=True)
class Key:
    """What a key means: the module, the tensor of it by its canonical suffix, and how the key is written."""

    place: Place
    suffix: str
    file_format: FileFormat
    renumbered: bool
    """Whether the U-Net's blocks are in the original numbering."""


UP, DOWN, MID, ALPHA, MAGNITUDE = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale"
PEFT_MAGNITUDE = "lora_magnitude_vector"
"""peft's DoRA magnitude: one number for each output, whatever the shape."""
EMBEDDING_PREFIX = "bundle_emb."
"""Words that were trained along, as kohya's, LyCORIS' and OneTrainer's files carry them."""
LYCORIS_SUFFIXES = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("oft_blocks", "rescale", "diff", "diff_b", "w_norm", "b_norm"),
)
_SUFFIXES = {
    **{f".{one}": one for one in (UP, DOWN, MID, ALPHA, MAGNITUDE, *LYCORIS_SUFFIXES)},
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_magnitude_vector": PEFT_MAGNITUDE,
    ".lora_magnitude_vector.weight": PEFT_MAGNITUDE,
    ".lora_magnitude_vector.default.weight": PEFT_MAGNITUDE,
}
"""Ends of keys to the canonical suffix of the tensor. No end is an end of another one."""
_KOHYA_PREFIXES = {
    "lora_unet_": UNET,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_DOTTED_PREFIXES: tuple[tuple[str, str, FileFormat], ...] = (
    ("diffusion_model.", UNET, FileFormat.COMFYUI),
    ("text_encoders.clip_l.transformer.", "text_encoder", FileFormat.COMFYUI),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", FileFormat.COMFYUI),
    ("unet.", UNET, FileFormat.DIFFUSERS),
    ("text_encoder.", "text_encoder", FileFormat.DIFFUSERS),
    ("text_encoder_2.", "text_encoder_2", FileFormat.DIFFUSERS),
    ("", UNET, FileFormat.DIFFUSERS),
)
"""The last one: files of diffusers' first LoRA examples, and of peft itself, have the U-Net's names alone."""


def parse_key(key: str, usual_original: bool | None = None) -> Key | None:
    """What a key means, or None if no naming known here has it.

    `usual_original`: whether kohya's files of the family number blocks as the original code does; None if unknown yet.
    """
    split = _split(key)
    if split is None:
        return None
    stem, suffix = split
    stem = stem.replace("base_model.model.", "", 1)  # what peft puts around a model, alone or after its part's name
    for prefix, part in _KOHYA_PREFIXES.items():
        if stem.startswith(prefix):
            return _placed(part, stem.removeprefix(prefix), suffix, FileFormat.KOHYA, usual_original)
    if stem.startswith("lycoris_"):
        return _placed(UNET, stem.removeprefix("lycoris_"), suffix, FileFormat.LYCORIS, None)
    for prefix, part, file_format in _DOTTED_PREFIXES:
        if stem.startswith(prefix):
            bare = stem.removeprefix(prefix).replace(".processor.", ".")
            # diffusers' first files name the layer `to_out_lora`, without the number of its place in a list.
            bare = f"{bare}.0" if bare.endswith(".to_out") else bare
            return _placed(part, bare, suffix, file_format, None)
    return None


def _split(key: str) -> tuple[str, str] | None:
    """The part of a key that names the module, and the canonical suffix."""
    for end, suffix in _SUFFIXES.items():
        if key.endswith(end):
            return key.removesuffix(end), suffix
    return None


def _placed(part: str, name: str, suffix: str, file_format: FileFormat, usual_original: bool | None) -> Key | None:
    if part != UNET:
        module = text_module(name)
        return None if module is None else Key(Place(part, module), suffix, file_format, renumbered=False)
    found = unet_module(name)
    if found is None:
        return None
    module, original = found
    if file_format is FileFormat.KOHYA and usual_original is not None and original != usual_original:
        file_format = FileFormat.KOHYA_RENUMBERED
    return Key(Place(part, module), suffix, file_format, renumbered=original)


_DIFFUSERS_SUFFIXES = {UP: "lora_B.weight", DOWN: "lora_A.weight", MAGNITUDE: PEFT_MAGNITUDE}


def _kohya_key(place: Place, suffix: str, family: str, *, original: bool) -> str:
    if place.part == UNET:
        name = to_original(place.module, family) if original else place.module
        prefix = "lora_unet"
    else:
        name = place.module
        prefix = FAMILY_NAMES[family].kohya_text_encoders[TEXT_ENCODERS.index(place.part)]
    return f"{prefix}_{name.replace('.', '_')}.{suffix}"


def _diffusers_key(place: Place, suffix: str, family: str) -> str:
    if suffix not in _DIFFUSERS_SUFFIXES:
        raise ValueError(f"diffusers' names have none for {suffix} of {place.module}.")
    return f"{place.part}.{place.module}.{_DIFFUSERS_SUFFIXES[suffix]}"


def _comfyui_key(place: Place, suffix: str, family: str) -> str:
    if place.part == UNET:
        return f"diffusion_model.{to_original(place.module, family)}.{suffix}"
    encoder = CLIP_NAMES[TEXT_ENCODERS.index(place.part)]
    return f"text_encoders.{encoder}.transformer.{place.module}.{suffix}"


def _lycoris_key(place: Place, suffix: str, family: str) -> str:
    if place.part != UNET:
        raise ValueError("LyCORIS' own names have none for text encoders. Take kohya's names.")
    return f"lycoris_{place.module.replace('.', '_')}.{suffix}"


_WRITERS: dict[FileFormat, Callable[[Place, str, str], str]] = {
    FileFormat.KOHYA: lambda place, suffix, family: _kohya_key(
        place, suffix, family, original=FAMILY_NAMES[family].original_numbering
    ),
    FileFormat.KOHYA_RENUMBERED: lambda place, suffix, family: _kohya_key(
        place, suffix, family, original=not FAMILY_NAMES[family].original_numbering
    ),
    FileFormat.DIFFUSERS: _diffusers_key,
    FileFormat.COMFYUI: _comfyui_key,
    FileFormat.LYCORIS: _lycoris_key,
}


def write_key(place: Place, suffix: str, family: str, file_format: FileFormat) -> str:
    """The key of a module's tensor. Raises ValueError where the format has no name for it."""
    return _WRITERS[file_format](place, suffix, family)
