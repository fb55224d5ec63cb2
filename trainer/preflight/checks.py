"""The checks of a run that need no model in memory: settings, learning rate, pictures, duplicates, length and disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from security.errors import RefusedFile, SafelightError
from trainer.config.inactive import inactive_settings
from trainer.config.schema import TrainConfig
from trainer.dataset.complaints import picture_complaints
from trainer.dataset.looks import measures_of
from trainer.dataset.own_word import refuse_unused
from trainer.dataset.plan import DatasetPlan, plan_dataset
from trainer.dataset.similar import Fingerprint, find_similar
from trainer.families import family_row
from trainer.inputs import Inputs, find_inputs
from trainer.learning_rates import learning_rate_warnings
from trainer.workspace import Workspace

SHOWN = 3
"""Pictures that a finding names."""
FEW_LOOKS, MANY_LOOKS = 5.0, 400.0
"""Looks at each picture under which hardly anything is learned, and over which pictures are usually learned by heart."""


class Level(StrEnum):
    """How bad a finding is. A fault stops the run; a warning is likely to spoil it; a note is worth knowing."""

    FAULT = "fault"
    WARNING = "warning"
    NOTE = "note"
    GOOD = "good"


@dataclass(frozen=True)
class Finding:
    """One result. `check`: what was looked at, in words; `setting`: the one to change, `section.field`, if it is one."""

    check: str
    level: Level
    text: str
    setting: str = ""


@dataclass
class Subject:
    """A run that is looked at. `inputs` and `plan` are found by the first checks; without them the others have nothing to do.

    `tell(done, total, text)` reports, and raises Cancelled when the user has had enough.
    """

    workspace: Workspace
    config: TrainConfig
    tell: Callable[[int, int, str], None]
    inputs: Inputs | None = None
    plan: DatasetPlan | None = None


Check = Callable[[Subject], Iterator[Finding]]


def check_files(subject: Subject) -> Iterator[Finding]:
    """The base model and the datasets are there, whole, and of a known kind."""
    subject.inputs = find_inputs(subject.config, subject.workspace)
    model = subject.inputs.model
    row = family_row(model.family)
    yield Finding("base model", Level.GOOD, f"{model.name} is there and whole ({row.label}).")
    if subject.inputs.fault:
        yield Finding("LoRA to go on from", Level.FAULT, subject.inputs.fault, "lora.continue_from")


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Settings that do nothing in this combination."""
    family = subject.inputs.model.family if subject.inputs else None
    for name, reason in inactive_settings(subject.config, family=family).items():
        yield Finding("settings", Level.NOTE, f"{name}: {reason}", name)


def check_learning_rate(subject: Subject) -> Iterator[Finding]:
    """Learning rates outside of what this optimizer usually stands."""
    warnings = learning_rate_warnings(subject.config)
    for text in warnings:
        yield Finding("learning rate", Level.WARNING, text, text.partition(" ")[0])
    if not warnings:
        optimizer = subject.config.optimizer
        yield Finding("learning rate", Level.GOOD, f"{optimizer.learning_rate:g} is usual for {optimizer.name.value}.")


def check_pictures(subject: Subject) -> Iterator[Finding]:
    """Pictures that can't be used, are too small, alone in their size, or have no caption."""
    plan = subject.plan = plan_dataset(subject.workspace, subject.config)
    skipped = [pair for row in plan.sources for pair in row.skipped]
    for name, reason in skipped:
        yield Finding("pictures", Level.WARNING, f"{name} is left out: {reason}")
    empty = [row.source.name for row in plan.sources if not row.num_pictures]
    if empty:
        yield Finding("pictures", Level.FAULT, f"{', '.join(empty)} has no usable pictures. Add some, or take it out.")
        return
    complaints = picture_complaints(plan.placed, plan.batch_size)
    for setting, text in complaints:
        yield Finding("pictures", Level.WARNING, text, setting)
    sizes = "one size" if len(plan.buckets) == 1 else f"{len(plan.buckets)} sizes"
    if not (skipped or complaints):
        yield Finding("pictures", Level.GOOD, f"{len(plan.placed)} pictures in {sizes}.")


