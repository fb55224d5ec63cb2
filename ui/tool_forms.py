"""The forms of the Tools tab as tables: which fields each tool has, in which words. The page's script draws what is here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config.choices import SavePrecision
from trainer.lora_files.edit import FIELDS, REMOVALS
from ui.messages import ShownError

MAX_RANK = 4096
MAX_TEXT = 20_000


@dataclass(frozen=True)
class Field:
    """One field. `kind`: lora, loras (each with a weight), model, text, area, number, choice, tick or name (of the result).

    `choices`: (value, words). `optional`: whether it may stay empty.
    """

    name: str
    title: str
    help: str
    kind: str
    choices: tuple[tuple[str, str], ...] = ()
    default: str = ""
    optional: bool = False


@dataclass(frozen=True)
class ToolForm:
    """One tool: its id, its title, what it does, the word on its button, and its fields."""

    id: str
    title: str
    about: str
    button: str
    fields: tuple[Field, ...]

    def plain(self) -> dict[str, Any]:
        """As the script gets it."""
        return asdict(self)


def _name(words: str = "") -> Field:
    return Field("name", "Name of the result", words or "A new file in workspace/loras.", "name")


_LORA = Field("lora", "LoRA", "One of the files above.", "lora")
_LORAS = Field("loras", "LoRAs and their weights", "1 is as it was trained; below 0 takes its effect away.", "loras")
_BASE = Field(
    "base",
    "Base model",
    "Only for DoRA, OFT and BOFT, which work on the weights of the model that they were trained on.",
    "model",
    optional=True,
)
_RANK = Field("rank", "Rank", "Of linear layers; the highest one, if less is enough below.", "number", default="16")
_CONV_RANK = Field(
    "conv_rank", "Rank of convolutions", "Empty: convolutions stay as they are.", "number", optional=True
)
_KEEP = Field(
    "keep",
    "How much to keep",
    "The smallest rank that is enough, layer by layer, up to the rank above.",
    "choice",
    (
        ("rank", "exactly that rank"),
        ("energy", "a share of the energy"),
        ("ratio", "singular values above a ratio"),
    ),
    "rank",
)
_AMOUNT = Field(
    "amount", "Share or ratio", "0.95 keeps 95% of a layer's energy; a ratio of 10 drops values below a tenth.", "number",
    optional=True,
)  # fmt: skip
_FORMAT = Field(
    "format",
    "Key names",
    "kohya's are read by every program.",
    "choice",
    (("", "as they were"), ("kohya", "kohya"), ("diffusers", "diffusers"), ("comfyui", "ComfyUI")),
)
_PRECISION = Field(
    "precision",
    "Number format",
    "fp16 is usual; fp32 doubles the size.",
    "choice",
    (("", "as it was"), *((str(one), str(one)) for one in SavePrecision)),
)
_FORM = (_FORMAT, _PRECISION)
_TITLES = {
    "title": "Title",
    "trigger_words": "Trigger words",
    "description": "Description",
    "author": "Author",
    "tags": "Tags",
    "usage": "How to use it",
    "license": "Licence",
}
_TEXTS = tuple(
    Field(name, _TITLES[name], f"Stored as {entry}.", "area" if name == "description" else "text",
          optional=True)
    for name, entry in FIELDS.items()
)  # fmt: skip

TOOLS: dict[str, ToolForm] = {
    tool.id: tool
    for tool in (
        ToolForm(
            "verify",
            "Verify",
            "Looks a file over: sound numbers, its hash, which programs load it whole, and whether it fits a model.",
            "Look it over",
            (_LORA, Field("base", "Compare with", "A model that it is to work with.", "model", optional=True)),
        ),
        ToolForm(
            "edit",
            "Edit",
            "Changes what a file says about itself; an emptied field is taken out. The numbers stay as they are.",
            "Write it",
            (
                _LORA,
                *_TEXTS,
                Field(
                    "remove",
                    "Take out",
                    "Before you give it away.",
                    "choice",
                    (("", "nothing"), *((str(group), words) for group, words in REMOVALS.items())),
                ),
                Field("entries", "Also take out these entries", "Names or patterns with commas between: ss_bucket_*.", "text",
                      optional=True),
                Field("in_place", "Change the file itself", "Else the result is a new file. Files of runs stay as they are.",
                      "tick"),
                Field("name", "Name of the result", "A new file in workspace/loras.", "name"),
            ),
        ),
        ToolForm(
            "resize",
            "Resize",
            "Makes a file smaller: every layer becomes the nearest one of a lower rank (SVD), the text encoder's too.",
            "Resize",
            (_LORA, _RANK, _CONV_RANK, _KEEP, _AMOUNT, _BASE, *_FORM, _name()),
        ),
        ToolForm(
            "merge",
            "Merge",
            "Adds several LoRAs into one. Without a rank exactly, and the ranks add up.",
            "Merge",
            (
                _LORAS,
                Field("rank", "Rank", "Empty: an exact sum. Else the nearest sum of that rank.", "number", optional=True),
                Field("conv_rank", "Rank of convolutions", "Empty: their sum is exact.", "number", optional=True),
                _KEEP,
                _AMOUNT,
                _BASE,
                *_FORM,
                _name(),
            ),
        ),
        ToolForm(
            "bake",
            "Bake in",
            "Makes a new model of the library: a base model with LoRAs in it. Takes as much room as the base model.",
            "Bake",
            (Field("base", "Base model", "It stays as it is.", "model"), _LORAS, _name("A new model in the library.")),
        ),
        ToolForm(
            "extract",
            "Extract",
            "Makes a LoRA of what one model changed in another: a fine-tune and the model that it was made from.",
            "Extract",
            (
                Field("tuned", "Fine-tuned model", "The one that was trained on.", "model"),
                Field("base", "Its base model", "The very one that it was made from.", "model"),
                Field("rank", "Rank", "Higher holds more of the change; 32 to 128 are usual.", "number", default="64"),
                Field("conv_rank", "Rank of convolutions", "Empty: convolutions are left out.", "number", optional=True),
                _KEEP,
                _AMOUNT,
                Field("text_encoders", "Text encoders too", "Off: the U-Net only.", "tick", default="on"),
                _PRECISION,
                _name(),
            ),
        ),
        ToolForm(
            "convert",
            "Convert",
            "Writes a file under other key names or in another number format; or turns LoHa, LoKr and DoRA into LoRA.",
            "Convert",
            (
                _LORA,
                *_FORM,
                Field("as_lora", "Turn other kinds into LoRA of rank", "Empty: layers stay of their kind.", "number",
                      optional=True),
                _BASE,
                _name(),
            ),
        ),
    )
}  # fmt: skip


class Asked:
    """What a script sent for a tool, checked: everything that comes from a browser may be anything."""

    def __init__(self, tool: ToolForm, values: Any) -> None:
        """Raises ShownError for what is no form."""
        if not isinstance(values, Mapping):
            raise ShownError("The page sent no form. Reload the page.")
        self._values, self._fields = values, {field.name: field for field in tool.fields}

    def text(self, name: str) -> str:
        """A text, without space around it. Raises ShownError if it is missing and may not be."""
        value = self._values.get(name, "")
        field = self._fields[name]
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise ShownError(f"{field.title}: the page sent no text that can be used.")
        value = value.strip()
        if not value and not field.optional and field.kind != "choice":
            raise ShownError(f"{field.title}: choose or type one first.")
        return value

    def choice(self, name: str) -> str:
        """One of a field's choices. Raises ShownError for anything else."""
        value = self.text(name)
        if value not in [choice for choice, _ in self._fields[name].choices]:
            raise ShownError(f"{self._fields[name].title}: {value[:40]!r} is no choice. Reload the page.")
        return value

    def given(self, name: str) -> bool:
        """Whether the script sent this field at all."""
        return name in self._values

    def tick(self, name: str) -> bool:
        """Whether a box is ticked."""
        return self._values.get(name) is True

    def rank(self, name: str) -> int | None:
        """A whole number from 1 on, None for an empty field. Raises ShownError."""
        field, value = self._fields[name], self._number(name)
        if value is None:
            if not field.optional:
                raise ShownError(f"{field.title}: type a whole number, such as 16.")
            return None
        if value != int(value) or not 1 <= value <= MAX_RANK:
            raise ShownError(f"{field.title}: {value:g} is no rank. Type a whole number from 1 to {MAX_RANK}.")
        return int(value)

    def keep(self) -> dict[str, float]:
        """The energy or ratio to keep, if either is asked for. Raises ShownError for one without a number."""
        kind, amount = self.choice("keep"), self._number("amount")
        if kind == "rank":
            return {}
        if amount is None:
            raise ShownError("Share or ratio: type how much to keep, such as 0.95 for a share or 10 for a ratio.")
        return {kind: amount}

    def weighted(self) -> list[tuple[str, float]]:
        """Names of LoRAs with their weights. Raises ShownError for a list that is none."""
        value = self._values.get("loras")
        rows = value if isinstance(value, list) else []
        found = []
        for row in rows[:64]:
            name, weight = (row.get("name"), row.get("weight")) if isinstance(row, Mapping) else (None, None)
            if not isinstance(name, str) or not name:
                raise ShownError("LoRAs and their weights: choose a LoRA in each row, or remove the row.")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ShownError(f"LoRAs and their weights: type a number as the weight of {name[:80]}.")
            found.append((name, float(weight)))
        return found

    def _number(self, name: str) -> float | None:
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ShownError(f"{self._fields[name].title}: type a number.")
        return float(value)
