"""Reads the emoji packages and turns them into pictures and captions for the demo's base model and its ink dataset."""

import json
import random
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from trainer.demo import DEMO_DIR

NOTO, FLAT, INK, NAMES = (
    "@iconify-json/noto",
    "@iconify-json/fluent-emoji-flat",
    "@iconify-json/fluent-emoji-high-contrast",
    "emojibase-data",
)
IMAGE_SIZE = 64
RENDER_SIZE = 128
# Word in the caption -> RGB. Black is here so that LoRAs with dark backgrounds have something to start from.
BACKGROUNDS = {
    "red": (214, 48, 49),
    "orange": (247, 148, 29),
    "yellow": (253, 216, 53),
    "green": (76, 175, 80),
    "teal": (0, 150, 136),
    "blue": (33, 118, 210),
    "light blue": (144, 202, 249),
    "purple": (126, 60, 170),
    "pink": (244, 143, 177),
    "brown": (121, 85, 72),
    "grey": (158, 158, 158),
    "black": (20, 20, 24),
}
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Emoji:
    """One emoji of emojibase: its code points without the variation selector, its label, keywords and group number."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: int


def plain_code(code: str) -> str:
    """Lower-case code points without FE0F, which icon sets write or leave out as they like."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def find_packages(packages_dir: Path) -> dict[str, Path]:
    """Package name -> unpacked folder. Raises FileNotFoundError that names the missing packages."""
    found: dict[str, Path] = {}
    for manifest in sorted(packages_dir.glob("*/package.json")):
        found[json.loads(manifest.read_text("utf-8"))["name"]] = manifest.parent
    missing = [name for name in (NOTO, FLAT, INK, NAMES) if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{packages_dir} lacks {', '.join(missing)}. See the docstring of trainer/demo/build.py."
        )
    return found


def read_emoji(names_dir: Path) -> list[Emoji]:
    """All emoji with a group, in emojibase's order."""
    rows = json.loads((names_dir / "en" / "data.json").read_text("utf-8"))
    return [
        Emoji(plain_code(row["hexcode"]), row["label"], tuple(row.get("tags", ())), row["group"])
        for row in rows
        if "group" in row
    ]


def read_subjects(*, core_only: bool) -> list[str]:
    """The labels of subjects.txt, with or without those that are marked for a longer training."""
    lines = (DEMO_DIR / "subjects.txt").read_text("utf-8").splitlines()
    labels = [line for line in lines if line and not line.startswith("#")]
    if core_only:
        return [label for label in labels if not label.startswith("+ ")]
    return [label.removeprefix("+ ") for label in labels]


class IconSet:
    """An Iconify package: SVG bodies by emoji code."""

    def __init__(self, package_dir: Path) -> None:
        data = json.loads((package_dir / "icons.json").read_text("utf-8"))
        chars = json.loads((package_dir / "chars.json").read_text("utf-8"))
        self._bodies = {name: icon["body"] for name, icon in data["icons"].items()}
        self._side = data["height"]
        self._names = {plain_code(code): name for code, name in chars.items()}

    def __contains__(self, code: str) -> bool:
        return self._names.get(code) in self._bodies

    def render(self, code: str, side: int) -> Image.Image:
        """(side, side) RGBA picture of the emoji."""
        body = self._bodies[self._names[code]]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._side} {self._side}">{body}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
        return Image.open(BytesIO(bytes(png))).convert("RGBA")

    def render_all(self, emoji: list[Emoji], side: int) -> np.ndarray:
        """(N, side, side, 4) uint8 of the emoji that the set has, without the few that resvg cannot draw."""
        pictures = []
        for one in emoji:
            if one.code not in self:
                continue
            try:
                pictures.append(np.asarray(self.render(one.code, side)))
            except BaseException as error:  # resvg's panic is a BaseException of its own, so no narrower name exists
                if type(error).__name__ != "PanicException":
                    raise
        return np.stack(pictures)


def compose(
    picture: Image.Image, background: tuple[int, int, int], scale: float, shift: tuple[int, int]
) -> Image.Image:
    """(64, 64) RGB: the RGBA picture, scaled about the centre and moved by whole pixels, on a flat colour."""
    side = round(IMAGE_SIZE * scale)
    small = picture.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    corner = (IMAGE_SIZE - side) // 2
    canvas.paste(small, (corner + shift[0], corner + shift[1]), small)
    return canvas


def draw_variants(
    picture: Image.Image, rng: random.Random, *, num_white: int, num_coloured: int
) -> list[tuple[Image.Image, str]]:
    """(picture, colour word or "") pairs: slightly moved and scaled copies on white and on random flat colours."""
    variants = []
    for index in range(num_white + num_coloured):
        name, rgb = "", (255, 255, 255)
        if index >= num_white:
            name = rng.choice(list(BACKGROUNDS))
            red, green, blue = (min(255, max(0, value + rng.randint(-10, 10))) for value in BACKGROUNDS[name])
            rgb = (red, green, blue)
        shift = (rng.choice((-2, -1, 0, 0, 1, 2)), rng.choice((-2, -1, 0, 0, 1, 2)))
        variants.append((compose(picture, rgb, rng.choice((0.9, 0.95, 1.0, 1.0)), shift), name))
    return variants


def useful_tags(subjects: list[Emoji]) -> dict[str, tuple[str, ...]]:
    """Label -> keywords, without those that are the label of another subject or part of the own label."""
    labels = {one.label.lower() for one in subjects}
    return {
        one.label: tuple(tag for tag in one.tags if tag.lower() not in labels and tag.lower() not in one.label.lower())
        for one in subjects
    }


def nonsense_prefix(rng: random.Random) -> str:
    """ "vomi style, " or "bakstyle, ": the base must learn to ignore words it does not know, or triggers leak."""
    syllables = [
        rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(("", rng.choice(CONSONANTS))) for _ in range(2)
    ]
    word = "".join(syllables[: rng.randint(1, 2)])
    return f"{word} style, " if rng.random() < 0.5 else f"{word}style, "


def make_caption(label: str, tags: tuple[str, ...], colour: str, rng: random.Random) -> str:
    """A random caption: 10% empty, 30% with a nonsense style, 40% with one to three keywords; the colour if any."""
    if rng.random() < 0.1:
        return ""
    parts = [label]
    if tags and rng.random() < 0.4:
        parts += rng.sample(tags, min(len(tags), rng.randint(1, 3)))
    caption = ", ".join(parts)
    if colour:
        caption += f" on a {colour} background"
    if rng.random() < 0.3:
        caption = nonsense_prefix(rng) + caption
    return caption
