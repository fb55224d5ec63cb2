"""Looks a LoRA file over: what is in it, which programs load it, whether its numbers are sound, and whether it fits a model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from security.errors import RefusedFile, SafelightError
from security.integrity import check_own_hash
from security.redaction import refuse_secrets
from trainer.families import family_row
from trainer.lora_files.changes import change_of, energy_of, title
from trainer.lora_files.checkpoint import PARTS, Checkpoint
from trainer.lora_files.edit import Edit, Removal, edited
from trainer.lora_files.file import LoraFile
from trainer.lora_files.layers import Layer
from trainer.lora_files.names import UNET, Place
from trainer.lora_files.programs import loads_in
from trainer.lora_files.reading import read_lora
from trainer.lora_files.results import precision_of, prediction_words
from trainer.tasks import TaskControl

STRONG = 1.0
"""A layer that adds more than the whole norm of the base weight is no fine-tuning any more."""
OUTLIER = 30.0
"""A layer with so many times the median norm of its kind stands out; trained files stay below a third of it."""
LISTED = 5
ROTATIONS = ("oft", "boft")
"""Kinds that no alpha scales."""


@dataclass
class LoraFacts:
    """What a look at a file brought.

    `faults` speak against using it, `warnings` are worth knowing, `programs` tells for each program "" or why it does not
    load it whole. `norms`: the Frobenius norm of what each layer adds, where it can be told without a base model;
    `relative`: the same as a share of the base weight's, with a base model.
    """

    name: str
    file: LoraFile | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    programs: Mapping[str, str] = field(default_factory=dict)
    norms: dict[Place, float] = field(default_factory=dict)
    relative: dict[Place, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.faults

    def summary(self) -> dict[str, Any]:
        """The facts in a few words each, in the order to show them; empty if the file could not be read."""
        file = self.file
        if file is None:
            return {}
        metadata = file.metadata
        facts = {
            "model family": family_row(file.family).label,
            "kind": ", ".join(file.kinds),
            "layers": _parts(file),
            "rank": _counted(layer.rank for layer in file.layers.values() if layer.kind != "norm"),
            "alpha": _counted(_alpha(layer) for layer in file.layers.values() if layer.kind != "norm"),
            "key names": file.file_format.value,
            "number format": precision_of(file).value,
            "strength": _strength(self),
            "title": metadata.get("modelspec.title", ""),
            "trigger words": metadata.get("modelspec.trigger_phrase", ""),
            "author": metadata.get("modelspec.author", ""),
            "trained words": ", ".join(file.embeddings),
            "base model": metadata.get("ss_sd_model_name", ""),
            "predicts": prediction_words(metadata.get("modelspec.prediction_type", "")),
            "trained for": f"{metadata['ss_steps']} steps" if "ss_steps" in metadata else "",
            "optimizer": metadata.get("ss_optimizer", ""),
            "learning rate": metadata.get("ss_learning_rate", ""),
        }
        return {name: value for name, value in facts.items() if value}

    def rows(self) -> list[dict[str, Any]]:
        """One entry for each layer: name, kind, rank, alpha, norm and share of the base weight's norm."""
        if self.file is None:
            return []
        return [
            {
                "layer": title(place),
                "kind": layer.kind,
                "rank": layer.rank,
                "alpha": _alpha(layer),
                "norm": _rounded(self.norms.get(place)),
                "relative": _rounded(self.relative.get(place)),
            }
            for place, layer in self.file.layers.items()
        ]


def look_at(path: Path, name: str, *, base: Path | None = None, control: TaskControl | None = None) -> LoraFacts:
    """Reads a file and everything that can be told of it. What is wrong with it is in the result, not raised.

    Raises SafelightError for a base model that can't be opened.
    """
    facts = LoraFacts(name)
    try:
        facts.file = read_lora(path)
        carried = check_own_hash(path)
    except RefusedFile as refusal:
        facts.faults.append(str(refusal))
        return facts
    facts.notes.append(
        "its numbers have the hash that it carries" if carried else "it carries no hash of its numbers to compare with"
    )
    facts.programs = loads_in(facts.file)
    _look_at_keys(facts, facts.file)
    _look_at_texts(facts, facts.file)
    if base is None:
        _look_at_numbers(facts, facts.file, None, control)
    else:
        with Checkpoint(base) as checkpoint:
            if _fits(facts, facts.file, checkpoint):
                _look_at_numbers(facts, facts.file, checkpoint, control)
    return facts


def _look_at_keys(facts: LoraFacts, file: LoraFile) -> None:
    if file.unmatched:
        listed = ", ".join(f"{key} ({why})" for key, why in list(file.unmatched.items())[:LISTED])
        facts.warnings.append(f"{len(file.unmatched)} tensors are not understood: {listed}")
    still = [place for place, layer in file.layers.items() if layer.alpha == 0 and layer.kind not in ROTATIONS]
    if still:
        facts.warnings.append(f"{len(still)} layers have the alpha 0 and change nothing, {title(still[0])} first")
    if facts.programs and all(facts.programs.values()):
        facts.warnings.append("no program that is known here loads it whole")


