"""What a tool makes of LoRA files: written beside what is there, read once more, told in words and layer by layer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from security.errors import SafelightError
from security.roots import refuse_full_disk
from trainer.config.choices import SavePrecision
from trainer.families import family_row
from trainer.lora_files.changes import LayerReport, is_kernel, kept_overall, title
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Difference, Layer, LowRank
from trainer.lora_files.placing import file_beside
from trainer.lora_files.programs import loads_in, told_in_words
from trainer.lora_files.reading import read_lora
from trainer.lora_files.streaming import STALE_ENTRIES
from trainer.lora_files.writing import write_lora
from trainer.models.text import gigabytes

PRECISIONS = {
    torch.float16: SavePrecision.FP16,
    torch.bfloat16: SavePrecision.BF16,
    torch.float32: SavePrecision.FP32,
}
PREDICTIONS = {"v": "velocity (v)", "v_prediction": "velocity (v)", "epsilon": "noise (epsilon)"}
"""What modelspec and diffusers call that which a model predicts, in words."""
DYNAMIC = "Dynamic"
"""kohya's word for a rank or alpha that differs between layers."""


@dataclass(frozen=True)
class Outcome:
    """What a tool has made: where it lies, a sentence about it, notes, and what became of each layer.

    `kept`: the share of the squared norm of all layers that the result holds. `loads`: which programs load it, in words.
    """

    path: Path
    sentence: str
    reports: tuple[LayerReport, ...] = ()
    notes: tuple[str, ...] = ()
    kept: float = 1.0
    loads: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """The layers as plain values, those that lost most first."""
        ordered = sorted(self.reports, key=lambda one: (one.kept, title(one.place)))
        return [
            {
                "layer": title(one.place),
                "before": one.before,
                "after": one.after,
                "norm": round(math.sqrt(one.energy), 6),
                "kept": round(one.kept, 6),
            }
            for one in ordered
        ]


@dataclass(frozen=True)
class Form:
    """How a result is written. None takes what its source has."""

    file_format: FileFormat | None = None
    precision: SavePrecision | None = None
    replace: bool = False


def save(file: LoraFile, target: Path, form: Form, sources: Sequence[LoraFile] = ()) -> tuple[int, str]:
    """Writes a result under its name and reads it once more; returns its bytes, and which programs load it, in words.

    `sources`: whose number format the result has if the form names none. Nothing is replaced unless the form says so.
    Trained words are left out where the format has no names for them, as in training; `words_note` tells it.
    Raises SafelightError: the disk is too full, the format has no keys for a layer, the name is taken, or the file reads
    back as something else.
    """
    refuse_full_disk(target.parent, [])
    file_format = form.file_format or file.file_format
    if file_format is FileFormat.DIFFUSERS:
        file = dataclasses.replace(file, embeddings={})
    formats = {precision_of(one) for one in sources} or {SavePrecision.FP16}
    precision = form.precision or (formats.pop() if len(formats) == 1 else SavePrecision.FP32)
    metadata = {key: value for key, value in file.metadata.items() if key not in STALE_ENTRIES}
    with file_beside(target, replace=form.replace) as temporary:
        num_bytes = write_lora(file, temporary, file_format, precision=precision, metadata=metadata)
        again = read_lora(temporary, file.family)
        if again.layers.keys() != file.layers.keys() or again.unmatched:
            raise SafelightError(
                f"{target.name} reads back as something else than was written. This is a fault of Safelight."
            )
    return num_bytes, told_in_words(loads_in(again))


def words_note(file: LoraFile, form: Form) -> list[str]:
    """What to tell of trained words that `save` leaves out; nothing if there are none."""
    if not file.embeddings or (form.file_format or file.file_format) is not FileFormat.DIFFUSERS:
        return []
    return [
        f"Left out, because diffusers' names have none for trained words: {', '.join(file.embeddings)}. A run saves each word as "
        "a file of its own too: load that beside this one, or keep kohya's names."
    ]


def prediction_words(kind: str) -> str:
    """What a model predicts as people say it: "v" as "velocity (v)"."""
    return PREDICTIONS.get(kind, kind)


def precision_of(file: LoraFile) -> SavePrecision:
    """The number format that most numbers of a file have; fp16 for one that files are not written in."""
    counted: Counter[torch.dtype] = Counter()
    for layer in file.layers.values():
        for tensor in layer.tensors().values():
            counted[tensor.dtype] += tensor.numel()
    return PRECISIONS.get(counted.most_common(1)[0][0], SavePrecision.FP16)


def network_entries(layers: Mapping[Any, Layer]) -> dict[str, str]:
    """kohya's entries about rank and alpha, for a file of LoRA layers only; empty if there are other kinds."""
    plain = [layer for layer in layers.values() if not (isinstance(layer, Difference) and layer.kind == "norm")]
    own = [layer for layer in plain if isinstance(layer, LowRank)]
    if not own or len(own) != len(plain):
        return {}
    linear = [one for one in own if not is_kernel(one.shape)] or own
    kernels = [one for one in own if is_kernel(one.shape)]
    entries = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one({str(one.rank) for one in linear}),
        "ss_network_alpha": _one({f"{one.alpha:g}" for one in linear}),
    }
    if kernels:
        ranks, alphas = _one({str(one.rank) for one in kernels}), _one({f"{one.alpha:g}" for one in kernels})
        entries["ss_network_args"] = json.dumps({"conv_dim": ranks, "conv_alpha": alphas})
    return entries


def new_entries(family: str, name: str, sources: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Metadata of a LoRA that was not trained: its family, title and date, and what its sources agree on."""
    row = family_row(family)
    entries = {
        "ss_base_model_version": row.base_model_version,
        "ss_v2": "False",
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{row.architecture}/lora",
        "modelspec.title": name,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for key in ("modelspec.prediction_type", "modelspec.resolution", "modelspec.encoder_layer", "ss_sd_model_name"):
        said = {one[key] for one in sources if one.get(key)}
        if len(said) == 1 and all(key in one for one in sources):
            entries[key] = said.pop()
    words = [one["modelspec.trigger_phrase"] for one in sources if one.get("modelspec.trigger_phrase")]
    parts = [part.strip() for phrase in words for part in phrase.split(",") if part.strip()]
    if parts:
        entries["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(parts))
    return entries


def told(reports: Sequence[LayerReport], num_bytes: int) -> str:
    """Ranks, what was kept and the size, in words."""
    ranks = sorted({report.after for report in reports})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    worst = min(reports, key=lambda one: one.kept, default=None)
    kept = kept_overall(list(reports))
    text = f"{len(reports)} layers of {rank}, {gigabytes(num_bytes)}; keeps {percent(kept)} of the energy"
    if worst is not None and worst.kept < 0.9995:
        text += f", in the worst layer ({title(worst.place)}) {percent(worst.kept)}"
    return f"{text}."


def percent(share: float) -> str:
    """A share as "98.7%", never rounded up to all of it."""
    if share >= 0.99995:
        return "100%"
    return f"{min(share, 0.9999):.2%}" if share > 0.99 else f"{share:.1%}"


def _one(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else DYNAMIC
