"""What may be wrong with a dataset, as one table of checks over what is known of its pictures and captions.

Nothing here reads a file: `trainer/dataset/checking.py` gathers what the checks look at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from trainer.dataset import caption_faults
from trainer.dataset.buckets import Placement
from trainer.dataset.facts import PictureFacts
from trainer.dataset.measures import Measures
from trainer.dataset.scan import SMALLEST_SIDE
from trainer.dataset.similar import Pair, Relation, groups

MAX_ENLARGEMENT = 1.05
"""A picture that is enlarged no more than this looks the same."""
MAX_CUT_SHARE = 0.25
"""Share of a picture that the crop may take away without a word."""
LEAST_EDGES = 30.0
LEAST_SHARPNESS = 0.05
"""Photos that are sharp have 200 and 0.09 or more; blurred by 2 pixels of 512 at most 105 and 0.05 (see Measures.at)."""
LEAST_CONTRAST = 3.0
"""Deviation of the grey values, of 255, under which a picture shows nothing."""
LEAST_TRANSPARENT = 0.001
GREY_COLOUR = 16.0
"""Mean difference of the channels (0 to 255) over which a picture is no greyscale one."""


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    PROBLEM = "problem"
    WARNING = "warning"
    HINT = "hint"


@dataclass(frozen=True)
class Checked:
    """All that is known of one picture. `fault`: why it can't be read; then `measures` is None.

    `caption`: None if there is no caption file, or one with `caption_fault`. `num_tokens` of the caption as training reads
    it; `placement`: how training crops it, and `chosen_crop` whether somebody chose that.
    """

    name: str
    fault: str = ""
    facts: PictureFacts | None = None
    measures: Measures | None = None
    caption: str | None = None
    caption_fault: str = ""
    num_tokens: int = 0
    placement: Placement | None = None
    chosen_crop: bool = False


@dataclass(frozen=True)
class Checkup:
    """A whole dataset. `pairs` of like pictures; `leaks`: pairs of one of its pictures and one of `held_out`'s.

    `orphans`: caption files without a picture; `resolution` in pixels and `max_tokens` of a caption as training is set.
    """

    pictures: Sequence[Checked]
    pairs: Sequence[Pair] = ()
    leaks: Sequence[Pair] = ()
    held_out: str = ""
    orphans: Sequence[str] = ()
    resolution: int = 512
    max_tokens: int = 75
    by_name: Mapping[str, Checked] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {one.name: one for one in self.pictures})


@dataclass(frozen=True)
class Finding:
    """What one check found. `notes`: a few words for each picture; `groups`: pictures that belong together, the best first.

    `fixes`: names of rows of `trainer.dataset.fixes.FIXES`, the advised one first.
    """

    kind: str
    severity: Severity
    title: str
    sentence: str
    notes: Mapping[str, str]
    groups: tuple[tuple[str, ...], ...] = ()
    fixes: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that it is about, in their order."""
        return tuple(self.notes)


@dataclass(frozen=True)
class Check:
    """A row of CHECKS. `look` yields a picture's name and a few words; `advice` says what harm is done, and what helps.

    `group` puts the found pictures together, the one to keep first; `counted` is what is found, if it isn't pictures.
    """

    severity: Severity
    title: str
    advice: str
    look: Callable[[Checkup], Iterator[tuple[str, str]]]
    fixes: tuple[str, ...]
    group: Callable[[Checkup], list[list[str]]] | None = None
    counted: str = "picture"


