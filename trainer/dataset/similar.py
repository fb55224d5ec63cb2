"""Finds pictures that are the same, mirrored, turned, a part of each other, or alike to a tagger.

A perceptual hash proposes pairs; a comparison of the pixels of small copies confirms them, so that a chance hit among
thousands of pictures is no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 64
"""Pixels on a side of the small copy that is kept of a picture."""
HASH_DISTANCE = 12
"""Of 64 bits. Photos saved at quality 10, scaled to a third or made brighter differ by up to 10; other photos by 18 and more."""
WINDOW_DISTANCE = 16
"""The same for a part of a picture: the nearest of WINDOWS is seldom the very part, which costs some bits."""
SAME_LIKENESS = 0.9
"""Correlation of the grey values. Measured: parts of the same photo .93 and more, the most alike of 52 others .69."""
SAME_DETAIL = 0.75
PART_DETAIL = 0.85
"""The same without what changes slowly over the picture, such as a sky or the light in a room: copies saved at quality 10 or
blurred by 2 pixels of 200 have .81 and more, parts .9; skies, petals and walls that only look alike at most .83."""
LEAST_LIKENESS = 0.3
"""A window that is less alike than this before it is moved never becomes alike enough."""
HOPELESS = 0.5
"""A window that is no more alike than this after all its sides were moved once is given up."""
TRIES_PER_PICTURE = 8
"""Windows that are moved for a better fit, so that thousands of pictures of one layout don't take hours."""
TAGGER_COSINE = 0.97
"""Of what a tagger answers. Half of re-saved and cropped photos reach it, and of 3,300 pairs of others one in a hundred."""
LEAST_WINDOW = 0.3
"""Share of a side that a part must have."""
FLAT = 2.0
"""Deviation of the grey values (0 to 255) under which a small copy shows nothing that could be compared."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the picture."""
Progress = Callable[[int, int], None]
FloatArray = NDArray[numpy.float32]


def _windows() -> tuple[Box, ...]:
    """The parts of a picture that are hashed too: what people cut off is a rim, one side, or two sides of a corner."""
    boxes: list[Box] = [(rim, rim, 1 - rim, 1 - rim) for rim in (0.05, 0.1, 0.15, 0.2)]
    for cut in (0.1, 0.2, 0.3):
        boxes += [(cut, 0, 1, 1), (0, cut, 1, 1), (0, 0, 1 - cut, 1), (0, 0, 1, 1 - cut)]
    for share in (0.8, 0.65):
        rest = 1 - share
        boxes += [(0, 0, share, share), (rest, 0, 1, share), (0, rest, share, 1), (rest, rest, 1, 1)]
    for cut in (0.1, 0.2):
        boxes += [(cut, 0, 1 - cut, 1), (0, cut, 1, 1 - cut)]
    return tuple(boxes)


WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
WINDOWS = _windows()
_FLIP, _TURN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose
TURNS: tuple[Image.Transpose | None, ...] = (
    *(None, _FLIP, _TURN.ROTATE_90, _TURN.ROTATE_180, _TURN.ROTATE_270),
    *(_TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE, _TURN.TRANSVERSE),
)
"""The eight ways to lay a picture down; the first is as it is, the second mirrored."""
_MIRRORED = 1
HASHES_PER_PICTURE = len(TURNS) + len(WINDOWS)


class Relation(StrEnum):
    """What two pictures are to each other, the nearest first."""

    SAME = "the same"
    MIRRORED = "mirrored"
    TURNED = "turned"
    PART = "one is a part of the other"
    ALIKE = "alike"


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture to compare it: a grey copy of SIDE x SIDE bytes, and one hash for each turn and window."""

    small: bytes
    hashes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.small) != SIDE * SIDE or len(self.hashes) != HASHES_PER_PICTURE:
            raise ValueError(f"a fingerprint has {SIDE * SIDE} bytes and {HASHES_PER_PICTURE} hashes")

    @property
    def is_flat(self) -> bool:
        """Whether it shows one tone only."""
        return float(_pixels(self).std()) < FLAT

    def to_bytes(self) -> bytes:
        """For a cache; `from_bytes` reads it."""
        return self.small + numpy.array(self.hashes, dtype=">u8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprint:
        """Raises ValueError for what `to_bytes` did not write."""
        hashes = numpy.frombuffer(data[SIDE * SIDE :], dtype=">u8")
        return cls(data[: SIDE * SIDE], tuple(int(value) for value in hashes))


@dataclass(frozen=True)
class Pair:
    """Two pictures that belong together. `likeness`: correlation of their grey values, or cosine of a tagger's answers."""

    first: str
    second: str
    relation: Relation
    likeness: float


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an upright picture without its borders; the hash is imagehash's `phash` (DCT of the brightness)."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    turned = [small if turn is None else small.transpose(turn) for turn in TURNS]
    return Fingerprint(
        small.tobytes(), tuple(_hash(view) for view in [*turned, *(_view(small, box) for box in WINDOWS)])
    )


