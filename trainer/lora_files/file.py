"""A LoRA file in memory: layers by the module that each one changes, whatever kind they are and however they were named."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Layer
from trainer.lora_files.names import TEXT_ENCODERS, Place


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a LoRA file holds.

    `layers` by Place(part, module): part is unet, text_encoder or text_encoder_2, module diffusers' dotted name (text
    encoders' with `text_model.`). `biases`: differences of modules' biases. `embeddings`: trained words that came along, by
    word, their tensors by the name that the file has. `unmatched`: keys that could not be read, with the reason. `metadata`:
    the header's texts. `file_format`: how most keys are written. `shapes`: of all tensors of the file by their keys; empty for
    one that is only in memory.
    """

    family: str
    layers: dict[Place, Layer]
    metadata: dict[str, str] = field(default_factory=dict)
    file_format: FileFormat = FileFormat.KOHYA
    unmatched: dict[str, str] = field(default_factory=dict)
    biases: dict[Place, Tensor] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Layer]:
        """The layers of one part by their module."""
        return {place.module: layer for place, layer in self.layers.items() if place.part == name}

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The text encoders that have layers."""
        return tuple(name for name in TEXT_ENCODERS if self.part(name))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its layers, each once, the most frequent first."""
        found = [layer.kind for layer in self.layers.values()]
        return tuple(sorted(set(found), key=lambda kind: (-found.count(kind), kind)))
