"""Which kind of layers a LoRA file holds, read from its header, and the rule that a run goes on only from its own kind.

Imports no torch: a check asks before anything is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from security.errors import SafelightError
from security.weights import check_safetensors
from trainer.config.choices import AdapterName
from trainer.lora_files import keys
from trainer.lora_files.keys import parse_key
from trainer.lora_files.names import Place

_BEGINNINGS = {"lora_": "lora", "hada_": "loha", "lokr_": "lokr"}
"""Beginning of a tensor's suffix -> the kind that has such tensors. Rotations are told by their shape as well."""
_MAGNITUDES = {keys.MAGNITUDE, keys.PEFT_MAGNITUDE}


def trained_kind(adapter: AdapterName) -> str:
    """The kind of the layers that an adapter trains: a LoCon has those of a LoRA, in more places."""
    return "lora" if adapter is AdapterName.LOCON else adapter.value


def refuse_other_kind(name: str, kind: str, trained: str) -> None:
    """Raises SafelightError if the file `name`, whose layers are of a `kind`, can't go on as what is trained."""
    if kind != trained:
        raise SafelightError(
            f"lora.continue_from names {name}, which holds {kind} layers, and lora.adapter trains {trained}. "
            f"Set lora.adapter to {kind}, or put the file into the base with lora.merge_first."
        )


def refuse_other_file(path: Path, adapter: AdapterName) -> None:
    """The same for all layers of a file by its header alone.

    Raises RefusedFile for one that is no .safetensors file. What is no adapter's layer is left to the run to refuse.
    """
    by_place: dict[Place, set[str]] = defaultdict(set)
    stages: dict[Place, int] = {}
    for key, info in check_safetensors(path).tensors.items():
        meaning = parse_key(key)
        if meaning is not None:
            by_place[meaning.place].add(meaning.suffix)
            if meaning.suffix == "oft_blocks":
                stages[meaning.place] = len(info.shape)
    for place, suffixes in by_place.items():
        kind = next((kind for start, kind in _BEGINNINGS.items() if any(one.startswith(start) for one in suffixes)), "")
        if kind and _MAGNITUDES & suffixes:
            kind = "dora"
        elif place in stages:
            kind = "oft" if stages[place] == 3 else "boft"
        if kind:
            refuse_other_kind(path.name, kind, trained_kind(adapter))