def find_similar(
    pictures: Mapping[str, Fingerprint],
    others: Mapping[str, Fingerprint] | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> list[Pair]:
    """Pairs among `pictures`, or of one of `pictures` (`first`) and one of `others` (`second`).

    Of each pair the nearest relation. Pictures of one tone are left out. `progress` is called with every picture, and
    may raise to stop.
    """
    left = _Rows(pictures)
    right = left if others is None else _Rows(others)
    if not left.names or not right.names:
        return []
    found: dict[tuple[str, str], Pair] = {}
    total = len(left.names) if others is None else len(left.names) + len(right.names)

    def keep(first: str, second: str, hit: _Hit) -> None:
        key = (first, second) if others is not None else (min(first, second), max(first, second))
        found.setdefault(key, Pair(first, second, hit.relation, hit.likeness))  # the nearest relation comes first

    for index, name in enumerate(left.names):
        progress(index, total)
        for hit in _wholes(left, index, right, begin=0 if others is not None else index + 1):
            keep(name, right.names[hit.other], hit)
    for index, name in enumerate(left.names):
        for hit in _parts(left, index, right, skip=index if others is None else None):
            keep(name, right.names[hit.other], hit)
    for index, name in enumerate(right.names if others is not None else ()):
        progress(len(left.names) + index, total)
        for hit in _parts(right, index, left, skip=None):
            keep(left.names[hit.other], name, hit)
    return list(found.values())


def find_alike(answers: Mapping[str, Sequence[float] | FloatArray], least: float = TAGGER_COSINE) -> list[Pair]:
    """Pairs whose answers of a tagger (one number per tag) point the same way: cosine of at least `least`."""
    names = list(answers)
    if len(names) < 2:
        return []
    table = numpy.array([answers[name] for name in names], dtype=numpy.float32)
    lengths = numpy.linalg.norm(table, axis=1, keepdims=True)
    table = numpy.divide(table, lengths, out=numpy.zeros_like(table), where=lengths > 0)
    found = []
    for index, name in enumerate(names):
        cosines = table[index + 1 :] @ table[index]
        found += [
            Pair(name, names[index + 1 + other], Relation.ALIKE, float(cosines[other]))
            for other in numpy.flatnonzero(cosines >= least)
        ]
    return found


def groups(pairs: Iterable[Pair]) -> list[list[str]]:
    """Pictures that hang together, directly or through others; each group and the list of them in order of names."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]  # shortens the way for the next time
            name = leader[name]
        return name

    for pair in pairs:
        first, second = lead(pair.first), lead(pair.second)
        leader[max(first, second)] = min(first, second)
    members: dict[str, list[str]] = {}
    for name in sorted(leader):
        members.setdefault(lead(name), []).append(name)
    return [names for _, names in sorted(members.items())]


# ---- inside ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hit:
    """A picture, by its place in the other table, that belongs to the one looked at."""

    other: int
    relation: Relation
    likeness: float


class _Rows:
    """The fingerprints of one side as tables, without pictures of one tone."""

    def __init__(self, pictures: Mapping[str, Fingerprint]) -> None:
        shown = {name: one for name, one in pictures.items() if not one.is_flat}
        self.names = list(shown)
        self.prints = list(shown.values())
        self.hashes = numpy.array([one.hashes for one in self.prints], dtype=numpy.uint64)
        self.small = numpy.array([_normal(_pixels(one)) for one in self.prints])


def _wholes(rows: _Rows, index: int, others: _Rows, *, begin: int) -> Iterator[_Hit]:
    """Others, from `begin` on, that are this picture as a whole in any of the eight turns."""
    distances = numpy.bitwise_count(rows.hashes[index, : len(TURNS), None] ^ others.hashes[None, begin:, 0])
    image = _image(rows.prints[index])
    seen = set()
    for turn, place in zip(*numpy.nonzero(distances <= HASH_DISTANCE), strict=True):
        other = begin + int(place)
        transpose = TURNS[turn]
        turned = image if transpose is None else image.transpose(transpose)
        likeness = float(_normal(numpy.asarray(turned, dtype=numpy.float32)) @ others.small[other])
        if other in seen or likeness < SAME_LIKENESS:
            continue
        if float(_detail(turned, 4) @ _detail(_image(others.prints[other]), 4)) >= SAME_DETAIL:
            seen.add(other)
            relation = Relation.SAME if turn == 0 else Relation.MIRRORED if turn == _MIRRORED else Relation.TURNED
            yield _Hit(other, relation, likeness)


def _parts(rows: _Rows, index: int, others: _Rows, *, skip: int | None) -> Iterator[_Hit]:
    """Others that are a part of this picture, mirrored or not: a window's hash is near theirs, and moving it fits."""
    windows = rows.hashes[index, len(TURNS) :, None]
    tries: list[tuple[float, int, int, int]] = []
    for mirrored in (0, _MIRRORED):
        distances = numpy.bitwise_count(windows ^ others.hashes[None, :, mirrored])
        nearest = distances.argmin(axis=0)
        for other in numpy.flatnonzero(distances.min(axis=0) <= WINDOW_DISTANCE):
            if other != skip:
                window = int(nearest[other])
                target = _target(others.prints[other], mirrored)
                likeness = _correlation(_image(rows.prints[index]), WINDOWS[window], target)
                if likeness >= LEAST_LIKENESS:
                    tries.append((likeness, int(other), window, mirrored))
    for likeness, other, window, mirrored in sorted(tries, reverse=True)[:TRIES_PER_PICTURE]:
        target = _target(others.prints[other], mirrored)
        image = _image(rows.prints[index])
        fitted, box = _fitted(image, WINDOWS[window], target, likeness)
        if fitted >= SAME_LIKENESS:
            part = _view(_turned(others.prints[other], mirrored), WHOLE)
            if float(_detail(_view(image, box), 2) @ _detail(part, 2)) >= PART_DETAIL:
                yield _Hit(other, Relation.PART, fitted)


def _hash(view: Image.Image) -> int:
    import imagehash  # brings scipy, which the page does not need to be drawn

    bits: NDArray[numpy.bool_] = imagehash.phash(view).hash
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def _pixels(one: Fingerprint) -> FloatArray:
    return numpy.frombuffer(one.small, dtype=numpy.uint8).astype(numpy.float32)


def _image(one: Fingerprint) -> Image.Image:
    return Image.frombytes("L", (SIDE, SIDE), one.small)


def _normal(values: FloatArray) -> FloatArray:
    """Centred and of length 1, so that the product of two is their correlation; zeros for an even surface."""
    flat = values.ravel() - values.mean()
    length = float(numpy.linalg.norm(flat))
    return flat / length if length > 0 else flat


def _view(small: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = (share * SIDE for share in box)
    return small.resize((SIDE // 2, SIDE // 2), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _correlation(small: Image.Image, box: Box, target: FloatArray) -> float:
    return float(_normal(numpy.asarray(_view(small, box), dtype=numpy.float32)) @ target)


def _turned(one: Fingerprint, mirrored: int) -> Image.Image:
    return _image(one).transpose(_FLIP) if mirrored else _image(one)


def _target(one: Fingerprint, mirrored: int) -> FloatArray:
    return _normal(numpy.asarray(_view(_turned(one, mirrored), WHOLE), dtype=numpy.float32))


def _detail(image: Image.Image, radius: int) -> FloatArray:
    """What differs from the mean of the pixels around, ready for a correlation."""
    around = numpy.asarray(image.filter(ImageFilter.BoxBlur(radius)), dtype=numpy.float32)
    return _normal(numpy.asarray(image, dtype=numpy.float32) - around)


def _fitted(small: Image.Image, box: Box, target: FloatArray, likeness: float) -> tuple[float, Box]:
    """The best correlation with a window near `box`, and that window: its four sides are moved while that helps."""
    step = 0.04
    while step > 0.004:
        moved = False
        for side in range(4):
            for change in (-step, step):
                sides = list(box)
                sides[side] = min(1.0, max(0.0, sides[side] + change))
                tried: Box = (sides[0], sides[1], sides[2], sides[3])
                if tried[2] - tried[0] < LEAST_WINDOW or tried[3] - tried[1] < LEAST_WINDOW:
                    continue
                value = _correlation(small, tried, target)
                if value > likeness + 1e-4:
                    likeness, box, moved = value, tried, True
        if not moved:
            step /= 2
        if likeness < HOPELESS:
            break
    return likeness, box
