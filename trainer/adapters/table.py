"""The adapters that can be chosen: where each one's layer is, what it costs, which settings it listens to, who reads it.

No torch here: the page and the checks of a config ask this table too.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.config.choices import AdapterInit, AdapterName

if TYPE_CHECKING:
    from trainer.adapters.layer import Adapter, AdapterOptions, BaseLayer

TOOLS = ("comfyui", "a1111", "forge", "diffusers")
"""What a LoRA file may be loaded with; lora_files/programs.py has their rules and judges each file by them."""

_PRODUCT = frozenset({"rank", "alpha", "rs_lora", "dropout", "conv_alpha"})
_LOW_RANK = _PRODUCT | {"lora_plus_ratio"}
_ROTATION = frozenset({"block_size"})
_NO_READER = (
    "diffusers has no reader for this adapter; use ComfyUI, Forge or A1111, or merge the file into a checkpoint"
)


_NOT_FORGE = "Forge has no reader for this adapter; use ComfyUI or A1111, or merge the file into a checkpoint"
_NOT_DIFFUSERS = "diffusers has no reader for this adapter; use ComfyUI or A1111, or merge the file into a checkpoint"


@dataclass(frozen=True)
class AdapterRow:
    """One adapter. `import_path`: its class, made from (base layer, AdapterOptions).

    `listens_to`: the settings of [lora] (and optimizer.lora_plus_ratio) that do something with it, besides those that do
    with all. `not_read_by`: the tools that can't load its files, each with the reason. `cost`: processor time of a step
    beside a LoRA's, as measured on the embedded model at its defaults; on larger pictures all come closer to a LoRA.
    `needs_whole_base`: what it adds to a weight can't be told without that weight.
    """

    title: str
    help: str
    import_path: str
    listens_to: frozenset[str]
    cost: str = "As a LoRA."
    inits: tuple[AdapterInit, ...] = (AdapterInit.DEFAULT,)
    takes_convolutions: bool = False
    not_read_by: tuple[tuple[str, str], ...] = ()
    needs_whole_base: bool = False

    @property
    def loads_in(self) -> frozenset[str]:
        """The tools that load its files."""
        return frozenset(TOOLS) - {tool for tool, _ in self.not_read_by}


_EVERY_INIT = tuple(AdapterInit)
_NO_PISSA = tuple(init for init in AdapterInit if init is not AdapterInit.PISSA)

ADAPTERS: dict[AdapterName, AdapterRow] = {
    AdapterName.LORA: AdapterRow(
        "LoRA",
        "two thin matrices per layer: small, fast, read by everything",
        "trainer.adapters.low_rank.LoraAdapter",
        _LOW_RANK,
        inits=_EVERY_INIT,
    ),
    AdapterName.LOCON: AdapterRow(
        "LoCon",
        "a LoRA that changes the convolutions too: better at textures and styles",
        "trainer.adapters.low_rank.LoraAdapter",
        _LOW_RANK,
        cost="A third more than a LoRA: there are more layers.",
        inits=_EVERY_INIT,
        takes_convolutions=True,
    ),
    AdapterName.DORA: AdapterRow(
        "DoRA",
        "a LoRA that learns the length of each weight column apart: closer to full training at low ranks",
        "trainer.adapters.low_rank.DoraAdapter",
        _LOW_RANK,
        cost="A tenth more than a LoRA: the norms of all weights are taken anew in each step.",
        inits=_NO_PISSA,
        not_read_by=(("diffusers", "diffusers takes DoRA's lengths per output; this file has them per input"),),
        needs_whole_base=True,
    ),
    AdapterName.LOHA: AdapterRow(
        "LoHa",
        "the element-wise product of two LoRAs: more rank for the same file, gentler",
        "trainer.adapters.products.LohaAdapter",
        _PRODUCT,
        cost="Two fifths more than a LoRA: each layer's change is built whole.",
        not_read_by=(("diffusers", _NO_READER),),
    ),
    AdapterName.LOKR: AdapterRow(
        "LoKr",
        "a Kronecker product of a small and a larger matrix: very small files, high rank",
        "trainer.adapters.products.LokrAdapter",
        _PRODUCT | {"lokr_factor"},
        not_read_by=(("diffusers", _NO_READER),),
    ),
    AdapterName.OFT: AdapterRow(
        "OFT",
        "turns a layer's outputs in blocks and stretches nothing: keeps what the model knows",
        "trainer.adapters.rotations.OftAdapter",
        _ROTATION,
        cost="A third more than a LoRA: the rotations are made anew in each step.",
        not_read_by=(("forge", _NOT_FORGE), ("diffusers", _NOT_DIFFUSERS)),
        needs_whole_base=True,
    ),
    AdapterName.BOFT: AdapterRow(
        "BOFT",
        "several rotations in small blocks, shuffled in between: OFT that mixes all outputs",
        "trainer.adapters.rotations.BoftAdapter",
        _ROTATION,
        cost="Nearly three times a LoRA: each output passes through many rotations.",
        not_read_by=(("forge", _NOT_FORGE), ("diffusers", _NOT_DIFFUSERS)),
        needs_whole_base=True,
    ),
}


def make_adapter(name: AdapterName, base: BaseLayer, options: AdapterOptions) -> Adapter:
    """A new adapter for a layer, on the CPU; its start is drawn from the global random state."""
    module, _, class_name = ADAPTERS[name].import_path.rpartition(".")
    made: Any = getattr(importlib.import_module(module), class_name)(base, options)
    adapter: Adapter = made
    return adapter


def listens(name: AdapterName, setting: str) -> bool:
    """Whether an adapter does anything with a setting that only some of them know."""
    return setting in ADAPTERS[name].listens_to
