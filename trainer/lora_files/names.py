"""Names of a U-Net's and a text encoder's modules as LoRA files write them, to and from diffusers' own. Imports no torch.

Two numberings of the U-Net's blocks are in use: diffusers' (`down_blocks.1.attentions.0`) and that of the original latent
diffusion code (`input_blocks.4.1`), which kohya's files have for SDXL. Both come with dots and with underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
CLIP_NAMES = ("clip_l", "clip_g")
"""What ComfyUI calls the two text encoders."""


@dataclass(frozen=True)
class FamilyNames:
    """How LoRA files of a family are told apart and named.

    `original_numbering`: kohya's files number the U-Net's blocks as the original code does, else as diffusers does.
    `kohya_text_encoders`: their prefixes. `context_width`: inputs of the U-Net's cross-attention in the published models.
    `bare_up_levels`: levels on the way up that have no attention, where the original code counts the up-sampler as 1.
    """

    original_numbering: bool
    kohya_text_encoders: tuple[str, ...]
    context_width: int
    bare_up_levels: frozenset[int] = frozenset()


FAMILY_NAMES: dict[str, FamilyNames] = {
    "sd15": FamilyNames(
        original_numbering=False, kohya_text_encoders=("lora_te",), context_width=768, bare_up_levels=frozenset({0})
    ),
    "sdxl": FamilyNames(original_numbering=True, kohya_text_encoders=("lora_te1", "lora_te2"), context_width=2048),
}
OTHER_CONTEXT_WIDTHS = {1024: "Stable Diffusion 2.x", 1280: "the SDXL refiner"}
"""Cross-attention of models whose LoRA files have the same names, but whose family is not known here."""
LAYERS_PER_LEVEL = 3
"""Numbers that a level of the original U-Net takes: two layers, then its down- or up-sampler."""
THREE_BY_THREE, ONE_BY_ONE = (3, 3), (1, 1)


class Place(NamedTuple):
    """A module of a model: `part` is unet, text_encoder or text_encoder_2; `module` its dotted name in diffusers.

    Modules of text encoders are named with `text_model.`, as in every LoRA file; see `module_in` for finding them.
    """

    part: str
    module: str


_ATTENTION = (
    *("norm", "proj_in", "proj_out"),
    *(f"transformer_blocks.{{n}}.attn{number}.to_{one}" for number in (1, 2) for one in ("q", "k", "v", "out.0")),
    *("transformer_blocks.{n}.ff.net.0.proj", "transformer_blocks.{n}.ff.net.2"),
    *(f"transformer_blocks.{{n}}.norm{number}" for number in (1, 2, 3)),
)
"""Modules inside an attention block, named alike in both numberings."""
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Modules inside a residual block: diffusers' name to the original one."""
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_DIFFUSERS_PATTERNS = (
    *_TOP,
    *(f"{side}_blocks.{{n}}.attentions.{{n}}.{leaf}" for side in ("down", "up") for leaf in _ATTENTION),
    *(f"{side}_blocks.{{n}}.resnets.{{n}}.{leaf}" for side in ("down", "up") for leaf in _RESNET),
    *(f"mid_block.attentions.{{n}}.{leaf}" for leaf in _ATTENTION),
    *(f"mid_block.resnets.{{n}}.{leaf}" for leaf in _RESNET),
    *("down_blocks.{n}.downsamplers.0.conv", "up_blocks.{n}.upsamplers.0.conv"),
)
_ORIGINAL_PATTERNS = (
    *_TOP.values(),
    *(f"{side}_blocks.{{n}}.1.{leaf}" for side in ("input", "output") for leaf in _ATTENTION),
    *(f"{side}_blocks.{{n}}.0.{leaf}" for side in ("input", "output") for leaf in _RESNET.values()),
    *(f"middle_block.1.{leaf}" for leaf in _ATTENTION),
    *(f"middle_block.{number}.{leaf}" for number in (0, 2) for leaf in _RESNET.values()),
    *("input_blocks.{n}.0.op", "output_blocks.{n}.1.conv", "output_blocks.{n}.2.conv"),
)
_TEXT_PATTERNS = (
    *(f"text_model.encoder.layers.{{n}}.self_attn.{one}_proj" for one in ("q", "k", "v", "out")),
    *("text_model.encoder.layers.{n}.mlp.fc1", "text_model.encoder.layers.{n}.mlp.fc2"),
    *("text_model.encoder.layers.{n}.layer_norm1", "text_model.encoder.layers.{n}.layer_norm2"),
    *("text_model.final_layer_norm", "text_model.embeddings.token_embedding", "text_projection"),
    "text_model.embeddings.position_embedding",
)
_NUMBER = re.compile(r"(?<=[._])\d{1,2}(?=[._]|$)")
"""A number that is a piece of a name by itself: the 0 of `attentions_0`, not the 1 of `attn1`."""


