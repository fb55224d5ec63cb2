"""Which pictures of a run are held out: chosen by content and seed, and nothing that is trained on looks like them.

Pictures that are the same, mirrored, turned or a part of each other (trainer/dataset/similar.py) stay on one side, also
over several datasets and with regularisation pictures: a held-out picture whose twin is trained would be learned by heart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from security.errors import SafelightError
from trainer.dataset.scan import Picture
from trainer.dataset.similar import Fingerprint, Pair, Relation, find_similar, groups
from trainer.dataset.sources import Role, Source
from trainer.randomness import derive_seed

LARGEST_SHARE = 0.5
"""Most of the pictures that may be held out: a run that learns from less than it measures makes no sense."""
FingerprintOf = Callable[[Picture], Fingerprint]
"""Gives what a picture is compared by, from a cache or its pixels. Raises RefusedFile for one that can't be read."""
Progress = Callable[[int, int], None]


def num_held_out(num_pictures: int, share: float) -> int:
    """How many of so many pictures a share holds out: at least one, at most half; 0 for none."""
    if share <= 0 or num_pictures < 2:
        return 0
    return min(max(1, math.floor(num_pictures * share + 0.5)), math.floor(num_pictures * LARGEST_SHARE))


@dataclass(frozen=True)
class Relatives:
    """What looks alike: groups of content hashes, each hash in exactly one, in a fixed order."""

    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def unknown(cls, pictures: Iterable[Picture]) -> Relatives:
        """Before the pictures were looked at: every content by itself."""
        return cls(tuple(sorted({(picture.content_hash,) for picture in pictures})))

    def of(self, hashes: Iterable[str]) -> set[str]:
        """These contents and everything that looks like one of them."""
        wanted = set(hashes)
        return {one for group in self.groups if wanted & set(group) for one in group}


def find_relatives(
    pictures: Iterable[Picture], fingerprint_of: FingerprintOf, progress: Progress = lambda done, total: None
) -> Relatives:
    """Compares every picture with every other. `progress` is called with each picture, and may raise to stop.

    Pictures of one tone have nothing to compare, so they count as one group.
    """
    by_hash = {picture.content_hash: picture for picture in pictures}
    prints = {}
    for number, (content_hash, picture) in enumerate(sorted(by_hash.items())):
        progress(number, len(by_hash))
        prints[content_hash] = fingerprint_of(picture)
    flat = sorted(name for name, one in prints.items() if one.is_flat)
    linked = [(pair.first, pair.second) for pair in find_similar(prints)] + list(itertools.pairwise(flat))
    together = _joined(linked)
    alone = set(prints) - {name for group in together for name in group}
    progress(len(by_hash), len(by_hash))
    return Relatives(tuple(sorted([*(tuple(group) for group in together), *((name,) for name in alone)])))


def _joined(linked: Sequence[tuple[str, str]]) -> list[list[str]]:
    return groups(Pair(first, second, Relation.SAME, 1.0) for first, second in linked)


def choose_held_out(
    trained: Sequence[Picture],
    relatives: Relatives,
    *,
    share: float,
    seed: int,
    always_trained: Iterable[str] = (),
) -> frozenset[str]:
    """The content hashes to hold out of `trained`, as many pictures as `num_held_out` says where the groups allow it.

    Which ones follows from their content and the seed alone: neither names nor the order in a folder play a part, and a
    picture that is added later hardly changes the choice. `always_trained`: contents that can't be held out, such as
    regularisation pictures. Raises SafelightError when no group is small enough.
    """
    copies: dict[str, int] = {}
    for picture in trained:
        copies[picture.content_hash] = copies.get(picture.content_hash, 0) + 1
    fixed = set(always_trained)
    free = [
        (sum(copies[one] for one in group if one in copies), group)
        for group in relatives.groups
        if not fixed & set(group) and any(one in copies for one in group)
    ]
    free.sort(key=lambda entry: derive_seed(seed, "held out", entry[1][0]))
    wanted = num_held_out(len(trained), share)
    chosen: set[str] = set()
    room = wanted
    for size, group in free:
        if size <= room:
            chosen |= {one for one in group if one in copies}
            room -= size
    if not chosen and wanted and free:
        size, group = min(free, key=lambda entry: entry[0])
        if size <= len(trained) * LARGEST_SHARE:
            chosen = {one for one in group if one in copies}
    if not chosen:
        raise SafelightError(
            f"validation.split is {share:g}, but nothing of the {len(trained)} pictures can be held out: they are too "
            "few, or so alike that a held-out one would have a twin among those that are trained. Name a folder with "
            "other pictures in validation.folder, or set validation.split to 0."
        )
    return frozenset(chosen)


