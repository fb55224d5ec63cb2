"""What is done with finished LoRAs, from files to files: resize, merge, extract, bake, convert. The page and the command
line call these; edit and verify have files of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from security.errors import SafelightError
from trainer.families import family_row
from trainer.lora_files.bake import Added, bake
from trainer.lora_files.changes import LayerReport, Ranks, Unfit, is_norm, kept_overall, title
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.extract import extract
from trainer.lora_files.file import LoraFile
from trainer.lora_files.keys import FileFormat
from trainer.lora_files.layers import Layer, LowRank
from trainer.lora_files.merge import Ingredient, check_weight, merge
from trainer.lora_files.names import Place
from trainer.lora_files.reading import read_lora
from trainer.lora_files.resize import resize
from trainer.lora_files.results import (
    Form,
    Outcome,
    network_entries,
    new_entries,
    percent,
    precision_of,
    prediction_words,
    save,
    told,
    words_note,
)
from trainer.models.text import gigabytes
from trainer.tasks import TaskControl

MAX_INGREDIENTS = 32


@dataclass(frozen=True)
class Weighted:
    """A LoRA file, what it is called, and the weight that it counts with."""

    path: Path
    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Raises Unfit for a weight that a LoRA can't count with."""
        check_weight(self.name, self.weight)


def resize_lora(
    source: Weighted,
    target: Path,
    ranks: Ranks,
    form: Form,
    *,
    base: Path | None = None,
    control: TaskControl | None = None,
) -> Outcome:
    """Writes a LoRA at a lower rank. `base`: the model that DoRA, OFT and BOFT layers were trained on."""
    file = read_lora(source.path)
    with opened(base, file) as checkpoint:
        layers, reports = resize(file.layers, ranks, name=source.name, base=checkpoint, control=control)
    recipe = {"from": source.name, **_rules(ranks), "kept": round(kept_overall(reports), 6)}
    entries = network_entries(layers)
    metadata = {**file.metadata, **entries, "safelight_resized": json.dumps(recipe)}
    if entries and "ss_network_args" not in entries:
        metadata.pop("ss_network_args", None)
    before = source.path.stat().st_size
    num_bytes, loads = save(dataclasses.replace(file, layers=layers, metadata=metadata), target, form, [file])
    others = [place for place in _of_other_kinds(file) if isinstance(layers[place], LowRank)]
    sentence = f"{target.stem}: {told(reports, num_bytes)} {source.name} {'had' if source.path == target else 'has'} "
    sentence += f"{gigabytes(before)}." + (f" Of other kinds became LoRA: {len(others)} layers." if others else "")
    notes = [*_larger(source.name, before, num_bytes, others), *words_note(file, form), *_unread(file, source.name)]
    return Outcome(target, sentence, tuple(reports), tuple(notes), kept_overall(reports), loads)


def merge_loras(
    sources: Sequence[Weighted],
    target: Path,
    ranks: Ranks | None,
    form: Form,
    *,
    base: Path | None = None,
    control: TaskControl | None = None,
) -> Outcome:
    """Writes the sum of LoRAs, each times its weight; exactly without `ranks`."""
    files = _read_all(sources, 2)
    with opened(base, files[0]) as checkpoint:
        ingredients = [Ingredient(one.name, file.layers, one.weight) for one, file in zip(sources, files, strict=True)]
        layers, reports = merge(ingredients, ranks, base=checkpoint, control=control)
    recipe = [{"name": one.name, "weight": one.weight} for one in sources]
    metadata = {
        **new_entries(files[0].family, target.stem, [file.metadata for file in files]),
        **network_entries(layers),
        "modelspec.merged_from": ", ".join(one.name for one in sources),
        "safelight_merged": json.dumps({"loras": recipe, **(_rules(ranks) if ranks else {})}),
    }
    result = dataclasses.replace(
        files[0],
        layers=layers,
        metadata=metadata,
        file_format=_common_format(files),
        unmatched={},
        biases=_summed_biases(sources, files),
        embeddings=_all_words(sources, files),
    )
    num_bytes, loads = save(result, target, form, files)
    sum_of = _sum_in_words(sources)
    notes = words_note(result, form)
    notes += [note for one, file in zip(sources, files, strict=True) for note in _unread(file, one.name)]
    notes += _prediction_note([file.metadata.get("modelspec.prediction_type", "") for file in files])
    sentence = f"{target.stem} is {sum_of}: {told(reports, num_bytes)}"
    return Outcome(target, sentence, tuple(reports), tuple(notes), kept_overall(reports), loads)