def _look_at_texts(facts: LoraFacts, file: LoraFile) -> None:
    try:
        refuse_secrets("\n".join([*file.metadata, *file.metadata.values()]), f"The metadata of {facts.name}")
    except SafelightError as error:
        facts.faults.append(str(error))
        return
    for group, words in ((Removal.CAPTIONS, "captions' tags"), (Removal.PERSONAL, "names, times or paths")):
        if len(edited(file.metadata, Edit(groups=[group]), facts.name)) != len(file.metadata):
            facts.notes.append(f"its metadata holds {words} of whoever trained it; Edit takes them out")
            return


def _fits(facts: LoraFacts, file: LoraFile, base: Checkpoint) -> bool:
    """Whether the layers have places in a model; if not, the facts say why not."""
    if file.family != base.found.family:
        facts.faults.append(
            f"it is for {family_row(file.family).label}, {base.name} is {family_row(base.found.family).label}"
        )
        return False
    missing = [place for place in file.layers if base.shape(place) is None]
    if missing:
        facts.faults.append(
            f"{len(missing)} of its {len(file.layers)} layers have no place in {base.name}, {title(missing[0])} first"
        )
        return False
    said = file.metadata.get("modelspec.prediction_type", "")
    predicts = "v" if base.found.prediction_type == "v_prediction" else "epsilon"
    if said and said != predicts:
        facts.warnings.append(
            f"it was trained on a model that predicts {prediction_words(said)}, {base.name} predicts {prediction_words(predicts)}"
        )
    return True


def _look_at_numbers(facts: LoraFacts, file: LoraFile, base: Checkpoint | None, control: TaskControl | None) -> None:
    for done, (place, layer) in enumerate(file.layers.items(), start=1):
        if control is not None:
            control.raise_if_cancelled()
            control.progress(done, len(file.layers), f"Looking at {facts.name}")
        if layer.needs_weight and base is None:
            continue
        weight = base.weight(place) if base is not None else None
        try:
            change = change_of(place, layer, base, facts.name)
            if weight is not None and math.prod(change.shape) != weight.numel():
                raise SafelightError(
                    f"{title(place)} is {change.shape} in the file, {tuple(weight.shape)} in the model"
                )
        except SafelightError as error:
            facts.faults.append(str(error).rstrip("."))
            return
        facts.norms[place] = math.sqrt(max(0.0, energy_of(change)))
        if weight is not None:
            norm = float(torch.linalg.vector_norm(weight))
            facts.relative[place] = facts.norms[place] / norm if norm else math.inf
    _judge_norms(facts)


def _judge_norms(facts: LoraFacts) -> None:
    norms = facts.norms
    if norms and not any(norms.values()):
        facts.faults.append("every layer is zero: the file changes nothing")
        return
    zeros = [place for place, norm in norms.items() if norm == 0]
    if zeros:
        facts.warnings.append(f"{len(zeros)} layers are zero and change nothing, {title(zeros[0])} first")
    if any(not math.isfinite(norm) for norm in norms.values()):
        facts.faults.append("its numbers are so large that their products are no numbers any more")
        return
    usual = statistics.median(norms.values()) if norms else 0.0
    wild = [place for place, norm in norms.items() if usual and norm > OUTLIER * usual]
    if wild:
        facts.warnings.append(
            f"{len(wild)} layers are over {OUTLIER:g} times as strong as the others, {title(wild[0])} first: the training "
            "may have gone astray there"
        )
    strong = [place for place, share in facts.relative.items() if share > STRONG]
    if strong:
        facts.warnings.append(
            f"{len(strong)} layers change their weight by more than its whole size, {title(strong[0])} first: use a weight "
            "well below 1"
        )


def _parts(file: LoraFile) -> str:
    counted = Counter(place.part for place in file.layers)
    ordered = [part for part in PARTS if part in counted]
    named = [f"{counted[part]} in the {'U-Net' if part == UNET else part.replace('_', ' ')}" for part in ordered]
    return ", ".join(named)


def _alpha(layer: Layer) -> float | None:
    """Its alpha; None for a rotation without the limit that is stored under this name."""
    return None if layer.kind in ROTATIONS and not layer.alpha else layer.alpha


def _counted(values: Any) -> str:
    """Numbers with how often each comes, the most frequent first: "16 (100), 8 (44)"; one alone without its count."""
    counted = Counter(f"{value:g}" for value in values if value is not None)
    if len(counted) < 2:
        return next(iter(counted), "")
    shown = [f"{value} ({count})" for value, count in counted.most_common(LISTED)]
    return ", ".join(shown) + (" and others" if len(counted) > LISTED else "")


def _strength(facts: LoraFacts) -> str:
    """The norm of everything together, and what share of the base model's weights it is."""
    if not facts.norms:
        return ""
    text = f"norm {math.sqrt(sum(norm**2 for norm in facts.norms.values())):.4g}"
    if facts.relative:
        text += f"; a layer changes its weight by {statistics.median(facts.relative.values()):.2%} (median)"
        text += f", at most {max(facts.relative.values()):.2%}"
    return text


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