def keep_sides(trained: Sequence[Picture], earlier: Mapping[str, bool], relatives: Relatives | None) -> frozenset[str]:
    """The content hashes to hold out when a run goes on: every known picture stays on the side where it was.

    `earlier`: content hash -> whether it was held out. A new picture is trained unless it looks like a held-out one
    (`relatives`, needed only when there are new pictures).
    """
    out = {one for one, is_out in earlier.items() if is_out}
    known_out = {picture.content_hash for picture in trained if earlier.get(picture.content_hash)}
    new = {picture.content_hash for picture in trained if picture.content_hash not in earlier}
    if not new or relatives is None:
        return frozenset(known_out)
    return frozenset(known_out | (relatives.of(out) & new))


@dataclass(frozen=True)
class Divided:
    """What a run trains on, by source, and what it holds out: (number of its source, picture)."""

    trained: list[tuple[Source, list[Picture]]]
    held_out: list[tuple[int, Picture]]


def divide(
    scanned: Sequence[tuple[Source, Sequence[Picture]]],
    relatives_of: Callable[[Sequence[Picture]], Relatives],
    *,
    share: float,
    seed: int,
    earlier: Mapping[str, bool] | None = None,
) -> Divided:
    """Takes the held-out pictures out of the training sources; regularisation pictures stay where they are.

    `relatives_of` compares pictures, as `find_relatives` does. `earlier`: the sides that a run which goes on began with.
    Raises SafelightError when nothing can be held out.
    """
    own = [picture for source, pictures in scanned if source.role is Role.TRAINING for picture in pictures]
    prior = [picture for source, pictures in scanned if source.role is not Role.TRAINING for picture in pictures]
    needed = earlier is None or any(picture.content_hash not in earlier for picture in own)
    relatives = relatives_of([*own, *prior]) if needed else None
    if earlier is not None:
        out = keep_sides(own, earlier, relatives)
    else:
        assert relatives is not None
        out = _choose(scanned, own, relatives, share, seed)
    trained = []
    held_out: list[tuple[int, Picture]] = []
    for number, (source, pictures) in enumerate(scanned):
        stays = [one for one in pictures if source.role is not Role.TRAINING or one.content_hash not in out]
        held_out += [(number, one) for one in pictures if source.role is Role.TRAINING and one.content_hash in out]
        trained.append((source, stays))
    return Divided(trained, held_out)


def _choose(
    scanned: Sequence[tuple[Source, Sequence[Picture]]],
    own: Sequence[Picture],
    relatives: Relatives,
    share: float,
    seed: int,
) -> frozenset[str]:
    """As `choose_held_out`, leaving every dataset something to train on."""
    by_source = [[one.content_hash for one in pictures] for _, pictures in scanned]
    trains = [source.role is Role.TRAINING for source, _ in scanned]
    fixed = {one for hashes, is_own in zip(by_source, trains, strict=True) if not is_own for one in hashes}
    while True:
        out = choose_held_out(own, relatives, share=share, seed=seed, always_trained=fixed)
        emptied = [
            hashes for hashes, is_own in zip(by_source, trains, strict=True) if is_own and hashes and out >= set(hashes)
        ]
        if not emptied:
            return out
        fixed |= set(emptied[0])


def twins(held_out: Sequence[Picture], trained: Sequence[Picture], fingerprint_of: FingerprintOf) -> list[str]:
    """Names of held-out pictures that look like a trained one, in the order of their folder."""
    ours = {str(number): fingerprint_of(picture) for number, picture in enumerate(held_out)}
    theirs = {str(number): fingerprint_of(picture) for number, picture in enumerate(trained)}
    found = {int(pair.first) for pair in find_similar(ours, theirs)}
    return [held_out[number].name for number in sorted(found)]
