"""Gathers what the quality checks look at: every picture decoded once, every caption read, the plan of the trainer's own code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedFile, SafelightError
from trainer.config.schema import TrainConfig, ValidationConfig
from trainer.dataset.buckets import Placement
from trainer.dataset.captions import with_trigger
from trainer.dataset.facts import PictureFacts, facts_of
from trainer.dataset.looks import measures_of
from trainer.dataset.measures import Measures
from trainer.dataset.plan import USUAL_STEP, model_step, plan_dataset
from trainer.dataset.quality import CHECKS, Checked, Checkup, Finding, find_problems
from trainer.dataset.settings import Mark
from trainer.dataset.similar import Fingerprint, Pair, Relation, find_similar
from trainer.dataset.studio import Dataset, Studio, caption_name
from trainer.dataset.tokens import count_tokens
from trainer.tasks import TaskControl

_THREADS = max(2, min(8, os.cpu_count() or 2))


@dataclass(frozen=True)
class Report:
    """The quality of a dataset at one revision. `resolution` in pixels; `step`: sides of training sizes are multiples of it.

    `step_is_known`: it is that of the base model; else the usual one, because the model is not here.
    """

    dataset: str
    revision: int
    num_pictures: int
    resolution: int
    step: int
    step_is_known: bool
    held_out: str
    findings: tuple[Finding, ...]

    @property
    def sentence(self) -> str:
        """The outcome in a line."""
        if not self.num_pictures:
            return f"{self.dataset} has no pictures."
        if not self.findings:
            return f"Nothing found in {self.num_pictures:,} {'picture' if self.num_pictures == 1 else 'pictures'}."
        about = (finding for finding in self.findings if CHECKS[finding.kind].counted == "picture")
        concerned = len({name for finding in about for name in finding.pictures})
        counts = Counter(finding.severity.value for finding in self.findings)
        told = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in counts.items())
        return f"{told} in {concerned:,} of {self.num_pictures:,} pictures." if concerned else f"{told}."


@dataclass(frozen=True)
class Checking:
    """A check of a dataset as a run with these settings would see it.

    `held_out`: name of a dataset that must not have the same pictures; `tagger`: one of the workspace whose answers are
    compared, too. Either may be empty.
    """

    studio: Studio
    dataset: Dataset
    config: TrainConfig
    held_out: str = ""
    tagger: str = ""

    def report(self, control: TaskControl | None = None) -> Report:
        """Looks at every picture and caption. Raises as `look`."""
        return self.look((), control or TaskControl())[0]

    def look(self, kinds: Sequence[str], control: TaskControl) -> tuple[Report, Checkup]:
        """The findings of these kinds, or of all, and what they were found in.

        Raises Cancelled when `control` says so, SafelightError for a dataset with damaged settings.
        """
        dataset, settings = self.dataset, self.config.dataset
        revision = dataset.revision
        names = dataset.pictures()
        looked = dict(
            zip(names, _look_at_all(self.studio, dataset, names, control, "looking at pictures"), strict=True)
        )
        prints = {name: look.measures.fingerprint for name, look in looked.items() if look.measures}
        compares = not kinds or bool({"duplicate", "similar", "alike"} & set(kinds))
        leaks = self._leaks(looked, prints, control) if self.held_out and (not kinds or "leak" in kinds) else []
        alike = self._alike(looked, control) if self.tagger and (not kinds or "alike" in kinds) else []
        step, step_is_known = _step(self.studio, self.config)
        checkup = Checkup(
            pictures=_checked(self.studio, dataset, self.config, step, looked),
            pairs=[*(_pairs(dataset.path, looked, control) if compares else []), *alike],
            leaks=leaks,
            held_out=self.held_out,
            orphans=_orphans(dataset.path, names),
            resolution=settings.resolution,
            max_tokens=settings.max_token_length,
        )
        findings = tuple(find_problems(checkup, kinds))
        shown = Report(
            dataset.name, revision, len(names), settings.resolution, step, step_is_known, self.held_out, findings
        )
        return shown, checkup

    def _alike(self, looked: Mapping[str, _Look], control: TaskControl) -> list[Pair]:
        from trainer.dataset.tagger_looks import pairs_by_tagger  # and its networks, only where they are wanted

        hashes = {name: look.facts.sha256 for name, look in looked.items() if look.facts and look.measures}
        return pairs_by_tagger(self.studio.workspace, self.dataset, hashes, self.tagger, control)

    def _leaks(
        self, looked: Mapping[str, _Look], prints: Mapping[str, Fingerprint], control: TaskControl
    ) -> list[Pair]:
        if self.held_out == self.dataset.name:
            raise SafelightError(f"{self.held_out} is the dataset itself. Choose the one with the held-out pictures.")
        other = self.studio.open(self.held_out)
        names, text = other.pictures(), f"looking at {self.held_out}"
        others = dict(zip(names, _look_at_all(self.studio, other, names, control, text), strict=True))
        by_hash = {look.facts.sha256: name for name, look in others.items() if look.facts}
        same = {
            name: Pair(name, by_hash[look.facts.sha256], Relation.SAME, 1.0)
            for name, look in looked.items()
            if look.facts and look.facts.sha256 in by_hash
        }
        other_prints = {name: look.measures.fingerprint for name, look in others.items() if look.measures}
        progress = _comparing(control, f"comparing with {self.held_out}")
        found = {pair.first: pair for pair in find_similar(prints, other_prints, progress=progress)}
        return list((found | same).values())


@dataclass(frozen=True)
class _Look:
    """A picture's facts and measures, or what is wrong with it."""

    fault: str = ""
    facts: PictureFacts | None = None
    measures: Measures | None = None