def find_problems(checkup: Checkup, kinds: Sequence[str] = ()) -> list[Finding]:
    """The findings of all checks, or of those of these kinds; the worst first, each with at least one picture."""
    found = []
    for kind, check in CHECKS.items():
        if kinds and kind not in kinds:
            continue
        notes = dict(check.look(checkup))
        if notes:
            together = tuple(tuple(names) for names in check.group(checkup)) if check.group else ()
            sentence = f"{_count(len(notes), check.title, check.counted)} {check.advice}"
            found.append(Finding(kind, check.severity, check.title, sentence, notes, together, check.fixes))
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def problems_by_picture(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """For the grid: each picture with what was found about it, the worst first."""
    told: dict[str, list[str]] = {}
    for finding in findings:
        for name, note in finding.notes.items():
            told.setdefault(name, []).append(note)
    return told


def _count(number: int, title: str, counted: str) -> str:
    return f"{title}: {number:,} {counted}{'' if number == 1 else 's'}."


# ---- pictures -------------------------------------------------------------------------------------------------------


def _unreadable(checkup: Checkup) -> Iterator[tuple[str, str]]:
    return ((one.name, one.fault) for one in checkup.pictures if one.fault)


def _tiny(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.measures and min(one.measures.width, one.measures.height) < SMALLEST_SIDE:
            yield one.name, f"{one.measures.width}×{one.measures.height}, under {SMALLEST_SIDE} on a side"


def _small(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        place = one.placement
        if place and place.enlargement > MAX_ENLARGEMENT:
            size = f"{place.original[0]}×{place.original[1]}"
            yield one.name, f"small: {size}, enlarged {place.enlargement:.1f}× for {place.bucket[0]}×{place.bucket[1]}"


def _extreme(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.placement and not one.chosen_crop:
            _, _, width, height = one.placement.frame
            if 1 - width * height > MAX_CUT_SHARE:
                size = f"{one.placement.original[0]}×{one.placement.original[1]}"
                yield one.name, f"extreme shape: {size}, {1 - width * height:.0%} is cut off"


def _blank(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.measures and one.measures.contrast < LEAST_CONTRAST:
            yield one.name, "blank: one tone and nothing else"


def _blurred(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.measures and one.measures.contrast >= LEAST_CONTRAST:
            edges, sharpness = one.measures.at(checkup.resolution)
            if edges < LEAST_EDGES or sharpness < LEAST_SHARPNESS:
                worst = min(edges / LEAST_EDGES, sharpness / LEAST_SHARPNESS)
                yield one.name, f"blurred: {worst:.0%} of the sharpness that is wanted"


def _bordered(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.measures and any(one.measures.border):
            sides = zip(("left", "top", "right", "bottom"), one.measures.border, strict=True)
            yield one.name, "border: " + ", ".join(f"{width} px {side}" for side, width in sides if width)


def _animated(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.facts and one.facts.num_frames > 1:
            yield one.name, f"{one.facts.num_frames} pictures in one file"


def _transparent(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.measures and one.measures.transparent > LEAST_TRANSPARENT:
            yield one.name, f"transparent: {max(0.01, one.measures.transparent):.0%} of it"


def _unusual(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        mode = one.measures.mode if one.measures else ""
        if mode in ("CMYK", "YCbCr", "LAB", "HSV") or mode.startswith("I"):
            yield one.name, "16 bits" if mode.startswith("I") else f"colours for printing ({mode})"


def _lone(checkup: Checkup) -> Iterator[tuple[str, str]]:
    counts = Counter(one.placement.bucket for one in checkup.pictures if one.placement)
    for one in checkup.pictures:
        if one.placement and counts[one.placement.bucket] == 1 and len(counts) > 1:
            width, height = one.placement.bucket
            yield one.name, f"alone at {width}×{height}"


# ---- pictures that belong together ----------------------------------------------------------------------------------


def _rank(checkup: Checkup) -> Callable[[str], tuple[int, int, bool, int, str]]:
    """Sorts the picture to keep first: the most pixels without borders, then bytes, a caption, and the shorter name."""

    def rank(name: str) -> tuple[int, int, bool, int, str]:
        one = checkup.by_name[name]
        pixels = 0
        if one.measures:
            left, top, right, bottom = one.measures.border
            pixels = (one.measures.width - left - right) * (one.measures.height - top - bottom)
        return -pixels, -(one.facts.num_bytes if one.facts else 0), not one.caption, len(name), name

    return rank


def _same_groups(checkup: Checkup) -> list[list[str]]:
    same = [pair for pair in checkup.pairs if pair.relation is Relation.SAME]
    return [sorted(names, key=_rank(checkup)) for names in groups(same)]


def _like_groups(checkup: Checkup) -> list[list[str]]:
    """As if of each group of equal pictures only the best were there."""
    kept = {name: names[0] for names in _same_groups(checkup) for name in names}
    like = []
    for pair in checkup.pairs:
        if pair.relation is Relation.ALIKE:
            continue
        first, second = kept.get(pair.first, pair.first), kept.get(pair.second, pair.second)
        if first != second:
            like.append(Pair(first, second, pair.relation, pair.likeness))
    return [sorted(names, key=_rank(checkup)) for names in groups(like)]


def _alike_groups(checkup: Checkup) -> list[list[str]]:
    """What a tagger takes for the same, unless it was found by its pixels already."""
    known = {frozenset((pair.first, pair.second)) for pair in checkup.pairs if pair.relation is not Relation.ALIKE}
    pairs = [pair for pair in checkup.pairs if pair.relation is Relation.ALIKE]
    fresh = [pair for pair in pairs if frozenset((pair.first, pair.second)) not in known]
    return [sorted(names, key=_rank(checkup)) for names in groups(fresh)]


def _copies(checkup: Checkup, together: list[list[str]], words: str) -> Iterator[tuple[str, str]]:
    relations = {frozenset((pair.first, pair.second)): pair.relation for pair in checkup.pairs}
    for best, *others in together:
        captions = {checkup.by_name[name].caption or "" for name in (best, *others)}
        differ = ", with another caption" if len(captions - {""}) > 1 else ""
        yield best, f"has {len(others)} {'copy' if len(others) == 1 else 'copies'}"
        for name in others:
            relation = relations.get(frozenset((best, name)), Relation.ALIKE)
            told = {Relation.SAME: words, Relation.ALIKE: "like"}.get(relation, f"{relation.value}:")
            yield name, f"{told} {best}{differ}"


def _duplicates(checkup: Checkup) -> Iterator[tuple[str, str]]:
    return _copies(checkup, _same_groups(checkup), "the same as")


def _similar(checkup: Checkup) -> Iterator[tuple[str, str]]:
    return _copies(checkup, _like_groups(checkup), "like")


def _alike(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for best, *others in _alike_groups(checkup):
        yield best, f"a tagger sees the same in {len(others)} other{'' if len(others) == 1 else 's'}"
        for name in others:
            yield name, f"a tagger sees the same as in {best}"


def _leaks(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for pair in checkup.leaks:
        yield pair.first, f"{pair.relation.value}: {pair.second} of {checkup.held_out}"


def _same_stem_groups(checkup: Checkup) -> list[list[str]]:
    stems: dict[str, list[str]] = {}
    for one in checkup.pictures:
        stems.setdefault(one.name.rpartition(".")[0], []).append(one.name)
    return [sorted(names, key=_rank(checkup)) for names in stems.values() if len(names) > 1]


def _same_stem(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for best, *others in _same_stem_groups(checkup):
        yield best, f"its caption is also that of {others[0]}"
        for name in others:
            yield name, f"its caption is also that of {best}"


# ---- captions -------------------------------------------------------------------------------------------------------


def _captions(checkup: Checkup) -> Iterator[tuple[Checked, str]]:
    return ((one, one.caption) for one in checkup.pictures if one.caption and not one.fault)


def _uncaptioned(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.caption is None and not one.caption_fault and not one.fault:
            yield one.name, "no caption"


def _empty(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one in checkup.pictures:
        if one.caption is not None and not one.caption.strip() and not one.fault:
            yield one.name, "the caption is empty"


def _garbled(checkup: Checkup) -> Iterator[tuple[str, str]]:
    return ((one.name, one.caption_fault) for one in checkup.pictures if one.caption_fault)


def _long(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one, _ in _captions(checkup):
        if one.num_tokens > checkup.max_tokens:
            yield one.name, f"the caption has {one.num_tokens} tokens, training reads {checkup.max_tokens}"


def _cut(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one, caption in _captions(checkup):
        if words := caption_faults.cut_off(caption):
            yield one.name, f"the caption breaks off at “{words}”"


def _contradicting(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one, caption in _captions(checkup):
        colour = one.measures.colour if one.measures else 0.0
        if found := caption_faults.contradictions(caption, is_colourful=colour > GREY_COLOUR):
            told = (" and ".join(tags if len(tags) > 1 else (*tags, "a picture with colours")) for tags in found)
            yield one.name, "contradicting: " + "; ".join(told)


def _repeating(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one, caption in _captions(checkup):
        if found := caption_faults.repeated(caption):
            yield one.name, "more than once: " + ", ".join(found)


def _writing(checkup: Checkup) -> Iterator[tuple[str, str]]:
    for one, caption in _captions(checkup):
        if found := caption_faults.writing(caption):
            yield one.name, "in the picture: " + ", ".join(found)


def _orphans(checkup: Checkup) -> Iterator[tuple[str, str]]:
    return ((name, "a caption without its picture") for name in checkup.orphans)


_PROBLEM, _WARNING, _HINT = Severity.PROBLEM, Severity.WARNING, Severity.HINT
CHECKS: dict[str, Check] = {
    "unreadable": Check(
        _PROBLEM, "Unreadable", "Training leaves broken ones out, and stops at one that is cut off.", _unreadable, ("remove",)
    ),
    "tiny": Check(_PROBLEM, "Tiny", "Training leaves them out.", _tiny, ("remove",)),
    "duplicate": Check(
        _PROBLEM, "The same picture more than once", "The LoRA learns these by heart.", _duplicates,
        ("keep_largest",), _same_groups,
    ),
    "leak": Check(
        _PROBLEM, "Also among the held-out pictures", "The validation loss then tells nothing.", _leaks, ("remove",)
    ),
    "shared_caption": Check(
        _PROBLEM, "Two pictures with one caption file", "A change of one is a change of the other.", _same_stem,
        ("own_captions",), _same_stem_groups,
    ),
    "unreadable_caption": Check(
        _PROBLEM, "Unreadable caption", "Training leaves the picture out.", _garbled, ("reencode", "remove")
    ),
    "blank": Check(_WARNING, "Blank", "There is nothing to learn from.", _blank, ("remove",)),
    "no_caption": Check(
        _WARNING, "No caption", "All that they show is then tied to no word, or to the trigger word alone.",
        _uncaptioned, ("folder_caption", "remove"),
    ),
    "empty_caption": Check(
        _WARNING, "Empty caption", "All that they show is then tied to no word, or to the trigger word alone.",
        _empty, ("folder_caption", "remove"),
    ),
    "small": Check(
        _WARNING, "Too small for the training size", "Enlarged pictures teach blur. Lower the resolution, take "
        "them out, or prepare a version that a model for it enlarges.", _small, ("remove",),
    ),
    "extreme_shape": Check(
        _WARNING, "Extreme shape", "The crop takes much of them away. Choose it by hand, or cut them into pieces.",
        _extreme, ("split", "remove"),
    ),
    "similar": Check(
        _WARNING, "Nearly the same", "Mirrored, turned, cropped or like each other: their details are learned more "
        "than once.", _similar, ("keep_largest",), _like_groups,
    ),
    "blurred": Check(_WARNING, "Blurred", "The LoRA learns the blur, too.", _blurred, ("remove",)),
    "border": Check(_WARNING, "Border", "The LoRA learns to draw bars and frames.", _bordered, ("crop_border",)),
    "animated": Check(
        _WARNING, "Animated", "Training sees the first picture of such a file.", _animated, ("first_frame", "remove")
    ),
    "long_caption": Check(
        _WARNING, "Long caption", "What comes later is not read. Shorten it, or raise the longest caption on the "
        "Train tab.", _long, ("shorten",),
    ),
    "cut_caption": Check(
        _WARNING, "Caption that breaks off", "The model that wrote it ran out of words.", _cut, ("finish_sentence",)
    ),
    "contradiction": Check(
        _WARNING, "Contradicting tags", "Both can't be true of the picture.", _contradicting, ("drop_contradicting",)
    ),
    "lone_size": Check(
        _WARNING, "Alone in its size", "Its batches hold this one picture, however large they are set.", _lone,
        ("crop_to_shape", "remove"),
    ),
    "transparent": Check(
        _HINT, "Transparent", "Training shows them on white. A mask can be made of the transparency first.",
        _transparent, ("on_white",),
    ),
    "writing": Check(
        _HINT, "Text or watermark", "By its tags. The LoRA may learn to write it.", _writing, ("remove",)
    ),
    "unusual_colours": Check(
        _HINT, "Unusual colours", "Programs show these differently; training reads them as 8-bit RGB.", _unusual,
        ("rewrite",),
    ),
    "alike": Check(
        _HINT, "Alike to the tagger", "Other cuts or moments of the same scene, perhaps: many of them outweigh the rest.",
        _alike, ("keep_largest",), _alike_groups,
    ),
    "repeated_tag": Check(
        _HINT, "Repeated tags", "A tag counts more when it stands there twice.", _repeating, ("deduplicate",)
    ),
    "orphan_caption": Check(
        _HINT, "Caption without a picture", "Training does not see it.", _orphans, ("remove_caption",),
        counted="caption",
    ),
}  # fmt: skip
"""Every check by its kind, in the order in which findings of one severity are shown."""