@dataclass(frozen=True)
class Models:
    """The two models of an extraction. `text_encoders`: whether these are compared too."""

    tuned: Path
    base: Path
    text_encoders: bool = True


def extract_lora(
    models: Models, target: Path, ranks: Ranks, form: Form, *, control: TaskControl | None = None
) -> Outcome:
    """Writes as a LoRA what one model has changed in another."""
    with Checkpoint(models.tuned) as tuned, Checkpoint(models.base) as base:
        found = extract(tuned, base, ranks, text_encoders=models.text_encoders, control=control)
    predicts = [tuned.found.prediction_type, base.found.prediction_type]
    recipe = {"tuned": tuned.name, "base": base.name, **_rules(ranks), "kept": round(found.kept, 6)}
    metadata = {
        **new_entries(tuned.found.family, target.stem, []),
        **network_entries(found.layers),
        "ss_sd_model_name": base.name,
        "modelspec.prediction_type": "v" if predicts[0] == "v_prediction" else "epsilon",
        "safelight_extracted": json.dumps(recipe),
    }
    num_bytes, loads = save(LoraFile(tuned.found.family, found.layers, metadata), target, form)
    notes = [f"{found.unchanged} modules are equal in both models."] if found.unchanged else []
    if found.left_out:
        notes.append(
            f"{found.left_out} convolutions differ too and were left out, because no rank was given for them; with them, "
            f"the LoRA holds {percent(found.kept)} of what was changed."
        )
    sentence = f"{target.stem} is what {tuned.name} adds to {base.name}: {told(found.reports, num_bytes)}"
    notes += _prediction_note(predicts)
    return Outcome(target, sentence, tuple(found.reports), tuple(notes), found.kept, loads)


def bake_loras(base: Path, sources: Sequence[Weighted], target: Path, *, control: TaskControl | None = None) -> Outcome:
    """Writes a base model with LoRAs in it, in the form that the base has: a folder or one file."""
    files = _read_all(sources, 1)
    with Checkpoint(base) as checkpoint:
        _refuse_other_family(files[0], sources[0].name, checkpoint)
        added = [
            Added(one.name, file.layers, file.biases, one.weight) for one, file in zip(sources, files, strict=True)
        ]
        baked = bake(checkpoint, added, target, control=control)
    name = target.stem if target.is_file() else target.name
    recipe = " and ".join(f"{one.weight:g} x {one.name}" for one in sources)
    sentence = (
        f"{name} is {checkpoint.name} with {recipe} in it: {baked.modules} modules changed, "
        f"{gigabytes(baked.num_bytes)}; read once more and compared."
    )
    notes = [note for one, file in zip(sources, files, strict=True) for note in _unread(file, one.name)]
    if baked.kept < 0.999:
        notes.append(f"The model's number format is coarse: rounding to it leaves {percent(baked.kept)} of the change.")
    words = [word for file in files for word in file.embeddings]
    if words:
        notes.append(f"The trained words {', '.join(words)} stay in their LoRA files; a model has no place for them.")
    return Outcome(target, sentence, (), tuple(notes), baked.kept)


def convert_lora(
    source: Weighted,
    target: Path,
    form: Form,
    *,
    as_lora: Ranks | None = None,
    base: Path | None = None,
    control: TaskControl | None = None,
) -> Outcome:
    """Writes a LoRA under other key names or in another number format.

    `as_lora`: also turns layers of other kinds into plain LoRA layers of that rank, which every program reads.
    """
    file = read_lora(source.path)
    reports: list[LayerReport] = []
    layers = dict(file.layers)
    other = _of_other_kinds(file)
    if as_lora is not None and other:
        with opened(base, file) as checkpoint:
            plain, reports = resize(other, as_lora, name=source.name, base=checkpoint, control=control)
        layers |= plain
    else:
        _refuse_no_change(file, source.name, form)
    result = dataclasses.replace(file, layers=layers, metadata={**file.metadata, **network_entries(layers)})
    num_bytes, loads = save(result, target, form, [file])
    names = (form.file_format or file.file_format).value
    sentence = (
        f"{target.stem} has the {len(layers)} layers of {source.name} under {names} names, {gigabytes(num_bytes)}."
    )
    if reports:
        sentence += f" Of other kinds became LoRA: {told(reports, num_bytes)}"
    notes = [*words_note(file, form), *_unread(file, source.name)]
    return Outcome(target, sentence, tuple(reports), tuple(notes), kept_overall(reports), loads)


def _of_other_kinds(file: LoraFile) -> dict[Place, Layer]:
    """Its layers that are no LoRA, but could become one."""
    return {place: one for place, one in file.layers.items() if not (isinstance(one, LowRank) or is_norm(one))}