def check_own_word(subject: Subject) -> Iterator[Finding]:
    """A word of one's own stands in a caption that is trained."""
    word, plan = subject.config.embedding.word, subject.plan
    if not word or plan is None or not plan.placed:
        return
    trained = [one.picture for one in plan.placed if one.is_first and not one.is_prior]
    try:
        refuse_unused(word, subject.config.dataset, trained)
        yield Finding("word of its own", Level.GOOD, f"{word} stands in the captions.")
    except SafelightError as error:
        yield Finding("word of its own", Level.FAULT, str(error), "embedding.word")


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """Pictures that are nearly the same: counted twice, or held out and trained on at once."""
    if subject.plan is None or subject.inputs is None:
        return
    prints: dict[str, Fingerprint] = {}
    pictures = {one.picture.content_hash: one.picture for one in subject.plan.placed if not one.is_prior}
    for number, picture in enumerate(pictures.values()):
        subject.tell(number, len(pictures), "Looking at pictures")
        try:
            measures = measures_of(subject.workspace, picture.path, picture.content_hash)
        except RefusedFile:
            continue  # told by the check of the pictures
        prints[picture.name] = measures.fingerprint
    pairs = find_similar(prints, progress=lambda done, total: subject.tell(done, total, "Comparing pictures"))
    if pairs:
        shown = ", ".join(f"{pair.first} and {pair.second} ({pair.relation})" for pair in pairs[:SHOWN])
        text = (
            f"{len(pairs)} pairs of pictures are nearly the same: {shown}. They count double; "
            "Dataset - Quality keeps the best of each."
        )
        yield Finding("near-duplicates", Level.WARNING, text)
    else:
        yield Finding("near-duplicates", Level.GOOD, "No two pictures are nearly the same.")


def check_length(subject: Subject) -> Iterator[Finding]:
    """Whether the number of steps means anything for so many pictures."""
    plan = subject.plan
    if plan is None or not plan.placed:
        return
    steps, looks = subject.config.training.max_train_steps, plan.epochs * plan.looks_per_epoch
    own = [one for one in plan.placed if not one.is_prior]
    each = looks / len(plan.placed)
    told = f"{steps} steps are {plan.epochs:.3g} epochs: each of {len(own)} pictures is seen {_times(each)}."
    if each < FEW_LOOKS:
        yield Finding("length", Level.WARNING, f"{told} That teaches hardly anything.", "training.max_train_steps")
    elif each > MANY_LOOKS:
        text = f"{told} That usually is learned by heart; hold pictures out (validation.split) to see it."
        yield Finding("length", Level.WARNING, text, "training.max_train_steps")
    else:
        yield Finding("length", Level.GOOD, told)


def _times(looks: float) -> str:
    if looks < 0.95:
        return "less than once"
    return "about once" if looks < 1.5 else f"about {looks:.0f} times"


CHECKS: dict[str, Check] = {
    "files": check_files,
    "settings": check_settings,
    "learning rate": check_learning_rate,
    "pictures": check_pictures,
    "word of its own": check_own_word,
    "near-duplicates": check_duplicates,
    "length": check_length,
}
"""In the order that they are made and shown in. The dry run comes after them."""


def find_all(subject: Subject) -> list[Finding]:
    """Every check's findings; one that can't be made is a fault and keeps no other from being made."""
    findings: list[Finding] = []
    for number, (name, check) in enumerate(CHECKS.items()):
        subject.tell(number, len(CHECKS), f"Checking {name}")
        try:
            findings += check(subject)
        except SafelightError as error:
            text = str(error)
            if text not in (one.text for one in findings):
                findings.append(Finding(name, Level.FAULT, text))
    return findings


def disk_finding(needed: int, workspace: Workspace) -> Finding:
    """Whether the files of a run have room. Bytes."""
    free = shutil.disk_usage(workspace.path).free
    told = f"about {needed / 1e6:,.0f} MB of {free / 1e9:,.1f} GB free will be written."
    if needed > free:
        text = f"The disk is too small: {told} Make room, or lower save.keep_last or save.every_n_steps."
        return Finding("disk", Level.FAULT, text, "save.every_n_steps")
    if needed > 0.8 * free:
        return Finding("disk", Level.WARNING, f"The disk gets nearly full: {told}")
    return Finding("disk", Level.GOOD, f"There is room: {told}")