def _look(studio: Studio, path: Path) -> _Look:
    try:
        facts = facts_of(studio.workspace, path)
    except RefusedFile as error:
        return _Look(str(error))
    try:
        return _Look("", facts, measures_of(studio.workspace, path, facts.sha256))
    except RefusedFile as error:
        return _Look(str(error), facts)


def _look_at_all(
    studio: Studio, dataset: Dataset, names: Sequence[str], control: TaskControl, text: str
) -> Iterator[_Look]:
    """In the order of `names`, several at a time; decoding leaves Python's lock alone."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="safelight-look") as pool:
        waiting = [pool.submit(_look, studio, dataset.path / name) for name in names]
        try:
            for number, one in enumerate(waiting):
                control.raise_if_cancelled()
                control.progress(number, len(names), text)
                yield one.result()
        finally:
            for one in waiting:
                one.cancel()


@dataclass
class _Compared:
    """What was compared with each other before, by content: a change of some pictures costs a comparison of these alone."""

    contents: set[str]
    pairs: list[Pair]


_compared: dict[Path, _Compared] = {}


def _pairs(folder: Path, looked: Mapping[str, _Look], control: TaskControl) -> list[Pair]:
    names: dict[str, list[str]] = {}
    prints: dict[str, Fingerprint] = {}
    for name, look in looked.items():
        if look.facts and look.measures:
            names.setdefault(look.facts.sha256, []).append(name)
            prints[look.facts.sha256] = look.measures.fingerprint
    known = _compared.get(folder) or _Compared(set(), [])
    fresh = {content: one for content, one in prints.items() if content not in known.contents}
    old = {content: one for content, one in prints.items() if content in known.contents}
    progress = _comparing(control, "comparing pictures")
    pairs = [pair for pair in known.pairs if pair.first in prints and pair.second in prints]
    pairs += find_similar(fresh, progress=progress)
    if old and fresh:
        pairs += find_similar(fresh, old, progress=progress)
    _compared[folder] = _Compared(set(prints), pairs)
    same = _same_files({name: content for content, called in names.items() for name in called})
    return same + [
        Pair(first, second, pair.relation, pair.likeness)
        for pair in pairs
        for first in names[pair.first]
        for second in names[pair.second]
    ]


def _same_files(hashes: Mapping[str, str]) -> list[Pair]:
    """Blank pictures can't be compared by what they show, but files that are equal byte for byte are the same."""
    first: dict[str, str] = {}
    return [
        Pair(first[content], name, Relation.SAME, 1.0)
        for name, content in hashes.items()
        if first.setdefault(content, name) != name
    ]


def _comparing(control: TaskControl, text: str) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        control.raise_if_cancelled()
        control.progress(done, total, text)

    return progress


def _step(studio: Studio, config: TrainConfig) -> tuple[int, bool]:
    try:
        return model_step(studio.workspace, config.model.base), True
    except SafelightError:  # the base may be chosen later; until then sizes are judged as for the usual models
        return USUAL_STEP, False


def _checked(
    studio: Studio, dataset: Dataset, config: TrainConfig, step: int, looked: Mapping[str, _Look]
) -> list[Checked]:
    placements = _placements(studio, dataset, config, step)
    captions, faults = dataset.read_captions(looked)
    trigger = config.dataset.trigger_word or dataset.settings.trigger_word
    read = {name: with_trigger(caption, trigger) for name, caption in captions.items()}
    tokens = dict(zip(read, count_tokens(read.values(), config.model.base), strict=True))
    marks = dataset.marks
    return [
        Checked(
            name=name,
            fault=look.fault,
            facts=look.facts,
            measures=look.measures,
            caption=captions.get(name),
            caption_fault=faults.get(name, ""),
            num_tokens=tokens.get(name, 0),
            placement=None if look.fault else placements.get(name),
            chosen_crop=marks.get(name, Mark()) != Mark(),
        )
        for name, look in looked.items()
    ]


def _placements(studio: Studio, dataset: Dataset, config: TrainConfig, step: int) -> Mapping[str, Placement]:
    """How training crops the pictures of this dataset when it is the only one of the run."""
    alone = config.dataset.model_copy(update={"folder": dataset.name, "more": (), "regularisation": ()})
    # none held out: the crop of every picture is asked for
    config = config.model_copy(update={"dataset": alone, "validation": ValidationConfig()})
    plan = plan_dataset(studio.workspace, config, step)
    return {name: one.placement for name, one in plan.of_source().items()}


def _orphans(folder: Path, pictures: Sequence[str]) -> list[str]:
    """Caption files that lie beside no picture."""
    wanted = {caption_name(name) for name in pictures}
    found = []
    for path in folder.rglob("*.txt"):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file() and not path.is_symlink():
            found.append(relative.as_posix())
    return sorted(name for name in found if name not in wanted)