def _larger(name: str, before: int, after: int, others: Sequence[Place]) -> list[str]:
    """A warning that a resized file takes more room than its source; nothing if it does not."""
    if after <= before:
        return []
    why = " Such kinds hold a layer in fewer numbers than a LoRA of that rank: take a lower one." if others else ""
    return [f"The result is larger than {name}: {after:,} bytes instead of {before:,}.{why}"]


def _sum_in_words(sources: Sequence[Weighted]) -> str:
    """The LoRAs with their weights as a sum: "1 x a - 0.5 x b"."""
    words = f"{sources[0].weight:g} x {sources[0].name}"
    for one in sources[1:]:
        words += f" {'-' if one.weight < 0 else '+'} {abs(one.weight):g} x {one.name}"
    return words


@contextmanager
def opened(base: Path | None, file: LoraFile) -> Iterator[Checkpoint | None]:
    """A base model for LoRA layers that need one, None if none is given. Raises Unfit for one of another family."""
    if base is None:
        yield None
        return
    with Checkpoint(base) as checkpoint:
        _refuse_other_family(file, "The LoRA", checkpoint)
        yield checkpoint


def _refuse_other_family(file: LoraFile, name: str, base: Checkpoint) -> None:
    if file.family != base.found.family:
        raise Unfit(
            f"{name} is for {family_row(file.family).label}, {base.name} is {family_row(base.found.family).label}. "
            "Choose a model of the same family."
        )


def _refuse_no_change(file: LoraFile, name: str, form: Form) -> None:
    same_names = form.file_format in (None, file.file_format)
    if same_names and form.precision in (None, precision_of(file)):
        raise SafelightError(f"{name} is written that way already, so there is nothing to convert.")


def _read_all(sources: Sequence[Weighted], fewest: int) -> list[LoraFile]:
    """The files. Raises SafelightError for too few or too many of them, and Unfit for files of different families."""
    if not fewest <= len(sources) <= MAX_INGREDIENTS:
        raise SafelightError(f"{len(sources)} LoRAs are named; from {fewest} to {MAX_INGREDIENTS} are possible.")
    files = [read_lora(one.path) for one in sources]
    for one, file in zip(sources, files, strict=True):
        if file.family != files[0].family:
            raise Unfit(
                f"{sources[0].name} is for {family_row(files[0].family).label}, {one.name} for "
                f"{family_row(file.family).label}. Only LoRAs of one family go together."
            )
    return files


def _summed_biases(sources: Sequence[Weighted], files: Sequence[LoraFile]) -> dict[Place, Tensor]:
    summed: dict[Place, Tensor] = {}
    for one, file in zip(sources, files, strict=True):
        for place, bias in file.biases.items():
            part = one.weight * bias.float()
            if place in summed and summed[place].shape != part.shape:
                raise Unfit(
                    f"The LoRAs change the bias of {title(place)} in different sizes: they are for different models."
                )
            summed[place] = summed[place] + part if place in summed else part
    return summed


def _all_words(sources: Sequence[Weighted], files: Sequence[LoraFile]) -> dict[str, dict[str, Tensor]]:
    words: dict[str, dict[str, Tensor]] = {}
    for one, file in zip(sources, files, strict=True):
        for word, tensors in file.embeddings.items():
            if word in words:
                raise Unfit(
                    f"{one.name} and another of these LoRAs both have the trained word {word}. Merge only one of them."
                )
            words[word] = dict(tensors)
    return words


def _common_format(files: Sequence[LoraFile]) -> FileFormat:
    """The format that all files have, else kohya's, which every program reads."""
    formats = {file.file_format for file in files}
    return formats.pop() if len(formats) == 1 else FileFormat.KOHYA


def _rules(ranks: Ranks) -> dict[str, object]:
    rules: dict[str, object] = {"rank": ranks.linear.rank}
    if ranks.conv is not None:
        rules["conv_rank"] = ranks.conv.rank
    return rules | {name: value for name in ("energy", "ratio") if (value := getattr(ranks.linear, name))}


def _unread(file: LoraFile, name: str) -> tuple[str, ...]:
    if not file.unmatched:
        return ()
    key, why = next(iter(file.unmatched.items()))
    return (f"{len(file.unmatched)} tensors of {name} were left out, {key} first: {why}.",)


def _prediction_note(said: Sequence[str]) -> list[str]:
    kinds = sorted({prediction_words(kind) for kind in said if kind})
    if len(kinds) < 2:
        return []
    return [
        f"They predict different things ({' and '.join(kinds)}): the result may do nothing good. Try it before you use it."
    ]
