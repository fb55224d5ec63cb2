"""What the decoded pixels of a picture tell about it: sharpness, borders, transparency, colours, and its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log, sqrt
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from security.images import to_rgb
from trainer.dataset.similar import Fingerprint, fingerprint

MEASURE_SIDES = (1024, 512, 256, 128)
"""Sharpness is measured at these sizes (pixels, side of a square of the same area): what counts is what training sees."""
BORDER_SIDE = 1024
"""Longest side of the copy that borders are looked for in."""
BORDER_TOLERANCE = 16
"""How far, of 255, a border's pixels may be from its colour: JPEG leaves them that uneven."""
BORDER_LEAST_SHARE = 0.015
"""Narrower borders are left alone: a crop takes more."""
BORDER_MOST_SHARE = 0.8
"""Of a side. When more than this is one colour, the picture is a small thing on a plain ground."""
EDGE_SHARE = 0.5
"""Of the line where a border ends, this share must differ from it: then it is cut straight, as no plain background is."""
LONE_EDGE_SHARE = 0.8
"""The same for a bar without one on the other side: what a drawing stands on may be straight, too."""
_RINGING = 8
"""Rows before the end of a border that JPEG's blocks of 8 pixels let it shine through."""
_TILES = 8
_SHARPEST_TILES = 6
_SEEN_THROUGH = 250
"""Opaqueness, of 255, from which on a pixel counts as opaque."""

Border = tuple[int, int, int, int]
"""Pixels at the left, top, right, bottom."""
FloatArray = NDArray[numpy.float32]


@dataclass(frozen=True)
class Measures:
    """`width` and `height` in pixels, upright; `mode` as Pillow names it.

    `transparent`: share of the pixels that are see-through; `border`: its widths in pixels; `contrast`: deviation of the
    grey values (0 to 255); `colour`: mean difference of the largest and smallest channel (0 to 255); `edges` and
    `sharpness`: variance of the Laplacian in the sharpest places at each of MEASURE_SIDES, as it is and as a share of
    the variance of the grey values there.
    """

    width: int
    height: int
    mode: str
    transparent: float
    border: Border
    contrast: float
    colour: float
    edges: tuple[float, ...]
    sharpness: tuple[float, ...]
    fingerprint: Fingerprint

    def at(self, resolution: int) -> tuple[float, float]:
        """`edges` and `sharpness` at the measured size that is nearest to a training resolution in pixels."""
        nearest = min(range(len(MEASURE_SIDES)), key=lambda index: abs(log(MEASURE_SIDES[index] / resolution)))
        return self.edges[nearest], self.sharpness[nearest]

    def to_bytes(self) -> bytes:
        """For a cache; `measures_from_bytes` reads it."""
        values = asdict(self) | {"fingerprint": None}
        return json.dumps(values).encode() + b"\n" + self.fingerprint.to_bytes()


def measures_from_bytes(data: bytes) -> Measures:
    """Raises ValueError, TypeError or KeyError for what `Measures.to_bytes` did not write."""
    head, _, rest = data.partition(b"\n")
    values: Mapping[str, Any] = json.loads(head)
    lists = {name: tuple(values[name]) for name in ("border", "edges", "sharpness")}
    return Measures(**{**values, **lists, "fingerprint": Fingerprint.from_bytes(rest)})


def measure(image: Image.Image) -> Measures:
    """Measures an upright picture as `security.images.open_image` gives it; transparency shows white, as in training."""
    rgb = to_rgb(image)
    border = find_border(rgb)
    box = (border[0], border[1], rgb.width - border[2], rgb.height - border[3])
    small = _fitted(rgb.crop(box), MEASURE_SIDES[0])
    grey = small.convert("L")
    values = [_sharpness(_array(_fitted(grey, side))) for side in MEASURE_SIDES]
    channels = _array(_fitted(small, 256)).reshape(-1, 3)
    return Measures(
        rgb.width,
        rgb.height,
        image.mode,
        _transparent_share(image),
        border,
        float(_array(grey).std()),
        float((channels.max(axis=1) - channels.min(axis=1)).mean()),
        tuple(edges for edges, _ in values),
        tuple(sharpness for _, sharpness in values),
        _fingerprint(image, small, box),
    )


def fingerprint_of(image: Image.Image) -> Fingerprint:
    """The fingerprint that `measure` gives, without the rest."""
    rgb = to_rgb(image)
    border = find_border(rgb)
    box = (border[0], border[1], rgb.width - border[2], rgb.height - border[3])
    return _fingerprint(image, _fitted(rgb.crop(box), MEASURE_SIDES[0]), box)