class Grammar:
    """A set of names with free numbers in them, found again from names whose dots became underscores."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._dotted: dict[str, tuple[str, re.Pattern[str]]] = {}
        for pattern in patterns:
            shape = _NUMBER.sub("{n}", pattern)
            exact = re.compile(re.escape(pattern).replace(r"\{n\}", r"(?:0|[1-9]\d?)"))
            # Two patterns may have one shape (middle_block.0 and .2): either of them may match.
            if shape in self._dotted:
                exact = re.compile(f"{self._dotted[shape][1].pattern}|{exact.pattern}")
            self._dotted[shape] = (shape, exact)
        self._flat = {shape.replace(".", "_"): value for shape, value in self._dotted.items()}

    def dotted(self, name: str) -> str | None:
        """The name with dots, given with dots or with underscores; None if it is none of this set."""
        numbers = _NUMBER.findall(name)
        shape = _NUMBER.sub("{n}", name)
        found = self._dotted.get(shape) or self._flat.get(shape)
        if found is None:
            return None
        template, exact = found
        full = template.format(n="{}").format(*numbers) if numbers else template
        return full if exact.fullmatch(full) else None


_DIFFUSERS, _ORIGINAL, _TEXT = Grammar(_DIFFUSERS_PATTERNS), Grammar(_ORIGINAL_PATTERNS), Grammar(_TEXT_PATTERNS)
_ORIGINAL_TOP = {original: name for name, original in _TOP.items()}
_ORIGINAL_RESNET = {original: name for name, original in _RESNET.items()}


def unet_module(name: str) -> tuple[str, bool] | None:
    """diffusers' dotted name of a U-Net module, and whether `name` was in the original numbering; None if unknown.

    `name` may have dots or underscores.
    """
    if found := _DIFFUSERS.dotted(name):
        return found, False
    original = _ORIGINAL.dotted(name)
    if original is None:
        return None
    found = from_original(original)
    return None if found is None else (found, True)


def text_module(name: str) -> str | None:
    """The dotted name of a text encoder's module with `text_model.`, which `name` may lack; None if unknown."""
    return _TEXT.dotted(name) or _TEXT.dotted(f"text_model.{name}") or _TEXT.dotted(f"text_model_{name}")


def from_original(name: str) -> str | None:
    """diffusers' dotted name of a dotted name in the original numbering; None if there is none."""
    if name in _ORIGINAL_TOP:
        return _ORIGINAL_TOP[name]
    side, number, rest = name.split(".", 2)
    if side == "middle_block":
        return (
            f"mid_block.attentions.0.{rest}"
            if number == "1"
            else _resnet(f"mid_block.resnets.{int(number) // 2}", rest)
        )
    inner, leaf = rest.split(".", 1)
    index = int(number) - (side == "input_blocks")
    level, layer = divmod(index, LAYERS_PER_LEVEL)
    if index < 0:
        return None
    block = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
    if leaf in ("op", "conv"):
        sampler = "downsamplers" if leaf == "op" else "upsamplers"
        return f"{block}.{sampler}.0.conv" if layer == LAYERS_PER_LEVEL - 1 else None
    if side == "input_blocks" and layer == LAYERS_PER_LEVEL - 1:
        return None  # the place of the down-sampler
    return f"{block}.attentions.{layer}.{leaf}" if inner == "1" else _resnet(f"{block}.resnets.{layer}", leaf)


def to_original(module: str, family: str) -> str:
    """The name in the original numbering of a U-Net of a family, whose levels have two layers.

    Raises ValueError for a name that no such U-Net has.
    """
    if module in _TOP:
        return _TOP[module]
    pieces = module.split(".")
    if _DIFFUSERS.dotted(module) != module:
        raise ValueError(f"No kohya name is known for the U-Net module {module!r}.")
    if pieces[0] == "mid_block":
        leaf = ".".join(pieces[3:])
        return (
            f"middle_block.1.{leaf}"
            if pieces[1] == "attentions"
            else f"middle_block.{2 * int(pieces[2])}.{_RESNET[leaf]}"
        )
    level, kind, layer, leaf = int(pieces[1]), pieces[2], int(pieces[3]), ".".join(pieces[4:])
    down = pieces[0] == "down_blocks"
    first = level * LAYERS_PER_LEVEL + down
    if kind == "downsamplers":
        return f"input_blocks.{first + LAYERS_PER_LEVEL - 1}.0.op"
    if kind == "upsamplers":
        position = 1 if level in FAMILY_NAMES[family].bare_up_levels else 2
        return f"output_blocks.{first + LAYERS_PER_LEVEL - 1}.{position}.conv"
    place = f"{'input' if down else 'output'}_blocks.{first + layer}"
    return f"{place}.1.{leaf}" if kind == "attentions" else f"{place}.0.{_RESNET[leaf]}"


def kernel_of(module: str) -> tuple[int, int] | None:
    """(height, width) of a U-Net module's convolution as far as its name tells, None where it is a linear layer.

    proj_in and proj_out are linear or 1x1 convolutions, which is the same matrix.
    """
    leaf = module.rsplit(".", 1)[-1]
    if leaf in ("conv", "conv1", "conv2", "conv_in", "conv_out"):
        return THREE_BY_THREE
    return ONE_BY_ONE if leaf == "conv_shortcut" else None


def module_in(names: Mapping[str, object], module: str) -> str | None:
    """The name under which a network has `module` of a Place; transformers 5 dropped `text_model.` from CLIPTextModel.

    `names`: the network's modules by name. None if it has no such module.
    """
    for name in (module, module.removeprefix("text_model.")):
        if name in names:
            return name
    return None


def canonical(module: str) -> str:
    """A text encoder's module name as every LoRA file has it, given as transformers 4 or 5 names it."""
    return text_module(module) or module


def _resnet(block: str, leaf: str) -> str | None:
    return f"{block}.{_ORIGINAL_RESNET[leaf]}" if leaf in _ORIGINAL_RESNET else None