def _fingerprint(image: Image.Image, small: Image.Image, box: Border) -> Fingerprint:
    """`small`: what is in the box, on white; where the picture is see-through, that says too little."""
    return fingerprint(
        _fitted(_comparable(image).crop(box), MEASURE_SIDES[0]) if image.has_transparency_data else small
    )


def find_border(rgb: Image.Image) -> Border:
    """Bars of one colour at the sides, as letterboxes and frames have them; zeros if there are none.

    A plain background is no border: where a border ends, the picture begins along the whole line.
    """
    scale = min(1.0, BORDER_SIDE / max(rgb.size))
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    small = rgb.resize(size, Image.Resampling.BOX) if scale < 1 else rgb
    pixels = numpy.asarray(small, dtype=numpy.int16)
    top, bottom = _bars(pixels)
    left, right = _bars(pixels[top : pixels.shape[0] - bottom].swapaxes(0, 1))
    found = (left, top, right, bottom)
    # one more pixel, where the copy's pixels mix border and picture
    widths = [round((width + (scale < 1)) / scale) if width else 0 for width in found]
    return widths[0], widths[1], widths[2], widths[3]


def _bars(pixels: NDArray[numpy.int16]) -> tuple[int, int]:
    """Rows at the top and at the bottom that belong to a border."""
    (top, top_edge), (bottom, bottom_edge) = _bar(pixels), _bar(pixels[::-1])
    if top and bottom:
        return (top, bottom) if top + bottom <= pixels.shape[0] * BORDER_MOST_SHARE else (0, 0)
    return (top if top_edge >= LONE_EDGE_SHARE else 0), (bottom if bottom_edge >= LONE_EDGE_SHARE else 0)


def _bar(pixels: NDArray[numpy.int16]) -> tuple[int, float]:
    """Rows at the top that are of one colour and end in a straight line, and how much of that line differs; or zeros."""
    height = pixels.shape[0]
    colour = numpy.median(pixels[0], axis=0)
    most = int(height * BORDER_MOST_SHARE)
    differs = (numpy.abs(pixels[:most] - colour) > BORDER_TOLERANCE).any(axis=2).mean(axis=1)
    ends = numpy.flatnonzero(differs >= EDGE_SHARE)
    rows = int(ends[0]) if ends.size else 0
    if rows < max(2, height * BORDER_LEAST_SHARE) or (differs[: rows - min(_RINGING, rows // 3)] > 0.01).any():
        return 0, 0.0
    return rows, float(differs[rows : rows + 3].max())  # the line itself may be mixed by scaling


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Shrunk to the area of a square of `side` pixels; a smaller picture as it is."""
    scale = sqrt(side * side / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _array(image: Image.Image) -> FloatArray:
    return numpy.asarray(image, dtype=numpy.float32)


def _sharpness(grey: FloatArray) -> tuple[float, float]:
    """Variance of the Laplacian in the sharpest tiles, as it is and as a share of the grey values' variance there.

    The variance of the Laplacian as a measure of focus: Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy" (ICPR 2000). Of the sharpest tiles, because a blurred background is no fault; as a share, because a
    blurred drawing in black and white has stronger edges than a sharp photo of fog.
    """
    if min(grey.shape) < 2 + _TILES:
        return 0.0, 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * inner
    edges, tones = _tiles(laplacian).var(axis=1), _tiles(inner).var(axis=1)
    sharpest = edges.argsort()[-_SHARPEST_TILES:]
    strength = float(edges[sharpest].mean())
    return strength, strength / (float(tones[sharpest].mean()) + 1)


def _tiles(values: FloatArray) -> FloatArray:
    """The values of _TILES x _TILES equal tiles, one tile a row."""
    height, width = (side // _TILES for side in values.shape)
    cut = values[: height * _TILES, : width * _TILES].reshape(_TILES, height, _TILES, width)
    return cut.swapaxes(1, 2).reshape(_TILES * _TILES, -1)


def _comparable(image: Image.Image) -> Image.Image:
    """Transparency filled with the mean colour of what is seen: two stickers are not alike because both are round."""
    pixels = _array(image.convert("RGBA")).reshape(-1, 4)
    weight = pixels[:, 3:].sum()
    mean = (pixels[:, :3] * pixels[:, 3:]).sum(axis=0) / weight if weight else numpy.full(3, 255.0)
    return to_rgb(image, (round(float(mean[0])), round(float(mean[1])), round(float(mean[2]))))


def _transparent_share(image: Image.Image) -> float:
    if not image.has_transparency_data:
        return 0.0
    histogram = image.convert("RGBA").getchannel("A").histogram()
    return sum(histogram[:_SEEN_THROUGH]) / sum(histogram)
